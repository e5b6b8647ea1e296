"""The safety properties of Raft (paper figure 3 and 5.4), checked against a global record at every change.

Each violation raises SafetyViolation with one line that says which property broke, where and when.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from raft.core.effects import AppendLog, LogOperation, TruncateLog
from raft.core.entry import Entry
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from raft.core.state import CoreOptions, Progress, Role
from tests.simulation.node import Node


class SafetyViolation(AssertionError):
    """A property that Raft guarantees did not hold."""


def violated(what: str) -> NoReturn:
    """Raise SafetyViolation. Called behind an `if`: formatting the reason costs more than the check."""
    raise SafetyViolation(what)


def demand(condition: bool, what: str) -> None:
    """Raise SafetyViolation unless the condition holds."""
    if not condition:
        violated(what)


@dataclass(slots=True)
class Seen:
    """What the checker last saw of one incarnation of a node."""

    term: int = 0
    voted_for: int | None = None
    commit: int = 0
    led_term: int = 0  # the term that it was last seen to lead
    led_last_index: int = 0
    match: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    """An entry of the global record, and the term of the leader under which it was first seen committed."""

    entry: Entry
    in_term: int


class Checker:
    """Watches all nodes of a cluster (tests.simulation.node.Observer)."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes = nodes  # filled by the cluster
        self.seen: dict[int, Seen] = {}
        self.leaders: dict[int, int] = {}  # term -> node
        self.votes: dict[tuple[int, int], int] = {}  # (voter, term) -> candidate
        self.known: dict[tuple[int, int], tuple[Entry, int]] = {}  # (index, term) -> entry, term before it
        self.committed: list[Committed] = []

    # --- tests.simulation.node.Observer -----------------------------------------------------------------

    def started(self, node: Node) -> None:
        """A new incarnation: volatile state begins again."""
        state = node.running.state
        self.seen[node.node_id] = Seen(term=state.term, voted_for=state.voted_for)

    def changed(self, node: Node) -> None:
        """Something happened inside the node's core."""
        state, seen = node.running.state, self.seen[node.node_id]
        if state.term < seen.term:
            violated(f"term of {node.node_id} went from {seen.term} to {state.term}")
        if not seen.commit <= state.commit_index <= state.log.last_index:
            violated(f"commit of {node.node_id} went from {seen.commit} to {state.commit_index}")
        if state.voted_for != seen.voted_for and seen.voted_for is not None and state.term == seen.term:
            violated(f"{node.node_id} forgets its vote for {seen.voted_for} within term {state.term}")
        if state.durable_index > len(node.disk.synced):
            violated(f"{node.node_id} takes {state.durable_index} for durable: {len(node.disk.synced)} are")
        seen.term, seen.voted_for = state.term, state.voted_for
        if state.role is Role.LEADER:
            self._check_leader(node, seen)
        if state.commit_index > seen.commit:
            self._check_committed(node, seen.commit + 1, state.commit_index)
            seen.commit = state.commit_index

    def settled(self, node: Node) -> None:
        """A turn is over: all that the core knows as committed has been applied."""
        if len(node.applied) != node.running.state.commit_index:
            violated(f"{node.node_id} applied {len(node.applied)} of {node.running.state.commit_index}")

    def sending(self, node: Node, peer: int, message: Message) -> None:
        """A message is about to leave: what it promises must be on disk by now."""
        stored = node.disk.hard_state
        if isinstance(message, RequestVote):
            demand(node.node_id in node.configuration.voters, f"learner {node.node_id} campaigns")
            if not message.pre_vote:
                self._check_vote(node, message.term, node.node_id)
        elif isinstance(message, RequestVoteResponse):
            if message.vote_granted and not message.pre_vote:
                self._check_vote(node, message.term, peer)
        elif isinstance(message, AppendEntriesResponse) and message.success:
            self._check_acknowledgement(node, peer, message)
        elif isinstance(message, AppendEntries):
            self._check_append_entries(node, message)
        promises_term = not isinstance(message, RequestVote | RequestVoteResponse) or not message.pre_vote
        if promises_term and message.term > stored.term:
            violated(f"{message} left {node.node_id} before its term was stored")

    def writing(self, node: Node, operation: LogOperation) -> None:
        """Log matching: an index and term name one entry and one whole prefix, everywhere and for ever."""
        if isinstance(operation, TruncateLog):
            for done in self.committed[operation.from_index - 1 :]:
                index, term = done.entry.index, done.entry.term
                held = index <= node.disk.last_index and node.disk.term(index) == term
                demand(not held, f"{node.node_id} truncates the committed entry {index}")
            return
        assert isinstance(operation, AppendLog)
        before = node.disk.term(node.disk.last_index)
        for entry in operation.entries:
            known, known_before = self.known.setdefault((entry.index, entry.term), (entry, before))
            if known != entry or known_before != before:
                violated(f"log matching: {entry} after {before} at {node.node_id}, but {known}")
            before = entry.term

    def applying(self, node: Node, entry: Entry) -> None:
        """State machine safety: the same entry at an index everywhere, and only committed ones."""
        if entry.index != len(node.applied) + 1:
            violated(f"{node.node_id} applies {entry.index} out of order")
        if entry.index > len(self.committed):
            violated(f"{node.node_id} applies {entry.index} uncommitted")
        if self.committed[entry.index - 1].entry != entry:
            violated(f"{node.node_id} applies another {entry.index}")
        if not node.disk.holds(entry.index, entry.term):
            violated(f"{node.node_id} applies {entry.index} before it is on its disk")

    # --- single properties ------------------------------------------------------------------------------

    def _check_leader(self, node: Node, seen: Seen) -> None:
        state = node.running.state
        leader = self.leaders.setdefault(state.term, node.node_id)
        if leader != node.node_id:
            violated(f"two leaders in term {state.term}: {leader} and {node.node_id}")
        last = state.log.last_index
        if seen.led_term != state.term:
            self._check_completeness(node)
            seen.led_term, seen.led_last_index = state.term, last
            seen.match.clear()
        if last < seen.led_last_index:
            violated(f"leader {node.node_id} shortened its log to {last}")
        seen.led_last_index = last
        for peer, progress in state.progress.items():
            match = progress.match_index
            if match < seen.match.get(peer, 0):
                violated(f"match of {peer} at {node.node_id} regressed to {match}")
            if not match < progress.next_index <= last + 1:
                violated(f"next of {peer} at {node.node_id}: {progress}")
            seen.match[peer] = match
            if not window_is_sound(progress, node.options):
                violated(f"window of {peer} at {node.node_id}: {progress}")

    def _check_completeness(self, node: Node) -> None:
        """Leader completeness (5.4): what was committed in earlier terms is in the new leader's log."""
        log, term = node.running.state.log, node.running.state.term
        for done in self.committed:
            if done.in_term < term:
                entry = done.entry
                if not log.matches(entry.index, entry.term):
                    violated(f"leader {node.node_id} of {term} lacks {entry}")

    def _check_committed(self, node: Node, first: int, last: int) -> None:
        state = node.running.state
        if state.role is Role.LEADER and state.log.term(last) != state.term:
            violated(f"leader {node.node_id} of {state.term} commits {last} of an earlier term by counting")
        for index in range(first, last + 1):
            entry = state.log.entries(index, index + 1, 1)[0]
            if index <= len(self.committed):
                if self.committed[index - 1].entry != entry:
                    violated(f"{node.node_id} committed another {index}")
                continue
            self.committed.append(Committed(entry, state.term))
            holders = [n for n in node.configuration.voters if self.nodes[n].disk.holds(index, entry.term)]
            if not node.configuration.has_quorum(holders):
                violated(f"entry {index} of term {entry.term} is committed, durable only on {holders}")

    def _check_vote(self, node: Node, term: int, candidate: int) -> None:
        """One vote per term, across crashes, and on disk before anyone hears of it (5.2)."""
        first = self.votes.setdefault((node.node_id, term), candidate)
        demand(first == candidate, f"{node.node_id} voted for {first} and {candidate} in term {term}")
        stored = node.disk.hard_state
        kept = stored.term > term or (stored.term == term and stored.voted_for == candidate)
        demand(kept, f"vote of {node.node_id} for {candidate} in {term} left before it was stored: {stored}")

    def _check_acknowledgement(self, node: Node, leader: int, message: AppendEntriesResponse) -> None:
        """What is acknowledged is durable, and is what that leader has."""
        if node.disk.hard_state.term > message.term:
            return  # superseded in this very turn: the answer tells the truth about an earlier moment
        match, synced = message.match_index, node.disk.synced
        if match > len(synced):
            violated(f"{node.node_id} acknowledges {match}, has {len(synced)} on disk")
        other = self.nodes[leader].core
        if (
            match
            and other is not None
            and other.state.role is Role.LEADER
            and other.state.term == message.term
        ):
            term = synced[match - 1].term
            if not other.state.log.matches(match, term):
                violated(f"{node.node_id} acknowledges a foreign {match}")

    def _check_append_entries(self, node: Node, message: AppendEntries) -> None:
        if self.leaders.get(message.term) != node.node_id:
            violated(f"{node.node_id} leads without an election: {message}")
        for index, entry in enumerate(message.entries, message.prev_log_index + 1):
            if entry.index != index:
                violated(f"entries with a gap: {message}")

    def check_everything_kept(self) -> None:
        """At the end: every committed entry is still durable on a quorum."""
        configuration = next(iter(self.nodes.values())).configuration
        for done in self.committed:
            index, term = done.entry.index, done.entry.term
            holders = [n for n in configuration.voters if self.nodes[n].disk.holds(index, term)]
            demand(configuration.has_quorum(holders), f"committed entry {index} is left on {holders} only")


def window_is_sound(progress: Progress, options: CoreOptions) -> bool:
    """Whether an in-flight window keeps its bounds (one message may overshoot the bytes) and its count."""
    sizes = [size for _, size in progress.inflight]
    total = sum(sizes)
    within = not sizes or total - sizes[-1] < options.max_inflight_bytes
    return within and total == progress.inflight_bytes and len(sizes) <= options.max_inflight_messages
