"""`super_node.py restore FILE`: the data directories of a new cluster from one snapshot file.

Every node of config.yaml gets a directory whose snapshot is that of FILE: a backup, or a node's own
snapshot-….snap. The cluster is a new one though it may bear the old name: a new random cluster id and new
identities, known to the configuration from the start, so that members of the old cluster are refused and the
restored nodes may vote at once.

All directories are built under <data_dir>/.restore-…, made durable, read back as a start would, and only then
renamed: what stands under node-<id> is whole, whenever this command is cut short.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from cli.progress import Advance, Stage, Upto, ended_by_sigterm, progress_bar
from cli.verify import ReadOnlyDisk, verify
from raft.config import Settings, load_settings
from raft.core.effects import HardState
from raft.core.membership import Configuration, Server, encode_configuration
from raft.machine.machine import Machine
from raft.machine.snapshot import SnapshotFormatError
from raft.storage import identity
from raft.storage.atomic_file import replace_file
from raft.storage.disk import Disk, ensure_directory
from raft.storage.errors import CorruptFileError, DiskFullError, StorageError
from raft.storage.hard_state import HardStateFile
from raft.storage.snapshot_reading import SnapshotFile
from raft.storage.snapshots import SnapshotStore

TEMPORARY = ".restore-"


class RestoreError(Exception):
    """Nothing was restored and nothing changed; the text names the file."""


class RestoredNode(msgspec.Struct, frozen=True):
    """One node's new directory."""

    id: int
    directory: str
    identity: str


class Restored(msgspec.Struct, frozen=True):
    """A new cluster, ready to be started: the state of `backup_of` after entry `index`.

    leftovers: what earlier calls that were cut short have left; to be removed by hand.
    """

    file: str
    cluster: str
    backup_of: str
    cluster_id: str
    index: int
    term: int
    keys: int
    followers: int
    nodes: tuple[RestoredNode, ...]
    leftovers: tuple[str, ...]


def restore(file: Path, settings: Settings, stage: Stage, advance: Advance) -> Restored:
    """Makes the directories of all of the settings' nodes. Raises RestoreError; then nothing has changed."""
    data_dir = Path(settings.storage.data_dir)
    targets = {member.id: settings.storage.node_dir(member.id) for member in settings.cluster.nodes}
    for directory in targets.values():
        _check_free(directory)
    leftovers = tuple(sorted(str(path) for path in data_dir.glob(f"{TEMPORARY}*")))
    snapshot, machine = _load(file, stage, advance)
    backup_of, machine.cluster_name = machine.cluster_name, settings.cluster.name
    configuration = new_configuration(settings)
    try:
        with _scratch(data_dir) as scratch:
            built = {node_id: scratch / f"node-{node_id}" for node_id in targets}
            _build(built, settings, configuration, machine, stage, advance)
            _check_built(built, stage, advance)
            _move(built, targets)
    except DiskFullError as error:
        raise RestoreError(f"{error}; nothing was restored") from error
    except (StorageError, OSError) as error:
        raise RestoreError(f"{error}") from error
    nodes = (
        RestoredNode(server.id, str(targets[server.id]), server.identity) for server in configuration.servers
    )
    header = snapshot.header
    return Restored(
        file=str(file),
        cluster=machine.cluster_name,
        backup_of=backup_of,
        cluster_id=configuration.cluster_id,
        index=header.index,
        term=header.term,
        keys=len(machine.kv.values),
        followers=sum(machine.ledger.counts().values()),
        nodes=tuple(nodes),
        leftovers=leftovers,
    )


def new_configuration(settings: Settings) -> Configuration:
    """The nodes of config.yaml, all with a vote, as a cluster that has never been: new random names."""
    servers = tuple(
        Server(each.id, each.host, each.raft_port, each.client_port, each.http_port, secrets.token_hex(16))
        for each in sorted(settings.cluster.nodes, key=lambda member: member.id)
    )
    return Configuration(tuple(server.id for server in servers), (), servers, secrets.token_hex(16))


def _check_free(directory: Path) -> None:
    try:
        if any(directory.iterdir()):
            raise RestoreError(
                f"{directory}: is not empty: restore never touches a node's data. Move it away, or set "
                f"another storage.data_dir. Nothing was changed"
            )
    except FileNotFoundError:
        return
    except OSError as error:
        raise RestoreError(f"{directory}: cannot look into it: {error.strerror}") from error


def _load(file: Path, stage: Stage, advance: Advance) -> tuple[SnapshotFile, Machine]:
    """The file, every byte of it verified, and the state in it."""
    try:
        size = file.stat().st_size
        stage("reading and verifying", size)
        snapshot = SnapshotFile(ReadOnlyDisk(), file)
        header = snapshot.header
        machine = Machine.load(header.cluster, snapshot.chunks(Upto(advance)))
    except CorruptFileError as error:
        raise RestoreError(
            f"{file}: damaged at byte {error.offset}: {error.reason}. Nothing was changed; take another "
            f"backup, or a snapshot-….snap of a node's directory"
        ) from error
    except OSError as error:
        raise RestoreError(f"{file}: cannot read it: {error.strerror}") from error
    except StorageError as error:
        raise RestoreError(str(error)) from error
    except SnapshotFormatError as error:  # also for a ledger that contradicts itself
        raise RestoreError(f"{file}: {error}. Nothing was changed") from error
    if (machine.applied_index, machine.applied_term) != (header.index, header.term):
        raise RestoreError(
            f"{file}: its header says entry {header.index} of term {header.term}, its content "
            f"entry {machine.applied_index} of term {machine.applied_term}. Nothing was changed"
        )
    return snapshot, machine


@contextlib.contextmanager
def _scratch(data_dir: Path) -> Iterator[Path]:
    """A directory beside the nodes', gone at the end with all that is still in it."""
    ensure_directory(Disk(), data_dir)
    scratch = data_dir / f"{TEMPORARY}{secrets.token_hex(4)}"
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build(
    built: dict[int, Path],
    settings: Settings,
    configuration: Configuration,
    machine: Machine,
    stage: Stage,
    advance: Advance,
) -> None:
    """Everything that a node's directory needs, durable on return. Raises StorageError, DiskFullError."""
    disk = Disk()
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    index, term = machine.applied_index, machine.applied_term
    writers = []
    for server in configuration.servers:
        directory = built[server.id]
        ensure_directory(disk, directory)
        _write_identity(disk, directory, settings, configuration, server, created_at)
        hard_state = HardStateFile(directory, disk)
        hard_state.load()
        hard_state.save(HardState(term, None))
        store = SnapshotStore.open(directory, machine.cluster_name, disk=disk)
        writers.append(store.writer(index, term, encode_configuration(configuration)))
    stage("writing", len(machine.kv.values) + len(machine.kv.expiries) + machine.ledger.row_count())
    for chunk in machine.dump(Upto(advance)):
        for writer in writers:
            writer.write(chunk)
    for writer in writers:
        writer.commit()


def _write_identity(
    disk: Disk,
    directory: Path,
    settings: Settings,
    configuration: Configuration,
    server: Server,
    created_at: str,
) -> None:
    """identity.json as a first start would make it, but that it knows its cluster already."""
    members = settings.cluster.nodes
    content = {
        "format_version": identity.VERSION,
        "cluster": settings.cluster.name,
        "node_id": server.id,
        "created_at": created_at,
        "identity": server.identity,
        "founding": [
            {name: getattr(each, name) for name in ("id", "host", "raft_port", "client_port", "http_port")}
            for each in members
        ],
        "cluster_id": configuration.cluster_id,
    }
    path = directory / identity.NAME
    replace_file(disk, path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def _check_built(built: dict[int, Path], stage: Stage, advance: Advance) -> None:
    """Reads back what was written, as `verify` and a start do. Raises RestoreError."""
    for node_id, directory in built.items():
        report = verify(directory, lambda total, n=node_id: stage(f"checking node {n}", total), advance)  # type: ignore[misc]
        if not report.sound:
            raise RestoreError(f"what was written does not read back, nothing was restored: {report.problem}")


def _move(built: dict[int, Path], targets: dict[int, Path]) -> None:
    """Gives the directories their names, durably. Renaming onto an empty directory replaces it, onto one that
    has got something meanwhile fails: then those already moved go back."""
    moved: list[int] = []
    try:
        for node_id, directory in built.items():
            os.rename(directory, targets[node_id])  # noqa: PTH104 - as Disk.rename
            moved.append(node_id)
    except BaseException as error:
        for node in moved:
            os.rename(targets[node], built[node])  # noqa: PTH104
        if not isinstance(error, OSError):
            raise
        raise RestoreError(
            f"{targets[node_id]}: cannot be made: {error.strerror}. Nothing was restored"
        ) from error
    Disk().fsync_dir(next(iter(targets.values())).parent)


# --- the command


def run_restore(file: Path, config: Path, *, as_json: bool) -> int:
    """Prints what was made and what to do next; 0, or 1 with one line on stderr. Raises ConfigError."""
    settings = load_settings(config)
    try:
        with ended_by_sigterm(), progress_bar() as (stage, advance):
            restored = restore(file, settings, stage, advance)
    except RestoreError as error:
        print(f"super_node.py: restore: {error}", file=sys.stderr)
        return 1
    if as_json:
        sys.stdout.write(msgspec.json.encode(restored).decode() + "\n")
        sys.stdout.flush()
    else:
        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
        console.print("\n".join(to_lines(restored, settings)))
    return 0


def to_lines(restored: Restored, settings: Settings) -> list[str]:
    """For people: what was made, and what to do next."""
    renamed = ""
    if restored.backup_of != restored.cluster:
        renamed = f" (the backup is of {escape(restored.backup_of)}: the data has the new name now)"
    lines = [
        f"[bold green]{escape(restored.cluster)}[/bold green]: restored from {escape(restored.file)}, as it "
        f"was after entry {restored.index} of term {restored.term}{renamed}",
        f"{restored.keys:,} keys, {restored.followers:,} followers; cluster id {restored.cluster_id}",
        *(f"node {node.id}: {escape(node.directory)}" for node in restored.nodes),
        "",
        "Next:",
        "1. Stop what still runs of the old cluster: its nodes are refused by the new ones, but would go on "
        "serving their own clients.",
        "2. Move each directory to its node's host, under storage.data_dir; each to one host only.",
        "3. MongoDB: set database.name to a new name on every node, or drop the old database "
        f"({escape(settings.database.name)}) before the first start: it may be ahead of the backup.",
        f"4. Start all nodes: {', '.join(f'super_node.py --id {node.id}' for node in restored.nodes)}.",
    ]
    if restored.leftovers:
        lines += [
            "",
            f"Left by an earlier restore that was cut short: remove {escape(', '.join(restored.leftovers))}",
        ]
    return lines
