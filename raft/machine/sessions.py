"""Exactly once: which commands of which session were carried out, and what they answered. Replicated state.

`ONCE session seq COMMAND …` carries a command out when its (session, seq) is new and otherwise gives the
first answer again, an error like any other answer. The rules, judged by log time and the same everywhere:

* Of a session the answers of its KEPT highest sequence numbers are kept, in whatever order they came. A
  number below those is refused and not carried out: a client may be up to KEPT - 1 numbers ahead of the
  oldest one whose answer it still waits for.
* An answer of more than MAX_ANSWER_BYTES (packed) is given, but not kept: asked again, an error says that the
  command was carried out.
* The same number with other words is an error.
* A session that was not used for IDLE_MS expires. So does the one not used for longest when there are more
  than MAX_SESSIONS or they take more than MAX_TABLE_BYTES (about 24,000 sessions with 64 short answers each,
  or 100,000 with 14).
* An expired session leaves a tombstone, an 8-byte hash of its name: whatever still comes under that name is
  refused, so that a late retry is never a second execution. Who wants to go on takes a new name. Tombstones
  stay for TOMBSTONE_MS, at most MAX_TOMBSTONES of them.

A node that passes its clients' commands on to the leader has sessions of its own, its lanes, whose names
begin with "~": `~ONCE lane seq commands`, where commands (raft/machine/batch.py) are all carried out and
their replies are one answer. A lane has one sequence number under way at a time, so only its last answer is
kept, up to MAX_LANE_BYTES: replies beyond are given, but replaced by an error when asked for again. Otherwise
the same rules hold for lanes; clients cannot use such names.

What remains possible: a retry that comes more than 31 days late, or after more than 1,000,000 other sessions
have expired since its own did, is taken for a new session's first command and carried out a second time.
And one unused name in 10^13 (with the ring full) meets a tombstone of another by chance and is refused, which
harms nobody.

Owner: the thread that applies entries.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from sys import byteorder
from typing import Any

import msgspec

from raft.machine.arguments import RefusedError, integer
from raft.machine.commands import CONTAINERS
from raft.replies import OK, Error, Reply, Simple

KEPT = 64
MAX_ANSWER_BYTES = 4096
MAX_LANE_BYTES = 64 * 1024
MAX_SESSIONS = 100_000
MAX_TABLE_BYTES = 256 * 1024 * 1024  # as counted with the two costs below
IDLE_MS = 60 * 60 * 1000
MAX_TOMBSTONES = 1_000_000  # at most about 100 MB
TOMBSTONE_MS = 30 * 24 * 60 * 60 * 1000
MAX_NAME_BYTES = 128

_SESSION_COST, _ANSWER_COST = 500, 160  # bytes that Python's objects take besides the data
_HOUR_MS = 60 * 60 * 1000
_TIDIED_AT_ONCE = 16  # so that a crowd that expires together does not stop the worker
_HASHES_AT_ONCE = 4096
_PRINT_BYTES = 8

_EXPIRED = Error(
    "ERR session expired: the command is not carried out (again); begin a session of another name"
)
_OTHER_COMMAND = Error("ERR this sequence number of the session was used for another command")
_NOT_KEPT = Error("ERR the command was carried out before, but its answer was too large to be kept")
_TOO_OLD = Error(
    f"ERR this sequence number is below the last {KEPT} of the session: the command is not carried out"
)
_BAD_NAME = Error(f"ERR a session's name must have 1 to {MAX_NAME_BYTES} bytes")
_RESERVED_NAME = Error("ERR a session's name must not begin with '~': such names are the nodes' own")
_BAD_NUMBER = Error("ERR a sequence number must be an integer from 1 on")


class Limits(msgspec.Struct, frozen=True):
    """The bounds of a table. Every node must have the same: only tests use others than these."""

    sessions: int = MAX_SESSIONS
    table_bytes: int = MAX_TABLE_BYTES
    idle_ms: int = IDLE_MS
    tombstones: int = MAX_TOMBSTONES
    tombstone_ms: int = TOMBSTONE_MS


class _Session:
    """answers: by sequence number, each the command's fingerprint and the packed answer (b"": not kept)."""

    __slots__ = ("answers", "bytes", "last_ms")

    def __init__(self, last_ms: int, size: int) -> None:
        self.answers: dict[int, bytes] = {}
        self.last_ms = last_ms
        self.bytes = size


def session_and_number(words: list[bytes]) -> tuple[bytes, int]:
    """The session and the sequence number of ONCE's words. Raises RefusedError. Any thread."""
    if not 1 <= len(words[1]) <= MAX_NAME_BYTES:
        raise RefusedError(_BAD_NAME)
    if is_lane(words[1]):
        raise RefusedError(_RESERVED_NAME)
    try:
        number = integer(words[2])
    except RefusedError:
        raise RefusedError(_BAD_NUMBER) from None
    if number < 1:
        raise RefusedError(_BAD_NUMBER)
    return words[1], number


def is_lane(name: bytes) -> bool:
    """Whether this can be the name of a node's lane, and so of no client's session. Any thread."""
    return name[:1] == b"~" and len(name) <= MAX_NAME_BYTES


def fingerprint(command: list[bytes]) -> bytes:
    """Eight bytes that tell commands apart; the case of a command's name makes no difference."""
    name = command[0].upper()
    names = 2 if name in CONTAINERS else 1
    folded = [word.upper() for word in command[:names]] + command[names:]
    return lane_fingerprint(_encode(folded))


def lane_fingerprint(commands: bytes) -> bytes:
    """The same for the commands that a node passes on, as they stand in the log."""
    return hashlib.blake2b(commands, digest_size=_PRINT_BYTES).digest()


class SessionTable:
    """All sessions, from the one not used for longest to the one used last, and the tombstones."""

    __slots__ = ("_bytes", "_dead", "_hashes", "_hours", "_limits", "_sessions")

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._bytes = 0
        self._hashes: deque[int] = deque()  # the tombstones, oldest first
        self._dead: set[int] = set()  # the same
        self._hours: deque[list[int]] = deque()  # [hour since the epoch, how many tombstones are from it]

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def tombstones(self) -> int:
        """How many there are."""
        return len(self._hashes)

    @property
    def taken_bytes(self) -> int:
        """What the sessions take, about."""
        return self._bytes

    def recall(self, name: bytes, number: int, command: bytes, now_ms: int) -> tuple[Reply] | None:
        """The first answer to (session, number), or None: carry it out, then `keep`.

        command: its fingerprint; now_ms: log time. Raises RefusedError: do not carry it out.
        """
        self._tidy(now_ms)
        session = self._sessions.get(name)
        if session is not None and now_ms - session.last_ms >= self._limits.idle_ms:
            self._bury(name, now_ms)
            session = None
        if session is None:
            if _hash(name) in self._dead:
                raise RefusedError(_EXPIRED)
            return None
        session.last_ms = now_ms
        self._sessions.move_to_end(name)
        kept = session.answers.get(number)
        if kept is None:
            if len(session.answers) >= _kept(name) and number < min(session.answers):
                raise RefusedError(_TOO_OLD)
            return None
        if kept[:_PRINT_BYTES] != command:
            raise RefusedError(_OTHER_COMMAND)
        if len(kept) == _PRINT_BYTES:
            raise RefusedError(_NOT_KEPT)
        return (unpack(kept[_PRINT_BYTES:]),)

    def keep(self, name: bytes, number: int, command: bytes, reply: Reply, now_ms: int) -> None:
        """Notes the first answer, after recall() gave None for the same. Others may expire for it."""
        packed = pack(reply)
        if is_lane(name) and isinstance(reply, list):
            if len(packed) > MAX_LANE_BYTES:
                packed = _encode(_fitting(reply))
        elif len(packed) > MAX_ANSWER_BYTES:
            packed = b""
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(now_ms, _SESSION_COST + len(name))
            self._bytes += session.bytes
        answers = session.answers
        answers[number] = command + packed
        grown = _ANSWER_COST + len(packed)
        if len(answers) > _kept(name):
            grown -= _ANSWER_COST + len(answers.pop(min(answers))) - _PRINT_BYTES
        session.bytes += grown
        self._bytes += grown
        limits = self._limits
        while self._bytes > limits.table_bytes or len(self._sessions) > limits.sessions:
            if len(self._sessions) == 1:
                break
            self._bury(next(iter(self._sessions)), now_ms)

    def _tidy(self, now_ms: int) -> None:
        """Lets some of what is due expire."""
        for _ in range(_TIDIED_AT_ONCE):
            oldest = next(iter(self._sessions.items()), None)
            if oldest is None or now_ms - oldest[1].last_ms < self._limits.idle_ms:
                break
            self._bury(oldest[0], now_ms)
        for _ in range(_TIDIED_AT_ONCE):
            if not self._hours or now_ms - (self._hours[0][0] + 1) * _HOUR_MS < self._limits.tombstone_ms:
                break
            self._forget_tombstone()

    def _bury(self, name: bytes, now_ms: int) -> None:
        """Ends a session and leaves a tombstone."""
        self._bytes -= self._sessions.pop(name).bytes
        mark = _hash(name)
        if mark not in self._dead:
            self._add_tombstones(now_ms // _HOUR_MS, [mark])
            if len(self._hashes) > self._limits.tombstones:
                self._forget_tombstone()

    def _add_tombstones(self, hour: int, marks: list[int]) -> None:
        self._hashes.extend(marks)
        self._dead.update(marks)
        if not self._hours or self._hours[-1][0] != hour:
            self._hours.append([hour, 0])
        self._hours[-1][1] += len(marks)

    def _forget_tombstone(self) -> None:
        """The oldest one."""
        self._dead.discard(self._hashes.popleft())
        self._hours[0][1] -= 1
        if not self._hours[0][1]:
            self._hours.popleft()

    # --- snapshots and digests ---

    def feed(self, update: Callable[[bytes], object]) -> None:
        """Gives the complete state to a hash."""
        for row in self.export():
            update(_encode(row))

    def export(self) -> Iterator[list[Any]]:
        """The complete state as rows for msgpack, each below 512 KiB; their order is part of it.

        [name, last used at (ms), [[number, fingerprint and packed answer], ...]] for a session, and
        [hour, 8 bytes (little-endian) for each tombstone] for some tombstones.
        """
        for name, session in self._sessions.items():
            yield [name, session.last_ms, [list(item) for item in session.answers.items()]]
        marks = iter(self._hashes)
        for hour, count in self._hours:
            while count > 0:
                some = array("Q", islice(marks, min(count, _HASHES_AT_ONCE)))
                count -= len(some)
                if byteorder == "big":
                    some.byteswap()
                yield [hour, some.tobytes()]

    def restore(self, rows: Iterable[list[Any]]) -> None:
        """Takes over what export() gave; this table must be new. Raises ValueError for an answer that is none
        (a full table takes about half a second to look through)."""
        for row in rows:
            if len(row) == 3:
                name, last_ms, answers = row
                session = _Session(last_ms, _SESSION_COST + len(name))
                session.answers = dict(answers)
                for kept in session.answers.values():
                    if len(kept) != _PRINT_BYTES:
                        unpack(kept[_PRINT_BYTES:])
                extra = _ANSWER_COST - _PRINT_BYTES
                session.bytes += sum(extra + len(kept) for kept in session.answers.values())
                self._sessions[name] = session
                self._bytes += session.bytes
            else:
                some = array("Q", row[1])
                if byteorder == "big":
                    some.byteswap()
                self._add_tombstones(row[0], some.tolist())


def _kept(name: bytes) -> int:
    return 1 if is_lane(name) else KEPT


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


# --- answers as bytes ---

_ERROR, _SIMPLE, _LOST = 1, 2, 3  # codes of msgpack's extension types; LOST: a reply that was too large
_LOST_BYTES = 3


def pack(reply: Reply) -> bytes:
    """A reply in msgpack, in a form that tells errors and status lines from strings."""
    return _PACKED_OK if reply is OK else _encode(_plain(reply))


def unpack(data: bytes) -> Reply:
    """Inverse of pack."""
    reply: Reply = OK if data == _PACKED_OK else _decode(data)
    return reply


def _fitting(replies: list[Reply]) -> list[Any]:
    """A lane's replies in packed form, the first that fit into MAX_LANE_BYTES; for the others stands LOST."""
    room = MAX_LANE_BYTES - _LOST_BYTES * (len(replies) + 2)  # the array's own head takes 5 at most
    fitting: list[Any] = []
    for reply in replies:
        packed = pack(reply)
        fits = len(packed) <= room
        room -= len(packed) if fits else 0
        fitting.append(msgspec.Raw(packed) if fits else msgspec.msgpack.Ext(_LOST, b""))
    return fitting


def _plain(reply: Reply) -> Any:
    if reply is OK:
        return _RAW_OK
    if type(reply) in _AS_THEY_ARE:
        return reply
    if isinstance(reply, (Error, Simple)):
        text = reply.encode("utf-8", "backslashreplace")
        return msgspec.msgpack.Ext(_ERROR if isinstance(reply, Error) else _SIMPLE, text)
    if isinstance(reply, list):
        return [_plain(item) for item in reply]
    if isinstance(reply, dict):
        return {field: _plain(value) for field, value in reply.items()}
    return reply


def _extension(code: int, data: memoryview) -> Any:
    if code == _LOST:
        return _NOT_KEPT
    return (Error if code == _ERROR else Simple)(bytes(data).decode())


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ext_hook=_extension).decode
_AS_THEY_ARE = frozenset((bytes, int, str, type(None)))
_PACKED_OK = _encode(msgspec.msgpack.Ext(_SIMPLE, OK.encode()))
_RAW_OK = msgspec.Raw(_PACKED_OK)
