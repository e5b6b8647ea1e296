"""Whom this node is connected with: the members of its configuration, its guests, a dialer for each of them.

A guest is a node that this one does not know as a member, let in because this node has no living leader: it
may be the leader, added while this node was away. Its address comes from its hello, so that it can be
answered.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial

from raft.transport.admission import (
    Credentials,
    answer_address,
    check_cluster_id,
    check_hello,
    check_identity,
    refuse_stranger,
)
from raft.transport.dialer import Dialer
from raft.transport.handover import Handover
from raft.transport.handshake import HandshakeError, Hello, PeerAddress, Welcome
from raft.transport.links import PeerStatistics
from raft.transport.quiet_log import QuietLog

MAX_GUESTS = 16
GUEST_LINGER_S = 10.0  # a guest that has been gone for so long is forgotten
_EXPIRY_S = 1.0

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Guest:
    address: tuple[str, int]
    seen_s: float  # when it last had a connection, or shook hands


class Membership:
    """Members, guests, dialers, and what is known of each: one lock, held for no I/O. Any thread.

    is_open says whether strangers may become guests; trusted, whether a peer's identity is not held against
    it now, because this node may be the one that is behind. cluster_heard: whether a peer has shown that a
    cluster of this name has been founded. The worker learns of changes by handover.review() and
    asks keeps() and dialer() which connections may stay.
    """

    def __init__(
        self,
        own: Credentials,
        members: Mapping[int, PeerAddress],
        is_open: Callable[[], bool],
        handover: Handover,
        quiet_log: QuietLog,
        on_fatal: Callable[[str, BaseException], None],
        clock: Callable[[], float] = time.monotonic,
        trusted: Callable[[int], bool] = lambda _peer: False,
    ) -> None:
        self._own = own
        self._is_open = is_open
        self._handover = handover
        self._quiet_log = quiet_log
        self._on_fatal = on_fatal
        self._clock = clock
        self._trusted = trusted
        self.cluster_heard = False
        self._lock = threading.Lock()
        self._members = self._others(members)
        self._guests: dict[int, _Guest] = {}
        self._dialers: dict[int, Dialer] = {}
        self._retired: list[Dialer] = []
        self._heard: dict[int, str] = {}
        self._statistics: dict[int, PeerStatistics] = {}
        self._next_expiry_s = 0.0
        self._running = False

    def start(self, raft_port: int) -> None:
        """Begin to dial; before the first handshake. raft_port: where this node really listens."""
        with self._lock:
            self._own = self._own._replace(raft_port=raft_port)
            self._running = True
            for peer_id, member in self._members.items():
                self._dial(peer_id, (member.host, member.raft_port))

    def set_members(self, members: Mapping[int, PeerAddress], cluster_id: str) -> None:
        """See PeerNetwork.set_members."""
        others = self._others(members)
        with self._lock:
            before, self._members = self._members, others
            self._own = self._own._replace(cluster_id=cluster_id)
            for peer_id in others.keys() & self._guests.keys():
                del self._guests[peer_id]  # the configuration knows better where it is
            if not self._running:
                return
            for peer_id in self._dialers.keys() - others.keys() - self._guests.keys():
                self._retire(peer_id)
            for peer_id, member in others.items():
                if peer_id in before and before[peer_id].identity and not member.identity:
                    self._retire(peer_id)  # removed and added again: what was heard from it is of no worth
                    self._heard.pop(peer_id, None)
                self._dial(peer_id, (member.host, member.raft_port))
            self._prune()
        self._handover.review()

    def close(self) -> list[Dialer]:
        """No dials any more; returns the dialers, stopped but not joined."""
        with self._lock:
            self._running = False
            dialers = [*self._dialers.values(), *self._retired]
            self._dialers.clear()
            self._retired.clear()
        for dialer in dialers:
            dialer.stop()
        return dialers

    # ---- handshakes ----------------------------------------------------------------------------------------

    def admit(self, hello: Hello, source: str) -> Welcome:
        """The answer to a hello that came from the host source; makes a stranger a guest while that is
        allowed. Raises HandshakeError. Handshake threads."""
        with self._lock:
            own = self._own
            if not self._running:
                raise HandshakeError("closed", "this node is stopping")
            self._hear(hello.cluster, hello.cluster_id)
            check_hello(hello, own)
            if hello.from_id in self._members:
                check_identity(hello.from_id, self._recorded(hello.from_id), hello.identity)
                return own.welcome()
            new = self._admit_guest(hello, source)
        if new:
            text = "node %d: is no member here, let in as a guest; answered at %s:%d"
            _logger.info(text, hello.from_id, *answer_address(hello, source))
        return own.welcome()

    def check_welcome(self, welcome: Welcome) -> None:
        """Raises HandshakeError unless the node that answered is the one meant. Dialer threads."""
        with self._lock:
            own, recorded = self._own, self._expected(welcome.node_id)
            self._hear(own.cluster, welcome.cluster_id)
        check_cluster_id(welcome.node_id, welcome.cluster_id, own)
        check_identity(welcome.node_id, recorded, welcome.identity)

    def _hear(self, cluster: str, cluster_id: str) -> None:
        if cluster_id and cluster == self._own.cluster:
            self.cluster_heard = True

    def _on_refusal(self, cause: str) -> None:
        """Who has lost its disk, or was never added, is refused by members of a cluster. Dialer threads."""
        if cause in ("sender", "guests", "identity"):
            self.cluster_heard = True

    def _hello(self, peer_id: int) -> Hello:
        with self._lock:
            return self._own.hello(peer_id, self._expected(peer_id))

    def _admit_guest(self, hello: Hello, source: str) -> bool:
        """Under the lock. True for a new one. One that is there already may come again while the door is
        closed: it may be the very leader that closed it."""
        peer_id, now = hello.from_id, self._clock()
        known = peer_id in self._guests
        if not known and not self._is_open():
            raise refuse_stranger(peer_id, self._own)
        if not known and len(self._guests) >= MAX_GUESTS:
            raise refuse_stranger(peer_id, self._own, len(self._guests))
        address = answer_address(hello, source)
        self._guests[peer_id] = _Guest(address, now)
        self._dial(peer_id, address)
        return not known

    # ---- the worker's questions ----------------------------------------------------------------------------

    def keeps(self, peer_id: int, identity: str, cluster_id: str) -> bool:
        """May a peer that introduced itself so stay connected?"""
        with self._lock:
            own, recorded = self._own, self._recorded(peer_id)
            known = peer_id in self._members or peer_id in self._guests
        try:
            check_cluster_id(peer_id, cluster_id, own)
            check_identity(peer_id, recorded, identity)
        except HandshakeError:
            return False
        return known

    def dialer(self, peer_id: int) -> Dialer | None:
        """Who dials the peer, None if nobody does."""
        return self._dialers.get(peer_id)

    def note_connection(self, peer_id: int, identity: str) -> PeerStatistics:
        """Note a new connection and what the peer said it is; returns where to count what goes over it."""
        with self._lock:
            if identity:
                self._heard[peer_id] = identity
            else:
                self._heard.pop(peer_id, None)
            return self._statistics.setdefault(peer_id, PeerStatistics())

    def expire_guests(self, *present: Container[int]) -> None:
        """Forget the guests that have been gone for GUEST_LINGER_S; present: who has a connection in either
        direction. Cheap enough for every turn."""
        if not self._guests or self._clock() < self._next_expiry_s:
            return
        gone = []
        with self._lock:
            now = self._clock()
            self._next_expiry_s = now + _EXPIRY_S
            for peer_id, guest in list(self._guests.items()):
                if any(peer_id in each for each in present):
                    guest.seen_s = now
                elif now - guest.seen_s >= GUEST_LINGER_S:
                    gone.append(peer_id)
                    del self._guests[peer_id]
                    self._retire(peer_id)
            self._prune()
        for peer_id in gone:
            _logger.info("node %d: the guest is gone", peer_id)

    # ---- anybody's questions -------------------------------------------------------------------------------

    def heard_identities(self) -> dict[int, str]:
        """See PeerNetwork.heard_identities."""
        with self._lock:
            return dict(self._heard)

    def statistics_of(self, peer_id: int) -> PeerStatistics | None:
        """The live counters of a peer, None if it is neither a member nor a guest."""
        return self._statistics.get(peer_id)

    def statistics(self) -> dict[int, PeerStatistics]:
        """The live counters by peer."""
        with self._lock:
            return dict(self._statistics)

    # ---- under the lock ------------------------------------------------------------------------------------

    def _others(self, members: Mapping[int, PeerAddress]) -> dict[int, PeerAddress]:
        return {peer_id: each for peer_id, each in members.items() if peer_id != self._own.node_id}

    def _recorded(self, peer_id: int) -> str:
        member = self._members.get(peer_id)
        return "" if member is None or self._trusted(peer_id) else member.identity

    def _expected(self, peer_id: int) -> str:
        """Whom this node looks for when it dials: a trusted peer as it has introduced itself, if it has;
        nobody is trusted before."""
        member = self._members.get(peer_id)
        recorded = "" if member is None else member.identity
        return self._heard.get(peer_id, recorded) if self._trusted(peer_id) else recorded

    def _dial(self, peer_id: int, address: tuple[str, int]) -> None:
        """See to it that the peer is dialed, and at this address."""
        current = self._dialers.get(peer_id)
        if current is not None:
            if current.address == address:
                return
            self._retire(peer_id)
            self._handover.review()
        self._statistics.setdefault(peer_id, PeerStatistics())
        dialer = self._dialers[peer_id] = Dialer(
            peer_id,
            address,
            partial(self._hello, peer_id),
            self.check_welcome,
            self._handover,
            self._quiet_log,
            self._on_fatal,
            random.Random(),
            self._on_refusal,
        )
        dialer.start()

    def _retire(self, peer_id: int) -> None:
        dialer = self._dialers.pop(peer_id, None)
        self._retired = [each for each in self._retired if not each.join(0)]
        if dialer is not None:
            dialer.stop()
            self._retired.append(dialer)

    def _prune(self) -> None:
        """Nothing is remembered of who is gone: these tables must not grow with strangers."""
        known = self._members.keys() | self._guests.keys()
        for table in (self._heard, self._statistics):
            for peer_id in table.keys() - known:
                del table[peer_id]
