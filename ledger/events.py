"""What subscribers hear: (channel, payload) pairs gathered while one entry is applied."""

from __future__ import annotations


class Events:
    """News since the last take(). Not replicated state: every node makes its own from the same entries."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, str]] = []

    def turns(self, interval: int, due_at: int) -> None:
        """Interval is open until due_at (ms)."""
        self._pending.append(("turns", f"{interval} {due_at}"))

    def outcome(self, follower_id: str, interval: int, outcome: str, delta: int, balance: int) -> None:
        """Rule 7: each outcome is published."""
        self._pending.append((f"rewards:{follower_id}", f"{interval} {outcome} {delta} {balance}"))

    def cluster(self, news: str) -> None:
        """One line of news about the whole."""
        self._pending.append(("cluster", news))

    def take(self) -> list[tuple[str, str]]:
        """All news since the last call, in order."""
        taken, self._pending = self._pending, []
        return taken
