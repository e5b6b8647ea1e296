"""The safety properties of Raft (paper figure 3 and 5.4), checked against a global record at every change.

Each violation raises SafetyViolation with one line that says which property broke, where and when.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from raft.core.effects import LogOperation, ResetLog, TruncateLog
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, decode_configuration
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from raft.core.state import CoreOptions, Progress, Role
from tests.simulation.disk import Snapshot
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
        self.elected: set[tuple[int, int]] = set()  # (term, node) before its vote was stored
        self.votes: dict[tuple[int, int], int] = {}  # (voter, term) -> candidate
        self.known: dict[tuple[int, int], tuple[Entry, int]] = {}  # (index, term) -> entry, term before it
        self.committed: list[Committed] = []
        self.configurations: list[Entry] = []  # the CONFIGURATION entries among them
        self.installs = 0
        self.founding: set[bytes] = set()  # how snapshots from before the first of them say it
        self.out_of_use: set[int] = set()  # their disks are damaged beyond use
        self.wiped: dict[int, int] = {}  # lost their disks, and with them what they had acknowledged: up to

    def configuration(self) -> Configuration | None:
        """The newest committed one; None: the founding one."""
        return decode_configuration(self.configurations[-1].data) if self.configurations else None

    def forget(self, node: Node) -> None:
        """The node has lost its disk."""
        self.wiped[node.node_id] = node.disk.synced_index()
        self.votes = {key: vote for key, vote in self.votes.items() if key[0] != node.node_id}

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
        if state.durable_index > node.disk.synced_index():
            violated(
                f"{node.node_id} takes {state.durable_index} for durable: {node.disk.synced_index()} are"
            )
        seen.term, seen.voted_for = state.term, state.voted_for
        if state.role is Role.LEADER:
            self._check_leader(node, seen)
        if state.commit_index > seen.commit:
            self._check_committed(node, seen.commit + 1, state.commit_index)
            seen.commit = state.commit_index

    def settled(self, node: Node) -> None:
        """A turn is over: all that the core knows as committed has been applied."""
        state, disk = node.running.state, node.disk
        if len(node.applied) != state.commit_index:
            violated(f"{node.node_id} applied {len(node.applied)} of {state.commit_index}")
        in_log = disk.log.configurations
        if len(in_log) > 1 and in_log[-2].index > len(self.committed):
            violated(f"{node.node_id} has two uncommitted configurations: {in_log[-2:]}")
        if node.receiver.complete is not None:
            return  # its snapshot is durable already, but not yet told to the core
        newest = in_log[-1] if in_log else None
        if newest is not None and newest.index > disk.snapshot.index:
            index, data = newest.index, newest.data
        else:
            index, data = 0, disk.snapshot.configuration
        if index and state.configuration_index != index:
            violated(f"{node.node_id} follows the configuration of {state.configuration_index}, not {index}")
        if state.configuration != (decode_configuration(data) if data else node.founding):
            violated(f"{node.node_id} follows {state.configuration} at {index}")

    def sending(self, node: Node, peer: int, message: Message) -> None:
        """A message is about to leave: what it promises must be on disk by now."""
        stored = node.disk.hard_state
        if isinstance(message, RequestVote):
            if not may_campaign(node):
                violated(f"learner {node.node_id} campaigns")
            if not message.pre_vote:
                self._check_vote(node, message.term, node.node_id)
        elif isinstance(message, RequestVoteResponse):
            if message.vote_granted and not message.pre_vote:
                self._check_vote(node, message.term, peer)
        elif isinstance(message, AppendEntriesResponse) and message.success:
            self._check_acknowledgement(node, peer, message)
        elif isinstance(message, AppendEntries):
            self._check_append_entries(node, message)
        elif isinstance(message, InstallSnapshot):
            self._check_leads(node, message)
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
        if isinstance(operation, ResetLog):
            self._check_reset(node, operation)
            return
        before = node.disk.term(node.disk.last_index)
        for entry in operation.entries:
            known, known_before = self.known.setdefault((entry.index, entry.term), (entry, before))
            if known != entry or known_before != before:
                violated(f"log matching: {entry} after {before} at {node.node_id}, but {known}")
            before = entry.term

    def _check_reset(self, node: Node, operation: ResetLog) -> None:
        """Only for a snapshot that is durable, and never when the log has what the snapshot ends with."""
        snapshot, disk = node.disk.snapshot, node.disk
        if (snapshot.index, snapshot.term) < (operation.index, operation.term):
            violated(f"{node.node_id}: {operation}, but the snapshot is of {snapshot.index}")
        in_log = disk.first_index <= operation.index <= disk.last_index
        if in_log and disk.term(operation.index) == operation.term:
            violated(f"{node.node_id} empties a log that has entry {operation.index}")

    def saving(self, node: Node, snapshot: Snapshot) -> None:
        """A snapshot is of committed entries, and carries the committed configuration there."""
        index = snapshot.index
        if not 0 < index <= len(self.committed) or self.committed[index - 1].entry.term != snapshot.term:
            violated(f"{node.node_id} takes a snapshot of the uncommitted {index}.{snapshot.term}")
        if len(snapshot.applied) != index or snapshot.applied[-1] != self.committed[index - 1].entry:
            violated(f"{node.node_id}: the snapshot of {index} has another state")
        data = next((each.data for each in reversed(self.configurations) if each.index <= index), b"")
        if snapshot.configuration != data and (data or snapshot.configuration not in self.founding):
            violated(f"{node.node_id}: the snapshot of {index} has another configuration")

    def loading(self, node: Node, snapshot: Snapshot) -> None:
        """What is installed equals what was applied elsewhere, and is never older than what is replaced."""
        self.installs += 1
        if snapshot.index <= len(node.applied):
            violated(f"{node.node_id} goes back from {len(node.applied)} to {snapshot.index}")
        if any(
            done.entry is not entry and done.entry != entry
            for done, entry in zip(self.committed, snapshot.applied, strict=False)
        ):
            violated(f"{node.node_id} installs another state of {snapshot.index}")

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
        if node.disk.hard_state.term < state.term:
            # One voter alone wins at once; until its vote is stored nobody can hear of it.
            self.elected.add((state.term, node.node_id))
            return
        self._claim(state.term, node.node_id)
        last = state.log.last_index
        if seen.led_term != state.term:
            if not may_campaign(node):
                violated(f"{node.node_id} leads without being a voter")
            self._check_completeness(node)
            seen.led_term, seen.led_last_index = state.term, last
            seen.match.clear()
        if last < seen.led_last_index:
            violated(f"leader {node.node_id} shortened its log to {last}")
        seen.led_last_index = last
        if len(seen.match) > len(state.progress):
            seen.match = {peer: match for peer, match in seen.match.items() if peer in state.progress}
        for peer, progress in state.progress.items():
            match = progress.match_index
            # A peer that is on its way out may have lost its disk; the leader finds out, and counts it anew.
            counted_anew = match == 0 and (peer in self.wiped or self.nodes[peer].disk.has_lost)
            if match < seen.match.get(peer, 0) and not counted_anew:
                violated(f"match of {peer} at {node.node_id} regressed to {match}")
            if not match < progress.next_index <= last + 1:
                violated(f"next of {peer} at {node.node_id}: {progress}")
            seen.match[peer] = match
            if not window_is_sound(progress, node.options):
                violated(f"window of {peer} at {node.node_id}: {progress}")

    def _check_completeness(self, node: Node) -> None:
        """Leader completeness (5.4): what was committed in earlier terms is in the new leader's log."""
        log, term = node.running.state.log, node.running.state.term
        for done in self.committed[max(log.first_index - 2, 0) :]:
            if done.in_term < term:
                entry = done.entry
                if not log.matches(entry.index, entry.term):
                    violated(f"leader {node.node_id} of {term} lacks {entry}")

    def _check_committed(self, node: Node, first: int, last: int) -> None:
        state = node.running.state
        old = state.log.term(last) != state.term and last > node.disk.snapshot.index
        if state.role is Role.LEADER and old:
            violated(f"leader {node.node_id} of {state.term} commits {last} of an earlier term by counting")
        first_kept = max(first, state.log.first_index)
        if first < first_kept and min(last, first_kept - 1) > len(self.committed):
            violated(f"{node.node_id} has a snapshot of what is not committed, up to {last}")
        for index in range(first_kept, last + 1):
            entry = state.log.entries(index, index + 1, 1)[0]
            if index <= len(self.committed):
                if self.committed[index - 1].entry != entry:
                    violated(f"{node.node_id} committed another {index}")
                continue
            if state.role is not Role.LEADER:
                violated(f"{node.node_id} learns of a commit of {index} that no leader made")
            self.committed.append(Committed(entry, state.term))
            if entry.kind == EntryKind.CONFIGURATION:
                self.configurations.append(entry)
            self._check_quorum_holds(entry, state.configuration, "is committed, durable only")

    def _check_quorum_holds(self, entry: Entry, configuration: Configuration, what: str) -> None:
        """A quorum has the entry; a disk that was lost since has had it, for all that can be known."""
        holders = self._holders(entry, configuration)
        if not configuration.has_quorum(holders):
            violated(f"entry {entry.index} of term {entry.term} {what} on {holders}")

    def _holders(self, entry: Entry, configuration: Configuration) -> list[int]:
        return [
            n
            for n in configuration.voters
            if entry.index <= self.wiped.get(n, 0)
            or (n not in self.out_of_use and self.nodes[n].disk.holds(entry.index, entry.term))
        ]

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
        match, disk = message.match_index, node.disk
        if match > disk.synced_index():
            violated(f"{node.node_id} acknowledges {match}, has {disk.synced_index()} on disk")
        other = self.nodes[leader].core
        if (
            match > disk.synced.base_index
            and match <= disk.synced.last_index
            and other is not None
            and other.state.role is Role.LEADER
            and other.state.term == message.term
            and match >= other.state.log.first_index
        ):
            term = disk.synced.term(match)
            if not other.state.log.matches(match, term):
                violated(f"{node.node_id} acknowledges a foreign {match}")

    def _claim(self, term: int, node_id: int) -> None:
        """The node leads the term, and its vote for itself is stored."""
        leader = self.leaders.setdefault(term, node_id)
        if leader != node_id:
            violated(f"two leaders in term {term}: {leader} and {node_id}")

    def _check_leads(self, node: Node, message: AppendEntries | InstallSnapshot) -> None:
        if (message.term, node.node_id) in self.elected:
            self._claim(message.term, node.node_id)
        if self.leaders.get(message.term) != node.node_id:
            violated(f"{node.node_id} leads without an election: {message}")

    def _check_append_entries(self, node: Node, message: AppendEntries) -> None:
        self._check_leads(node, message)
        for index, entry in enumerate(message.entries, message.prev_log_index + 1):
            if entry.index != index:
                violated(f"entries with a gap: {message}")

    def check_everything_kept(self, founding: Configuration) -> None:
        """At the end: every committed entry is still durable on a quorum. Which one? Of the newest committed
        configuration, or of one after it: a leader counts by the newest that it has (thesis 4.1)."""
        newest = [each.disk.log.configurations[-1:] for each in self.nodes.values()]
        later = [decode_configuration(entry.data) for entries in newest for entry in entries]
        for done in self.committed:
            try:
                what = "is committed, and is left"
                self._check_quorum_holds(done.entry, self.configuration() or founding, what)
            except SafetyViolation:
                if not any(each.has_quorum(self._holders(done.entry, each)) for each in later):
                    raise


def may_campaign(node: Node) -> bool:
    """Voters may; who is one no longer may until that is committed (thesis 4.2.2). A learner never may."""
    stack = node.running.state.configurations[-2:]
    return any(node.node_id in configuration.voters for _, configuration in stack)


def window_is_sound(progress: Progress, options: CoreOptions) -> bool:
    """Whether an in-flight window keeps its bounds (one message may overshoot the bytes) and its count."""
    if not progress.inflight:
        return progress.inflight_bytes == 0
    sizes = [size for _, size in progress.inflight]
    total = sum(sizes)
    within = total - sizes[-1] < options.max_inflight_bytes
    return within and total == progress.inflight_bytes and len(sizes) <= options.max_inflight_messages
