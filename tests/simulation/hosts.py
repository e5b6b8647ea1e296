"""A machine of the simulation: the node on it, its clocks, and what it is in the middle of."""

from __future__ import annotations

from collections.abc import Iterator

from raft.transport.node_messages import PeerMessage
from tests.simulation.events import Plan
from tests.simulation.stored_node import StoredNode

WALL_START_MS = 1_700_000_000_000


class Host:
    """A machine in the simulation: a node's clock, inbox, and the turn that it is in the middle of."""

    def __init__(self, node: StoredNode, rate: float, start: float, plan: Plan) -> None:
        self.node = node
        self.rate = rate
        self.clock_start = start
        self.wall_offset = plan.stream(f"wall {node.node_id}").uniform(-2000, 2000)
        self.rng = plan.stream(f"core {node.node_id}")  # seeds the core's own generator at each start
        self.turn_rng = plan.stream(f"turns {node.node_id}")
        self.snapshot_rng = plan.stream(f"snapshots {node.node_id}")
        self.crash_rng = self.turn_rng  # of the fault event that lets it crash
        self.inbox: list[tuple[int, PeerMessage]] = []
        self.broken_peers: list[int] = []
        self.turn: Iterator[str] | None = None
        self.paused_until = 0.0
        self.stall_ms = 0.0  # the next turn stops for so long after its look at the clock
        self.down_until = 0.0
        self.crash_in: int | None = None  # crash after that many more effects
        self.wake_at = float("inf")
        self.next_snapshot = 0  # entries from the last one
        self.loading = False  # a received snapshot becomes the machine at some later time
        self.snapshot_step_at: float | None = None  # the child that writes one goes on then

    @property
    def up(self) -> bool:
        return self.node.core is not None

    def local_ms(self, now: float) -> float:
        return self.clock_start + now * self.rate

    def wall_ms(self, now: float) -> int:
        return int(WALL_START_MS + self.wall_offset + now * self.rate)


class Refused(Exception):
    """A node's storage does not open: it is damaged."""
