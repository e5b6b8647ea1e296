"""The complete state machine as a stream of bytes and back (thesis chapter 5).

The stream, version 1, is a row of frames without gaps, cut into chunks of at most 256 KiB anywhere:

    0  length   u32, little endian, of content
    4  section  u8, never less than in the frame before
    5  content  msgpack

    1  HEAD      once, first: the fields of Head; `version` stays the second field in every later version
    2  VALUES    [keys, values]: the order of all frames' keys is the replicated order
    3  EXPIRIES  [keys, times in ms]: the same
    4  VERSIONS  once: see raft/machine/versions.py
    5  SESSIONS  rows: see raft/machine/sessions.py
    6  LEDGER    a piece: see ledger/snapshot.py
    7  END       once, last: how many rows each section had

Checksums are the file's (raft/storage/snapshot_format.py); what is checked here is that the content makes
sense. A restored machine has the same digest, gives the same answers (SCAN's pages included) and goes on as
the one that was dumped. Owner: the thread that applies entries, or the forked child that has a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from ledger.ledger import Ledger
from ledger.snapshot import LedgerFormatError
from raft.machine.scan import KeyIndex

if TYPE_CHECKING:
    from raft.machine.machine import Machine

MAGIC = "super-node-machine"
VERSION = 1
CHUNK = 256 << 10
_HEAD, _VALUES, _EXPIRIES, _VERSIONS, _SESSIONS, _LEDGER, _END = range(1, 8)
_ROWS_AT_ONCE = 1000
_LARGEST = 2**62  # of an index, a time or a count
_LARGE = 1 << 20  # bytes of keys and values above which a frame is split
_SESSION_ROWS_AT_ONCE = 16

Progress = Callable[[int, int], None]  # rows done, rows in all
_Counts = tuple[int, int, int, int]  # keys, times, session rows, ledger rows
_FRAME = struct.Struct("<IB")
_encode = msgspec.msgpack.Encoder().encode
_as_keys_and_values = msgspec.msgpack.Decoder(tuple[list[bytes], list[bytes]])
_as_keys_and_times = msgspec.msgpack.Decoder(tuple[list[bytes], list[int]])
_as_versions = msgspec.msgpack.Decoder(tuple[dict[bytes, int], dict[bytes, int], int, int, int, int])
_as_rows = msgspec.msgpack.Decoder(list[msgspec.Raw])
_as_session = msgspec.msgpack.Decoder(tuple[bytes, int, list[tuple[int, bytes]]])
_as_tombstones = msgspec.msgpack.Decoder(tuple[int, bytes])
_THREE = b"\x93"  # how an array of three begins in msgpack: a session, not tombstones
_as_counts = msgspec.msgpack.Decoder(_Counts)


class SnapshotFormatError(ValueError):
    """Bytes that are no snapshot of a machine. Nothing of them is used."""


class SnapshotVersionError(SnapshotFormatError):
    """A snapshot of another version; the message names both."""


class SnapshotClusterError(SnapshotFormatError):
    """A snapshot of another cluster; the message names both."""


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The stream's first frame. buckets: of the index for SCAN. Times in ms since the epoch."""

    magic: str
    version: int
    cluster: str
    applied_index: int
    applied_term: int
    at_ms: int
    keys: int
    expiries: int
    buckets: int
    ledger_rows: int


_as_head = msgspec.msgpack.Decoder(Head)
_as_any_head = msgspec.msgpack.Decoder(list[Any])


# --- out


def dump(machine: Machine, on_progress: Progress | None = None) -> Iterator[bytes]:
    """The machine's state in chunks of 1 to CHUNK bytes. The machine must not change meanwhile."""
    waiting = bytearray()
    for section, content in _contents(machine, on_progress or _silent):
        waiting += _FRAME.pack(len(content), section)
        waiting += content
        while len(waiting) >= CHUNK:
            yield bytes(waiting[:CHUNK])
            del waiting[:CHUNK]
    yield bytes(waiting)  # the last frame is not empty, and less than a chunk stays behind it


def _contents(machine: Machine, on_progress: Progress) -> Iterator[tuple[int, bytes]]:
    kv, ledger = machine.kv, machine.ledger
    expiries = kv.expiries
    rows = ledger.row_count()
    head = Head(
        magic=MAGIC,
        version=VERSION,
        cluster=machine.cluster_name,
        applied_index=machine.applied_index,
        applied_term=machine.applied_term,
        at_ms=kv.at_ms,
        keys=len(kv.values),
        expiries=len(expiries),
        buckets=kv.index.buckets,
        ledger_rows=rows,
    )
    done, total = 0, head.keys + head.expiries + rows
    yield _HEAD, _encode(head)
    for section, table in ((_VALUES, kv.values), (_EXPIRIES, expiries)):
        for count, content in _tables(table):
            yield section, content
            done += count
            on_progress(done, total)
    yield _VERSIONS, _encode(kv.versions.export())
    session_rows = 0
    remaining = iter(machine.sessions.export())
    while some := list(islice(remaining, _SESSION_ROWS_AT_ONCE)):
        yield _SESSIONS, _encode(some)
        session_rows += len(some)
    for count, content in ledger.export():
        yield _LEDGER, content
        done += count
        on_progress(done, total)
    yield _END, _encode((head.keys, head.expiries, session_rows, rows))


def _tables(table: dict[bytes, Any]) -> Iterator[tuple[int, bytes]]:
    keys, values = iter(table), iter(table.values())
    while some := list(islice(keys, _ROWS_AT_ONCE)):
        yield from _split(some, list(islice(values, _ROWS_AT_ONCE)))


def _split(keys: list[bytes], values: list[Any]) -> Iterator[tuple[int, bytes]]:
    """One frame's content, or several if the values are large: a frame is held in memory."""
    count = len(keys)
    size = sum(map(len, keys)) + (sum(map(len, values)) if isinstance(values[0], bytes) else 0)
    if size > _LARGE and count > 1:
        yield from _split(keys[: count // 2], values[: count // 2])
        yield from _split(keys[count // 2 :], values[count // 2 :])
    else:
        yield count, _encode((keys, values))


def _silent(_done: int, _total: int) -> None:
    pass


# --- in


def load_into(machine: Machine, chunks: Iterable[bytes], on_progress: Progress | None = None) -> None:
    """Fills a new machine with what dump() gave, in pieces of any size.

    Raises SnapshotFormatError (SnapshotVersionError, SnapshotClusterError): the machine is then of no use.
    """
    try:
        _Loader(machine, on_progress or _silent).load(_frames(chunks))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotFormatError(f"not a snapshot of the machine: {error}") from error
    except LedgerFormatError as error:
        raise SnapshotFormatError(str(error)) from error


def _frames(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    waiting = bytearray()
    overhead = _FRAME.size
    for chunk in chunks:
        waiting += chunk
        at = 0
        while len(waiting) - at >= overhead:
            length, section = _FRAME.unpack_from(waiting, at)
            end = at + overhead + length
            if end > len(waiting):
                break
            with memoryview(waiting) as view:
                content = bytes(view[at + overhead : end])
            yield section, content
            at = end
        del waiting[:at]
    if waiting:
        raise SnapshotFormatError("the snapshot of the machine is cut short inside a frame")


class _Loader:
    """One load: takes frames in order, checks that nothing is missing."""

    def __init__(self, machine: Machine, on_progress: Progress) -> None:
        self._machine = machine
        self._on_progress = on_progress
        self._head: Head | None = None
        self._values: dict[bytes, bytes] = {}
        self._expiries: dict[bytes, int] = {}
        self._versions: list[Any] | None = None
        self._session_rows = 0
        self._section = _HEAD
        self._done = self._total = 0

    def load(self, frames: Iterator[tuple[int, bytes]]) -> None:
        for section, content in frames:
            if self._head is None:
                self._begin(section, content)
                continue
            self._advance_to(section)
            if section == _VALUES:
                self._add(self._values, *_as_keys_and_values.decode(content))
            elif section == _EXPIRIES:
                self._add(self._expiries, *_as_keys_and_times.decode(content))
            elif section == _VERSIONS:
                self._versions = list(_as_versions.decode(content))
                self._check_versions(*self._versions)
            elif section == _SESSIONS:
                self._restore_sessions(_as_rows.decode(content))
            elif section == _LEDGER:
                self._end(self._restore_ledger(content, frames))
                for _ in frames:
                    raise SnapshotFormatError("there is something behind the end of the snapshot")
                return
        raise SnapshotFormatError("the snapshot of the machine is cut short")

    def _begin(self, section: int, content: bytes) -> None:
        if section != _HEAD:
            raise SnapshotFormatError("not a snapshot of the machine: its first frame is no head")
        known = _as_any_head.decode(content)
        if len(known) < 2 or known[0] != MAGIC:
            raise SnapshotFormatError("not a snapshot of the machine: wrong magic")
        if known[1] != VERSION:
            raise SnapshotVersionError(
                f"the snapshot of the machine has format version {known[1]}, this program reads {VERSION}"
            )
        self._head = head = _as_head.decode(content)
        if head.cluster != self._machine.cluster_name:
            raise SnapshotClusterError(
                f"the snapshot is of cluster {head.cluster!r}, this node of {self._machine.cluster_name!r}"
            )
        numbers = (head.applied_index, head.applied_term, head.at_ms, head.keys, head.expiries)
        if min(numbers) < 0 or max(numbers) > _LARGEST:
            raise SnapshotFormatError("impossible numbers in the head of the machine's snapshot")
        self._total = head.keys + head.expiries + head.ledger_rows

    def _advance_to(self, section: int) -> None:
        once = section in (_HEAD, _VERSIONS)
        if section < self._section or section >= _END or (once and section == self._section):
            raise SnapshotFormatError(f"a frame of section {section} is out of place")
        if section > _VERSIONS and self._versions is None:
            raise SnapshotFormatError("the snapshot of the machine has no versions")
        self._section = section

    def _add(self, table: dict[bytes, Any], keys: list[bytes], values: list[Any]) -> None:
        if len(keys) != len(values):
            raise SnapshotFormatError(f"{len(keys)} keys but {len(values)} values in a frame")
        wanted = len(table) + len(keys)
        table.update(zip(keys, values, strict=True))
        if len(table) != wanted:
            raise SnapshotFormatError("the snapshot of the machine has a key twice")
        self._tell(len(keys))

    def _tell(self, rows: int) -> None:
        self._done += rows
        self._on_progress(self._done, self._total)

    def _check_versions(self, recent: dict[bytes, int], older: dict[bytes, int], *numbers: int) -> None:
        """numbers: floor, turned, weighed and bytes, as raft/machine/versions.py has them."""
        indexes = (*recent.values(), *older.values(), *numbers)
        if min(indexes) < 0 or max(indexes) > _LARGEST or numbers[2] > len(recent):
            raise SnapshotFormatError("impossible numbers in the versions of the machine's snapshot")

    def _restore_sessions(self, raw_rows: list[msgspec.Raw]) -> None:
        rows: list[list[Any]] = []
        for raw in raw_rows:
            decoder: Any = _as_session if bytes(raw)[:1] == _THREE else _as_tombstones
            rows.append(list(decoder.decode(raw)))
        self._session_rows += len(rows)
        try:
            self._machine.sessions.restore(rows)
        except ValueError as error:
            raise SnapshotFormatError(f"the snapshot's sessions are not valid: {error}") from error

    def _restore_ledger(self, first: bytes, frames: Iterator[tuple[int, bytes]]) -> bytes:
        """Reads all of the ledger. Returns the content of the frame behind it, which must be END."""
        last: list[bytes] = []

        def pieces() -> Iterator[bytes]:
            yield first
            for section, content in frames:
                if section != _LEDGER:
                    last.extend([content] if section == _END else [])
                    return
                yield content

        self._machine.ledger = Ledger.restore(pieces())
        if not last:
            raise SnapshotFormatError("the snapshot of the machine is cut short")
        return last[0]

    def _end(self, content: bytes) -> None:
        head, machine = self._head, self._machine
        assert head is not None  # the first frame is one
        assert self._versions is not None  # _advance_to saw to it
        rows = machine.ledger.row_count()
        self._tell(rows)
        counts = (len(self._values), len(self._expiries), self._session_rows, rows)
        if counts != _as_counts.decode(content) or counts[:2] != (head.keys, head.expiries):
            raise SnapshotFormatError(f"the snapshot has {counts} rows, its end and its head say otherwise")
        if not self._expiries.keys() <= self._values.keys():
            raise SnapshotFormatError("the snapshot has times of expiry for keys that are not in it")
        if not 1 <= head.buckets <= max(1, len(self._values)):
            raise SnapshotFormatError(f"impossible number of buckets: {head.buckets}")
        if machine.ledger.newest_index() > head.applied_index:
            raise SnapshotFormatError("the snapshot's ledger is ahead of the machine")
        machine.applied_index, machine.applied_term = head.applied_index, head.applied_term
        index = KeyIndex.of(self._values, head.buckets)
        machine.kv.restore(head.at_ms, self._values, self._expiries, index, self._versions)
