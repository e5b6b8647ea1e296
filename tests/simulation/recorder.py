"""Writes down what every node of a simulated cluster does.

Only for schedules that are looked at: a normal run knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raft.core.effects import AppendLog, LogOperation, TruncateLog
from raft.core.entry import Entry
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from raft.core.state import Role
from raft.transport.node_messages import NodeMessage, PeerMessage
from tests.simulation.events import Event
from tests.simulation.hosts import Host
from tests.simulation.network import Link
from tests.simulation.schedule import Outcome, Schedule, execute
from tests.simulation.simulation import Simulation
from tests.simulation.workload import Request

EVERYBODY = 0
MUCH, ALL = 1, 2  # a mark's detail: from which verbosity on it is shown; 0: always


@dataclass(frozen=True, slots=True)
class Mark:
    """Something happened at a node, or to EVERYBODY. kind: role, crash, start, message, send, log, commit,
    client, fault, apply, snapshot or violation. peer, sent_ms: who sent a message, and when."""

    at_ms: float
    step: int
    node_id: int
    kind: str
    text: str
    detail: int = 0
    peer: int = 0
    sent_ms: float = 0.0


@dataclass(slots=True)
class _Known:
    """What was last told of a node."""

    role: Role | None = None
    term: int = 0
    voted_for: int | None = None
    durable: int = 0
    commit: int = 0
    configuration: Any = None


class RecordedSimulation(Simulation):
    """A simulation that leaves marks. Behaves exactly like the one that it observes."""

    def __init__(self, schedule: Schedule) -> None:
        self.marks: list[Mark] = []
        self.known: dict[int, _Known] = {}
        self.sent: dict[tuple[Link, int], float] = {}
        plan = schedule.plan()
        plan.tell = self._fault_happened
        super().__init__(schedule.seed, schedule.scenario, plan)
        self._watch_clients()

    def mark(self, node_id: int, kind: str, text: str, detail: int = 0) -> None:
        """Write it down, at the present time."""
        self.marks.append(Mark(self.now, self.steps, node_id, kind, text, detail))

    def _fault_happened(self, event: Event) -> None:
        self.mark(EVERYBODY, "fault", f"{event.name} {event.told}")

    # --- the simulation's own turns ---------------------------------------------------------------------

    def _add_host(self, node_id: int) -> None:
        super()._add_host(node_id)
        node: Any = self.nodes[node_id]
        node.observer = _Both(_NodeRecorder(self), node.observer)
        self.known[node_id] = _Known()
        propose, read = node.propose, node.read

        def proposing(payloads: list[bytes], *more: Any, **named: Any) -> Any:
            first = propose(payloads, *more, **named)
            if first is not None:
                self.mark(node_id, "client", f"takes {_entries(first, len(payloads))}", MUCH)
            return first

        def reading(request_id: int, *more: Any, **named: Any) -> Any:
            self.mark(node_id, "client", f"read {request_id} begins", MUCH)
            return read(request_id, *more, **named)

        node.propose, node.read = proposing, reading

    def _watch_clients(self) -> None:
        def watch(request: Request, replies: list[Any] | None) -> None:
            words = b" ".join(request.commands[0]).decode("ascii", "backslashreplace")
            if replies is None:
                self.mark(request.node.node_id, "client", f"is asked: {words}", MUCH)
            else:
                self.mark(request.node.node_id, "client", f"answers {replies[0]!r} to {words}")

        self.workload.watcher = watch

    def _crash(self, host: Host) -> None:
        self.known[host.node.node_id].role = None
        middle = " between two effects" if host.turn is not None else ""
        self.mark(host.node.node_id, "crash", f"CRASH{middle}")
        super()._crash(host)

    def _deliver_at(self, at: float, link: Link, message: PeerMessage) -> None:
        self.sent[link, id(message)] = self.now
        super()._deliver_at(at, link, message)

    def _deliver(self, link: Link, message: PeerMessage) -> None:
        sender, receiver = link
        if self.hosts[receiver].up:
            text, detail = _message(message)
            sent_ms = self.sent.get((link, id(message)), self.now)
            what = f"<{sender} {text}"
            self.marks.append(Mark(self.now, self.steps, receiver, "message", what, detail, sender, sent_ms))
        super()._deliver(link, message)

    def expect_progress(self) -> None:
        self.mark(EVERYBODY, "fault", "no more faults; a majority is healed")
        super().expect_progress()


class _Both:
    """An observer that is two: the recorder first, so that the violation's cause is on record."""

    def __init__(self, recorder: _NodeRecorder, other: Any) -> None:
        self.recorder, self.other = recorder, other

    def __getattr__(self, name: str) -> Callable[..., Any]:
        first, second = getattr(self.recorder, name, None), getattr(self.other, name)
        if first is None:
            return second

        def both(*arguments: Any) -> Any:
            first(*arguments)
            return second(*arguments)

        return both


class _NodeRecorder:
    """What a node does, in a few words (tests.simulation.node.Observer)."""

    def __init__(self, simulation: RecordedSimulation) -> None:
        self.simulation = simulation

    def started(self, node: Any) -> None:
        """The process begins."""
        state = node.running.state
        known = _Known(Role.FOLLOWER, state.term, state.voted_for, state.durable_index, state.commit_index)
        known.configuration = state.configuration
        self.simulation.known[node.node_id] = known
        again = "RESTART" if node.incarnation > 1 else "start"
        log = f"log to {state.log.last_index}.{state.log.last_term}"
        self.simulation.mark(node.node_id, "start", f"{again} t{state.term}, {log}")

    def changed(self, node: Any) -> None:
        """Role, term, vote, what is durable and what is committed."""
        state, known = node.running.state, self.simulation.known[node.node_id]
        if (state.role, state.term) != (known.role, known.term):
            name = state.role.value.upper() if state.role is Role.LEADER else state.role.value
            self.simulation.mark(node.node_id, "role", f"{name} t{state.term}")
        if state.voted_for != known.voted_for and state.voted_for is not None:
            self.simulation.mark(node.node_id, "role", f"votes for {state.voted_for} t{state.term}")
        if state.durable_index != known.durable:
            self.simulation.mark(node.node_id, "log", f"fsync: durable to {state.durable_index}", MUCH)
        if state.commit_index != known.commit:
            self.simulation.mark(node.node_id, "commit", f"commit {state.commit_index}")
        if state.configuration != known.configuration:
            voters = ",".join(map(str, state.configuration.voters))
            self.simulation.mark(node.node_id, "log", f"follows voters {voters}")
        known.role, known.term, known.voted_for = state.role, state.term, state.voted_for
        known.durable, known.commit = state.durable_index, state.commit_index
        known.configuration = state.configuration

    def sending(self, node: Any, peer: int, message: Message) -> None:
        """What leaves: votes asked for; everything else is seen where it arrives."""
        text, detail = _message(message)
        self.simulation.mark(node.node_id, "send", f">{peer} {text}", max(detail + 1, MUCH))

    def writing(self, node: Any, operation: LogOperation) -> None:
        """The log changes."""
        if isinstance(operation, AppendLog):
            last = operation.entries[-1]
            text = f"append {_entries(operation.entries[0].index, len(operation.entries))} t{last.term}"
        elif isinstance(operation, TruncateLog):
            text = f"TRUNCATE from {operation.from_index}"
        else:
            text = f"reset log to {operation.index}.{operation.term}"
        self.simulation.mark(node.node_id, "log", text)

    def applying(self, node: Any, entry: Entry) -> None:
        """The machine gets an entry."""
        self.simulation.mark(node.node_id, "apply", f"apply {entry.index}.{entry.term}", ALL)

    def saving(self, node: Any, snapshot: Any) -> None:
        """A snapshot becomes durable."""
        self.simulation.mark(node.node_id, "snapshot", f"snapshot of {snapshot.index}")

    def loading(self, node: Any, snapshot: Any) -> None:
        """A received snapshot becomes the machine."""
        self.simulation.mark(node.node_id, "snapshot", f"installs {snapshot.index}")


def _entries(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


def _message(message: PeerMessage) -> tuple[str, int]:
    """In a few words, and from which verbosity on it matters."""
    if isinstance(message, RequestVote):
        if message.pre_vote:
            return f"pre-vote? t{message.term}", MUCH
        return f"vote? t{message.term} {message.last_log_index}.{message.last_log_term}", 0
    if isinstance(message, RequestVoteResponse):
        answer = "granted" if message.vote_granted else "refused"
        return f"{'pre-' * message.pre_vote}vote {answer} t{message.term}", MUCH if message.pre_vote else 0
    if isinstance(message, AppendEntries):
        if not message.entries:
            return f"heartbeat t{message.term} c{message.leader_commit}", ALL
        entries = _entries(message.prev_log_index + 1, len(message.entries))
        return f"entries {entries} t{message.term} c{message.leader_commit}", 0
    if isinstance(message, AppendEntriesResponse):
        if message.success:
            return f"has {message.match_index} t{message.term}", MUCH
        return f"refuses t{message.term}", 0
    if isinstance(message, InstallSnapshot):
        return f"snapshot {message.last_index} @{message.offset}", 0
    if isinstance(message, NodeMessage):
        return type(message).__name__, MUCH
    return f"{type(message).__name__} t{message.term}", MUCH


def record(schedule: Schedule) -> tuple[Outcome, RecordedSimulation | None]:
    """Run it with a record. None: it failed before there was a cluster."""
    made: list[RecordedSimulation] = []

    def build(what: Schedule) -> Simulation:
        made.append(RecordedSimulation(what))
        return made[-1]

    outcome = execute(schedule, simulation_of=build)
    if made and outcome.failure is not None:
        failure = outcome.failure
        lines = failure.reason.splitlines() or [""]
        made[0].mark(EVERYBODY, "violation", f"{failure.exception}: {lines[0]}")
    return outcome, made[0] if made else None


def visible(marks: list[Mark], verbosity: int) -> Iterator[Mark]:
    """Those that this verbosity shows."""
    return (mark for mark in marks if mark.detail <= verbosity)
