"""The network between simulated nodes: it loses, doubles, delays and reorders messages, and it parts.

Ordered links behave like one TCP connection per direction: what arrives, arrives in order and once; after a
loss everything is lost until the sender has been told that the connection broke.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from raft.core.messages import InstallSnapshot, InstallSnapshotResponse
from raft.transport.node_messages import PeerMessage
from tests.simulation.events import Plan
from tests.simulation.faults import Faults

Link = tuple[int, int]  # (from, to)


class Network:
    """Decides each message's fate with the random numbers of its link: how many of them a message takes
    does not depend on what becomes of it.

    A snapshot's chunks and their answers stay in order everywhere: to a sender an earlier offset is a peer
    that has lost something, so each answer that was overtaken would make it send a window's worth again."""

    def __init__(
        self,
        plan: Plan,
        faults: Faults,
        *,
        now: Callable[[], float],
        deliver_at: Callable[[float, Link, PeerMessage], None],
        break_at: Callable[[float, Link], None],
    ) -> None:
        """now: simulated ms. deliver_at and break_at put an arrival, or the news of a loss, on the agenda."""
        self.plan = plan
        self.streams: dict[Link, random.Random] = {}
        self.duplicates = plan.stream("duplicates")
        self.faults = faults
        self.now = now
        self.deliver_at = deliver_at
        self.break_at = break_at
        self.blocked: set[Link] = set()
        self.broken: set[Link] = set()
        self.last_arrival: dict[Link, float] = {}
        self.calm = False  # after the faults have stopped

    def send(self, sender: int, receiver: int, message: PeerMessage) -> None:
        """Take a message; perhaps it arrives, perhaps twice."""
        self._send(sender, receiver, message, may_double=True)

    def _send(self, sender: int, receiver: int, message: PeerMessage, *, may_double: bool) -> None:
        link = (sender, receiver)
        if link in self.broken:
            return
        rng = self.streams.get(link)
        if rng is None:
            rng = self.streams[link] = self.plan.stream(f"link {link}")
        dropped, doubled = rng.random() < self.faults.drop, rng.random() < self.faults.duplicate
        arrival = self._arrival(rng)
        if link in self.blocked or (dropped and not self.calm):
            self._lose(rng, link)
            return
        self.deliver_at(self._in_order(link, message, arrival), link, message)
        if doubled and may_double and not self.calm:
            self.deliver_at(self._in_order(link, message, self._arrival(self.duplicates)), link, message)

    def post(self, sender: int, receiver: int, message: PeerMessage) -> bool:
        """The same for what is not Raft's, which rests on a promise of the transport that Raft does without:
        nothing arrives twice (a Forward that was refused would otherwise be none that carried out nothing).
        False: there is no connection, and so it did not leave."""
        self._send(sender, receiver, message, may_double=False)
        return not (self.faults.ordered and (sender, receiver) in self.blocked)

    def _lose(self, rng: random.Random, link: Link) -> None:
        if self.faults.ordered:
            self.broken.add(link)
            self.break_at(self.now() + rng.uniform(1, 50), link)

    def _arrival(self, rng: random.Random) -> float:
        low, high = self.faults.delay_ms
        long, share = rng.random() < self.faults.long_delay, rng.random()
        if long and not self.calm:
            high = self.faults.long_delay_ms
        return self.now() + low + share * (high - low)

    def _in_order(self, link: Link, message: PeerMessage, arrival: float) -> float:
        if self.faults.ordered or isinstance(message, InstallSnapshot | InstallSnapshotResponse):
            arrival = max(arrival, self.last_arrival.get(link, 0.0) + 1e-6)
            self.last_arrival[link] = arrival
        return arrival

    def partition(self, rng: random.Random, nodes: list[int]) -> str:
        """Block links by one of the patterns that were seen in the field. Returns which."""
        shuffled = rng.sample(nodes, len(nodes))
        cut = rng.randint(1, max(1, len(nodes) - 1))
        left, right = shuffled[:cut], shuffled[cut:]
        kind = rng.choice(("split", "one-way", "bridge", "ring", "link"))
        pairs = {(a, b) for a in left for b in right}
        if kind == "split":
            self.blocked = pairs | {(b, a) for a, b in pairs}
        elif kind == "one-way":
            self.blocked = pairs
        elif kind == "bridge":  # one node sees both sides (Cloudflare 2020)
            bridge = shuffled[0]
            both = pairs | {(b, a) for a, b in pairs}
            self.blocked = {link for link in both if bridge not in link}
        elif kind == "ring":  # each sees only its two neighbours
            near = {(shuffled[i - 1], node) for i, node in enumerate(shuffled)}
            near |= {(b, a) for a, b in near}
            self.blocked = {(a, b) for a in nodes for b in nodes if a != b and (a, b) not in near}
        elif len(shuffled) > 1:
            self.blocked = self.blocked | {(shuffled[0], shuffled[1])}
            left, right = shuffled[:1], shuffled[1:2]
        parts = " | ".join(", ".join(map(str, part)) for part in (left, right))
        return f"{kind} {', '.join(map(str, shuffled)) if kind == 'ring' else parts}"

    def isolate(self, rng: random.Random, node: int, nodes: list[int]) -> str:
        """Cut off one node, or only what it says. Returns which."""
        self.blocked = {(node, other) for other in nodes if other != node}
        if rng.random() < 0.5:
            self.blocked |= {(other, node) for _, other in self.blocked}
            return f"node {node} alone"
        return f"node {node} is not heard"

    def heal(self, nodes: set[int] | None = None) -> None:
        """All links work again; with nodes, only those among them, and the rest of the world is cut off."""
        if nodes is None:
            self.blocked = set()
            return
        self.blocked = {link for link in self.blocked if not set(link) <= nodes}
