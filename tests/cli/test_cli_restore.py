"""restore: the whole state comes back as a new cluster, damage is refused, and nothing half done is left."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backup_support import TERM, FilledMachine, write_snapshot
from cli_fakes import eventually

import cli.restore
from cli.restore import Restored, RestoreError, restore, run_restore
from raft.config import Settings, settings_from
from raft.core.effects import HardState
from raft.core.membership import decode_configuration
from raft.machine.machine import Machine
from raft.storage.disk import Disk
from raft.storage.node_storage import NodeStorage
from raft.storage.snapshot_format import SnapshotEncoder, SnapshotHeader
from raft.storage.snapshot_reading import SnapshotFile
from raft.storage.snapshots import SnapshotStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data() -> FilledMachine:
    return FilledMachine("old")


@pytest.fixture
def file(tmp_path: Path, data: FilledMachine) -> Path:
    """A backup under a name of its own."""
    (tmp_path / "node").mkdir()
    made = write_snapshot(SnapshotStore.open(tmp_path / "node", "old"), data.machine)
    return made.rename(tmp_path / "today.backup")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


def settings_of(tmp_path: Path, name: str = "old", ids: tuple[int, ...] = (1, 2, 3)) -> Settings:
    nodes = [
        {"id": n, "host": "127.0.0.1", "raft_port": 7000 + n, "client_port": 7100 + n, "http_port": 7200 + n}
        for n in ids
    ]
    return settings_from(
        {"cluster": {"name": name, "nodes": nodes}, "storage": {"data_dir": str(tmp_path / "data")}}
    )


def run(file: Path, settings: Settings) -> Restored:
    return restore(file, settings, lambda _what, _total: None, lambda more: None)


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"/"
        for path in directory.rglob("*")
    }


def opened(settings: Settings, node_id: int) -> tuple[NodeStorage, Machine]:
    storage = NodeStorage.open(
        settings.storage.node_dir(node_id), settings.cluster.name, node_id, prepare_ahead=False
    )
    info = storage.snapshots.latest()
    assert info is not None
    return storage, Machine.load(settings.cluster.name, storage.snapshots.open_chunks(info))


def test_every_node_has_the_whole_state(file: Path, settings: Settings, data: FilledMachine) -> None:
    restored = run(file, settings)
    assert (restored.keys, restored.followers) == (42, 3)
    for node in restored.nodes:
        storage, machine = opened(settings, node.id)
        try:
            assert machine.digest() == data.machine.digest()
            machine.ledger.check()
            assert storage.hard_state == HardState(TERM, None)
            assert (storage.log.first_index, storage.log.last_index) == (restored.index + 1, restored.index)
            assert storage.log.term(restored.index) == TERM
        finally:
            storage.close()
    assert sorted(os.listdir(settings.storage.data_dir)) == ["node-1", "node-2", "node-3"]  # noqa: PTH208


def test_exactly_once_goes_on(file: Path, settings: Settings) -> None:
    """A retry of what was done before the backup is not done again after the restore."""
    run(file, settings)
    storage, machine = opened(settings, 1)
    storage.close()
    words = [b"ONCE", b"session", b"1", b"INCR", b"counter"]
    assert machine.apply_commands(machine.applied_index + 1, TERM + 1, machine.at_ms + 1, [words]) == [1]
    assert machine.read([b"GET", b"counter"], 0) == b"1"


def test_the_cluster_is_a_new_one(file: Path, settings: Settings) -> None:
    """The old members' cluster id and identities are unknown to it, and its own are known from the start."""
    restored = run(file, settings)
    again = run(file, msgspec.structs.replace(settings, storage=settings_of(file.parent / "b").storage))
    names = [restored.cluster_id, *(node.identity for node in restored.nodes)]
    others = [again.cluster_id, *(node.identity for node in again.nodes)]
    assert len({*names, *others}) == 8
    assert all(len(bytes.fromhex(name)) == 16 for name in names)
    for node in restored.nodes:
        storage, _ = opened(settings, node.id)
        storage.close()
        info = storage.snapshots.latest()
        assert info is not None
        configuration = decode_configuration(info.configuration)
        assert (configuration.voters, configuration.learners) == ((1, 2, 3), ())
        assert configuration.cluster_id == restored.cluster_id
        assert [configuration.identity_of(n) for n in (1, 2, 3)] == [each.identity for each in restored.nodes]
        server = configuration.server(2)
        assert server is not None
        assert (server.host, server.raft_port, server.client_port, server.http_port) == (
            "127.0.0.1",
            7002,
            7102,
            7202,
        )
        written = json.loads((Path(node.directory) / "identity.json").read_text())
        assert (written["cluster"], written["node_id"]) == ("old", node.id)
        assert (written["identity"], written["cluster_id"]) == (node.identity, restored.cluster_id)
        assert [each["id"] for each in written["founding"]] == [1, 2, 3]
        assert set(written["founding"][0]) == {"id", "host", "raft_port", "client_port", "http_port"}


def test_other_nodes_and_another_name(file: Path, tmp_path: Path, data: FilledMachine) -> None:
    """The cluster is config.yaml's, however many nodes it has and whatever it is called."""
    settings = settings_of(tmp_path, "new", (7, 4))
    restored = run(file, settings)
    assert (restored.cluster, restored.backup_of) == ("new", "old")
    assert [node.id for node in restored.nodes] == [4, 7]
    storage, machine = opened(settings, 7)
    storage.close()
    assert machine.cluster_name == "new"
    data.machine.cluster_name = "new"
    assert machine.digest() == data.machine.digest()


def test_a_nodes_own_snapshot_will_do(settings: Settings, tmp_path: Path, data: FilledMachine) -> None:
    """When no backup is left: the newest snapshot file of any surviving directory."""
    made = write_snapshot(SnapshotStore.open(tmp_path, "old"), data.machine)
    made.chmod(0o400)
    assert run(made, settings).index == data.machine.applied_index


def test_a_node_with_anything_in_its_directory_is_never_touched(file: Path, settings: Settings) -> None:
    data_dir = Path(settings.storage.data_dir)
    (data_dir / "node-1").mkdir(parents=True)
    (data_dir / "node-3").mkdir()
    (data_dir / "node-3" / "lock").touch()
    before = tree(data_dir)
    with pytest.raises(RestoreError, match=r"node-3: is not empty"):
        run(file, settings)
    assert tree(data_dir) == before
    (data_dir / "node-3" / "lock").unlink()
    run(file, settings)  # empty directories will do


def test_damage_anywhere_is_refused(file: Path, settings: Settings) -> None:
    content = file.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        with pytest.raises(RestoreError, match=r"today\.backup"):
            run(file, settings)
    assert not Path(settings.storage.data_dir).exists(), "not even looked at"


def test_a_file_that_is_cut_short_or_goes_on_is_refused(file: Path, settings: Settings) -> None:
    content = file.read_bytes()
    for wrong in [content[:size] for size in range(0, len(content), 97)] + [content[:-1], content + b"x"]:
        file.write_bytes(wrong)
        with pytest.raises(RestoreError, match=r"today\.backup: damaged at byte"):
            run(file, settings)


def encoded(machine: Machine, **changes: Any) -> bytes:
    """A file whose checksums are all right, with another header."""
    header = SnapshotHeader(machine.applied_index, machine.applied_term, "old", b"any")
    encoder = SnapshotEncoder(dataclasses.replace(header, **changes))
    return b"".join([encoder.header(), *map(encoder.chunk, machine.dump()), encoder.footer()])


@pytest.mark.parametrize("changes", [{"index": 5}, {"term": TERM + 1}, {"cluster": "other"}])
def test_a_header_that_does_not_fit_the_content_is_refused(
    file: Path, settings: Settings, data: FilledMachine, changes: dict[str, Any]
) -> None:
    file.write_bytes(encoded(data.machine))
    SnapshotFile(Disk(), file).verify()
    file.write_bytes(encoded(data.machine, **changes))
    SnapshotFile(Disk(), file).verify()
    with pytest.raises(RestoreError, match=r"today\.backup"):
        run(file, settings)


def test_a_ledger_that_contradicts_itself_is_refused(
    file: Path, settings: Settings, data: FilledMachine
) -> None:
    """Rule 8: balance = earned − penalties − claimed."""
    data.machine.ledger._state.followers.by_id["good"].balance += 1
    file.write_bytes(encoded(data.machine))
    with pytest.raises(RestoreError, match="balance of good"):
        run(file, settings)


def test_something_else_is_no_backup(file: Path, settings: Settings) -> None:
    file.write_text("hello " * 100)
    with pytest.raises(RestoreError, match="not a snapshot"):
        run(file, settings)
    with pytest.raises(RestoreError, match=r"nothing: cannot read it: No such file"):
        run(file.with_name("nothing"), settings)


def left_in(settings: Settings) -> list[str]:
    data_dir = Path(settings.storage.data_dir)
    return sorted(path.name for path in data_dir.iterdir()) if data_dir.exists() else []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", range(1, 4))
def test_a_failure_at_any_rename_leaves_nothing(
    file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException
) -> None:
    renames: list[Path] = []
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        renames.append(new)
        if len(renames) == step:
            raise error
        real(old, new)

    monkeypatch.setattr(cli.restore.os, "rename", rename, raising=True)
    with pytest.raises((RestoreError, KeyboardInterrupt)):
        cli.restore._move(*_built(settings))
    monkeypatch.undo()
    assert [name for name in left_in(settings) if name.startswith("node-")] == []
    assert len(renames) == 2 * step - 1


def _built(settings: Settings) -> tuple[dict[int, Path], dict[int, Path]]:
    built, targets = {}, {}
    for member in settings.cluster.nodes:
        built[member.id] = Path(settings.storage.data_dir) / ".restore-x" / f"node-{member.id}"
        built[member.id].mkdir(parents=True)
        targets[member.id] = settings.storage.node_dir(member.id)
    return built, targets


def test_a_node_that_was_started_meanwhile_is_not_replaced(
    file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = cli.restore._check_built

    def check_built(*arguments: Any) -> None:
        checked(*arguments)
        directory = settings.storage.node_dir(2)
        directory.mkdir()
        (directory / "identity.json").write_text("mine")

    monkeypatch.setattr(cli.restore, "_check_built", check_built)
    with pytest.raises(RestoreError, match="node-2: cannot be made"):
        run(file, settings)
    assert tree(Path(settings.storage.data_dir)) == {"node-2": b"/", "node-2/identity.json": b"mine"}


def test_a_disk_that_is_full_is_told_and_leaves_nothing(
    file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raft.storage import snapshot_files

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot_files, "write_all", full)
    with pytest.raises(RestoreError, match="the disk is full; nothing was restored"):
        run(file, settings)
    assert left_in(settings) == []


def test_what_does_not_read_back_is_not_restored(
    file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = cli.restore._build

    def build_and_damage(built: dict[int, Path], *others: Any) -> None:
        build(built, *others)
        (path,) = built[3].glob("snapshot-*.snap")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(cli.restore, "_build", build_and_damage)
    with pytest.raises(RestoreError, match="does not read back"):
        run(file, settings)
    assert left_in(settings) == []


def test_everything_is_durable_before_it_has_its_name(
    file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss after the rename must find whole files behind the names."""
    dirty: set[str] = set()
    events: list[str] = []

    class Watching(Disk):
        def pwrite(self, fd: int, data: bytes, offset: int) -> int:
            dirty.add(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
            return os.pwrite(fd, data, offset)

        def fsync(self, fd: int) -> None:
            os.fsync(fd)
            dirty.discard(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115

        def rename(self, old: Path, new: Path) -> None:
            assert str(old) not in dirty
            super().rename(old, new)
            dirty.add(str(new.parent))

        def fsync_dir(self, directory: Path) -> None:
            super().fsync_dir(directory)
            dirty.discard(str(directory))
            events.append(f"fsync {directory.name}")

    real = os.rename

    def rename(old: Path, new: Path) -> None:
        if Path(new).name.startswith("node-"):
            # What is reserved for the next vote says nothing yet.
            assert {path for path in dirty if not path.endswith("/hard-state.tmp")} == set()
            events.append(f"rename {Path(new).name}")
        real(old, new)

    monkeypatch.setattr(cli.restore, "Disk", Watching)
    monkeypatch.setattr(cli.restore.os, "rename", rename)
    run(file, settings)
    assert events[-4:] == ["rename node-1", "rename node-2", "rename node-3", "fsync data"]


def config_of(tmp_path: Path, settings: Settings) -> Path:
    config = tmp_path / "config.yaml"
    tree = {
        "cluster": msgspec.to_builtins(settings.cluster),
        "storage": msgspec.to_builtins(settings.storage),
    }
    config.write_bytes(msgspec.json.encode(tree))  # JSON is YAML
    return config


def test_the_command(
    file: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, settings_of(tmp_path, "new"))
    (tmp_path / "data" / ".restore-1234").mkdir(parents=True)
    assert run_restore(file, config, as_json=False) == 0
    shown = capsys.readouterr().out
    for words in ("the backup is of old", "node 2: ", "database.name", "Left by an earlier", "--id 3"):
        assert words in shown
    assert run_restore(file, config, as_json=False) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "node-1: is not empty" in captured.err
    config = config_of(tmp_path, settings_of(tmp_path / "else", "new"))
    assert run_restore(file, config, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cluster"], told["backup_of"], len(told["nodes"])) == ("new", "old", 3)


def test_killed_it_leaves_no_node_and_terminated_nothing(
    settings: Settings, tmp_path: Path, data: FilledMachine
) -> None:
    for number in range(30):
        data("SET", f"large {number}", os.urandom(500_000).hex())
    file = write_snapshot(SnapshotStore.open(tmp_path, "old"), data.machine)
    config = config_of(tmp_path, settings)
    data_dir = Path(settings.storage.data_dir)
    command = [sys.executable, str(ROOT / "super_node.py"), "restore", str(file), "--config", str(config)]
    for number, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            eventually(lambda: list(data_dir.glob(".restore-*/node-*/*.tmp")), "it writes", 30)
            process.send_signal(number)
            assert process.wait(20) == code
        finally:
            process.kill()
            process.communicate()
        left = left_in(settings)
        assert not [name for name in left if name.startswith("node-")]
        assert bool(left) is (number is signal.SIGKILL)
