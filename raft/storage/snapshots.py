"""The snapshots of one node: written, received, verified, kept (thesis chapter 5).

The disk format and what a crash leaves stand in snapshot_format.py.

The newest complete snapshot stands for the log's prefix. The last two are kept. If the newest was damaged on
disk, the one before (or none at all, for a log that begins at 1) may stand in for it, but only while the log
still holds everything in between: anything else would lose entries that this node has acknowledged.

Owned by the raft worker. A forked child uses its copy of the store to write one snapshot; the worker then
calls adopt().
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from raft.core.invariants import require
from raft.storage import segments
from raft.storage.disk import Disk
from raft.storage.errors import CorruptSnapshotError, FormatVersionError, IdentityError, StorageError
from raft.storage.record import FormatError, VersionMismatchError
from raft.storage.snapshot_files import NewSnapshotFile, SnapshotInfo, SnapshotReceiver, SnapshotWriter
from raft.storage.snapshot_format import (
    FOOTER_SIZE,
    HEADER_SIZE,
    MAX_CLUSTER,
    MAX_CONFIGURATION,
    VERSION,
    SnapshotDecoder,
    SnapshotHeader,
    decode_footer,
    decode_header,
    header_size,
    index_of,
    is_temporary,
    snapshot_name,
    temporary_name,
)
from raft.storage.snapshot_reading import Progress, RawReader, verified_pieces

logger = logging.getLogger(__name__)

__all__ = ["KEEP", "SnapshotInfo", "SnapshotReceiver", "SnapshotStore", "SnapshotWriter"]

KEEP = 2


class SnapshotStore:
    """The snapshot files of a data directory. Make one with SnapshotStore.open."""

    def __init__(self, disk: Disk, directory: Path, cluster: str) -> None:
        self._disk = disk
        self._directory = directory
        self.cluster = cluster
        self._latest: SnapshotInfo | None = None
        self._damaged: dict[int, CorruptSnapshotError] = {}
        self._readers: dict[Path, int] = {}
        self._receiver: SnapshotReceiver | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        cluster: str,
        *,
        disk: Disk | None = None,
        on_progress: Progress | None = None,
    ) -> SnapshotStore:
        """Find the newest snapshot, verifying every byte of it; remove what unfinished ones left behind.

        If the newest is damaged, falls back as the module's docstring says, with a warning. Call check_log()
        once the log is open. Raises CorruptSnapshotError, FormatVersionError, IdentityError (a snapshot of
        another cluster), StorageError.
        """
        store = cls(disk or Disk(), directory, cluster)
        try:
            store._remove_leftovers()
            store._recover(on_progress)
        except OSError as error:
            at = error.filename or directory
            raise StorageError(f"{at}: cannot read the snapshots: {error}") from error
        return store

    def latest(self) -> SnapshotInfo | None:
        """The newest complete snapshot; None if there is none."""
        return self._latest

    def check_log(self, last_index: int) -> None:
        """The log, now open, ends at last_index. Raises CorruptSnapshotError if it does not reach as far as a
        damaged snapshot did: falling back would forget what this node has acknowledged."""
        for index, error in self._damaged.items():
            if index > last_index and (self._latest is None or index > self._latest.index):
                raise CorruptSnapshotError(
                    error.file, error.offset, f"{error.reason}; the log ends at {last_index}, before it"
                )

    def writer(self, index: int, term: int, configuration: bytes) -> SnapshotWriter:
        """Begin a snapshot that covers all up to index. Raises DiskFullError, StorageError."""
        header = SnapshotHeader(index, term, self.cluster, configuration)
        return SnapshotWriter(self._new_file(index, incoming=False), header, self._finish)

    def receive(self, index: int, term: int) -> SnapshotReceiver:
        """Begin to receive one. An earlier receiver that has not finished is aborted. Raises as writer()."""
        if self._receiver is not None:
            self._receiver.abort()
        file = self._new_file(index, incoming=True)
        self._receiver = SnapshotReceiver(file, self.cluster, index, term, self._finish)
        return self._receiver

    def adopt(self, index: int) -> SnapshotInfo:
        """Take note of the snapshot of entry index, which a forked child has finished; returns the newest.

        Reads only header and footer: the child wrote the rest a moment ago. Raises StorageError.
        """
        if self._latest is not None and self._latest.index >= index:
            return self._latest
        path = self._directory / snapshot_name(index)
        try:
            info = self.verify(path) if index in self._damaged else self._peek(path)
            self._disk.fsync_dir(self._directory)  # the child did; but a child's word is not this node's
        except OSError as error:
            raise StorageError(f"{path}: cannot read the snapshot: {error}") from error
        self._damaged.pop(index, None)
        self._latest = info
        return info

    def discard_unfinished(self) -> None:
        """Remove what a child that failed has left. Raises StorageError."""
        try:
            self._remove_leftovers(incoming=False)
        except OSError as error:
            raise StorageError(f"{self._directory}: cannot remove an unfinished snapshot: {error}") from error

    def open_chunks(self, info: SnapshotInfo, on_progress: Progress | None = None) -> Iterator[bytes]:
        """The data of the chunks, each verified. Raises CorruptSnapshotError, StorageError on the way; what
        was read may be relied on only when the iterator has ended."""
        decoder = SnapshotDecoder()
        try:
            for data in verified_pieces(self._disk, info.path, decoder, on_progress):
                yield from data
        except (FormatError, VersionMismatchError) as error:
            raise CorruptSnapshotError(info.path, getattr(error, "offset", 0), str(error)) from error
        except OSError as error:
            raise StorageError(f"{info.path}: cannot read the snapshot: {error}") from error

    def read_at(self, info: SnapshotInfo, offset: int, size: int) -> bytes:
        """Up to size raw bytes of the file, fewer only at its end, for streaming it to a follower.

        The file stays open, and so readable even when it is pruned, until release(). Raises StorageError.
        """
        try:
            fd = self._readers.get(info.path)
            if fd is None:
                fd = self._readers[info.path] = self._disk.open(info.path)
            return self._disk.pread(fd, size, offset)
        except OSError as error:
            raise StorageError(f"{info.path}: cannot read the snapshot: {error}") from error

    def release(self, info: SnapshotInfo) -> None:
        """Nobody is sent this snapshot any more."""
        fd = self._readers.pop(info.path, None)
        if fd is not None:
            self._disk.close(fd)

    def reader(self, info: SnapshotInfo) -> RawReader:
        """The file's raw bytes, for somebody who reads at his own pace, whoever else is sent it or not.

        Raises StorageError.
        """
        return RawReader(self._disk, info.path)

    def prune(self, keep: int = KEEP) -> None:
        """Remove all but the newest `keep` sound snapshots. Raises StorageError."""
        if self._latest is None:
            return
        older = [(index, path) for index, path in self._list() if index < self._latest.index]
        sound = [index for index, _ in older if index not in self._damaged][: keep - 1]
        doomed = [(index, path) for index, path in older if index not in sound]
        try:
            for index, path in doomed:
                self._disk.unlink(path)
                self._damaged.pop(index, None)
            if doomed:
                self._disk.fsync_dir(self._directory)
        except OSError as error:
            raise StorageError(f"{self._directory}: cannot remove old snapshots: {error}") from error

    def close(self) -> None:
        """Close the files that were being read."""
        for fd in self._readers.values():
            self._disk.close(fd)
        self._readers.clear()

    # --- inside

    def _new_file(self, index: int, *, incoming: bool) -> NewSnapshotFile:
        return NewSnapshotFile(self._disk, self._directory / temporary_name(index, incoming=incoming))

    def _finish(self, file: NewSnapshotFile, header: SnapshotHeader) -> SnapshotInfo:
        latest = self._latest
        if latest is not None and header.index <= latest.index:
            same = header.index < latest.index or header.term == latest.term
            require(same, f"{latest.path}: has term {latest.term}, the new one term {header.term}")
            file.discard()
            return latest
        path = self._directory / snapshot_name(header.index)
        file.put_in_place(path)
        self._damaged.pop(header.index, None)
        self._latest = SnapshotInfo(header.index, header.term, header.configuration, path, file.size)
        return self._latest

    def _list(self) -> list[tuple[int, Path]]:
        """(index, path) of all snapshots, newest first."""
        found = []
        for name in self._disk.listdir(self._directory):
            index = index_of(name)
            if index is not None:
                found.append((index, self._directory / name))
        return sorted(found, reverse=True)

    def _remove_leftovers(self, *, incoming: bool = True) -> None:
        for name in self._disk.listdir(self._directory):
            if is_temporary(name) and (incoming or ".taking." in name):
                self._disk.unlink(self._directory / name)
        self._disk.fsync_dir(self._directory)  # a name found now must not vanish with a later power loss

    def _recover(self, on_progress: Progress | None) -> None:
        for index, path in self._list():
            try:
                self._latest = self.verify(path, on_progress)
                break
            except CorruptSnapshotError as error:
                self._damaged[index] = error
        if self._damaged:
            self._fall_back(max(self._damaged))

    def _fall_back(self, damaged: int) -> None:
        """The newest snapshot is damaged: refuse unless the log goes back to the one that stands in."""
        error = self._damaged[damaged]
        base = 0 if self._latest is None else self._latest.index
        firsts = [segments.first_index_of(name) for name in self._disk.listdir(self._directory)]
        first = min((each for each in firsts if each is not None), default=None)
        instead = f"the snapshot of entry {base}" if base else "no snapshot at all"
        if first is None or first > base + 1:
            begins = "there is no log" if first is None else f"the log begins at entry {first}"
            reason = f"{error.reason}; {instead} could stand in for it, but {begins}"
            raise CorruptSnapshotError(error.file, error.offset, reason)
        logger.error("%s. Going on with %s and the log, which still reaches back to it", error, instead)

    def verify(self, path: Path, on_progress: Progress | None = None) -> SnapshotInfo:
        """Read and check every byte of a snapshot file.

        Raises CorruptSnapshotError, FormatVersionError, IdentityError (of another cluster), OSError.
        """
        decoder = SnapshotDecoder()
        try:
            for _ in verified_pieces(self._disk, path, decoder, on_progress):
                pass
        except FormatError as error:
            raise CorruptSnapshotError(path, error.offset, error.reason) from error
        except VersionMismatchError as error:
            raise FormatVersionError(path, error.found, VERSION) from error
        assert decoder.header is not None  # complete, so it had one
        return self._info(path, decoder.header)

    def _info(self, path: Path, header: SnapshotHeader) -> SnapshotInfo:
        if header.cluster != self.cluster:
            raise IdentityError(
                f"{path}: is a snapshot of cluster {header.cluster!r}, this node is of {self.cluster!r}"
            )
        if path.name != snapshot_name(header.index):
            raise CorruptSnapshotError(path, 16, f"its header says that it covers entry {header.index}")
        fd = self._disk.open(path)
        try:
            size = self._disk.size(fd)
        finally:
            self._disk.close(fd)
        return SnapshotInfo(header.index, header.term, header.configuration, path, size)

    def _peek(self, path: Path) -> SnapshotInfo:
        """Header and footer only. Raises CorruptSnapshotError, OSError."""
        fd = self._disk.open(path)
        try:
            blob = self._disk.pread(fd, HEADER_SIZE + MAX_CLUSTER + MAX_CONFIGURATION, 0)
            end = max(0, self._disk.size(fd) - FOOTER_SIZE)
            footer = self._disk.pread(fd, FOOTER_SIZE, end)
        finally:
            self._disk.close(fd)
        try:
            size = header_size(blob[:HEADER_SIZE])
            if size is None or len(blob) < size or end < size:
                raise FormatError(len(blob), "the snapshot is cut short")
            decode_footer(footer, end)
            return self._info(path, decode_header(blob[:size]))
        except (FormatError, VersionMismatchError) as error:
            raise CorruptSnapshotError(path, getattr(error, "offset", 0), str(error)) from error
