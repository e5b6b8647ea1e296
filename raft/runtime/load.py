"""How many client operations this node has taken and not answered: the bound behind BUSY."""

from __future__ import annotations

import threading


class Load:
    """A counter with a limit: handler threads take places, the worker gives them back. Any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, operations: int) -> bool:
        """Reserve places. False, and nothing reserved, if they would pass the limit. A single batch that is
        larger than the limit alone is let in when nothing else is pending: else it could never run."""
        with self._lock:
            if self._taken and self._taken + operations > self.limit:
                return False
            self._taken += operations
            return True

    def give_back(self, operations: int) -> None:
        """These operations are answered."""
        with self._lock:
            self._taken -= operations

    @property
    def taken(self) -> int:
        """Operations in progress."""
        return self._taken
