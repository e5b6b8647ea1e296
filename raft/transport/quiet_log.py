"""A log that does not let strangers fill the disk: each (cause, address) speaks once in a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable


class QuietLog:
    """Lines of a log, at most one per (cause, address) in interval_s seconds; the next says how many it hid.

    It remembers at most capacity pairs; while all of them are fresh, further new pairs share one place. Any
    thread may call it; its lock is never held while the log is written.
    """

    def __init__(
        self,
        logger: logging.Logger,
        interval_s: float = 60.0,
        capacity: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # when last written, how many hidden since

    def warning(self, cause: str, address: str, text: str) -> bool:
        """write() at the level WARNING."""
        return self.write(logging.WARNING, cause, address, text)

    def write(self, level: int, cause: str, address: str, text: str) -> bool:
        """Log 'address: text' unless this cause and address were logged lately; returns whether it was."""
        hidden = self._hidden(cause, address)
        if hidden is None:
            return False
        self._logger.log(level, "%s: %s%s", address, text, f" ({hidden} more like this)" if hidden else "")
        return True

    def _hidden(self, cause: str, address: str) -> int | None:
        now = self._clock()
        with self._lock:
            key = (cause, address)
            if key not in self._seen and len(self._seen) >= self._capacity:
                fresh = {k: v for k, v in self._seen.items() if now - v[0] < self._interval_s}
                self._seen = fresh
                if len(fresh) >= self._capacity:
                    key = ("", "")
            written, hidden = self._seen.get(key, (None, 0))
            if written is not None and now - written < self._interval_s:
                self._seen[key] = (written, hidden + 1)
                return None
            self._seen[key] = (now, 0)
            return hidden
