"""All state of the consensus core, and the only functions that change role, term or vote.

The transitions (paper figure 4, with PreVote from thesis 9.6 and CheckQuorum from thesis 6.2):

    from            to             function              when
    FOLLOWER        PRE_CANDIDATE  become_pre_candidate  the election timeout passed (a suspicion shortens it)
    PRE_CANDIDATE   CANDIDATE      become_candidate      a quorum would vote for this node
    CANDIDATE       LEADER         become_leader         a quorum voted for this node
    PRE_CANDIDATE,
    CANDIDATE       PRE_CANDIDATE  become_pre_candidate  the election timeout passed again (split vote)
    any             FOLLOWER       become_follower       a higher term was seen, a leader of this term spoke,
                                                         or a leader lost its quorum (then within its term)

The term only grows; the vote changes only from nobody to somebody, or with a new term. Everything here is
owned by one thread; `now` is monotonic milliseconds handed in with each event.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from raft.core.effects import Effects, HardState
from raft.core.entry import Entry, EntryKind
from raft.core.invariants import require
from raft.core.log import EndlessRoom, LogReader, RaftLog, Room
from raft.core.membership import Configuration, decode_configuration
from raft.core.messages import ReadIndexResponse

if TYPE_CHECKING:
    from raft.core.recovery import Recovering


class Role(Enum):
    """What a node is in its term (paper 5.1)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """Times in ms, sizes in bytes of entry data."""

    election_timeout_min_ms: float = 300
    election_timeout_max_ms: float = 600
    heartbeat_interval_ms: float = 60
    lease_reads: bool = False
    lease_drift: float = 0.1  # share of the lease given up to clocks that run at different rates
    max_append_bytes: int = 1 << 20  # per AppendEntries
    max_probe_bytes: int = 1 << 16  # per AppendEntries to a peer whose log is not known yet
    max_append_entries: int = 4096  # per AppendEntries: empty entries cost memory too
    max_inflight_bytes: int = 16 << 20  # per peer, sent and not acknowledged
    max_inflight_messages: int = 128


@dataclass(slots=True)
class Progress:
    """What the leader knows of one peer (paper figure 2, nextIndex and matchIndex).

    probing: the peer's log is not known; one message at a time, next_index moves back on refusals.
    Otherwise messages are pipelined (thesis 10.2.1): next_index moves ahead as they are sent.
    """

    next_index: int
    match_index: int = 0
    match_round: int = 0  # the round when match_index became what it is: later refusals of it are no old ones
    probing: bool = True
    probe_sent: bool = False
    inflight: deque[tuple[int, int]] = field(default_factory=deque)  # (last index, bytes) per message
    inflight_bytes: int = 0
    acked_round: int = 0
    last_contact_ms: float = 0.0
    full: bool = False  # its disk is: it gets heartbeats only
    # Learners: a round is over when what the log had at its beginning has arrived (thesis 4.2.1).
    catch_up_to: int = 0
    catch_up_began_ms: float = 0.0
    caught_up: bool = False  # the last round took less than an election timeout

    def become_probing(self, next_index: int) -> None:
        """Forget what is in flight and find the peer's log again from next_index."""
        self.probing = True
        self.probe_sent = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.next_index = next_index

    def has_room(self, options: CoreOptions) -> bool:
        """Whether the in-flight window takes another message (bounded in messages and in bytes)."""
        return (
            len(self.inflight) < options.max_inflight_messages
            and self.inflight_bytes < options.max_inflight_bytes
        )

    def free_inflight(self, match_index: int) -> None:
        """Messages up to match_index have been acknowledged."""
        while self.inflight and self.inflight[0][0] <= match_index:
            self.inflight_bytes -= self.inflight.popleft()[1]


@dataclass(slots=True)
class PendingRead:
    """A read that waits for proof of leadership. origin: the peer that asked; None for this node."""

    origin: int | None
    request_id: int
    read_index: int
    needed_round: int


class CoreState:
    """The state of one Raft server (paper figure 2). Changed only by raft/core, on the owner's thread.

    room: what the disk has left; set by the node before the first event. recovering: entries that this server
    had acknowledged are lost; set at the start (raft/core/recovery.py)."""

    room: Room = EndlessRoom()
    recovering: Recovering | None = None

    def __init__(
        self,
        node_id: int,
        configuration: Configuration,
        hard_state: HardState,
        reader: LogReader,
        options: CoreOptions,
        rng: random.Random,
        now: float,
        *,
        identity: str = "",
        snapshot_index: int = 0,
        later_configurations: Sequence[Entry] = (),
    ) -> None:
        self.node_id, self.identity = node_id, identity
        self.founded = False  # the node has heard of a cluster of its name: it must not found another
        # Configurations with the index of their entry, oldest first: the last committed one, then at most one
        # that is not committed yet. The newest counts (thesis 4.1); a truncation brings back the one before.
        self.configurations: list[tuple[int, Configuration]] = [(snapshot_index, configuration)]
        for entry in later_configurations:
            if entry.index > snapshot_index:
                self.configurations.append((entry.index, decode_configuration(entry.data)))
        self.options = options
        self.rng = rng  # seeded differently on every node: equal seeds mean repeated split votes
        # Persistent state: mirrored in effects.hard_state and effects.log whenever it changes.
        self.term = hard_state.term
        self.voted_for = hard_state.voted_for
        self.log = RaftLog(reader)
        # Volatile state on all servers.
        self.role = Role.FOLLOWER
        self.leader_id: int | None = None
        self.commit_index = max(self.log.first_index - 1, snapshot_index)
        self.durable_index = self.log.last_index
        self.now = now
        self.last_leader_contact_ms = float("-inf")
        self.leader_suspected = False
        self.election_deadline_ms = 0.0
        # With leases a restarted server may have promised a leader its silence just before (thesis 6.4.1).
        self.no_votes_before_ms = now + options.election_timeout_min_ms if options.lease_reads else now
        # Candidates: who answered, and how. A dict, not a count: an answer may come twice.
        self.votes: dict[int, bool] = {}
        # Leaders, anew in each term.
        self.progress: dict[int, Progress] = {}
        self.heartbeat_due_ms = 0.0
        self.quorum_near_until_ms = float("-inf")  # see quorum_is_near()
        self.round = self.quorum_round = 0
        self.rounds_sent: deque[tuple[int, float]] = deque()
        self.lease_from_ms = float("-inf")
        self.term_first_index = 0
        self.broadcast_index = 0
        self.reads: deque[PendingRead] = deque()  # wait for a round
        self.early_reads: list[PendingRead] = []  # wait for this term's first commit
        self.departing = False  # somebody, perhaps this leader, is not in the newest configuration
        self.transfer_target: int | None = None  # leadership is on its way there: no proposals meanwhile
        self.transfer_deadline_ms = 0.0
        self.transfer_sent = False  # TimeoutNow is out
        self.lease_void = False  # it was out once in this term: no lease holds any more
        self.follower_reads: dict[int, float] = {}  # asked of the leader, and when; oldest first
        self.effects = Effects()
        self.reset_election_timeout()

    # --- configuration --------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The one in force: the newest in the log, committed or not (thesis 4.1)."""
        return self.configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        """The index of its entry; the snapshot's, or 0, if it does not come from the log."""
        return self.configurations[-1][0]

    @property
    def committed_configuration(self) -> Configuration:
        """The newest that nothing can take back any more."""
        return self.configurations[0][1]

    def append(self, entries: Sequence[Entry]) -> None:
        """Append to the log. A configuration among the entries is in force from here on (thesis 4.1)."""
        self.log.append(entries)
        for entry in entries:
            if entry.kind == EntryKind.CONFIGURATION:
                configuration = decode_configuration(entry.data)
                self.configurations.append((entry.index, configuration))
                self._configuration_changed()

    def truncate(self, from_index: int) -> None:
        """Remove the log from from_index on; a configuration in there never was (thesis 4.1)."""
        require(from_index > self.commit_index, f"committed entry {from_index} would be truncated")
        self.log.truncate(from_index)
        self.durable_index = min(self.durable_index, self.log.last_index)
        if self.configuration_index >= from_index:
            self.configurations = [each for each in self.configurations if each[0] < from_index]
            self._configuration_changed()

    def install(self, index: int, term: int, configuration: Configuration) -> None:
        """A snapshot of all up to index stands for that part of the log; what follows stays if the log has
        that very entry (paper figure 13, steps 6 to 8)."""
        if self.log.matches(index, term):
            later = [each for each in self.configurations if each[0] > index]
        else:
            require(self.role is not Role.LEADER, f"a leader without the committed entry {index}")
            self.log.reset(index, term)
            self.durable_index, later = index, []
        self.durable_index = max(self.durable_index, index)
        self.configurations = [(index, configuration), *later]
        self.commit_index = index
        self._configuration_changed()

    def commit(self, index: int) -> None:
        """Entries up to index are committed. The configurations before the last of them are history."""
        require(index > self.commit_index, f"commit index {index} after {self.commit_index}")
        self.commit_index = index
        self.effects.committed = index
        while len(self.configurations) > 1 and self.configurations[1][0] <= index:
            del self.configurations[0]
            self.effects.configuration_changed = True

    def _configuration_changed(self) -> None:
        index, configuration = self.configurations[-1]
        self.effects.configuration_changed = True
        learners = f", learners {list(configuration.learners)}" if configuration.learners else ""
        self.effects.news.append(
            f"configuration of entry {index}: voters {list(configuration.voters)}{learners}"
        )
        if self.role is Role.LEADER:
            self._follow_progress()

    def _follow_progress(self) -> None:
        """Leader: know everyone who gets the log. Who leaves still gets it until that is committed."""
        self.quorum_near_until_ms = float("-inf")  # it may be another quorum now
        for peer in self.configuration.peers(self.node_id):
            if peer not in self.progress:
                self.progress[peer] = Progress(self.log.last_index + 1, last_contact_ms=self.now)
        stay = self.configuration.has
        self.departing = not stay(self.node_id) or not all(stay(peer) for peer in self.progress)

    # --- time -----------------------------------------------------------------------------------------

    def reset_election_timeout(self) -> None:
        """A new random timeout from now (paper 5.2: randomised to make split votes rare)."""
        low, high = self.options.election_timeout_min_ms, self.options.election_timeout_max_ms
        self.election_deadline_ms = self.now + low + (high - low) * self.rng.random()

    def quorum_contact_ms(self) -> float:
        """When a quorum was last in contact with this leader, itself included."""
        return self.configuration.quorum_value(
            [
                self.now if voter == self.node_id else self.progress[voter].last_contact_ms
                for voter in self.configuration.voters
            ]
        )

    def quorum_is_near(self) -> bool:
        """Leader: whether a quorum was in contact within the shortest election timeout. Contacts only become
        newer: what one look has found holds for the time that it has found."""
        if self.now >= self.quorum_near_until_ms:
            self.quorum_near_until_ms = self.quorum_contact_ms() + self.options.election_timeout_min_ms
        return self.now < self.quorum_near_until_ms

    def quorum_has_room(self) -> bool:
        """Leader: whether what it appends can become durable at a majority, as far as full disks go."""
        if not self.room.low:
            for progress in self.progress.values():
                if progress.full:
                    break
            else:
                return True
        return self.configuration.has_quorum(
            voter
            for voter in self.configuration.voters
            if not (self.room.low if voter == self.node_id else self.progress[voter].full)
        )

    def leader_is_alive(self) -> bool:
        """Whether this node has reason to keep its leader (thesis 4.2.3: then it gives no votes)."""
        if self.role is Role.LEADER:
            return self.quorum_is_near()
        recent = self.now - self.options.election_timeout_min_ms
        return (
            self.leader_id is not None and not self.leader_suspected and self.last_leader_contact_ms > recent
        )

    def owes_silence(self) -> bool:
        """With leases: whether a leader may be reading on the strength of this node's word not to vote
        (thesis 6.4.1). The word stands until its time is over, whatever is heard of newer terms meanwhile."""
        if not self.options.lease_reads or self.role is Role.LEADER:
            return False
        promised = self.last_leader_contact_ms + self.options.election_timeout_min_ms
        return self.now < max(self.no_votes_before_ms, promised)

    # --- transitions ----------------------------------------------------------------------------------

    def save_hard_state(self) -> None:
        """Term and vote go to disk before any answer of this turn."""
        self.effects.hard_state = HardState(self.term, self.voted_for)

    def become_follower(self, term: int, leader_id: int | None, why: str) -> None:
        """Follow in `term` (paper 5.1). The vote survives a step-down within the term."""
        require(term >= self.term, f"term {term} after {self.term}")
        was, old_leader, new_term = self.role, self.leader_id, term > self.term
        if new_term:
            self.term = term
            self.voted_for = None
            self.save_hard_state()
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.leader_suspected = False
        self.votes.clear()
        if was is not Role.FOLLOWER:
            self.reset_election_timeout()
        if was is Role.LEADER:
            self._abandon_leadership()
        if was is not Role.FOLLOWER or old_leader != leader_id or new_term:
            self.fail_follower_reads()
            self.effects.role_changed = True
            self.effects.news.append(why)

    def become_pre_candidate(self) -> None:
        """Ask for votes without touching term or vote (thesis 9.6)."""
        require(self.role is not Role.LEADER, "a leader does not campaign")
        self.role = Role.PRE_CANDIDATE
        self.leader_id = None
        self.votes = {self.node_id: True}
        self.fail_follower_reads()
        self.effects.role_changed = True
        self.reset_election_timeout()

    def become_candidate(self) -> None:
        """A new term with a vote for oneself (paper 5.2)."""
        require(self.role is Role.PRE_CANDIDATE, f"{self.role} cannot become a candidate")
        self.role = Role.CANDIDATE
        self.term += 1
        self.voted_for = self.node_id
        self.votes = {self.node_id: True}
        self.save_hard_state()
        self.effects.role_changed = True
        self.reset_election_timeout()

    def become_leader(self) -> None:
        """Lead the term (paper 5.2, figure 2: nextIndex after the last entry, matchIndex 0)."""
        require(self.role is Role.CANDIDATE, f"{self.role} cannot become leader")
        require(
            self.configuration.has_quorum(v for v, yes in self.votes.items() if yes), "no quorum of votes"
        )
        self.role = Role.LEADER
        self.leader_id = self.node_id
        self.leader_suspected = False
        self.progress = {
            peer: Progress(next_index=self.log.last_index + 1, last_contact_ms=self.now)
            for _, configuration in self.configurations
            for peer in configuration.peers(self.node_id)
        }
        self._follow_progress()
        self.round = self.quorum_round = 0
        self.rounds_sent.clear()
        self.lease_from_ms = float("-inf")
        self.transfer_target = None
        self.lease_void = False
        self.term_first_index = self.log.last_index + 1
        self.broadcast_index = self.log.last_index
        self.heartbeat_due_ms = self.now + self.options.heartbeat_interval_ms  # the no-op goes out first
        self.effects.role_changed = True
        votes = sorted(voter for voter, yes in self.votes.items() if yes)
        self.effects.news.append(f"leader of term {self.term}, votes from {votes}")

    def _abandon_leadership(self) -> None:
        for read in (*self.reads, *self.early_reads):
            if read.origin is None:
                self.effects.reads_failed.append(read.request_id)
            else:
                refusal = ReadIndexResponse(self.term, read.request_id, 0, False)
                self.effects.messages.append((read.origin, refusal))
        self.reads.clear()
        self.early_reads.clear()
        self.effects.snapshots_wanted.clear()  # else it would be streamed in a term that others lead
        self.progress.clear()
        self.transfer_target = None
        self.lease_from_ms = float("-inf")

    def fail_follower_reads(self, asked_until_ms: float = float("inf")) -> None:
        """Give up what was asked of the leader until then."""
        for request_id, asked_ms in list(self.follower_reads.items()):
            if asked_ms > asked_until_ms:
                break
            del self.follower_reads[request_id]
            self.effects.reads_failed.append(request_id)
