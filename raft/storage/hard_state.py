"""currentTerm and votedFor on disk (paper figure 2): a node that forgot them could vote twice in a term.

The file `hard-state`, 40 bytes, little endian, replaced atomically:

     0  magic    8 bytes  "SNHARDST"
     8  version  u32      1
    12  crc      u32      CRC32C of the other 36 bytes
    16  term     u64
    24  voted    u8       1: voted_for holds a node id; 0: no vote in this term, voted_for is 0
    25  zeros    7 bytes
    32  voted_for u64
"""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c

from raft.core.effects import HardState
from raft.core.invariants import require
from raft.storage.atomic_file import read_file, replace_file, reserve_file
from raft.storage.disk import Disk
from raft.storage.errors import DiskFullError, FormatVersionError, StorageError

__all__ = ["HardState", "HardStateFile", "decode_hard_state", "encode_hard_state"]

NAME = "hard-state"
VERSION = 1
MAGIC = b"SNHARDST"
_LAYOUT = struct.Struct("<8sIIQB7sQ")


def encode_hard_state(state: HardState) -> bytes:
    """The file's content."""
    vote = state.voted_for
    fields = (state.term, int(vote is not None), bytes(7), vote or 0)
    blank = _LAYOUT.pack(MAGIC, VERSION, 0, *fields)
    return _LAYOUT.pack(MAGIC, VERSION, google_crc32c.value(blank[:12] + blank[16:]), *fields)


def decode_hard_state(content: bytes, file: Path) -> HardState:
    """The inverse. Raises StorageError naming the file; FormatVersionError if it is of another version."""
    advice = (
        "A node must not go on without its vote: take it out of the cluster and let it join as a new member"
    )
    if len(content) != _LAYOUT.size:
        raise StorageError(f"{file}: damaged: {len(content)} bytes instead of {_LAYOUT.size}. {advice}")
    magic, version, crc, term, voted, zeros, vote = _LAYOUT.unpack(content)
    if magic != MAGIC or google_crc32c.value(content[:12] + content[16:]) != crc:
        raise StorageError(f"{file}: damaged at byte 0: wrong magic or checksum. {advice}")
    if version != VERSION:
        raise FormatVersionError(file, version, VERSION)
    if voted > 1 or zeros != bytes(7) or (not voted and vote):
        raise StorageError(f"{file}: damaged at byte 24: impossible content. {advice}")
    return HardState(term, vote if voted else None)


class HardStateFile:
    """The file and the value it holds. Owned by the raft worker.

    The next file is there before it is needed, so that a node can vote while its disk is full."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.path = directory / NAME
        self._disk = disk or Disk()
        self._failure: StorageError | None = None
        self._reserved = False
        self.state = HardState(0, None)

    def load(self) -> HardState:
        """Read the file; HardState(0, None) if there is none. Raises StorageError if it cannot be trusted."""
        content = read_file(self._disk, self.path, 4096)
        self.state = HardState(0, None) if content is None else decode_hard_state(content, self.path)
        self._reserved = reserve_file(self._disk, self.path, _LAYOUT.size)
        return self.state

    def save(self, state: HardState) -> None:
        """Replace the file, durably on return. Call load() first.

        Raises InvariantViolation for a lower term or another vote in the same term; DiskFullError (the old
        state is still in force); StorageError (then every later save raises it too).
        """
        if self._failure is not None:
            raise StorageError(str(self._failure)) from self._failure
        old = self.state
        require(state.term >= old.term, f"{self.path}: term {state.term} after term {old.term}")
        kept = state.term > old.term or old.voted_for is None or state.voted_for == old.voted_for
        require(kept, f"{self.path}: vote {state.voted_for} after {old.voted_for} in term {old.term}")
        reserved, self._reserved = self._reserved, False
        try:
            replace_file(self._disk, self.path, encode_hard_state(state), reserved=reserved)
        except DiskFullError:
            raise
        except StorageError as error:
            self._failure = error
            raise
        self.state = state
        self._reserved = reserve_file(self._disk, self.path, _LAYOUT.size)
