"""Which members answer pings. The ping thread asks for pings, the worker sends them and hears the answers."""

from __future__ import annotations

from dataclasses import dataclass, field

REMEMBERED_PINGS = 32  # per peer; an answer to an older ping comes too late to count
MISSED_PINGS = 2  # unanswered in a row before a member counts as silent


@dataclass(slots=True)
class PeerPings:
    """One peer's. Times are monotonic ms."""

    nonce: int = 0
    unanswered: int = 0
    sent_ms: dict[int, float] = field(default_factory=dict)  # by nonce, the latest few
    answered_ping_sent_ms: float = float("-inf")  # when the latest answered ping had been sent
    round_trip_ms: float | None = None


class PingBoard:
    """Owned by the worker; silent() and responded() read single values and may be called by any thread."""

    def __init__(self) -> None:
        self._peers: dict[int, PeerPings] = {}

    def sent(self, peer: int, now: float) -> int:
        """A ping leaves now. Returns its nonce."""
        pings = self._peers.setdefault(peer, PeerPings())
        pings.nonce += 1
        pings.unanswered += 1
        pings.sent_ms[pings.nonce] = now
        pings.sent_ms.pop(pings.nonce - REMEMBERED_PINGS, None)
        return pings.nonce

    def answered(self, peer: int, nonce: int, now: float) -> None:
        """A pong came. One that answers no remembered ping changes nothing."""
        pings = self._peers.get(peer)
        sent_ms = pings.sent_ms.pop(nonce, None) if pings is not None else None
        if pings is None or sent_ms is None:
            return
        pings.unanswered = min(pings.unanswered, pings.nonce - nonce)
        pings.answered_ping_sent_ms = max(pings.answered_ping_sent_ms, sent_ms)
        pings.round_trip_ms = now - sent_ms

    def forgive(self, peer: int) -> None:
        """The peer has just been heard of as the leader: what it missed before counts no longer."""
        pings = self._peers.get(peer)
        if pings is not None:
            pings.unanswered = 0

    def silent(self, peer: int) -> bool:
        """Whether the last pings to this peer stayed unanswered."""
        pings = self._peers.get(peer)
        return pings is not None and pings.unanswered > MISSED_PINGS

    def responded(self, peer: int) -> bool:
        """Whether this peer answered one of the latest pings."""
        pings = self._peers.get(peer)
        return pings is not None and pings.round_trip_ms is not None and pings.unanswered <= MISSED_PINGS

    def answered_since(self, since_ms: float) -> set[int]:
        """Peers that answered a ping which was sent at or after since_ms."""
        return {peer for peer, pings in self._peers.items() if pings.answered_ping_sent_ms >= since_ms}
