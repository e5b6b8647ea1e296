"""What runs beside the core in a simulated process: machine, clients' desk, ledger, lanes, applier.

The parts are the product's own (raft/runtime, raft/machine, ledger); only the order in which a turn calls
them, raft/runtime/worker.py, is written down here again, because there it hangs on threads and sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from ledger.ledger import Ledger, Policy
from raft.core.membership import Server
from raft.core.state import Role
from raft.machine.machine import Machine
from raft.machine.sessions import Limits, SessionTable
from raft.machine.snapshot import load_into
from raft.runtime.applier import Applier
from raft.runtime.clock import LogClock
from raft.runtime.desk import Desk
from raft.runtime.feed import Feed
from raft.runtime.pings import PingBoard
from raft.runtime.space import Space
from raft.runtime.turns import Turns
from raft.storage.snapshots import SnapshotStore
from raft.transport.node_messages import Forward, ForwardReply, NodeMessage, PeerMessage, Ping, Pong

if TYPE_CHECKING:
    from tests.simulation.node import Node

CLUSTER = "simulation"
EXPIRY_STEP_MS = 10.0  # deadlines of clients are checked this often, as in raft/runtime/worker.py
MAX_PENDING = 200
Events = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What the machines and the ledger of a schedule are like. limits: of the session table; when they are
    not the product's, sessions expire in mid-schedule. pass_reads_on: such nodes forward reads, too."""

    policy: Policy
    limits: Limits = field(default_factory=Limits)
    pass_reads_on: frozenset[int] = frozenset()

    @property
    def sessions_expire(self) -> bool:
        """Whether a session may end while its client still uses it."""
        return self.limits != Limits()


class WatchedLedger(Ledger):
    """A ledger as it is; `applied` is told after every entry, when the applier takes the entry's events."""

    def __init__(self, ledger: Ledger, applied: Callable[[Events], None]) -> None:
        super().__init__()
        self._state = ledger._state
        self._applied = applied

    def take_events(self) -> Events:
        events = super().take_events()
        self._applied(events)
        return events


class SimulatedFeed(Feed):
    """The worker's side as it is; the projector asks at one time and takes at another, and never waits."""

    def ask(self, full: bool) -> None:
        """A batch is wanted."""
        self._wanted, self._batch = full, None

    def take(self) -> object | None:
        """The batch, if the worker has given one since."""
        batch, self._batch = self._batch, None
        if batch is not None:
            self._wanted = None
        return batch


class Watcher(Protocol):
    """Who looks at the machines of all nodes."""

    def applied(self, node: Node, machine: Machine, events: Events) -> None:
        """An entry was applied, all of it; the node's record has it. events: what happened in the ledger."""

    def dumped(self, node: Node, machine: Machine) -> None:
        """A snapshot is about to be taken."""

    def loaded(self, node: Node, machine: Machine) -> None:
        """The machine is one from a snapshot now."""

    def published(self, node: Node, channel: str, payload: str) -> None:
        """What subscribers at this node hear."""


class Service:
    """One process' parts beside the core; gone with it. Implements raft.runtime.clock.Clock."""

    def __init__(
        self,
        node: Node,
        plan: ServicePlan,
        *,
        wall: Callable[[], int],
        post: Callable[[int, int, PeerMessage], bool],
        wake: Callable[[], None],
        watcher: Watcher,
    ) -> None:
        """wall: this host's wall clock, ms. post(from, to, message): into the network, False if it certainly
        did not leave. wake: have this node run."""
        core, snapshot = node.running, node.disk.snapshot
        self.node, self.plan = node, plan
        self.wall, self.post, self.watcher = wall, post, watcher
        self.state = core.state
        self.machine = self._new_machine(snapshot.machine)
        self._watch()
        if snapshot.machine:
            watcher.loaded(node, self.machine)
        self.projector: Any = None  # tests.simulation.projector.Projector, in schedules that have MongoDB
        self.pings = PingBoard()
        self.feed = SimulatedFeed(wake)
        self.desk = Desk(
            core,
            self.machine,
            snapshots=cast(SnapshotStore, None),  # for RAFT BACKUP only
            send=self._send,
            wake=wake,
            max_pending=MAX_PENDING,
            first_request_id=node.incarnation << 32,
            origin=f"{node.node_id}.{node.identity}.{node.incarnation}",
            lease_ended=self._lease_ended if node.options.lease_reads else None,
        )
        self.desk.pass_reads_on = node.node_id in plan.pass_reads_on
        self.applier = Applier(
            core,
            self.machine,
            self.desk.proposals,
            partial(watcher.published, node),
            node.disk.last_index,
            snapshot.configuration,
        )
        self.turns = Turns(
            core, self.machine, self.desk.proposals, self.pings, plan.policy, self._members, self._ping_all
        )
        self.space = Space(core, self.desk)
        self.turn = 0
        self.passed_reads_in = -1  # the last turn in which reads may have been forwarded
        self._log_clock = LogClock(self)
        self.now = self.state.now
        self.at_ms = 0
        self._next_expiry_check_ms = 0.0
        self._seen: tuple[Role, int, int | None] = (Role.FOLLOWER, self.state.term, None)

    def monotonic_ms(self) -> float:
        """See Clock."""
        return self.node.clock()

    def wall_ms(self) -> int:
        """See Clock."""
        return self.wall()

    # --- one turn, in the order of raft/runtime/worker.py -----------------------------------------------

    def begin_turn(self) -> None:
        """Before the first message."""
        self.turn += 1
        now = self.node.clock()
        self.at_ms = self._log_clock.stamp(now, self.machine.at_ms)
        if now - self.now > self.state.options.election_timeout_min_ms:
            self.turns.excuse()
        self.now = now
        self.desk.begin_turn(now, self.at_ms)

    def receive(self, sender: int, message: NodeMessage) -> None:
        """What is not for the core."""
        if isinstance(message, Forward):
            self._notice_role()  # ~TERM comes before any client's command
            self.desk.on_forward(sender, message)
        elif isinstance(message, ForwardReply):
            self.desk.on_forward_reply(sender, message)
        elif isinstance(message, Ping):
            self._send(sender, Pong(message.nonce, message.sent_ms))
        elif isinstance(message, Pong):
            self.pings.answered(sender, message.nonce, self.now)

    def disconnected(self, peer: int) -> None:
        """The connection to a peer broke; the core knows."""
        if peer == self.state.leader_id:
            self.desk.leader_lost(peer)

    def advance(self) -> None:
        """After the core's tick: what clients want and what the leader has to do becomes entries."""
        state = self.state
        self._notice_role()
        self.space.advance(self.now)
        self.desk.pass_reads_on |= self.node.node_id in self.plan.pass_reads_on
        if self.desk.pass_reads_on:
            self.passed_reads_in = self.turn
        self.desk.take_batches()
        if self.space.blocked:
            self.turns.excuse()
        elif state.role is Role.LEADER and state.transfer_target is None:
            self._lead()
        self.desk.flush()

    def _notice_role(self) -> None:
        state = self.state
        seen = (state.role, state.term, state.leader_id)
        if seen == self._seen:
            return
        (old_role, old_term, old_leader), self._seen = self._seen, seen
        if old_role is Role.LEADER and seen[:2] != (old_role, old_term):
            self.desk.leadership_lost()
            self.feed.reset()
        if old_leader is not None and old_leader != state.leader_id:
            self.desk.leader_lost(old_leader)
        if state.role is Role.LEADER:
            self.turns.begin_leadership(self.now, self.at_ms)

    def _lead(self) -> None:
        state, now = self.state, self.now
        has_quorum = now - state.quorum_contact_ms() <= state.options.election_timeout_min_ms
        if not has_quorum:
            self.turns.excuse()
        self.turns.advance(now, self.at_ms)
        if self.turns.established:
            projected = self.feed.serve(
                self.machine.ledger, self.machine.applied_index if has_quorum else None
            )
            if projected is not None:
                self.desk.proposals.add_system([b"~PROJECTED", b"%d" % projected])

    def follow_configuration(self) -> None:
        """A configuration came into force or was committed."""
        state = self.state
        if state.role is Role.LEADER and state.configuration is state.committed_configuration:
            self.turns.members_changed(self._members())

    def apply(self) -> None:
        """Bring the machine up to the commit index."""
        while self.applier.behind:
            self.applier.advance()

    def end_turn(self) -> None:
        """All effects are carried out: answer what can be answered."""
        self.desk.reads.serve(self.at_ms)
        if self.now >= self._next_expiry_check_ms:
            self._next_expiry_check_ms = self.now + EXPIRY_STEP_MS
            self.desk.expire()

    @property
    def has_requests(self) -> bool:
        """Whether something has come to the desk since the turn began."""
        return bool(self.desk._inbox)

    def wait_ms(self) -> float:
        """How long to sleep at most after this turn, if nothing arrives; by this node's clock."""
        now = self.node.clock()
        wait = self.desk.next_deadline() + 1 - now
        if self.state.role is Role.LEADER and self.turns.established:
            wait = min(wait, float(self.turns.next_due_ms() - self.wall()))
        return max(wait, 1.0)

    # --- snapshots --------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """The machine as it goes into a snapshot."""
        self.watcher.dumped(self.node, self.machine)
        return b"".join(self.machine.dump())

    def load(self, dump: bytes, configuration: bytes) -> None:
        """The machine becomes the one of an installed snapshot."""
        self.machine.become(self._new_machine(dump))
        self._watch()
        self.applier.configuration = configuration
        self.watcher.loaded(self.node, self.machine)

    def _new_machine(self, dump: bytes) -> Machine:
        machine = Machine(CLUSTER)
        machine.sessions = SessionTable(self.plan.limits)
        if dump:
            load_into(machine, [dump])
        return machine

    def _watch(self) -> None:
        self.machine.ledger = WatchedLedger(self.machine.ledger, self._entry_applied)

    # --- what the parts ask for -------------------------------------------------------------------------

    def _entry_applied(self, events: Events) -> None:
        self.node.note_applied()
        self.watcher.applied(self.node, self.machine, events)

    def _send(self, peer: int, message: PeerMessage) -> bool:
        return self.post(self.node.node_id, peer, message)

    def _members(self) -> Iterable[Server]:
        configuration = self.state.configuration
        everyone = (*configuration.voters, *configuration.learners)
        return configuration.servers or [Server(n, f"host{n}", 1, 2, 3) for n in everyone]

    def _ping_all(self) -> None:
        for peer in self.state.configuration.peers(self.node.node_id):
            self._send(peer, Ping(self.pings.sent(peer, self.now), int(self.now)))

    def _lease_ended(self) -> bool:
        """As raft/node.py has it."""
        return self.node.running.lease_ended(self.node.clock())
