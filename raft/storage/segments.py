"""One segment file of the log: how it is made, cut, removed and read. The format stands in record.py.

Owned by the log store's thread, except new_file(), which the preparer thread calls too.
"""

from __future__ import annotations

import contextlib
import re
from array import array
from dataclasses import dataclass
from pathlib import Path

from raft.core.entry import Entry
from raft.storage.disk import Disk, write_all, write_zeros
from raft.storage.errors import CorruptLogError, StorageError
from raft.storage.record import HEADER_SIZE, FormatError, decode_records, encode_header

_NAME = re.compile(r"log-(\d{16,20})\.seg")
_TEMPORARY = re.compile(r"prealloc-\w+\.tmp")
_BLOCK = 4096


def segment_name(first_index: int) -> str:
    """The file name of the segment that begins with this entry."""
    return f"log-{first_index:016d}.seg"


def first_index_of(name: str) -> int | None:
    """The inverse of segment_name; None for any other file name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_temporary(name: str) -> bool:
    """Whether a file is a segment to come, which means nothing and may be deleted."""
    return _TEMPORARY.fullmatch(name) is not None


@dataclass(slots=True)
class NewFile:
    """A zero-filled, fsynced file without a name in the log yet. size in bytes."""

    path: Path
    fd: int
    size: int


@dataclass(slots=True, eq=False)
class Segment:
    """A segment with its sparse index. offsets[i] is where record first_index + i begins; end is behind the
    last; capacity is how far records may reach. fd is None when the file is not open."""

    path: Path
    first_index: int
    offsets: array[int]
    end: int
    capacity: int
    fd: int | None

    @property
    def last_index(self) -> int:
        """Of its last entry; first_index - 1 when it has none."""
        return self.first_index + len(self.offsets) - 1

    def cut_position(self, from_index: int) -> int:
        """The byte at which the file must be cut to lose from_index and everything behind it."""
        position = from_index - self.first_index
        return self.offsets[position] if position < len(self.offsets) else self.end


def new_file(disk: Disk, path: Path, size: int) -> NewFile:
    """Make a zero-filled, fsynced file. Raises OSError (ENOSPC when full), leaving no file behind.

    Overwriting blocks that were written and fsynced before costs the later fdatasync about half of what it
    costs for a file that grows: there is no metadata left to write.
    """
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)
    fd = disk.open(path, create=True)
    try:
        write_zeros(disk, fd, size)
    except BaseException:
        discard(disk, NewFile(path, fd, size))
        raise
    return NewFile(path, fd, size)


def discard(disk: Disk, file: NewFile) -> None:
    """Close and remove a temporary file as far as possible; what remains is removed at the next start."""
    with contextlib.suppress(OSError):
        disk.close(file.fd)
    with contextlib.suppress(OSError):
        disk.unlink(file.path)


def size_for(segment_bytes: int, first_record_bytes: int) -> int:
    """How large a new segment must be: as configured, or larger if its first record needs it."""
    needed = HEADER_SIZE + first_record_bytes
    return segment_bytes if needed <= segment_bytes else (needed + _BLOCK - 1) // _BLOCK * _BLOCK


def put_in_place(disk: Disk, directory: Path, file: NewFile, first_index: int, synced: int) -> Segment:
    """Turn a prepared file into the log's next segment, durably.

    Raises OSError with nothing changed in the log (the file is gone), or StorageError if it is unknown
    whether the file has its name.
    """
    path = directory / segment_name(first_index)
    try:
        write_all(disk, file.fd, encode_header(first_index, synced), 0)
        disk.fdatasync(file.fd)
        disk.rename(file.path, path)
    except BaseException:
        discard(disk, file)
        raise
    try:
        disk.fsync_dir(directory)
    except OSError as error:
        raise StorageError(f"{path}: cannot fsync its directory: {error}") from error
    return Segment(path, first_index, array("Q"), HEADER_SIZE, file.size, file.fd)


def cut(disk: Disk, segment: Segment, from_index: int) -> None:
    """Remove from_index and everything behind it from this file, durably, and let it grow no more than that.

    Also gets rid of whatever a failed write may have left behind the last record. Raises StorageError.
    """
    position = segment.cut_position(from_index)
    try:
        if segment.fd is None:
            segment.fd = disk.open(segment.path)
        disk.truncate(segment.fd, position)
        disk.fsync(segment.fd)
    except OSError as error:
        raise StorageError(f"{segment.path}: cannot cut the file at byte {position}: {error}") from error
    del segment.offsets[max(0, from_index - segment.first_index) :]
    segment.end = segment.capacity = position


def remove(disk: Disk, directory: Path, segment: Segment) -> None:
    """Remove a whole segment, durably. Raises StorageError."""
    close(disk, segment)
    try:
        disk.unlink(segment.path)
        disk.fsync_dir(directory)
    except OSError as error:
        raise StorageError(f"{segment.path}: cannot remove the file: {error}") from error


def close(disk: Disk, segment: Segment) -> None:
    """Close the file if it is open. The descriptor is gone even if the disk complains."""
    fd, segment.fd = segment.fd, None
    if fd is not None:
        try:
            disk.close(fd)
        except OSError as error:
            raise StorageError(f"{segment.path}: cannot close the file: {error}") from error


def read(disk: Disk, segment: Segment, fd: int, lo: int, hi: int) -> list[Entry]:
    """Entries lo to hi - 1, all of this segment, checksums verified. Raises CorruptLogError, StorageError."""
    start = segment.cut_position(lo)
    try:
        blob = disk.pread(fd, segment.cut_position(hi) - start, start)
    except OSError as error:
        raise StorageError(f"{segment.path}: cannot read at byte {start}: {error}") from error
    try:
        return decode_records(blob, 0, hi - lo, lo)
    except FormatError as error:
        raise CorruptLogError(segment.path, start + error.offset, error.reason) from error
