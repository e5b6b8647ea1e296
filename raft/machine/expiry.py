"""When keys expire: each key's time, and a queue that tells the earliest one.

The times are replicated state; the queue is only a local help to find them and may hold more than it
needs. For every key with a time the queue holds an entry at that time or earlier: moving a time to later
touches only the dict, and the early entry is put right when its time comes. So a key that is refreshed
all the time does not fill the queue. All times in ms since the epoch. Owner: the thread that applies
entries.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from raft.breathe import breathe

_SLACK = 1024  # useless entries that the queue may hold besides one per key


class ExpiryTimes:
    """Times of expiry by key. `at_ms` may be read by the owner; change it only through the methods."""

    __slots__ = ("_queue", "at_ms")

    def __init__(self) -> None:
        self.at_ms: dict[bytes, int] = {}
        self._queue: list[tuple[int, bytes]] = []

    def set(self, key: bytes, at_ms: int) -> None:
        """Lets a key expire at at_ms, whatever held before."""
        before = self.at_ms.get(key)
        self.at_ms[key] = at_ms
        if before is None or at_ms < before:
            heappush(self._queue, (at_ms, key))
            if len(self._queue) > 2 * len(self.at_ms) + _SLACK:
                self._queue = [(at, each) for each, at in self.at_ms.items()]
                heapify(self._queue)

    def restore(self, times: dict[bytes, int]) -> None:
        """Takes over all times, in place of those it has."""
        self.at_ms = times
        self._queue = [(at, key) for key, at in times.items()]
        heapify(self._queue)

    def clear(self) -> None:
        self.at_ms.clear()
        self._queue.clear()

    def next_ms(self) -> int | None:
        """The earliest time of any key; None when no key expires."""
        queue = self._queue
        while queue:
            at, key = queue[0]
            actual = self.at_ms.get(key)
            if actual == at:
                return at
            self._put_right(key, actual)
        return None

    def take_due(self, now_ms: int) -> list[bytes]:
        """The keys that expire at now_ms or before, the earliest first; they have no time any more.

        Their order goes into replicated state (the order of KeyVersions). The queue's does not do for it: it
        depends on who asked for next_ms(), as only leaders do, and on when the machine was restored."""
        due: list[tuple[int, bytes]] = []
        queue = self._queue
        while queue and queue[0][0] <= now_ms:
            key = queue[0][1]
            actual = self.at_ms.get(key)
            if actual is not None and actual <= now_ms:
                del self.at_ms[key]
                due.append((actual, key))
                actual = None
                if not len(due) & 1023:
                    breathe()
            self._put_right(key, actual)
        due.sort()
        return [key for _, key in due]

    def _put_right(self, key: bytes, actual: int | None) -> None:
        """Replaces the queue's first entry, which stands too early or for nothing."""
        if actual is None:
            heappop(self._queue)
        else:
            heapreplace(self._queue, (actual, key))
