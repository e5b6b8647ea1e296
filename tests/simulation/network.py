"""The network between simulated nodes: it loses, doubles, delays and reorders messages, and it parts.

Ordered links behave like one TCP connection per direction: what arrives, arrives in order and once; after a
loss everything is lost until the sender has been told that the connection broke.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from raft.core.messages import Message
from tests.simulation.faults import Faults

Link = tuple[int, int]  # (from, to)


class Network:
    """Decides each message's fate with the simulation's random numbers."""

    def __init__(
        self,
        rng: random.Random,
        faults: Faults,
        *,
        now: Callable[[], float],
        deliver_at: Callable[[float, Link, Message], None],
        break_at: Callable[[float, Link], None],
    ) -> None:
        """now: simulated ms. deliver_at and break_at put an arrival, or the news of a loss, on the agenda."""
        self.rng = rng
        self.faults = faults
        self.now = now
        self.deliver_at = deliver_at
        self.break_at = break_at
        self.blocked: set[Link] = set()
        self.broken: set[Link] = set()
        self.last_arrival: dict[Link, float] = {}
        self.calm = False  # after the faults have stopped

    def send(self, sender: int, receiver: int, message: Message) -> None:
        """Take a message; perhaps it arrives."""
        link = (sender, receiver)
        if link in self.broken:
            return
        lost = link in self.blocked or (not self.calm and self.rng.random() < self.faults.drop)
        if lost:
            self._lose(link)
            return
        self.deliver_at(self._arrival(link), link, message)
        if not self.calm and self.faults.duplicate and self.rng.random() < self.faults.duplicate:
            self.deliver_at(self._arrival(link), link, message)

    def _lose(self, link: Link) -> None:
        if self.faults.ordered:
            self.broken.add(link)
            self.break_at(self.now() + self.rng.uniform(1, 50), link)

    def _arrival(self, link: Link) -> float:
        low, high = self.faults.delay_ms
        delay = self.rng.uniform(low, high)
        if not self.calm and self.faults.long_delay and self.rng.random() < self.faults.long_delay:
            delay = self.rng.uniform(low, self.faults.long_delay_ms)
        arrival = self.now() + delay
        if self.faults.ordered:
            arrival = max(arrival, self.last_arrival.get(link, 0.0) + 1e-6)
            self.last_arrival[link] = arrival
        return arrival

    def partition(self, nodes: list[int]) -> None:
        """Block links by one of the patterns that were seen in the field."""
        rng = self.rng
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

    def isolate(self, node: int, nodes: list[int]) -> None:
        """Cut off one node, or only what it says."""
        self.blocked = {(node, other) for other in nodes if other != node}
        if self.rng.random() < 0.5:
            self.blocked |= {(other, node) for _, other in self.blocked}

    def heal(self, nodes: set[int] | None = None) -> None:
        """All links work again; with nodes, only those among them, and the rest of the world is cut off."""
        if nodes is None:
            self.blocked.clear()
            return
        self.blocked = {link for link in self.blocked if not set(link) <= nodes}
