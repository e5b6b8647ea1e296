"""RAFT BACKUP: this node's newest snapshot, a piece at a time, for a client that keeps it as a backup.

    RAFT BACKUP OPEN                [index, term, size in bytes] of the newest snapshot, which stays readable
    RAFT BACKUP READ index offset   at most 256 KiB of its bytes from there on; empty at its end
    RAFT BACKUP CLOSE index         the client is done

The bytes are those of the file (raft/storage/snapshot_format.py), checksums included: the client verifies.
Each node answers for itself, with a leader or without one: nothing here goes through the log. A client that
is gone is noticed by its silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from raft.clients.batch import Batch
from raft.machine.arguments import RefusedError
from raft.replies import OK, Error, Reply
from raft.runtime.load import Load
from raft.storage.snapshot_reading import RawReader
from raft.storage.snapshots import SnapshotStore

PIECE_BYTES = 256 << 10
MAX_OPEN = 4  # snapshots: each keeps its file's space on the disk, pruned or not
FORGET_MS = 60_000.0

_NONE = Error("ERR this node has no snapshot yet: RAFT SNAPSHOT takes one")
_FULL = Error(f"BUSY {MAX_OPEN} backups are being read from this node: try again later, or another node")
_USAGE = Error("ERR wrong arguments: RAFT BACKUP OPEN | READ index offset | CLOSE index")


def is_backup(batch: Batch) -> bool:
    """Whether this batch is one command for Backups: handlers never mix them with others."""
    if len(batch.operations) != 1:
        return False
    args = batch.operations[0][1]
    return len(args) > 1 and args[0].upper() == b"RAFT" and args[1].upper() == b"BACKUP"


@dataclass(slots=True)
class _Open:
    """A snapshot being read. clients: how many have opened it; until: monotonic ms."""

    reader: RawReader
    term: int
    size: int
    clients: int
    until: float


class Backups:
    """Owned by the worker. Reading a piece from the page cache takes a tenth of a millisecond."""

    def __init__(self, store: SnapshotStore, load: Load) -> None:
        self._store = store
        self._load = load
        self._open: dict[int, _Open] = {}  # by index

    def take(self, batch: Batch, now: float) -> None:
        """Carry the command out. Raises StorageError: the disk failed, the node must stop."""
        slot, args = batch.operations[0]
        try:
            reply = self._execute(args, now)
        except RefusedError as refused:
            reply = refused.error
        batch.answer(slot, reply)
        self._load.give_back(1)

    def expire(self, now: float) -> None:
        """Forget what nobody has read for a minute. Cheap when nothing is open."""
        for index in [index for index, each in self._open.items() if each.until <= now]:
            self._open.pop(index).reader.close()

    def close(self) -> None:
        """The node stops."""
        self.expire(float("inf"))

    def _execute(self, args: list[bytes], now: float) -> Reply:
        word = args[2].upper() if len(args) > 2 else b""
        if word == b"OPEN" and len(args) == 3:
            return self._open_newest(now)
        if word == b"READ" and len(args) == 5:
            return self._read(_number(args[3]), _number(args[4]), now)
        if word == b"CLOSE" and len(args) == 4:
            return self._close(_number(args[3]))
        return _USAGE

    def _open_newest(self, now: float) -> Reply:
        info = self._store.latest()
        if info is None:
            return _NONE
        opened = self._open.get(info.index)
        if opened is None:
            self.expire(now)
            if len(self._open) >= MAX_OPEN:
                return _FULL
            reader = self._store.reader(info)
            opened = self._open[info.index] = _Open(reader, info.term, info.bytes, 0, 0.0)
        opened.clients += 1
        opened.until = now + FORGET_MS
        return [info.index, opened.term, opened.size]

    def _read(self, index: int, offset: int, now: float) -> Reply:
        opened = self._find(index)
        opened.until = now + FORGET_MS
        return opened.reader.read_at(offset, PIECE_BYTES)

    def _close(self, index: int) -> Reply:
        opened = self._find(index)
        opened.clients -= 1
        if opened.clients <= 0:
            self._open.pop(index).reader.close()
        return OK

    def _find(self, index: int) -> _Open:
        opened = self._open.get(index)
        if opened is None:
            raise RefusedError(
                Error(f"ERR no backup of entry {index} is open on this node: RAFT BACKUP OPEN begins one")
            )
        return opened


def _number(word: bytes) -> int:
    """An index or an offset. Raises RefusedError."""
    if not word.isdigit() or len(word) > 18:
        raise RefusedError(Error("ERR value is not an integer or out of range"))
    return int(word)
