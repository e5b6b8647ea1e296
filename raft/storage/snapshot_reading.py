"""Reading a complete snapshot file, wherever it lies: checked to the last byte, or raw, to be passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from raft.storage.disk import Disk
from raft.storage.errors import CorruptSnapshotError, FormatVersionError, StorageError
from raft.storage.record import FormatError, VersionMismatchError
from raft.storage.snapshot_format import VERSION, SnapshotDecoder, SnapshotHeader

READ_BYTES = 1 << 20

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def verified_pieces(
    disk: Disk, path: Path, decoder: SnapshotDecoder, on_progress: Progress | None = None
) -> Iterator[list[bytes]]:
    """The data of the chunks of a file, each verified, a few at a time; the file is complete and sound when
    the iterator has ended. Raises FormatError, VersionMismatchError, OSError on the way."""
    fd = disk.open(path)
    try:
        size, offset = disk.size(fd), 0
        while data := disk.pread(fd, READ_BYTES, offset):
            offset += len(data)
            yield decoder.feed(data)
            if on_progress is not None:
                on_progress(offset, size)
        decoder.end()
    finally:
        disk.close(fd)


class SnapshotFile:
    """A snapshot file under any name: a backup, or one of a node's. Owned by one thread."""

    def __init__(self, disk: Disk, path: Path) -> None:
        """Reads the header. Raises CorruptSnapshotError, FormatVersionError, StorageError."""
        self._disk = disk
        self.path = path
        decoder = SnapshotDecoder()
        for _ in self._checked(decoder, None):
            if decoder.header is not None:
                break
        assert decoder.header is not None  # it has one, or the reading has raised
        self.header: SnapshotHeader = decoder.header

    def chunks(self, on_progress: Progress | None = None) -> Iterator[bytes]:
        """The data of all chunks. What was read may be relied on only when the iterator has ended: then every
        byte was checked, and the end was there. Raises as the constructor does."""
        for pieces in self._checked(SnapshotDecoder(), on_progress):
            yield from pieces

    def verify(self, on_progress: Progress | None = None) -> SnapshotHeader:
        """Check every byte. Raises as the constructor does."""
        for _ in self._checked(SnapshotDecoder(), on_progress):
            pass
        return self.header

    def _checked(self, decoder: SnapshotDecoder, on_progress: Progress | None) -> Iterator[list[bytes]]:
        path = self.path
        try:
            yield from verified_pieces(self._disk, path, decoder, on_progress)
        except FormatError as error:
            raise CorruptSnapshotError(path, error.offset, error.reason) from error
        except VersionMismatchError as error:
            raise FormatVersionError(path, error.found, VERSION) from error
        except OSError as error:
            raise StorageError(f"{path}: cannot read the snapshot: {error.strerror or error}") from error


class RawReader:
    """The raw bytes of a snapshot file; it stays readable when it is pruned, until close()."""

    def __init__(self, disk: Disk, path: Path) -> None:
        """Raises StorageError."""
        self._disk = disk
        self._path = path
        try:
            self._fd = disk.open(path)
        except OSError as error:
            raise self._failed(error) from error

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to size bytes, fewer only at the end of the file. Raises StorageError."""
        try:
            return self._disk.pread(self._fd, size, offset)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Let go of the file. Once."""
        self._disk.close(self._fd)

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"{self._path}: cannot read the snapshot: {error}")
