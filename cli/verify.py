"""`super_node.py verify DATA_DIR`: is everything that a stopped node has on disk sound? Changes nothing.

A file instead of a directory is taken for a backup (or a snapshot of a node's) and checked by itself.

Every file is looked at by itself, so that all damage is told and not only the first. The verdict is also that
of a real start: the node's own code opens the directory, over a disk that only reads.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raft.storage import hard_state, identity, lost_entries, segments, snapshot_format
from raft.storage.disk import Disk
from raft.storage.errors import (
    CorruptFileError,
    DirectoryLockedError,
    FormatVersionError,
    IdentityError,
    StorageError,
)
from raft.storage.node_storage import NodeStorage
from raft.storage.record import FormatError, VersionMismatchError, decode_header, scan_segment
from raft.storage.snapshot_reading import SnapshotFile
from raft.storage.snapshots import SnapshotStore

Advance = Callable[[int], None]  # so many more bytes are done


class FileReport(msgspec.Struct, frozen=True):
    """One file. what: identity, hard state, lost entries, log or snapshot; content: for people; problem: None
    if sound."""

    file: str
    what: str
    bytes: int
    content: str = ""
    problem: str | None = None


class DirectoryReport(msgspec.Struct, frozen=True):
    """A whole data directory. sound: a node would start from it; problem: why it would not; notes: what it
    would put right when it starts."""

    directory: str
    sound: bool
    node_id: int | None
    cluster: str | None
    problem: str | None
    notes: tuple[str, ...]
    files: tuple[FileReport, ...]


class ReadOnlyDisk(Disk):
    """Reads what is there; what a start would change is left undone, and writing is refused."""

    def open(self, path: Path, *, create: bool = False) -> int:
        if create:
            self._refuse(path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:  # noqa: ARG002 - as in Disk
        self._refuse(fd)

    def mkdir(self, directory: Path) -> None:
        self._refuse(directory)

    def rename(self, old: Path, new: Path) -> None:  # noqa: ARG002 - as in Disk
        self._refuse(new)

    def truncate(self, fd: int, length: int) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def fsync(self, fd: int) -> None: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync_dir(self, directory: Path) -> None: ...

    def lock(self, path: Path) -> int | None:
        """The lock is taken only if its file is there: without it nobody can hold it."""
        return super().lock(path) if path.exists() else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _refuse(self, what: object) -> NoReturn:
        raise PermissionError(f"verify changes nothing, but {what} was to be written")


def verify(directory: Path, on_total: Advance, advance: Advance) -> DirectoryReport:
    """Checks every checksum. on_total(bytes in all) first, then advance(more bytes).

    Raises DirectoryLockedError while a node runs there, StorageError if there is no such directory.
    """
    names = _data_files(directory)
    on_total(sum(_size(directory / name) for name in names))
    with _Held(directory):
        reports = [_check(directory, name, advance) for name in names]
    problem, notes, who = _start(directory)
    found = next((report.problem for report in reports if report.problem is not None), None)
    return DirectoryReport(
        directory=str(directory),
        sound=problem is None and found is None,
        node_id=None if who is None else who.node_id,
        cluster=None if who is None else who.cluster,
        problem=problem or found,
        notes=tuple(notes),
        files=tuple(reports),
    )


def verify_backup(file: Path, on_total: Advance, advance: Advance) -> DirectoryReport:
    """Checks every checksum of one snapshot file under any name. Raises StorageError if it cannot be read."""
    on_total(_size(file))
    done, cluster, content, problem = 0, None, "", None

    def on_progress(upto: int, _total: int) -> None:
        nonlocal done
        advance(upto - done)
        done = upto

    try:
        header = SnapshotFile(ReadOnlyDisk(), file).verify(on_progress)
        cluster, content = header.cluster, f"up to entry {header.index}, term {header.term}"
    except CorruptFileError as error:
        problem = f"damaged at byte {error.offset}: {error.reason}"
    except FormatVersionError as error:
        problem = str(error).removeprefix(f"{file}: ")
    report = FileReport(file.name, "snapshot", _size(file), content, problem)
    return DirectoryReport(str(file), problem is None, None, cluster, problem, (), (report,))


class _Held:
    """Holds the directory's lock, so that no node starts meanwhile."""

    def __init__(self, directory: Path) -> None:
        self._lock = identity.DirectoryLock(directory, ReadOnlyDisk())

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _data_files(directory: Path) -> list[str]:
    """The names of a node's files in a sensible order. Raises StorageError if this is no data directory."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are wanted, not paths
    except OSError as error:
        raise StorageError(f"{directory}: cannot read the directory: {error.strerror}") from error
    nodes = sorted(name for name in names if name.startswith("node-") and (directory / name).is_dir())
    if identity.NAME not in names and nodes:
        raise StorageError(
            f"{directory}: holds the directories of several nodes; say which: {', '.join(nodes)}"
        )
    logs = sorted(name for name in names if segments.first_index_of(name) is not None)
    snapshots = sorted(name for name in names if snapshot_format.index_of(name) is not None)
    small = (identity.NAME, hard_state.NAME, lost_entries.NAME)
    found = [name for name in small if name in names] + snapshots + logs
    if not found:
        raise StorageError(f"{directory}: there is no node's data in this directory")
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _start(directory: Path) -> tuple[str | None, list[str], identity.Identity | None]:
    """What a start would say: the problem, the notes and whose directory it is."""
    who = None
    try:
        path = directory / identity.NAME
        if not path.exists():
            raise IdentityError(f"{path}: missing: nobody can tell whose data this is")
        who = identity.decode_identity(path.read_bytes(), path)
        node = NodeStorage.open(
            directory, who.cluster, who.node_id, fsync=False, disk=ReadOnlyDisk(), prepare_ahead=False
        )
    except DirectoryLockedError:
        raise
    except (StorageError, OSError) as error:
        return str(error), [], who
    notes = [note for note in (node.log.torn_tail,) if note is not None]
    if node.lost_entries is not None:
        first = node.lost_entries.from_index
        notes.append(f"acknowledged entries from {first} on are lost: no vote before they are here again")
    node.close()
    return None, notes, who


def _check(directory: Path, name: str, advance: Advance) -> FileReport:
    """One file by itself."""
    path = directory / name
    size = _size(path)
    what, check = "log", _check_segment
    if name == identity.NAME:
        what, check = "identity", _check_identity
    elif name == hard_state.NAME:
        what, check = "hard state", _check_hard_state
    elif name == lost_entries.NAME:
        what, check = "lost entries", _check_lost_entries
    elif snapshot_format.index_of(name) is not None:
        what, check = "snapshot", _check_snapshot
    try:
        content, problem = check(path, advance), None
    except CorruptFileError as error:
        content, problem = "", f"damaged at byte {error.offset}: {error.reason}"
    except (StorageError, OSError) as error:
        content, problem = "", str(error).removeprefix(f"{path}: ")
    return FileReport(name, what, size, content, problem)


def _check_identity(path: Path, advance: Advance) -> str:
    content = path.read_bytes()
    advance(len(content))
    who = identity.decode_identity(content, path)
    return f"node {who.node_id} of {who.cluster}"


def _check_hard_state(path: Path, advance: Advance) -> str:
    content = path.read_bytes()
    advance(len(content))
    state = hard_state.decode_hard_state(content, path)
    return f"term {state.term}, vote {'none' if state.voted_for is None else state.voted_for}"


def _check_lost_entries(path: Path, advance: Advance) -> str:
    content = path.read_bytes()
    advance(len(content))
    lost = lost_entries.decode_lost_entries(content, path)
    return f"from entry {lost.from_index} on, in term {lost.term}"


def _check_snapshot(path: Path, advance: Advance) -> str:
    done = 0

    def on_progress(now: int, _total: int) -> None:
        nonlocal done
        advance(now - done)
        done = now

    with path.open("rb") as file:
        head = file.read(snapshot_format.HEADER_SIZE + snapshot_format.MAX_CLUSTER)
    length = int.from_bytes(head[32:36], "little")
    cluster = head[snapshot_format.HEADER_SIZE :][:length].decode("utf-8", "replace")
    info = SnapshotStore(ReadOnlyDisk(), path.parent, cluster).verify(path, on_progress)
    return f"up to entry {info.index}, term {info.term}"


def _check_segment(path: Path, advance: Advance) -> str:
    blob = path.read_bytes()
    try:
        first, _ = decode_header(blob)
        if path.name != segments.segment_name(first):
            raise FormatError(0, f"its header says that it begins with entry {first}")
        scan = scan_segment(blob, first, 0)
    except FormatError as error:
        raise CorruptFileError(path, error.offset, error.reason) from error
    except VersionMismatchError as error:
        raise StorageError(f"{path}: has format version {error.found}") from error
    finally:
        advance(len(blob))
    count = len(scan.offsets)
    text = f"entries {first} to {first + count - 1}" if count else "no entries"
    # Whether a bad record is a torn tail or damage is for the start to say, which sees all files.
    return text if scan.fault is None else f"{text}; then byte {scan.end}: {scan.fault}"


def run_verify(directory: Path, *, as_json: bool) -> int:
    """Prints the report; 0 if all is sound, else 1 (also when a node is running there)."""
    storage_log = logging.getLogger("raft.storage")
    level = storage_log.level
    storage_log.setLevel(logging.CRITICAL)  # the report says it better
    try:
        return _run(directory, as_json)
    finally:
        storage_log.setLevel(level)


def _run(directory: Path, as_json: bool) -> int:
    console = Console(stderr=True)
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=None)
            report = (verify_backup if directory.is_file() else verify)(
                directory,
                lambda total: progress.update(task, total=total),
                lambda more: progress.advance(task, more),
            )
    except DirectoryLockedError:
        print(f"super_node.py: {directory}: a node is running here; stop it first", file=sys.stderr)
        return 1
    except StorageError as error:
        print(f"super_node.py: {error}", file=sys.stderr)
        return 1
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.flush()
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(to_table(report))
    return 0 if report.sound else 1


def to_table(report: DirectoryReport) -> Table:
    """The table for people."""
    lines = [escape(note) for note in report.notes]
    title = f"{report.directory}: node {report.node_id} of {report.cluster}"
    if report.node_id is None and report.cluster is not None:
        title = f"{report.directory}: backup of {report.cluster}"
    verdict = "sound" if report.sound else f"NOT SOUND: {escape(report.problem or '')}"
    table = Table(
        title=escape(title),
        caption="\n".join([*lines, verdict]),
        caption_style="bold green" if report.sound else "bold red",
    )
    for name in ("file", "what", "bytes", "content"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    for file in report.files:
        content = (
            escape(file.content) if file.problem is None else f"[bold red]{escape(file.problem)}[/bold red]"
        )
        table.add_row(escape(file.file), file.what, f"{file.bytes:,}", content)
    return table
