"""The marker of a node that has lost entries which it may have acknowledged (raft/core/recovery.py).

The file `lost-entries`, 32 bytes, little endian, replaced atomically, removed once nothing is missing:

     0  magic       8 bytes  "SNLOSTEN"
     8  version     u32      1
    12  crc         u32      CRC32C of the other 28 bytes
    16  from_index  u64      the first entry that was lost
    24  term        u64      the term in hard-state when the loss was found

It is on disk before anything of the damaged log is changed. So a crash at any moment of the repair leaves
either the log as it was, or a node that knows that it must not vote.
"""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c

from raft.core.effects import LostEntries
from raft.storage.atomic_file import read_file, replace_file
from raft.storage.disk import Disk
from raft.storage.errors import FormatVersionError, StorageError

NAME = "lost-entries"
VERSION = 1
MAGIC = b"SNLOSTEN"
_LAYOUT = struct.Struct("<8sIIQQ")


def encode_lost_entries(lost: LostEntries) -> bytes:
    """The file's content."""
    blank = _LAYOUT.pack(MAGIC, VERSION, 0, lost.from_index, lost.term)
    crc = google_crc32c.value(blank[:12] + blank[16:])
    return _LAYOUT.pack(MAGIC, VERSION, crc, lost.from_index, lost.term)


def decode_lost_entries(content: bytes, file: Path) -> LostEntries:
    """The inverse. Raises StorageError naming the file; FormatVersionError if it is of another version."""
    advice = (
        "It says what this node must have again before it may vote. Without it: take the node out of the "
        "cluster and let it join as a new member"
    )
    if len(content) != _LAYOUT.size:
        raise StorageError(f"{file}: damaged: {len(content)} bytes instead of {_LAYOUT.size}. {advice}")
    magic, version, crc, from_index, term = _LAYOUT.unpack(content)
    if magic != MAGIC or google_crc32c.value(content[:12] + content[16:]) != crc:
        raise StorageError(f"{file}: damaged at byte 0: wrong magic or checksum. {advice}")
    if version != VERSION:
        raise FormatVersionError(file, version, VERSION)
    if not from_index or not term:
        raise StorageError(f"{file}: damaged at byte 16: impossible content. {advice}")
    return LostEntries(from_index, term)


class LostEntriesFile:
    """The marker and the value it holds. Owned by the raft worker."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.path = directory / NAME
        self._disk = disk
        self.value: LostEntries | None = None

    def load(self) -> LostEntries | None:
        """Read the file; None if there is none. Raises StorageError if it cannot be trusted."""
        content = read_file(self._disk, self.path, 4096)
        self.value = None if content is None else decode_lost_entries(content, self.path)
        return self.value

    def add(self, lost: LostEntries) -> None:
        """Note that more is lost, durably on return. Raises DiskFullError, StorageError."""
        old = self.value
        if old is not None:
            lost = LostEntries(min(lost.from_index, old.from_index), max(lost.term, old.term))
        if lost != old:
            replace_file(self._disk, self.path, encode_lost_entries(lost))
            self.value = lost

    def remove(self) -> None:
        """Nothing is missing any more. Raises StorageError. A crash in here may bring the marker back: the
        node then only waits a little longer."""
        if self.value is None:
            return
        try:
            self._disk.unlink(self.path)
            self._disk.fsync_dir(self.path.parent)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot remove the file: {error}") from error
        self.value = None
