"""Which keys changed lately, by log index: what WATCH compares at EXEC. Replicated state.

WATCH notes the applied index it was answered at; EXEC fails if a watched key changed after that index. Only
the last changes are remembered, in two generations of about 65,536 keys (or 16 MiB of names) each: when
`recent` is full it becomes `older`, and what was in `older` is forgotten. Of a forgotten key nothing is known
but that its last change is not after `floor`. So a WATCH that has outlived two generations fails without
need, and none ever holds that should fail. Up to then it is exact.

Two dicts and not an array of indexes by hash of the key: a dict reuses the hash that the key's bytes object
already has from the dict of values. Measured on SET: 75 ns against 260 ns for crc32 and a slot.

Owner: the thread that applies entries.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

GENERATION_KEYS = 65_536
GENERATION_BYTES = 16 * 1024 * 1024
_WEIGHED_AT_ONCE = 64  # so many new keys go unweighed at most, besides those of one entry


class KeyVersions:
    """Writers set `recent[key] = index` themselves; `limit` is the size of `recent` that calls for `turn`."""

    __slots__ = ("_bytes", "_turned", "_weighed", "floor", "limit", "older", "recent")

    def __init__(self) -> None:
        self.recent: dict[bytes, int] = {}
        self.older: dict[bytes, int] = {}
        self.floor = 0  # changes up to this index may be forgotten
        self._turned = 0  # changes up to this index are not in `recent`
        self._weighed = 0  # how many keys of `recent` are counted in _bytes
        self._bytes = 0
        self.limit = _WEIGHED_AT_ONCE

    def last_change(self, key: bytes) -> int:
        """The index of the entry that changed the key last, or a later one if that is forgotten."""
        last = self.recent.get(key)
        return last if last is not None else self.older.get(key, self.floor)

    def turn(self, applied: int) -> dict[bytes, int]:
        """Weighs the keys that are new in `recent`; starts a generation if it is full. Between two entries;
        applied: the index of the one before. Returns `recent`, which may be another dict now.
        """
        recent = self.recent
        self._bytes += sum(map(len, islice(reversed(recent), len(recent) - self._weighed)))
        self._weighed = len(recent)
        if self._weighed >= GENERATION_KEYS or self._bytes >= GENERATION_BYTES:
            self.floor, self._turned = self._turned, applied
            self.older, self.recent = recent, {}
            self._weighed = self._bytes = 0
        self.limit = self._weighed + _WEIGHED_AT_ONCE
        return self.recent

    def change_all(self, index: int) -> dict[bytes, int]:
        """Every key counts as changed by the entry at index. Returns the new `recent`."""
        self.floor = self._turned = index
        self.older, self.recent = {}, {}
        self._weighed = self._bytes = 0
        self.limit = _WEIGHED_AT_ONCE
        return self.recent

    def export(self) -> list[Any]:
        """The complete state for msgpack: two dicts, whose order is part of it, and numbers."""
        return [self.recent, self.older, self.floor, self._turned, self._weighed, self._bytes]

    def restore(self, state: list[Any]) -> None:
        """Takes over what export() gave."""
        self.recent, self.older, self.floor, self._turned, self._weighed, self._bytes = state
        self.limit = self._weighed + _WEIGHED_AT_ONCE
