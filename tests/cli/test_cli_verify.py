"""verify: sound directories, each kind of damage, a running node; nothing is ever changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.verify import run_verify
from raft.core.effects import HardState, LostEntries
from raft.core.entry import Entry
from raft.storage.lost_entries import encode_lost_entries
from raft.storage.node_storage import NodeStorage

ROOT = Path(__file__).resolve().parents[2]


def open_node(directory: Path) -> NodeStorage:
    return NodeStorage.open(directory, "test", 1, segment_bytes=600, prepare_ahead=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A stopped node with a log of several files and two snapshots."""
    made = tmp_path / "node-1"
    node = open_node(made)
    node.save_hard_state(HardState(3, 2))
    for index in range(1, 61):
        node.log.append([Entry(index, 1 + index // 30, 1, b"x" * 30)])
        node.log.sync()
    for index in (20, 40):
        writer = node.snapshots.writer(index, node.log.term(index), b"configuration")
        writer.write(b"the state " * 100)
        writer.commit()
    node.log.truncate_prefix(20)
    node.close()
    return made


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def report_of(directory: Path, capsys: pytest.CaptureFixture[str], code: int) -> dict[str, object]:
    before = contents(directory)
    assert run_verify(directory, as_json=True) == code
    assert contents(directory) == before, "verify changes nothing"
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def problems(report: dict[str, object]) -> dict[str, str]:
    files = report["files"]
    assert isinstance(files, list)
    return {each["file"]: each["problem"] for each in files if each["problem"]}


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


def logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("log-*.seg"))


def test_a_sound_directory(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(directory, capsys, 0)
    assert (report["sound"], report["node_id"], report["cluster"]) == (True, 1, "test")
    assert (report["problem"], report["notes"], problems(report)) == (None, [], {})
    files = report["files"]
    assert isinstance(files, list)
    whats = [each["what"] for each in files]
    assert whats[:4] == ["identity", "hard state", "snapshot", "snapshot"]
    assert whats.count("log") == len(logs(directory)) > 2
    told = {each["file"]: each["content"] for each in files}
    assert told["hard-state"] == "term 3, vote 2"
    assert told["snapshot-0000000000000040.snap"] == "up to entry 40, term 2"
    assert told[logs(directory)[-1].name].endswith("to 60")


def test_the_table(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verify(directory, as_json=False) == 0
    shown = capsys.readouterr().out
    for word in ("identity.json", "node 1 of test", "up to entry 20, term 1", "sound"):
        assert word in shown
    damage(directory / "hard-state", 20)
    assert run_verify(directory, as_json=False) == 1
    assert "NOT SOUND" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "identity.json",
        "hard-state",
        "snapshot-0000000000000020.snap",
        "snapshot-0000000000000040.snap",
    ],
)
def test_a_damaged_file_is_named(name: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(directory / name, 3)
    report = report_of(directory, capsys, 1)
    assert report["sound"] is False
    assert list(problems(report)) == [name]


@pytest.mark.parametrize("at", [3, 20, 40, 80, 150])
def test_a_damaged_log_is_refused_with_file_and_byte(
    at: int, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = logs(directory)[1]
    damage(path, at)
    report = report_of(directory, capsys, 1)
    assert f"{path}: damaged at byte" in str(report["problem"])


def test_a_node_that_recovers_is_sound_and_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "lost-entries").write_bytes(encode_lost_entries(LostEntries(50, 3)))
    report = report_of(directory, capsys, 0)
    assert report["notes"] == ["acknowledged entries from 50 on are lost: no vote before they are here again"]
    files = report["files"]
    assert isinstance(files, list)
    assert ("lost-entries", "from entry 50 on, in term 3") in [(f["file"], f["content"]) for f in files]
    damage(directory / "lost-entries", 20)
    assert set(problems(report_of(directory, capsys, 1))) == {"lost-entries"}


def test_a_missing_file_of_the_log_is_noticed(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs(directory)[1].unlink()
    assert "missing" in str(report_of(directory, capsys, 1)["problem"])


def test_a_gap_between_snapshot_and_log_is_noticed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in directory.glob("*.snap"):
        path.unlink()
    assert "missing before it" in str(report_of(directory, capsys, 1)["problem"])


def test_a_missing_identity_or_hard_state_is_noticed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (directory / "identity.json").read_bytes()
    (directory / "identity.json").unlink()
    assert "identity.json: missing" in str(report_of(directory, capsys, 1)["problem"])
    (directory / "identity.json").write_bytes(content)
    (directory / "hard-state").unlink()
    assert "lost" in str(report_of(directory, capsys, 1)["problem"])


def test_a_torn_tail_is_sound_and_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a crash leaves is no damage; the next start cuts it, verify does not."""
    path = logs(directory)[-1]
    used = len(path.read_bytes().rstrip(b"\0"))
    damage(path, used - 5)
    report = report_of(directory, capsys, 0)
    assert "torn tail" in str(report["notes"])


def test_all_damage_is_told_not_only_the_first(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(directory / "hard-state", 3)
    damage(directory / "snapshot-0000000000000020.snap", 100)
    damage(logs(directory)[0], 3)
    names = ["hard-state", "snapshot-0000000000000020.snap", logs(directory)[0].name]
    assert list(problems(report_of(directory, capsys, 1))) == names


def test_a_running_node_is_left_alone(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = open_node(directory)
    try:
        assert run_verify(directory, as_json=True) == 1
    finally:
        node.close()
    shown = capsys.readouterr()
    assert "a node is running here" in shown.err
    assert shown.out == ""
    assert run_verify(directory, as_json=True) == 0


@pytest.mark.parametrize(("where", "words"), [("nothing", "cannot read"), ("", "say which: node-1")])
def test_a_wrong_directory_is_told(
    where: str, words: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verify(directory.parent / where, as_json=False) == 1
    assert words in capsys.readouterr().err


def test_a_directory_of_something_else_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    assert run_verify(tmp_path, as_json=False) == 1
    assert "no node's data" in capsys.readouterr().err


def test_the_program(directory: Path) -> None:
    for code in (0, 1):
        done = subprocess.run(
            [sys.executable, ROOT / "super_node.py", "verify", str(directory), "--json"],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)["sound"] is (code == 0)
        damage(directory / "hard-state", 3)
