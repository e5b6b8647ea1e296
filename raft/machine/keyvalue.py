"""The values: Redis' string commands over a dict, deterministic.

Time is the log's: `advance` sets it at the start of every entry and removes every key that is due, so a
key that is in `values` exists, and nothing else ever expires a key. No clock, no config, no random. Each
public method named after a command takes the command's words (the name first; their count already checked
against the command table) and returns its reply; those above the line "reads" change state. The order of
`values`, that of creation, is replicated state too: `feed` hashes it, and a snapshot must keep it.

Owner: the thread that applies entries; no other thread may call anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from raft.machine.arguments import (
    LEAST,
    MOST,
    SYNTAX_ERROR,
    RefusedError,
    SetOptions,
    expire_conditions,
    expiry_ms,
    getex_options,
    integer,
    invalid_expire_time,
    set_options,
)
from raft.machine.commands import wrong_arity
from raft.machine.expiry import ExpiryTimes
from raft.machine.glob import PatternTooLongError, glob_matcher
from raft.machine.scan import KeyIndex
from raft.machine.versions import KeyVersions
from raft.replies import OK, Error, Reply, Simple

LONGEST_VALUE = 64 * 1024 * 1024  # bytes, by APPEND; a SET is bounded by limits.max_request_bytes
ANSWER_TOO_LARGE = Error(f"ERR the answer would have more than {LONGEST_VALUE} bytes: ask for less at a time")
_SCAN_COUNT = 10
_LARGEST_CURSOR = 2**64 - 1
_HASHED_AT_ONCE = 4096
_FEW_KEYS = 1024  # FLUSHALL tells them apart from keys that did not exist

_STRING, _NONE = Simple("string"), Simple("none")
_OVERFLOW = Error("ERR increment or decrement would overflow")
_encode = msgspec.msgpack.Encoder().encode
_ATTRIBUTES = (
    "_changed",
    "_expires_at",
    "_index",
    "at_ms",
    "entry",
    "expiry",
    "reader_ms",
    "values",
    "versions",
)


class KeyValue:
    """The keys, their values, when they expire and when they changed.

    at_ms: the log's time; reader_ms: now, for TTL; entry: the index of the entry that is being applied.
    """

    __slots__ = _ATTRIBUTES

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.expiry = ExpiryTimes()
        self.at_ms = 0
        self.reader_ms = 0
        self.entry = 0
        self.versions = KeyVersions()
        self._changed = self.versions.recent
        self._expires_at = self.expiry.at_ms
        self._index = KeyIndex()

    @property
    def expiries(self) -> dict[bytes, int]:
        """When keys expire, ms since the epoch; not to be changed by the reader."""
        return self._expires_at

    def advance(self, at_ms: int, entry: int) -> None:
        """A new entry begins: the log's time becomes at_ms (never earlier than it was) and due keys go."""
        if at_ms > self.at_ms:
            self.at_ms = at_ms
        self.reader_ms = self.at_ms
        if len(self._changed) >= self.versions.limit:
            self._changed = self.versions.turn(entry - 1)
        self.entry = entry
        if self._expires_at:
            for key in self.expiry.take_due(self.at_ms):
                del self.values[key]
                self._index.remove(key)
                self._changed[key] = entry

    def next_expiry_ms(self) -> int | None:
        """When the next key is due; None when none is."""
        return self.expiry.next_ms()

    def feed(self, update: Callable[[bytes], object]) -> None:
        """Gives the complete state to a hash: values in their order, then the times, then the changes."""
        for part in (self.values, self._expires_at):
            update(_encode(len(part)))
            items = iter(part.items())
            while chunk := list(islice(items, _HASHED_AT_ONCE)):
                update(_encode(chunk))
        update(_encode(self.versions.export()))

    @property
    def index(self) -> KeyIndex:
        """The index for SCAN; not to be changed by the reader."""
        return self._index

    def restore(
        self,
        at_ms: int,
        values: dict[bytes, bytes],
        expiries: dict[bytes, int],
        index: KeyIndex,
        versions: list[Any],
    ) -> None:
        """Takes over a complete state: see raft/machine/snapshot.py."""
        self.at_ms = self.reader_ms = at_ms
        self.values = values
        self.expiry.restore(expiries)
        self._expires_at = self.expiry.at_ms
        self._index = index
        self.restore_versions(versions)

    def become(self, other: KeyValue) -> None:
        """Takes over the state of another, which must not be used any more."""
        for name in _ATTRIBUTES:
            setattr(self, name, getattr(other, name))

    def restore_versions(self, state: list[Any]) -> None:
        """Takes over what versions.export() gave."""
        self.versions.restore(state)
        self._changed = self.versions.recent

    # --- helpers that change state ---

    def _put(self, key: bytes, value: bytes) -> None:
        """Sets a value and leaves the time of expiry as it is."""
        if key not in self.values:
            self._index.add(key)
        self.values[key] = value
        self._changed[key] = self.entry

    def _put_plain(self, key: bytes, value: bytes) -> None:
        """Sets a value that does not expire."""
        self._put(key, value)
        if self._expires_at:
            self._expires_at.pop(key, None)

    def _remove(self, key: bytes) -> bytes | None:
        """Removes a key; its value, or None if there was none."""
        value = self.values.pop(key, None)
        if value is not None:
            self._index.remove(key)
            self._changed[key] = self.entry
            if self._expires_at:
                self._expires_at.pop(key, None)
        return value

    def _expire_at(self, key: bytes, at_ms: int) -> None:
        """Lets an existing key expire at at_ms; at once if that is not in the future."""
        if at_ms <= self.at_ms:
            self._remove(key)
        else:
            self.expiry.set(key, at_ms)
            self._changed[key] = self.entry

    # --- writes ---

    def set(self, words: list[bytes]) -> Reply:
        """SET key value [NX | XX | IFEQ old] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]"""
        if len(words) > 3:
            return self._set_with(words[1], words[2], set_options(words[3:]))
        _, key, value = words
        values = self.values
        count = len(values)
        values[key] = value
        if len(values) != count:  # a new one: told without looking for it twice
            self._index.add(key)
        self._changed[key] = self.entry
        if self._expires_at:
            self._expires_at.pop(key, None)
        return OK

    def _set_with(self, key: bytes, value: bytes, options: SetOptions) -> Reply:
        expires_at = None if options.time is None else expiry_ms(options.time, self.at_ms, "set")
        before = self.values.get(key)
        refused = (
            (options.condition == b"NX" and before is not None)
            or (options.condition == b"XX" and before is None)
            or (options.condition == b"IFEQ" and before != options.expected)
        )
        if refused:
            return before if options.get else None
        if options.keep_expiry:
            self._put(key, value)
        else:
            self._put_plain(key, value)
        if expires_at is not None:
            self._expire_at(key, expires_at)
        return before if options.get else OK

    def getdel(self, words: list[bytes]) -> Reply:
        """GETDEL key"""
        return self._remove(words[1])

    def getex(self, words: list[bytes]) -> Reply:
        """GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]"""
        key = words[1]
        options = getex_options(words[2:])
        value = self.values.get(key)
        if value is None:
            return None
        if options.time is not None:
            self._expire_at(key, expiry_ms(options.time, self.at_ms, "getex"))
        elif options.persist:
            self._persist(key)
        return value

    def delete(self, words: list[bytes]) -> Reply:
        """DEL key [key ...]"""
        removed = 0
        for key in words[1:]:
            if self._remove(key) is not None:
                removed += 1
        return removed

    def mset(self, words: list[bytes]) -> Reply:
        """MSET key value [key value ...]"""
        if len(words) % 2 == 0:
            return wrong_arity("mset")
        for at in range(1, len(words), 2):
            self._put_plain(words[at], words[at + 1])
        return OK

    def msetnx(self, words: list[bytes]) -> Reply:
        """MSETNX key value [key value ...]"""
        if len(words) % 2 == 0:
            return wrong_arity("msetnx")
        if any(key in self.values for key in words[1::2]):
            return 0
        self.mset(words)
        return 1

    def incr(self, words: list[bytes]) -> Reply:
        """INCR key"""
        return self._add(words[1], 1)

    def decr(self, words: list[bytes]) -> Reply:
        """DECR key"""
        return self._add(words[1], -1)

    def incrby(self, words: list[bytes]) -> Reply:
        """INCRBY key increment"""
        return self._add(words[1], integer(words[2]))

    def decrby(self, words: list[bytes]) -> Reply:
        """DECRBY key decrement"""
        decrement = integer(words[2])
        if decrement == LEAST:
            return Error("ERR decrement would overflow")
        return self._add(words[1], -decrement)

    def _add(self, key: bytes, amount: int) -> Reply:
        before = self.values.get(key)
        if before is None:
            self._index.add(key)
            after = amount
        else:
            after = integer(before) + amount
            if not LEAST <= after <= MOST:
                return _OVERFLOW
        self.values[key] = b"%d" % after
        self._changed[key] = self.entry
        return after

    def append(self, words: list[bytes]) -> Reply:
        """APPEND key bytes"""
        _, key, tail = words
        value = self.values.get(key, b"")
        if len(value) + len(tail) > LONGEST_VALUE:
            return Error("ERR string exceeds maximum allowed size")
        value += tail
        self._put(key, value)
        return len(value)

    def expire(self, words: list[bytes]) -> Reply:
        """EXPIRE key seconds [NX | XX | GT | LT]"""
        return self._expire_in(words, 1000, "expire")

    def pexpire(self, words: list[bytes]) -> Reply:
        """PEXPIRE key milliseconds [NX | XX | GT | LT]"""
        return self._expire_in(words, 1, "pexpire")

    def _expire_in(self, words: list[bytes], unit_ms: int, command: str) -> Reply:
        key = words[1]
        conditions = expire_conditions(words[3:])
        duration_ms = integer(words[2]) * unit_ms
        expires_at = self.at_ms + duration_ms
        if duration_ms < LEAST or expires_at > MOST:
            raise invalid_expire_time(command)
        if key not in self.values or not conditions.hold(expires_at, self._expires_at.get(key)):
            return 0
        self._expire_at(key, expires_at)
        return 1

    def persist(self, words: list[bytes]) -> Reply:
        """PERSIST key"""
        return self._persist(words[1])

    def _persist(self, key: bytes) -> int:
        if self._expires_at.pop(key, None) is None:
            return 0
        self._changed[key] = self.entry
        return 1

    def flushall(self, words: list[bytes]) -> Reply:
        """FLUSHALL [ASYNC | SYNC]"""
        if len(words) > 2 or (len(words) == 2 and words[1].upper() not in (b"ASYNC", b"SYNC")):
            return SYNTAX_ERROR
        if len(self.values) <= _FEW_KEYS:
            self._changed.update(dict.fromkeys(self.values, self.entry))
        else:
            self._changed = self.versions.change_all(self.entry)
        self.values.clear()
        self.expiry.clear()
        self._index.clear()
        return OK

    # --- reads ---

    def get(self, words: list[bytes]) -> Reply:
        """GET key"""
        return self.values.get(words[1])

    def mget(self, words: list[bytes]) -> Reply:
        """MGET key [key ...]"""
        found = [self.values.get(key) for key in words[1:]]
        if sum([len(value) for value in found if value is not None]) > LONGEST_VALUE:
            return ANSWER_TOO_LARGE
        return [*found]

    def exists(self, words: list[bytes]) -> Reply:
        """EXISTS key [key ...]: a key named twice counts twice"""
        return sum(key in self.values for key in words[1:])

    def strlen(self, words: list[bytes]) -> Reply:
        """STRLEN key"""
        return len(self.values.get(words[1], b""))

    def type(self, words: list[bytes]) -> Reply:
        """TYPE key"""
        return _STRING if words[1] in self.values else _NONE

    def ttl(self, words: list[bytes]) -> Reply:
        """TTL key: seconds, rounded; -1 without expiry, -2 without key"""
        left = self._left_ms(words[1])
        return left if left < 0 else (left + 500) // 1000

    def pttl(self, words: list[bytes]) -> Reply:
        """PTTL key: milliseconds, at least 1 while the key is there; -1 without expiry, -2 without key"""
        return self._left_ms(words[1])

    def _left_ms(self, key: bytes) -> int:
        expires_at = self._expires_at.get(key)
        if expires_at is not None:
            return max(1, expires_at - max(self.at_ms, self.reader_ms))
        return -1 if key in self.values else -2

    def dbsize(self, _words: list[bytes]) -> Reply:
        """DBSIZE"""
        return len(self.values)

    def keys(self, words: list[bytes]) -> Reply:
        """KEYS pattern"""
        return _matching(list(self.values), words[1])

    def scan(self, words: list[bytes]) -> Reply:
        """SCAN cursor [MATCH pattern] [COUNT n] [TYPE type]: see raft/machine/scan.py"""
        cursor = words[1]
        if not cursor.isdigit() or len(cursor) > 20 or int(cursor) > _LARGEST_CURSOR:
            return Error("ERR invalid cursor")
        pattern, count, of_type = b"*", _SCAN_COUNT, b"string"
        for at in range(2, len(words), 2):
            if at + 1 == len(words):
                return SYNTAX_ERROR
            option, argument = words[at].upper(), words[at + 1]
            if option == b"MATCH":
                pattern = argument
            elif option == b"COUNT":
                count = integer(argument)
                if count < 1:
                    return SYNTAX_ERROR
            elif option == b"TYPE":
                of_type = argument.lower()
            else:
                return SYNTAX_ERROR
        following, keys = self._index.page(int(cursor), count)
        found: list[Reply] = _matching(keys, pattern) if of_type == b"string" else []
        return [b"%d" % following, found]


def _matching(keys: list[bytes], pattern: bytes) -> list[Reply]:
    """Those of the keys that match a glob pattern."""
    if pattern == b"*":
        return [*keys]
    try:
        return [*filter(glob_matcher(pattern), keys)]
    except PatternTooLongError as error:
        raise RefusedError(Error(f"ERR {error}")) from None
