"""RaftCore: the events that go in, the effects that come out. No thread, clock, file or socket.

    core.receive(sender, message, now)   a peer's message
    core.tick(now)                       time passed
    core.propose([...], now)             a leader's clients want entries
    core.read(request_id, now)           a client wants to read
    core.disk_done(index, term, now)     the log up to there is on disk
    core.suspect(peer, now)              the peer's process seems dead
    core.disconnected(peer, now)         messages to the peer may have been lost
    core.change_configuration(c, now)    a member comes or goes
    core.snapshot_installed(i, t, c, now)    a received snapshot is durable and loaded
    core.take_effects()                  what the node must do now, see raft/core/effects.py

`now` is monotonic milliseconds and never goes back. One thread owns a core. Any exception but
ProtocolViolation means that the state is not to be trusted: the process must stop.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from raft.core import election, reads, reconfiguration, recovery, replication, snapshots, transfer
from raft.core.effects import Effects, HardState, LostEntries
from raft.core.entry import Entry, EntryKind
from raft.core.invariants import InvariantViolation, ProtocolViolation, require
from raft.core.log import LogReader
from raft.core.membership import Configuration
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.core.state import CoreOptions, CoreState, Role

# A term so far ahead is damage: at one election a millisecond it takes 34 years to get there. Whoever
# followed it would drag the whole cluster along, and from the largest number there is no next term.
FURTHEST_TERM = 2**40
LARGEST_TERM = 2**62  # the next ones still fit into 64 bits, signed ones too


class RaftCore:
    """One Raft server's algorithm (paper figure 2 and its extensions in Ongaro's thesis)."""

    def __init__(
        self,
        node_id: int,
        configuration: Configuration,
        reader: LogReader,
        *,
        hard_state: HardState | None = None,
        options: CoreOptions | None = None,
        rng: random.Random,
        now: float,
        identity: str = "",
        snapshot_index: int = 0,
        later_configurations: Sequence[Entry] = (),
        lost: LostEntries | None = None,
    ) -> None:
        """hard_state and reader: what the disk holds. rng: this node's own, seeded differently from others'.
        now: monotonic ms. identity: the name of this node's data directory.

        snapshot_index: the last entry that the machine's snapshot covers (0: there is none). configuration:
        the one in force there. later_configurations: the log's CONFIGURATION entries, oldest first: what was
        appended counts again after a restart (thesis 4.1).

        lost: what the disk has lost of this log, until effects.healed (raft/core/recovery.py)."""
        stored = hard_state or HardState()
        require(reader.term(reader.last_index) <= stored.term, "the log is ahead of the stored term")
        self.state = CoreState(
            *(node_id, configuration, stored, reader, options or CoreOptions(), rng, now),
            identity=identity,
            snapshot_index=snapshot_index,
            later_configurations=later_configurations,
        )
        if lost is not None:
            require(lost.term <= stored.term, "entries were lost in a term ahead of the stored one")
            recovery.begin(self.state, lost)

    # --- events ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time passed: heartbeats, CheckQuorum, election timeouts."""
        state = self._at(now)
        if state.role is Role.LEADER:
            election.check_quorum(state)
            if state.role is Role.LEADER and now >= state.heartbeat_due_ms:
                replication.broadcast_append_entries(state, heartbeat=True)
            return
        reads.give_up_old_reads(state)
        if now >= state.election_deadline_ms:
            election.on_election_timeout(state)

    def receive(self, sender: int, message: Message, now: float) -> None:
        """A message from a peer.

        Raises ProtocolViolation, with nothing changed, if no correct peer sends it."""
        state = self._at(now)
        if not 0 <= message.term <= min(state.term + FURTHEST_TERM, LARGEST_TERM):
            raise ProtocolViolation(f"node {sender} speaks of term {message.term} in term {state.term}")
        if isinstance(message, AppendEntriesResponse):
            replication.handle_append_entries_response(state, sender, message)
        elif isinstance(message, AppendEntries):
            replication.handle_append_entries(state, sender, message)
        elif isinstance(message, ReadIndexRequest):
            reads.handle_read_index_request(state, sender, message)
        elif isinstance(message, ReadIndexResponse):
            reads.handle_read_index_response(state, message)
        elif isinstance(message, RequestVote):
            election.handle_request_vote(state, sender, message)
        elif isinstance(message, RequestVoteResponse):
            election.handle_request_vote_response(state, sender, message)
        elif isinstance(message, TimeoutNow):
            transfer.handle_timeout_now(state, sender, message)
        elif isinstance(message, InstallSnapshot):
            snapshots.handle_install_snapshot(state, sender, message)
        elif isinstance(message, InstallSnapshotResponse):
            snapshots.handle_install_snapshot_response(state, sender, message)

    def propose(self, payloads: Sequence[bytes], now: float) -> int | None:
        """Append one entry of commands per payload. Returns the first entry's index, or None if this is no
        leader, or one that is handing over (or if there is no payload)."""
        state = self._at(now)
        if state.role is not Role.LEADER or state.transfer_target is not None or not payloads:
            return None
        first = state.log.last_index + 1
        kind = EntryKind.COMMANDS
        state.append([Entry(first + i, state.term, kind, data) for i, data in enumerate(payloads)])
        return first

    def read(self, request_id: int, now: float) -> None:
        """Ask for a read index; request_id is unique for ever. Answered in reads_ready or reads_failed."""
        reads.request_read(self._at(now), request_id)

    def disk_done(self, index: int, term: int, now: float) -> None:
        """Entries up to index are fsynced; term is that of the entry at index, in case it was replaced."""
        state = self._at(now)
        if index > state.durable_index and state.log.matches(index, term):
            state.durable_index = index
            replication.maybe_commit(state)
        state.log.stable_to(min(index, state.durable_index))

    def suspect(self, peer: int, now: float) -> None:
        """Pings or the transport say that the peer's process is gone."""
        election.suspect_leader(self._at(now), peer)

    def not_sent(self, peer: int, now: float) -> None:
        """A message to the peer did not leave: there is no connection, or its outbox is full."""
        replication.on_message_lost(self._at(now), peer)

    def disconnected(self, peer: int, now: float) -> None:
        """The connection to the peer broke."""
        state = self._at(now)
        replication.on_peer_disconnected(state, peer)
        if peer == state.leader_id:
            state.fail_follower_reads()

    def transfer(self, target: int | None, now: float) -> str | None:
        """Hand leadership to target (None: the best voter). Returns why not, or None if it began; whether it
        succeeds shows in the role."""
        return transfer.begin_transfer(self._at(now), target)

    def change_configuration(self, configuration: Configuration, now: float) -> int | str:
        """A leader's cluster gets or loses a member. Returns the entry's index (done once it is committed),
        or why not."""
        return reconfiguration.change_configuration(self._at(now), configuration)

    def snapshot_installed(self, index: int, term: int, configuration: Configuration, now: float) -> bool:
        """A snapshot from snapshot_chunks is durable, and loaded. Returns whether it counts: then the machine
        must become what was loaded before anything else is applied."""
        return snapshots.snapshot_installed(self._at(now), index, term, configuration)

    # --- effects --------------------------------------------------------------------------------------

    def take_effects(self) -> Effects:
        """Everything that the events since the last call demand, to be carried out in the fields' order."""
        state = self.state
        if state.role is Role.LEADER:
            if state.broadcast_index < state.log.last_index:
                replication.broadcast_append_entries(state, heartbeat=bool(state.reads))
            reads.advance_reads(state)
            if state.transfer_target is not None:
                transfer.advance_transfer(state)
            reconfiguration.advance_configuration(state)
        elif state.recovering is not None:
            recovery.advance(state)
        effects, state.effects = state.effects, Effects()
        effects.log = state.log.take_operations()
        return effects

    def at_rest(self) -> bool:
        """Leader: whether take_effects() would find nothing, but what time brings. Else False."""
        state, effects = self.state, self.state.effects
        return not (
            state.role is not Role.LEADER
            or state.reads
            or state.early_reads
            or state.transfer_target is not None
            or state.departing
            or state.configuration.promote
            or state.broadcast_index < state.log.last_index
            or effects.early_messages
            or effects.messages
            or effects.hard_state is not None
            or effects.healed
            or effects.committed is not None
            or effects.role_changed
            or effects.configuration_changed
            or effects.snapshots_wanted
            or effects.reads_failed
            or effects.reads_ready
            or effects.news
        )

    def next_deadline_ms(self) -> float:
        """When tick() has something to do at the latest."""
        state = self.state
        if state.role is Role.LEADER:
            due = state.heartbeat_due_ms
            return due if state.transfer_target is None else min(due, state.transfer_deadline_ms)
        return min(state.election_deadline_ms, reads.follower_read_deadline_ms(state))

    def lease_until_ms(self) -> float:
        """With lease reads: the moment until which a local read may be answered (thesis 6.4.1)."""
        return reads.lease_until_ms(self.state)

    def lease_ended(self, now: float) -> bool:
        """Leader, right after a read of the machine: whether the lease that it may rest on is over by now. A
        lease that a transfer has made void is none: no read was confirmed by it since (thesis 6.4.1)."""
        state = self.state
        leads = state.role is Role.LEADER
        return leads and not state.lease_void and now >= reads.lease_until_ms(state)

    def _at(self, now: float) -> CoreState:
        state = self.state
        if now < state.now:  # no require(): every event comes here, its text would be made each time
            raise InvariantViolation(f"time went back from {state.now} to {now}")
        state.now = now
        return state
