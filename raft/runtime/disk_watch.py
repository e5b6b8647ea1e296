"""The watch over a disk that hangs: no thread can be called back from a system call that does not return.

While the raft worker hangs in one it is silent, so another node is elected; but its own clients would wait as
long as the disk does. So the election thread looks at the calls under way (DiskWatch), and once one has taken
too long the node gives up: the thread takes the desk over from the worker (DiskWait), answers every client,
closes the connections, and the process ends with exit 1. A supervisor starts it again.

What takes too long: LIMIT times the longest election timeout, at least LEAST_MS, in ONE system call. That is
1 s by default, so that a node which hangs is gone within two election timeouts. By then a leader has been
replaced in any case, and a restart costs no more than what the node has missed already. A disk that is slow
(400 ms for each fsync) is no reason to end: then elections come often, until election_timeout_ms is raised,
which raises this limit, too. A write that needs several slow calls has LONGEST_WAIT_MS.

Only time that this process was awake counts: after a pause (SIGSTOP, a suspended machine, no CPU) the call
that was under way is not to blame. So each look adds what has passed since the last, but never more than
twice the time between two looks.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from raft.storage.watched_disk import DiskCall

LIMIT = 1.6  # in longest election timeouts; looks, answers and the end of the process fit into the rest of 2
LEAST_MS = 1000.0
LONGEST_WAIT_MS = 30_000.0
LOOKS = 12  # within the limit


class HungDiskError(Exception):
    """The disk does not answer. Fatal."""


def limit_ms(longest_election_timeout_ms: float) -> float:
    """How long one system call may take."""
    return max(LEAST_MS, LIMIT * longest_election_timeout_ms)


class DiskWait:
    """`with wait:` on the worker around what writes: inside, and only there, the desk can be taken from it.

    number: of the wait under way; 0: there is none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = False
        self._taken = False
        self._count = 0
        self.number = 0

    def __enter__(self) -> None:
        self._count += 1
        self._inside, self.number = True, self._count

    def __exit__(self, *_: object) -> None:
        """Raises HungDiskError if the desk was taken meanwhile: the worker must touch nothing any more."""
        with self._lock:
            self._inside, self.number = False, 0
            if self._taken:
                raise HungDiskError("the disk has answered too late")

    def take(self) -> bool:
        """The worker waits for its disk, and never comes out of that wait: what it owned is the caller's.
        False: it does not wait. Any thread."""
        with self._lock:
            self._taken = self._taken or self._inside
            return self._taken


class DiskWatch:
    """Owned by the election thread. calls: see WatchedDisk."""

    def __init__(self, calls: Mapping[int, DiskCall], wait: DiskWait, call_limit_ms: float) -> None:
        self.interval_ms = call_limit_ms / LOOKS
        self._calls = calls
        self._wait = wait
        self._limit_ms = call_limit_ms
        self._looked_ms: float | None = None
        self._seen: dict[int, tuple[int, float]] = {}  # by thread: the call's number, how long it takes
        self._seen_wait = (0, 0.0)

    def look(self, now: float) -> str | None:
        """To be called every interval_ms; now: monotonic ms. What hangs, for people; None: nothing does."""
        most = 2 * self.interval_ms
        passed = 0.0 if self._looked_ms is None else min(now - self._looked_ms, most)
        self._looked_ms = now
        seen, self._seen = self._seen, {}
        for thread, call in list(self._calls.items()):
            number, took = seen.get(thread, (0, 0.0))
            took = took + passed if number == call.number else min(now - call.began_ms, passed)
            self._seen[thread] = (call.number, took)
            if took >= self._limit_ms and self._calls.get(thread) is call:
                return f"{call} has not returned for {took / 1000:.1f} s: is the disk ill?"
        number, took = self._seen_wait
        took = took + passed if number == self._wait.number != 0 else 0.0
        self._seen_wait = (self._wait.number, took)
        if took >= LONGEST_WAIT_MS:
            return f"the disk has kept this node waiting for {took / 1000:.0f} s, call after call"
        return None
