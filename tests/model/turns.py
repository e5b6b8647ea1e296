"""One turn of one node: an event goes into the real core, its effects are carried out on the simulated disk.

outcomes() gives every way in which the turn can end: whole, or with a crash between any two effects, where of
what was not synced any prefix is left. After a crash the node starts at once on its disk: being down is, for
safety, the same as being up and hearing nothing.

A crash that leaves the same disk as the whole turn, or the same as before it with nothing sent, is left out:
the whole turn, or none, followed by a crash between turns (event CRASH) reaches the same, with at least as
many messages under way. Of crashes that leave the same disk only the one that had sent most is kept.

What can be checked by looking at one turn of one node is checked here, by the simulation's checker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from raft.core.effects import HardState, LogOperation, TruncateLog
from raft.core.entry import Entry
from raft.core.invariants import InvariantViolation, ProtocolViolation
from raft.core.membership import Configuration
from raft.core.messages import Message, RequestVote, RequestVoteResponse
from raft.core.state import Role
from tests.model.frozen import NOW, NUMBERS, OPTIONS, Frozen, NotAtRest, freeze, thaw
from tests.simulation.checker import Checker, Committed, SafetyViolation, Seen, violated
from tests.simulation.disk import Disk, Image
from tests.simulation.node import Node

LATE = NOW + 2 * OPTIONS.election_timeout_max_ms  # a clock that shows this finds every deadline passed
PROPOSAL = b"x"  # every proposal's data: (index, term) tells them apart already

Sent: TypeAlias = tuple[int, int, Message]  # sender, receiver


class Event(NamedTuple):
    """What happens to a node. name: deliver, late (delivered when the leader was silent for long), timeout,
    heartbeat, propose, read, crash, lost, transfer, give up, change."""

    name: str
    peer: int = 0
    message: Message | None = None
    configuration: Configuration | None = None


class Outcome(NamedTuple):
    """How a turn ended. violation: what broke in it, else "". led: the term that it led in the turn, with the
    vote for it stored, or 0. committed: the entries that it knew as committed while it led, if they are more
    than before. read: the index of a read that was answered, -1 for a refusal."""

    node: Frozen
    sent: tuple[Sent, ...] = ()
    crashed: bool = False
    led: int = 0
    committed: tuple[Entry, ...] = ()
    read: int | None = None
    refused: bool = False
    violation: str = ""
    steps: tuple[str, ...] = ()


class TurnChecker(Checker):
    """The simulation's checker with a memory of one turn. What needs all nodes is in properties.py."""

    def begin(self, node: Node, frozen: Frozen) -> None:
        """A turn begins."""
        leads = frozen.role is Role.LEADER
        seen = Seen(frozen.term, frozen.voted_for, frozen.commit_index)
        if leads:
            seen.led_term, seen.led_last_index = frozen.term, len(frozen.log)
            seen.match = {view.peer: view.match_index for view in frozen.progress}
        self.seen = {frozen.node_id: seen}
        self.leaders = {frozen.term: frozen.node_id} if leads else {}
        self.elected = set()
        stored = frozen.stored_vote
        self.votes = {} if stored is None else {(frozen.node_id, frozen.stored_term): stored}
        self.known = {}
        self.committed = [Committed(entry, 0) for entry in frozen.log[: frozen.commit_index]]
        self.committed_before = frozen.commit_index
        self.led_commit: tuple[Entry, ...] = ()

    def _check_completeness(self, node: Node) -> None:
        """See properties.py."""

    def _check_committed(self, node: Node, first: int, last: int) -> None:
        state = node.running.state
        prefix = tuple(state.log.entries(index, index + 1, 1)[0] for index in range(1, last + 1))
        if state.role is Role.LEADER:
            if state.log.term(last) != state.term:
                violated(
                    f"leader {node.node_id} of {state.term} commits {last} of an earlier term by counting"
                )
            self.led_commit = prefix
        self.committed = [Committed(entry, 0) for entry in prefix]

    def writing(self, node: Node, operation: LogOperation) -> None:
        """A leader only appends, and nobody takes back what is committed (paper figure 3)."""
        if isinstance(operation, TruncateLog):
            state = node.running.state
            if state.role is Role.LEADER:
                violated(f"leader {node.node_id} truncates its log from {operation.from_index}")
            if operation.from_index <= self.committed_before:
                violated(f"{node.node_id} truncates the committed entry {operation.from_index}")
        super().writing(node, operation)


class Turns:
    """Carries out turns of the nodes of one cluster; has no state between them."""

    def __init__(self, configuration: Configuration, *, pre_votes: bool, reads: bool) -> None:
        """pre_votes: they are asked for and answered by messages. Without, whoever asks gets them all, as in
        Raft without PreVote; then the requests go nowhere."""
        self.pre_votes, self.reads = pre_votes, reads
        self.configuration = configuration
        self.sent: list[Sent] = []
        self.nodes: dict[int, Node] = {}
        self.checker = TurnChecker(self.nodes)
        self.clock = NOW
        for node_id in configuration.voters:
            self.nodes[node_id] = Node(
                node_id,
                configuration,
                options=OPTIONS,
                clock=lambda: self.clock,
                send=self._send,
                observer=self.checker,
            )

    def _send(self, sender: int, receiver: int, message: Message) -> None:
        asked = isinstance(message, RequestVote | RequestVoteResponse) and message.pre_vote
        if self.pre_votes or not asked:
            self.sent.append((sender, receiver, message))

    def started(self, node_id: int, disk: Disk) -> Frozen:
        """A node that has just begun on this disk."""
        node = self.nodes[node_id]
        self.clock = NOW
        node.disk, node.observer = disk, None
        node.start(NUMBERS)
        node.observer = self.checker
        frozen = freeze(node, reads=self.reads, pre_votes=self.pre_votes)
        node.core = None
        return frozen

    def outcomes(self, before: Frozen, events: Sequence[Event], *, crashes: bool = True) -> list[Outcome]:
        """Every way in which a turn with these events can end. crashes: also those with a crash in it."""
        if events[0].name == "crash":
            disk = Disk(before.log, HardState(before.stored_term, before.stored_vote))
            return [Outcome(self.started(before.node_id, disk), crashed=True)]
        node = self.nodes[before.node_id]
        try:
            return self._turn(node, before, events, crashes)
        except ProtocolViolation as error:
            return [Outcome(before, violation=f"no correct peer sends this: {error}")]
        except (SafetyViolation, InvariantViolation, NotAtRest) as error:
            return [Outcome(before, violation=str(error))]
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            return [Outcome(before, violation=f"{type(error).__name__}: {error}")]
        finally:
            node.core = None

    def _turn(self, node: Node, before: Frozen, events: Sequence[Event], crashes: bool) -> list[Outcome]:
        self.clock = NOW
        self.sent = []
        thaw(before, node)
        self.checker.begin(node, before)
        for event in events:
            self._happen(node, event)
        points: dict[tuple[HardState, tuple[Entry, ...]], tuple[int, int, tuple[Entry, ...]]] = {}
        for _ in node.carry_out():
            if crashes:
                for left in _disks_left(node.disk):
                    points[left] = (len(self.sent), self._led(), self.checker.led_commit)
        after = self._finish(node, before)
        if not crashes:
            return [after]
        points.pop((node.disk.hard_state, tuple(node.disk.log)), None)
        unchanged = (HardState(before.stored_term, before.stored_vote), before.log)
        if unchanged in points and not points[unchanged][0]:
            del points[unchanged]
        sent = tuple(self.sent)
        node.core = None
        ends = [after]
        for (hard_state, log), (count, led, committed) in points.items():
            restarted = self.started(before.node_id, Disk(log, hard_state))
            ends.append(Outcome(restarted, sent[:count], True, led, committed))
        return ends

    def _led(self) -> int:
        return next(iter(self.checker.leaders), 0)

    def _finish(self, node: Node, before: Frozen) -> Outcome:
        state, stored = node.running.state, node.disk.hard_state
        if len(node.applied) != state.commit_index:
            violated(f"{node.node_id} applied {len(node.applied)} of {state.commit_index}")
        if stored.term < before.stored_term:
            violated(f"stored term of {node.node_id} went from {before.stored_term} to {stored.term}")
        if stored.term == before.stored_term and before.stored_vote not in (None, stored.voted_for):
            violated(f"stored vote of {node.node_id} changed in term {stored.term} to {stored.voted_for}")
        answered = [index for _, index in (*node.reads_ready, *node.reads_waiting)]
        return Outcome(
            freeze(node, reads=self.reads, pre_votes=self.pre_votes),
            tuple(self.sent),
            led=self._led(),
            committed=self.checker.led_commit,
            read=min(answered) if answered else None,
            refused=bool(node.reads_failed),
        )

    def _happen(self, node: Node, event: Event) -> None:
        name = event.name
        if name == "deliver" or name == "late":
            self.clock = LATE if name == "late" else self.clock
            assert event.message is not None
            node.receive(event.peer, event.message)
        elif name == "timeout":
            self.clock = LATE
            node.tick()
            if not self.pre_votes and node.role is Role.PRE_CANDIDATE:
                for peer in self.configuration.voters:
                    if node.role is Role.PRE_CANDIDATE and peer != node.node_id:
                        node.receive(peer, RequestVoteResponse(node.running.state.term + 1, True, True))
        elif name == "heartbeat":
            self.clock = max(self.clock, NOW + OPTIONS.heartbeat_interval_ms)
            node.tick()
        elif name == "propose":
            node.propose([PROPOSAL])
        elif name == "read":
            node.read(1)
        elif name == "lost":
            node.disconnected(event.peer)
        elif name == "transfer":
            node.transfer(event.peer)
        elif name == "give up":
            self.clock = LATE
            node.running.not_sent(0, self.clock)  # an event that does nothing: the deadline shows in the turn
        else:
            assert name == "change" and event.configuration is not None
            node.change_configuration(event.configuration)


def _disks_left(disk: Disk) -> list[tuple[HardState, tuple[Entry, ...]]]:
    """What a power cut now can leave: any prefix of what is not synced."""
    image = Image(disk.synced)
    left = [(disk.hard_state, tuple(image))]
    for record in disk.unsynced:
        image.change(record)
        left.append((disk.hard_state, tuple(image)))
    return left


def deliveries(node: Frozen, sender: int, message: Message, *, pre_votes: bool) -> list[Event]:
    """The message arrives. How long ago the leader was heard makes a difference only to who is asked for a
    vote (thesis 4.2.3). Then it was long ago, as far as pre-votes go: to be loyal is to ignore the request.
    """
    if not isinstance(message, RequestVote) or message.transfer:
        return [Event("deliver", sender, message)]
    late = Event("late", sender, message)
    believes = node.heard or node.role is Role.LEADER
    return [Event("deliver", sender, message), late] if pre_votes and believes else [late]
