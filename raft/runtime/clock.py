"""Time, injected: tests hand in their own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks. Raft uses only the monotonic one; the wall clock is stamped into entries. Any thread."""

    def monotonic_ms(self) -> float:
        """Milliseconds that never go back."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; may jump."""
        ...


class LogClock:
    """The stamps of a leader's entries: the wall clock, made monotone. Owned by the worker.

    A wall clock that was set back must not freeze the log's time (bans would never end), and one that ran
    ahead for a moment must not shift it for good: while the log is ahead of the wall, its time runs at half
    speed until the wall has caught up.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stamp = 0.0
        self._seen_ms = clock.monotonic_ms()

    def stamp(self, now: float, applied_ms: int) -> int:
        """The stamp for entries proposed now, ms since the epoch. now: monotonic ms; applied_ms: the log's
        time as applied, which a former leader with another clock may have set."""
        slowed = self._stamp + (now - self._seen_ms) / 2
        self._seen_ms = now
        self._stamp = max(self._clock.wall_ms(), applied_ms, slowed)
        return int(self._stamp)


class SystemClock:
    """The machine's clocks."""

    def monotonic_ms(self) -> float:
        """See Clock."""
        return time.monotonic() * 1000.0

    def wall_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000
