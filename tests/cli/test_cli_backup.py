"""backup: what is in the file, what a broken connection does, and that nothing half done is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_support import SnapshotNode, write_snapshot
from cli_fakes import Encoded, FakeCluster, FakeError, eventually, fake_cluster

import cli.backup
from cli.backup import BackupError, back_up, run_backup
from cli.link import Address
from cli.verify import run_verify
from raft.machine.machine import Machine
from raft.runtime.backups import PIECE_BYTES
from raft.storage.disk import Disk
from raft.storage.snapshot_reading import SnapshotFile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster(0) as made:
        yield made


@pytest.fixture
def node(cluster: FakeCluster, tmp_path: Path) -> SnapshotNode:
    (tmp_path / "node").mkdir()
    return SnapshotNode(cluster, tmp_path / "node")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "today.snap"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.backup, "RESUME_PAUSE_S", 0.001)
    monkeypatch.setattr(cli.backup, "ASK_S", 2.0)


def take(file: Path, *addresses: Address, force: bool = False) -> Any:
    done = [0, 0]
    stages: list[tuple[str, int | None]] = []

    def advance(more: int) -> None:
        assert more > 0
        done[1] += more

    backup = back_up(file, addresses, force=force, stage=lambda *stage: stages.append(stage), advance=advance)
    assert done[1] == sum(total for _, total in stages if total is not None), "the bar comes to its end"
    return backup


def names_beside(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


def load(file: Path) -> Machine:
    return Machine.load("old", SnapshotFile(Disk(), file).chunks())


def large(node: SnapshotNode) -> None:
    """So much data that the backup takes several pieces."""
    node.data("SET", "large", os.urandom(2 * PIECE_BYTES).hex())


def test_the_file_is_the_snapshot(node: SnapshotNode, file: Path) -> None:
    large(node)
    backup = take(file, node.address)
    newest = node.store.latest()
    assert newest is not None
    assert file.read_bytes() == newest.path.read_bytes()
    assert load(file).digest() == node.data.machine.digest()
    assert (backup.index, backup.term, backup.bytes) == (newest.index, newest.term, newest.bytes)
    assert (backup.cluster, backup.node, backup.file) == ("old", "1", str(file))
    assert names_beside(file) == [file.name]
    assert file.stat().st_mode & 0o77 == 0, "for its owner only: it holds everything"


def test_it_reads_first_and_lets_go_at_the_end(node: SnapshotNode, file: Path) -> None:
    take(file, node.address)
    asked = [" ".join(words[:3]) for words in node.asked if words[0] != "CLIENT"]
    assert asked[0] == "DBSIZE"
    assert asked.index("RAFT SNAPSHOT") < asked.index("RAFT BACKUP OPEN")
    assert asked[-1].startswith("RAFT BACKUP CLOSE")
    assert node.backups._open == {}


def test_a_snapshot_that_was_begun_before_the_read_is_not_enough(node: SnapshotNode, file: Path) -> None:
    """The node may be in the middle of taking one: its OK is then for a state before our read."""
    stale: list[str] = []

    def before(words: tuple[str, ...]) -> Any:
        if words == ("RAFT", "SNAPSHOT") and not stale:
            stale.append("yes")
            return "OK"
        return ...

    write_snapshot(node.store, node.data.machine)
    node.data("SET", "acknowledged", "before the backup")
    node.before = before
    backup = take(file, node.address)
    assert backup.index == node.data.machine.applied_index
    assert load(file).kv.values[b"acknowledged"] == b"before the backup"


def test_a_node_that_never_takes_one_is_an_error(node: SnapshotNode, file: Path) -> None:
    write_snapshot(node.store, node.data.machine)
    node.data("SET", "a", "b")
    node.before = lambda words: "OK" if words == ("RAFT", "SNAPSHOT") else ...
    with pytest.raises(BackupError, match=r"node 1 at .* newest snapshot is of entry \d+, wanted"):
        take(file, node.address)
    assert names_beside(file) == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(node: SnapshotNode, file: Path) -> None:
    large(node)
    reads: list[int] = []

    def before(words: tuple[str, ...]) -> Any:
        if words[:3] == ("RAFT", "BACKUP", "READ"):
            reads.append(int(words[4]))
            if len(reads) in (2, 3):
                raise OSError("the connection is cut")  # the fake node then answers nothing
        return ...

    node.before = before
    cli.backup.ASK_S = 0.2
    take(file, node.address)
    assert load(file).digest() == node.data.machine.digest()
    assert reads[:4] == [0, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES]


def test_a_newer_snapshot_in_the_middle_does_not_matter(node: SnapshotNode, file: Path) -> None:
    large(node)
    digest = node.data.machine.digest()
    seen: list[int] = []

    def before(words: tuple[str, ...]) -> Any:
        if words[:3] == ("RAFT", "BACKUP", "READ"):
            seen.append(1)
            if len(seen) == 2:
                for number in range(3):
                    node.data("SET", "later", number)
                    write_snapshot(node.store, node.data.machine)
                node.store.prune()
                raise OSError("and the connection is cut")
        return ...

    node.before = before
    cli.backup.ASK_S = 0.2
    take(file, node.address)
    assert load(file).digest() == digest


@pytest.mark.parametrize("same", [True, False])
def test_a_node_that_was_started_again_in_the_middle(node: SnapshotNode, file: Path, same: bool) -> None:
    """Its newest snapshot is the same file, or the backup cannot be finished."""
    large(node)
    seen: list[int] = []

    def before(words: tuple[str, ...]) -> Any:
        if words[:3] == ("RAFT", "BACKUP", "READ"):
            seen.append(1)
            if len(seen) == 2:
                node.backups.close()
                if not same:
                    node.data("SET", "later", 1)
                    write_snapshot(node.store, node.data.machine)
        return ...

    node.before = before
    if same:
        take(file, node.address)
        assert load(file).digest() == node.data.machine.digest()
    else:
        with pytest.raises(BackupError, match="started again in the middle"):
            take(file, node.address)
        assert names_beside(file) == []


def test_a_node_that_stays_away_is_an_error(node: SnapshotNode, file: Path) -> None:
    large(node)

    def before(words: tuple[str, ...]) -> Any:
        if words[:3] == ("RAFT", "BACKUP", "READ") and words[4] != "0":
            node.node.die_after_this()
            raise OSError("gone")
        return ...

    node.before = before
    with pytest.raises(BackupError, match=rf"node 1 at .*: the connection broke at byte {PIECE_BYTES} of"):
        take(file, node.address)
    assert names_beside(file) == []


@pytest.mark.parametrize("at", [20, 5000, 1_500_000, -3])
def test_damage_on_the_way_is_never_kept(node: SnapshotNode, file: Path, at: int) -> None:
    def before(words: tuple[str, ...]) -> Any:
        if words[:3] == ("RAFT", "BACKUP", "READ"):
            content = bytearray(node.store.latest().path.read_bytes())  # type: ignore[union-attr]
            content[at] ^= 4
            piece = bytes(content[int(words[4]) :][:PIECE_BYTES])
            return Encoded(b"$%d\r\n%b\r\n" % (len(piece), piece))
        return ...

    node.data("SET", "large", os.urandom(1_000_000).hex())
    node.before = before
    file.write_bytes(b"the backup of yesterday")
    with pytest.raises(BackupError, match=r"node 1 at .* damaged at byte"):
        take(file, node.address, force=True)
    assert names_beside(file) == [file.name]
    assert file.read_bytes() == b"the backup of yesterday"


def test_a_snapshot_shorter_than_it_says_is_an_error(node: SnapshotNode, file: Path) -> None:
    def before(words: tuple[str, ...]) -> Any:
        if words[:3] == ("RAFT", "BACKUP", "READ") and words[4] != "0":
            return Encoded(b"$0\r\n\r\n")
        return ...

    large(node)
    node.before = before
    with pytest.raises(BackupError, match=rf"ends at byte {PIECE_BYTES}, it said"):
        take(file, node.address)


def test_an_existing_file_is_kept_unless_forced(node: SnapshotNode, file: Path) -> None:
    file.write_bytes(b"precious")
    with pytest.raises(BackupError, match=r"today\.snap: exists; --force"):
        take(file, node.address)
    assert file.read_bytes() == b"precious"
    assert node.asked == []
    take(file, node.address, force=True)
    assert load(file).digest() == node.data.machine.digest()


def test_a_file_that_comes_meanwhile_is_kept_too(node: SnapshotNode, file: Path) -> None:
    def before(words: tuple[str, ...]) -> Any:
        if words == ("RAFT", "SNAPSHOT"):
            file.write_bytes(b"precious")
        return ...

    node.before = before
    with pytest.raises(BackupError, match="exists"):
        take(file, node.address)
    assert file.read_bytes() == b"precious"
    assert names_beside(file) == [file.name]


@pytest.mark.parametrize(("name", "words"), [("", "is a directory"), ("no/such", "there is no directory")])
def test_a_wrong_file_is_told(node: SnapshotNode, file: Path, name: str, words: str) -> None:
    with pytest.raises(BackupError, match=words):
        take(file.parent / name, node.address)


def test_the_first_node_that_can_read_is_asked(cluster: FakeCluster, tmp_path: Path, file: Path) -> None:
    nodes = []
    for number in (1, 2, 3):
        (tmp_path / str(number)).mkdir()
        nodes.append(SnapshotNode(cluster, tmp_path / str(number), number))
    nodes[0].node.kill()
    nodes[1].before = lambda words: FakeError("CLUSTERDOWN no leader") if words == ("DBSIZE",) else ...
    assert take(file, *(node.address for node in nodes)).node == "3"
    nodes[2].before = nodes[1].before
    with pytest.raises(BackupError, match=r"no node answers a read: .*refused.*CLUSTERDOWN.*CLUSTERDOWN"):
        take(file, *(node.address for node in nodes), force=True)


def test_an_error_of_the_node_is_told_with_its_name(node: SnapshotNode, file: Path) -> None:
    node.before = lambda words: FakeError("ERR the disk is full") if words == ("RAFT", "SNAPSHOT") else ...
    with pytest.raises(BackupError, match=r"node 1 at 127\.0\.0\.1:\d+: RAFT SNAPSHOT: .*the disk is full"):
        take(file, node.address)


def config_of(tmp_path: Path, *nodes: SnapshotNode) -> Path:
    members = [
        f"{{id: {node.node_id}, host: 127.0.0.1, raft_port: {10 + number}, client_port: {node.address[1]}, "
        f"http_port: {20 + number}}}"
        for number, node in enumerate(nodes)
    ]
    config = tmp_path / "config.yaml"
    config.write_text(f"cluster: {{nodes: [{', '.join(members)}]}}\n")
    return config


def test_the_command(
    node: SnapshotNode, cluster: FakeCluster, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    leader = SnapshotNode(cluster, tmp_path / "other", 2, role="leader")
    config = config_of(tmp_path, leader, node)
    assert run_backup(file, config, None, force=False, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["node"], told["index"]) == ("1", node.data.machine.applied_index), "a follower comes first"
    assert run_backup(file, config, None, force=False, as_json=False) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "exists; --force" in captured.err
    assert run_backup(file, config, [leader.address], force=True, as_json=False) == 0
    assert "every checksum verified" in capsys.readouterr().out
    assert run_verify(file, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["sound"], report["cluster"]) == (True, "old")
    assert report["files"][0]["content"] == f"up to entry {told['index']}, term 4"
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    assert run_verify(file, as_json=False) == 1
    assert "NOT SOUND: damaged at byte" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(
    node: SnapshotNode, file: Path, number: signal.Signals, tmp_path: Path
) -> None:
    large(node)
    held: list[bool] = []

    def before(words: tuple[str, ...]) -> Any:
        if words[:3] == ("RAFT", "BACKUP", "READ") and words[4] != "0" and not held:
            held.append(True)
            raise OSError("no answer: the program waits")
        return ...

    node.before = before
    host, port = node.address
    command = [sys.executable, ROOT / "super_node.py", "backup", file, "--connect", f"{host}:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        eventually(lambda: held, "the backup is in the middle", 30)
        assert names_beside(file) == [f"{file.name}.partial"]
        process.send_signal(number)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()
    assert names_beside(file) == []
    eventually(lambda: node.backups._open == {}, "the node is told")
