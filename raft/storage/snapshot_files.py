"""A snapshot that is not there yet: being taken here, or coming in from a leader. See snapshots.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raft.storage.disk import Disk, is_full, write_all
from raft.storage.errors import DiskFullError, SnapshotRefusedError, StorageError
from raft.storage.record import FormatError, VersionMismatchError
from raft.storage.snapshot_format import SnapshotDecoder, SnapshotEncoder, SnapshotHeader

SYNC_BYTES = 1 << 20  # written between two fsyncs: the log's own fsyncs must not wait behind a whole snapshot


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A complete snapshot: covers all entries up to index, whose term is term. bytes: size of its file."""

    index: int
    term: int
    configuration: bytes
    path: Path
    bytes: int


class NewSnapshotFile:
    """A snapshot under its temporary name. After any error it is closed and removed."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self.path = path
        self.size = 0
        self._unsynced = 0
        self._fd: int | None = None
        with self._guard():
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(path)
            self._fd = disk.open(path, create=True)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            if is_full(error):
                raise DiskFullError(f"{self.path}: the disk is full") from error
            raise StorageError(f"{self.path}: cannot write the snapshot: {error}") from error

    @property
    def alive(self) -> bool:
        return self._fd is not None

    def write(self, data: bytes) -> None:
        """Append data; fsync now and then. Raises DiskFullError, StorageError."""
        fd = self._descriptor()
        with self._guard():
            write_all(self._disk, fd, data, self.size)
            self.size += len(data)
            self._unsynced += len(data)
            if self._unsynced >= SYNC_BYTES:
                self._disk.fdatasync(fd)
                self._unsynced = 0

    def put_in_place(self, path: Path) -> None:
        """Make the content durable, then the name, durable too on return. Raises as write()."""
        fd = self._descriptor()
        with self._guard():
            self._disk.fsync(fd)
            self._close()
            self._disk.rename(self.path, path)
        try:
            self._disk.fsync_dir(path.parent)
        except OSError as error:
            raise StorageError(f"{path}: cannot fsync its directory: {error}") from error

    def discard(self) -> None:
        """Close and remove it as far as possible; what remains is removed at the next start."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._disk.unlink(self.path)

    def _descriptor(self) -> int:
        if self._fd is None:
            raise StorageError(f"{self.path}: the snapshot was finished or given up before")
        return self._fd

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            self._disk.close(fd)


Finish = Callable[[NewSnapshotFile, SnapshotHeader], SnapshotInfo]


class SnapshotWriter:
    """One snapshot being taken. Exactly one commit() or abort() ends it; an error of write() does too."""

    def __init__(self, file: NewSnapshotFile, header: SnapshotHeader, finish: Finish) -> None:
        self._file = file
        self._header = header
        self._finish = finish
        self._encoder = SnapshotEncoder(header)
        self._file.write(self._encoder.header())

    def write(self, chunk: bytes) -> None:
        """Add a chunk of 1 to 262,144 bytes. Raises ValueError, DiskFullError, StorageError."""
        self._file.write(self._encoder.chunk(chunk))

    def commit(self) -> SnapshotInfo:
        """Finish the file, durably. Returns the newest snapshot: this one, unless a newer one (or this very
        one) came meanwhile. Raises DiskFullError, StorageError."""
        self._file.write(self._encoder.footer())
        return self._finish(self._file, self._header)

    def abort(self) -> None:
        """Give it up; a second call, or one after commit(), does nothing."""
        if self._file.alive:
            self._file.discard()


class SnapshotReceiver:
    """A snapshot coming in as the raw bytes of a leader's file, verified while it comes.

    Exactly one finish() or abort() ends it; an error does too. Bytes may come twice or from too far ahead.
    """

    def __init__(self, file: NewSnapshotFile, cluster: str, index: int, term: int, finish: Finish) -> None:
        self.index = index
        self.term = term
        self._file = file
        self._cluster = cluster
        self._finish = finish
        self._decoder = SnapshotDecoder()

    @property
    def received(self) -> int:
        """Bytes that are here: the offset that is wanted next."""
        return self._file.size

    @property
    def complete(self) -> bool:
        """Whether the snapshot's end has come: finish() is due."""
        return self._decoder.finished

    def write(self, offset: int, data: bytes) -> int:
        """Take the bytes at `offset` of the file. Returns the offset that is wanted next.

        What is here already is not taken again, and nothing is taken that would leave a gap: the sender goes
        on at the offset returned. Raises SnapshotRefusedError (the bytes are no sound snapshot of this
        cluster, index and term; nothing is kept), DiskFullError, StorageError.
        """
        if offset > self.received or offset + len(data) <= self.received:
            return self.received
        data = data[self.received - offset :]
        had_header = self._decoder.header is not None
        try:
            self._decoder.feed(data)
            if not had_header:
                self._check_header()
        except (FormatError, VersionMismatchError) as error:
            raise self._refuse(str(error)) from error
        self._file.write(data)
        return self.received

    def finish(self) -> SnapshotInfo:
        """Put the snapshot in place, durably. Returns the newest snapshot, which is another one if that is
        not older. Raises SnapshotRefusedError if the end has not come, DiskFullError, StorageError."""
        header = self._decoder.header
        if header is None or not self._decoder.finished:
            raise self._refuse(f"it ends after {self.received} bytes, before its end")
        return self._finish(self._file, header)

    def abort(self) -> None:
        """Give it up; a second call, or one after finish(), does nothing."""
        if self._file.alive:
            self._file.discard()

    def _check_header(self) -> None:
        header = self._decoder.header
        if header is None:
            return
        if header.cluster != self._cluster:
            raise self._refuse(f"it is of cluster {header.cluster!r}, this node of {self._cluster!r}")
        if (header.index, header.term) != (self.index, self.term):
            raise self._refuse(f"it covers entry {header.index}, term {header.term}")

    def _refuse(self, reason: str) -> SnapshotRefusedError:
        self.abort()
        return SnapshotRefusedError(f"snapshot of entry {self.index}, term {self.term} refused: {reason}")
