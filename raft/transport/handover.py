"""What the helper threads hand to the worker: finished connections and news. Bounded, whatever they do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from raft.transport.dialer import Dialer


class Incoming(NamedTuple):
    """A connection that peer_id dialed and that passed the handshake; run_id names the peer's process,
    identity its data directory, cluster_id its cluster ("" while it knows none)."""

    peer_id: int
    run_id: str
    sock: socket.socket
    identity: str = ""
    cluster_id: str = ""


class Outgoing(NamedTuple):
    """A connection that this node dialed; dialer wants to be told when it breaks. run_id, identity and
    cluster_id are the peer's."""

    dialer: Dialer
    run_id: str
    sock: socket.socket
    identity: str = ""
    cluster_id: str = ""


class News(NamedTuple):
    """Everything handed over since the last take. review: the members have changed, look at every connection
    that there was before the new ones."""

    review: bool
    incoming: list[Incoming]
    outgoing: list[Outgoing]
    refused: set[int]


class Handover:
    """Any thread puts, the worker takes. At most one waiting connection per peer and direction: a newer one
    closes the older. After close everything put is closed at once."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._incoming: dict[int, Incoming] = {}
        self._outgoing: dict[int, Outgoing] = {}
        self._review = False
        self._refused: set[int] = set()
        self._closed = False
        self._empty = True  # read without the lock: the worker asks in every turn

    def put_incoming(self, connection: Incoming) -> None:
        """A peer has dialed in."""
        with self._lock:
            stale = self._put(self._incoming, connection.peer_id, connection)
        _close(stale)
        self._wake()

    def put_outgoing(self, connection: Outgoing) -> None:
        """A dialer has reached its peer."""
        with self._lock:
            stale = self._put(self._outgoing, connection.dialer.peer_id, connection)
        _close(stale)
        self._wake()

    def put_refused(self, peer_id: int) -> None:
        """Nobody listens at the peer's address (ECONNREFUSED)."""
        with self._lock:
            self._refused.add(peer_id)
            self._empty = False
        self._wake()

    def review(self) -> None:
        """The members have changed: connections of who is none any more, or somebody else, have to go."""
        with self._lock:
            self._review = True
            self._empty = False
        self._wake()

    def take(self) -> News | None:
        """All that came since the last call, or None. Worker only."""
        if self._empty:
            return None
        with self._lock:
            news = News(
                self._review, list(self._incoming.values()), list(self._outgoing.values()), self._refused
            )
            self._review, self._refused = False, set()
            self._incoming.clear()
            self._outgoing.clear()
            self._empty = True
        return news

    def close(self) -> None:
        """Close what nobody took, and from now on whatever is put."""
        with self._lock:
            self._closed = True
            stale: list[Incoming | Outgoing] = [*self._incoming.values(), *self._outgoing.values()]
            self._incoming.clear()
            self._outgoing.clear()
        for each in stale:
            _close(each)

    def _put(
        self,
        waiting: dict[int, Incoming] | dict[int, Outgoing],
        peer_id: int,
        connection: Incoming | Outgoing,
    ) -> Incoming | Outgoing | None:
        """Store connection under the lock; returns the one that has to be closed, if any."""
        if self._closed:
            return connection
        stale = waiting.get(peer_id)
        waiting[peer_id] = connection  # type: ignore[assignment]  # the two callers pass matching types
        self._empty = False
        return stale


def _close(connection: Incoming | Outgoing | None) -> None:
    if connection is not None:
        connection.sock.close()
