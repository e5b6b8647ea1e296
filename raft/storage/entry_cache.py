"""The newest entries in memory, up to a bound in bytes."""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.entry import Entry

ENTRY_OVERHEAD = 120  # bytes that an Entry and its fields take besides the data, roughly


class EntryCache:
    """Entries first to first + len - 1 without gaps. Owned by the log store's thread.

    At the bound the oldest are dropped, many at a time, so that an append costs the same on average.
    """

    def __init__(self, max_bytes: int, first: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[Entry] = []
        self._bytes = 0
        self.first = first

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add entries that follow directly on the last."""
        self._entries.extend(entries)
        for entry in entries:
            self._bytes += len(entry.data) + ENTRY_OVERHEAD
        if self._bytes > self._max_bytes:
            self._shrink(self._max_bytes - self._max_bytes // 32)

    def cut(self, from_index: int) -> None:
        """Forget from_index and everything behind it."""
        for entry in self._entries[max(0, from_index - self.first) :]:
            self._bytes -= len(entry.data) + ENTRY_OVERHEAD
        del self._entries[max(0, from_index - self.first) :]
        self.first = min(self.first, from_index)

    def cut_prefix(self, first_index: int) -> None:
        """Forget everything before first_index."""
        drop = min(max(0, first_index - self.first), len(self._entries))
        for entry in self._entries[:drop]:
            self._bytes -= len(entry.data) + ENTRY_OVERHEAD
        del self._entries[:drop]
        self.first += drop

    def clear(self, first: int) -> None:
        """Forget everything; the next entry will be `first`."""
        self._entries.clear()
        self._bytes = 0
        self.first = first

    def slice(self, lo: int, hi: int) -> Sequence[Entry]:
        """Entries lo to hi - 1, lo not below first."""
        return self._entries[lo - self.first : hi - self.first]

    def _shrink(self, target: int) -> None:
        drop = 0
        while drop < len(self._entries) and self._bytes > target:
            self._bytes -= len(self._entries[drop].data) + ENTRY_OVERHEAD
            drop += 1
        del self._entries[:drop]
        self.first += drop
