"""`super_node.py backup FILE`: one consistent, checksummed snapshot of a live cluster in one file.

What was acknowledged before the command began is in it: a linearizable read through the node comes first, and
the snapshot must be of an entry at or behind it. The file is one of raft/storage/snapshot_format.py, byte for
byte what the node has on disk. It appears under its name only once every checksum has been read back.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from cli.link import Address, Link, LinkLost, client_address, error_text, whole_number
from cli.progress import Advance, Stage, Upto, ended_by_sigterm, progress_bar
from cli.status import ask_cluster, parse_info
from cli.verify import ReadOnlyDisk
from raft.config import load_settings
from raft.storage.disk import Disk
from raft.storage.errors import CorruptFileError, DiskFullError, StorageError
from raft.storage.snapshot_files import NewSnapshotFile
from raft.storage.snapshot_format import SnapshotHeader
from raft.storage.snapshot_reading import SnapshotFile

ASK_S = 5.0  # for one answer
TAKE_S = 660.0  # for a snapshot: the node gives its own child ten minutes
RESUMES = 6  # in a row without a new byte, then it is given up
RESUME_PAUSE_S = 0.5
TAKES = 3


class BackupError(Exception):
    """The backup failed; the text names the node or the file. Nothing is left behind."""


class NotOpenError(BackupError):
    """The node does not know the backup (any more)."""


class Backup(msgspec.Struct, frozen=True):
    """A finished backup: the state after entry `index` of `cluster`, as node `node` at `address` had it."""

    file: str
    cluster: str
    index: int
    term: int
    bytes: int
    node: str
    address: str
    seconds: float


class Source:
    """The node that the backup comes from. Every method raises BackupError, which names it."""

    def __init__(self, address: Address, node: str) -> None:
        self.address = address
        self.node = node
        self._link: Link | None = None

    def __str__(self) -> str:
        host, port = self.address
        return f"node {self.node} at {host}:{port}"

    def close(self) -> None:
        """Closes the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def take(self, floor: int) -> tuple[int, int, int]:
        """Has the node take a snapshot and opens it: (index, term, bytes). It covers entry `floor`."""
        for _ in range(TAKES):  # the one that it may be taking already began before our read
            try:
                with Link(self.address, TAKE_S) as link:
                    self._judge("RAFT SNAPSHOT", link.ask("RAFT", "SNAPSHOT"))
                opened = self.open()
            except LinkLost as reason:
                raise BackupError(f"{self}: lost while it took a snapshot: {reason}") from reason
            if opened[0] >= floor:
                return opened
            self.release(opened[0])
        raise BackupError(f"{self}: its newest snapshot is of entry {opened[0]}, wanted {floor} or later")

    def open(self) -> tuple[int, int, int]:
        """RAFT BACKUP OPEN: (index, term, bytes) of the newest snapshot. Raises LinkLost too."""
        answer = self._judge("RAFT BACKUP OPEN", self._connected().ask("RAFT", "BACKUP", "OPEN"))
        if not isinstance(answer, list) or len(answer) != 3 or not all(isinstance(n, int) for n in answer):
            raise BackupError(f"{self}: answers {answer!r:.100} to RAFT BACKUP OPEN")
        index, term, size = answer
        return index, term, size

    def read(self, index: int, offset: int) -> bytes:
        """The next piece; empty at the end. Raises NotOpenError, and LinkLost when the connection broke."""
        answer = self._connected().ask("RAFT", "BACKUP", "READ", str(index), str(offset))
        if (error := error_text(answer)) is not None and "no backup of entry" in error:
            raise NotOpenError(f"{self}: {error}")
        if not isinstance(self._judge("RAFT BACKUP READ", answer), bytes):
            raise BackupError(f"{self}: answers {answer!r:.100} to RAFT BACKUP READ")
        piece: bytes = answer
        return piece

    def release(self, index: int) -> None:
        """RAFT BACKUP CLOSE, if that is still possible: the node forgets by itself."""
        with contextlib.suppress(LinkLost):
            self._connected().ask("RAFT", "BACKUP", "CLOSE", str(index))

    def _connected(self) -> Link:
        if self._link is None:
            self._link = Link(self.address, ASK_S, text=False)
        return self._link

    def _judge(self, command: str, answer: Any) -> Any:
        error = error_text(answer)
        if error is not None:
            raise BackupError(f"{self}: {command}: {error}")
        return answer


# --- which node


def find_source(addresses: Sequence[Address]) -> tuple[Source, int]:
    """The first node that answers a linearizable read, and an entry that covers all that was acknowledged
    before. Raises BackupError naming each node and why it did not."""
    problems = []
    for address in addresses:
        host, port = address
        try:
            with Link(address, ASK_S) as link:
                # The second read is of a later turn: by then the node has published what the first one saw.
                for answer in (link.ask("DBSIZE"), link.ask("DBSIZE"), info := link.ask("RAFT", "INFO")):
                    if (error := error_text(answer)) is not None:
                        raise LinkLost(error)
        except LinkLost as reason:
            problems.append(f"{host}:{port}: {reason}")
            continue
        fields = parse_info(str(info))
        applied = max(0, whole_number(fields.get("applied_index", "")) or 0)
        return Source(address, fields.get("node_id", "?")), applied
    raise BackupError(f"no node answers a read: {'; '.join(problems)}")


def addresses_of(config: Path) -> list[Address]:
    """Where clients reach the nodes, followers first: the leader has enough to do. Raises ConfigError."""
    reports = ask_cluster(load_settings(config).cluster.nodes).nodes
    reports = tuple(
        sorted(reports, key=lambda each: (each.problem is not None, each.info.get("role") == "leader"))
    )
    return [client_address(each.member) for each in reports]


# --- the backup


def back_up(
    file: Path, addresses: Sequence[Address], *, force: bool, stage: Stage, advance: Advance
) -> Backup:
    """Writes the backup. Raises BackupError, also for a file that is there already unless force."""
    started = time.monotonic()
    _check_target(file, force)
    stage("asking", None)
    source, floor = find_source(addresses)
    try:
        stage(f"snapshot on node {source.node}", None)
        index, term, size = source.take(floor)
        try:
            header = _fetch(file, source, index, term, size, force, stage, advance)
        finally:
            source.release(index)
    finally:
        source.close()
    host, port = source.address
    seconds = round(time.monotonic() - started, 3)
    return Backup(str(file), header.cluster, index, term, size, source.node, f"{host}:{port}", seconds)


def _fetch(
    file: Path, source: Source, index: int, term: int, size: int, force: bool, stage: Stage, advance: Advance
) -> SnapshotHeader:
    partial = file.with_name(file.name + ".partial")
    new: NewSnapshotFile | None = None
    try:
        new = NewSnapshotFile(Disk(), partial)
        stage(f"reading from node {source.node}", size)
        for piece in _pieces(source, (index, term, size)):
            new.write(piece)
            advance(len(piece))
        stage("verifying", size)
        header = SnapshotFile(ReadOnlyDisk(), partial).verify(Upto(advance))  # read back, as `verify` does
        if (header.index, header.term, new.size) != (index, term, size):
            raise BackupError(f"{source}: sent another snapshot than it said; nothing was kept")
        _check_target(file, force)
        new.put_in_place(file)
    except CorruptFileError as error:
        raise BackupError(
            f"{source}: what it sent is damaged at byte {error.offset}: {error.reason}. Nothing was kept; "
            f"`verify` its data directory, and back up from another node"
        ) from error
    except (StorageError, DiskFullError) as error:
        raise BackupError(str(error)) from error
    finally:
        if new is not None and new.alive:
            new.discard()
    return header


def _pieces(source: Source, opened: tuple[int, int, int]) -> Iterator[bytes]:
    """The file's bytes in order. A connection that breaks is taken up again where it broke."""
    index, _, size = opened
    offset = failures = 0
    while True:
        try:
            piece = source.read(index, offset)
        except LinkLost as reason:
            failures = _count(source, failures, f"the connection broke at byte {offset} of {size}: {reason}")
            source.close()
            time.sleep(RESUME_PAUSE_S * failures)
            continue
        except NotOpenError as error:
            failures = _count(source, failures, str(error))
            _open_again(source, opened)
            continue
        if not piece and offset == size:
            return
        offset += len(piece)
        if not piece or offset > size:
            raise BackupError(f"{source}: its snapshot ends at byte {offset}, it said {size}")
        failures = 0
        yield piece


def _count(source: Source, failures: int, what: str) -> int:
    if failures == RESUMES:
        raise BackupError(f"{source}: {what}; given up after {failures} attempts to go on")
    return failures + 1


def _open_again(source: Source, opened: tuple[int, int, int]) -> None:
    """The node was started again, or has waited too long: its file may still be there."""
    with contextlib.suppress(LinkLost):
        found = source.open()
        if found != opened:
            source.release(found[0])
            raise BackupError(
                f"{source}: was started again in the middle; its newest snapshot is now of entry {found[0]}, "
                f"no longer of {opened[0]}: back up again"
            )


def _check_target(file: Path, force: bool) -> None:
    if file.is_dir():
        raise BackupError(f"{file}: is a directory, wanted the name of a file")
    if not file.parent.is_dir():
        raise BackupError(f"{file}: there is no directory {file.parent}")
    if file.exists() and not force:
        raise BackupError(f"{file}: exists; --force overwrites it")


# --- the command


def run_backup(file: Path, config: Path, connect: list[Address] | None, *, force: bool, as_json: bool) -> int:
    """Prints what was backed up; 0, or 1 with one line on standard error. Raises ConfigError."""
    try:
        with ended_by_sigterm(), progress_bar() as (stage, advance):
            addresses = connect if connect is not None else addresses_of(config)
            backup = back_up(file, addresses, force=force, stage=stage, advance=advance)
    except BackupError as error:
        print(f"super_node.py: backup: {error}", file=sys.stderr)
        return 1
    if as_json:
        sys.stdout.write(msgspec.json.encode(backup).decode() + "\n")
        sys.stdout.flush()
        return 0
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(
        f"[bold green]{escape(backup.file)}[/bold green]: {backup.bytes:,} bytes, every checksum verified, "
        f"in {backup.seconds} s\ncluster {escape(backup.cluster)} up to entry {backup.index} of term "
        f"{backup.term}, from node {escape(backup.node)} at {escape(backup.address)}\n"
        f"It holds all that was acknowledged before this command began. To use it: super_node.py restore "
        f"{escape(backup.file)}"
    )
    return 0
