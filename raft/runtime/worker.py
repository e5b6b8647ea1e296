"""The raft worker: one thread that owns the core, the log, the machine and the peers' sockets.

A turn takes everything that arrived meanwhile, lets the core decide, and carries out the effects in their
order (raft/core/effects.py). All that arrived while the last fsync ran shares the next one: group commit.
Heartbeats leave from here too, so a worker that hangs on its disk is no zombie leader: it falls silent and
another is elected.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from raft.core.core import RaftCore
from raft.core.effects import AppendLog, Effects, TruncateLog
from raft.core.invariants import ProtocolViolation
from raft.core.messages import AppendEntries, AppendEntriesResponse, InstallSnapshotResponse, RequestVote
from raft.core.state import Role
from raft.machine.machine import Machine
from raft.runtime.agreement import Agreement
from raft.runtime.applier import Applier
from raft.runtime.clock import Clock, LogClock
from raft.runtime.desk import Desk
from raft.runtime.disk_watch import DiskWait, HungDiskError
from raft.runtime.feed import Feed
from raft.runtime.founding import peer_addresses
from raft.runtime.installs import Installs
from raft.runtime.pings import PingBoard
from raft.runtime.snapshots import Snapshots
from raft.runtime.space import Space
from raft.runtime.turns import Turns
from raft.storage.errors import DiskFullError
from raft.storage.node_storage import NodeStorage
from raft.transport.network import PeerNetwork
from raft.transport.node_messages import DigestReport, Forward, ForwardReply, PeerMessage, Ping, Pong
from raft.transport.quiet_log import QuietLog

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 0.5
EXPIRY_STEP_MS = 10.0  # deadlines of clients are checked this often
DISK_FULL_RETRY_S = 0.2
MAX_POSTED = 1024

Posted = Callable[[float], None]


class Hooks(Protocol):
    """What the node does when the core has decided: see RaftNode. Called on the worker thread."""

    def become_leader(self) -> None: ...

    def reset_election(self) -> None: ...

    def reset_election_timeout(self) -> None: ...

    def send_request_vote_request(self, raft_member: int, request: RequestVote) -> None: ...

    def handle_append_entries_message(self, sender: int, request: AppendEntries) -> None: ...

    def handle_request_vote_message(self, sender: int, request: RequestVote) -> None: ...

    def publish_status(self) -> float: ...


class Worker:
    """The owner's state and turn. Only post() and stop() may be called by other threads."""

    def __init__(
        self,
        hooks: Hooks,
        core: RaftCore,
        storage: NodeStorage,
        network: PeerNetwork,
        machine: Machine,
        desk: Desk,
        applier: Applier,
        turns: Turns,
        feed: Feed,
        snapshots: Snapshots,
        pings: PingBoard,
        clock: Clock,
        agreement: Agreement,
        installs: Installs,
    ) -> None:
        self.hooks = hooks
        self.core = core
        self.storage = storage
        self.network = network
        self.machine = machine
        self.desk = desk
        self.applier = applier
        self.turns = turns
        self.feed = feed
        self.snapshots = snapshots
        self.pings = pings
        self.clock = clock
        self.agreement = agreement
        self.installs = installs
        self._log_clock = LogClock(clock)
        self.stopping = False
        self.now = core.state.now
        self.at_ms = 0  # what this turn's entries are stamped with
        self._belonged = core.state.committed_configuration.has(core.state.node_id)
        self.disk_wait = DiskWait()
        self.space = Space(core, desk)
        self._posted: deque[Posted] = deque()
        self._violations = QuietLog(log)  # a peer may send the same thing for ever
        self._next_expiry_check_ms = 0.0
        self._publish_at_ms = float("inf")
        self._seen: tuple[Role, int, int | None] = (Role.FOLLOWER, core.state.term, None)

    # --- other threads --------------------------------------------------------------------------------

    def post(self, event: Posted) -> None:
        """Have event(now) run on the worker in its next turn. Any thread.

        While the worker waits for its disk the timers go on posting: beyond a bound events are dropped. All
        of them are repeated or, as messages, may be lost.
        """
        if len(self._posted) < MAX_POSTED:
            self._posted.append(event)
        self.network.wake()

    def stop(self) -> None:
        """End run() after its current turn. Any thread."""
        self.stopping = True
        self.network.wake()

    # --- the loop -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until stop(). Any exception means that the node must stop; its clients hear so."""
        try:
            while not self.stopping:
                received = self.network.poll(self._wait_s())
                self.turn(received)
        except HungDiskError:
            raise  # what this thread owned is another's now
        except BaseException:
            self.answer_all()
            raise
        finally:
            self.agreement.close()
        self.desk.close()
        self.snapshots.close()
        self.installs.close()
        self.network.flush()

    def answer_all(self) -> None:
        """The node ends at once: every client hears that it does, INDETERMINATE for what is in the log. For
        the worker, or who has taken disk_wait."""
        try:
            self.desk.close()
            self.network.flush()
        except Exception:
            log.exception("not every client could be answered")

    def turn(self, received: list[tuple[int, PeerMessage]]) -> None:
        """One turn: events in, effects out, answers."""
        self.storage.log.check_alive()
        now = self.clock.monotonic_ms()
        at_ms = self._log_clock.stamp(now, self.machine.at_ms)
        if now - self.now > self.core.state.options.election_timeout_min_ms:
            self.turns.excuse()
        self.now, self.at_ms = now, at_ms
        self.desk.begin_turn(now, at_ms)
        for sender, message in received:
            self._receive(sender, message)
        self._notice_broken_peers()
        if received and self._brought_nothing(received, now):
            return
        if self.network.cluster_heard:
            self.core.state.founded = True
        while self._posted:
            self._posted.popleft()(now)
        self.agreement.poll(now)
        self.core.tick(now)
        self.installs.advance(now)
        self._notice_role(now, at_ms)
        self.space.advance(now)
        self.desk.take_batches()
        if self.space.blocked:
            self.turns.excuse()
        elif self.core.state.role is Role.LEADER and self.core.state.transfer_target is None:
            self._lead(now, at_ms)
        self.desk.flush()
        self._carry_out_all(now)
        self.applier.advance()
        self.desk.reads.serve(at_ms)
        if now >= self._next_expiry_check_ms:
            self._next_expiry_check_ms = now + EXPIRY_STEP_MS
            self.desk.expire()
        self.network.flush()
        self._keep_snapshots(now)
        state = self.core.state
        leaderless = state.role is not Role.LEADER and not state.leader_is_alive()
        self.network.follow(state.leader_id, open_to_strangers=leaderless)
        self._publish_at_ms = self.hooks.publish_status()
        self.snapshots.deliver()

    def _brought_nothing(self, received: list[tuple[int, PeerMessage]], now: float) -> bool:
        """Whether this turn may end here: a leader has heard acknowledgements that change nothing, such as
        the slower follower's once the entry is committed. The core has noted them; the rest is as if they
        had come with the next turn, at most EXPIRY_STEP_MS later. Spares a leader up to a third of its turns.
        """
        if (
            now >= min(self._next_expiry_check_ms, self.core.state.heartbeat_due_ms)
            or self.applier.behind
            or self._posted
            or self.desk.wants_a_turn(now)
            or self.space.blocked
            or not self.core.at_rest()
        ):
            return False
        if not all(type(message) is AppendEntriesResponse and not message.full for _, message in received):
            return False
        self._publish_at_ms = min(self._publish_at_ms, self._next_expiry_check_ms)
        return True

    def _keep_snapshots(self, now: float) -> None:
        """Last in the turn: a fork must not find effects half carried out."""
        for batch in self.desk.take_snapshot_requests():
            self.snapshots.request(batch)
        if self.snapshots.busy and not self.installs.loading:
            with self.disk_wait:
                self.snapshots.advance(now)

    def _wait_s(self) -> float:
        if self.applier.behind or self.desk.reads.unfinished:
            return 0.0
        now = self.clock.monotonic_ms()
        deadline = min(self.desk.next_deadline(), self.installs.next_deadline(), self._publish_at_ms)
        if not self.installs.loading:  # else nobody looks after them until the loader wakes this thread
            deadline = min(deadline, self.snapshots.next_deadline())
        wait_ms = min(LONGEST_WAIT_S * 1000, deadline + 1 - now)
        if self.core.state.role is Role.LEADER and self.turns.established:
            wait_ms = min(wait_ms, max(self.turns.next_due_ms() - self.clock.wall_ms(), 1.0))
        return max(min(wait_ms, 1.0) if self.desk.proposals.gathering else wait_ms, 0.0) / 1000

    def _receive(self, sender: int, message: PeerMessage) -> None:
        try:
            if isinstance(message, AppendEntries):
                self.hooks.handle_append_entries_message(sender, message)
            elif isinstance(message, RequestVote):
                self.hooks.handle_request_vote_message(sender, message)
            elif isinstance(message, Forward):
                # An election may have been won a message ago: ~TERM comes before any client's command.
                self._notice_role(self.now, self.at_ms)
                self.desk.on_forward(sender, message)
            elif isinstance(message, ForwardReply):
                self.desk.on_forward_reply(sender, message)
            elif isinstance(message, Ping):
                self.network.queue(sender, Pong(message.nonce, message.sent_ms))
            elif isinstance(message, Pong):
                self.pings.answered(sender, message.nonce, self.now)
            elif isinstance(message, DigestReport):
                self.agreement.on_report(sender, message)
            else:
                self.core.receive(sender, message, self.now)
                if isinstance(message, InstallSnapshotResponse):
                    self.installs.on_response(sender, message, self.now)
        except ProtocolViolation as violation:
            text = f"{violation} (is its version the same as ours?)"
            self._violations.write(logging.ERROR, "protocol", f"dropped a message of node {sender}", text)

    def _notice_broken_peers(self) -> None:
        leader = self.core.state.leader_id
        for peer in self.network.take_disconnects():
            self.core.disconnected(peer, self.now)
            self.installs.disconnected(peer)
            if peer == leader:
                self.desk.leader_lost(peer)
        for peer in self.network.take_refused():
            self.core.suspect(peer, self.now)

    def _lead(self, now: float, at_ms: int) -> None:
        state = self.core.state
        has_quorum = state.quorum_is_near()
        if not has_quorum:
            self.turns.excuse()
        self.turns.advance(now, at_ms)
        if has_quorum and self.turns.established and self.agreement.due(now):
            self.desk.proposals.add_system([b"~DIGEST"])
        if self.turns.established:
            projected = self.feed.serve(
                self.machine.ledger, self.machine.applied_index if has_quorum else None
            )
            if projected is not None:
                self.desk.proposals.add_system([b"~PROJECTED", b"%d" % projected])

    # --- effects --------------------------------------------------------------------------------------

    def _notice_role(self, now: float, at_ms: int) -> None:
        """React to a change of role, term or leader before any client's batch is routed by it."""
        state = self.core.state
        seen = (state.role, state.term, state.leader_id)
        if seen == self._seen:
            return
        (old_role, old_term, old_leader), self._seen = self._seen, seen
        self.installs.role_changed()
        if old_role is Role.LEADER and seen[:2] != (old_role, old_term):
            self.desk.leadership_lost()
            self.feed.reset()
        if old_leader is not None and old_leader != state.leader_id:
            self.desk.leader_lost(old_leader)
        if state.role is Role.LEADER:
            self.turns.begin_leadership(now, at_ms)
            self.hooks.become_leader()
        elif old_role is not Role.FOLLOWER or old_leader != state.leader_id:
            self.hooks.reset_election()

    def _carry_out_all(self, now: float) -> None:
        while True:
            effects = self.core.take_effects()
            self._carry_out(effects)
            if not effects.log:
                break
            stored = self.storage.log
            self.core.disk_done(stored.last_index, stored.term(stored.last_index), now)
            if self.core.at_rest():  # nothing came of it: a leader's usual case, 200 bytecodes less
                break
        self.hooks.reset_election_timeout()

    def _carry_out(self, effects: Effects) -> None:
        """One turn's effects in the order that makes them safe: raft/core/effects.py."""
        if effects.hard_state is not None:
            self._outlast_full_disk(partial(self.storage.save_hard_state, effects.hard_state))
        for news in effects.news:
            log.info("%s", news)
        if effects.early_messages:
            for peer, message in effects.early_messages:
                if not self.network.queue(peer, message):
                    self.core.not_sent(peer, self.now)
            self.network.flush()
        if effects.log:
            if effects.early_messages and self.core.state.role is Role.LEADER:
                # What was committed before this entry: its clients are answered, and send the next commands,
                # while the disks work. 8 to 13 % more SETs a second in pipelines of 16.
                self.applier.advance()
            self._write_log(effects)
        if effects.healed:
            with self.disk_wait:
                self.storage.healed()
        for peer, message in effects.messages:
            if isinstance(message, RequestVote):
                self.hooks.send_request_vote_request(peer, message)
            else:
                self.network.queue(peer, message)
        if effects.messages:
            self.network.flush()
        if effects.configuration_changed:
            self._follow_configuration()
        self.installs.carry_out(effects, self.now)
        self.desk.on_reads(effects.reads_ready, effects.reads_failed)

    def _follow_configuration(self) -> None:
        """Talk to those who belong now; a leader's ledger follows once nothing can take the change back."""
        state = self.core.state
        self.network.set_members(peer_addresses(state), state.committed_configuration.cluster_id)
        self.installs.members_changed(state.progress)
        if state.role is Role.LEADER and state.configuration is state.committed_configuration:
            self.turns.members_changed(state.configuration.servers)
        belongs = state.committed_configuration.has(state.node_id)
        if self._belonged and not belongs:
            log.warning(
                "node %d does not belong to the cluster any more (entry %d): stop it, or bring it back with "
                "RAFT ADD",
                *(state.node_id, state.configurations[0][0]),
            )
        self._belonged = belongs

    def _write_log(self, effects: Effects) -> None:
        stored = self.storage.log
        first = effects.log[0]
        if len(effects.log) == 1 and isinstance(first, AppendLog):
            with self.disk_wait, suppress(DiskFullError):  # nearly always: one wait for both
                stored.append(first.entries)
                stored.sync()
                return
        for operation in effects.log:
            if isinstance(operation, AppendLog):
                self._outlast_full_disk(partial(stored.append, operation.entries))
                continue
            with self.disk_wait:
                if isinstance(operation, TruncateLog):
                    stored.truncate_suffix(operation.from_index)
                else:
                    stored.reset(operation.index, operation.term)
        with self.disk_wait:
            stored.sync()

    def _outlast_full_disk(self, write: Callable[[], None]) -> None:
        """Write, waiting out a full disk, the one error to outlive: nothing was promised to anyone yet.

        Meanwhile this node is silent: a leader is replaced, a follower does not count. Its clients are told.
        """
        told, since_ms = False, self.clock.monotonic_ms()
        while True:
            try:
                with self.disk_wait:
                    write()
                break
            except DiskFullError as error:
                if self.stopping:
                    raise
                if not told:
                    log.error("%s; waiting for space: free some on this disk, nothing is lost", error)
                    told = True
                time.sleep(DISK_FULL_RETRY_S)
                now = self.clock.monotonic_ms()
                self.desk.wait_out(now, now - since_ms)
                self.network.flush()
        if told:
            log.warning("there is space on the disk again: going on")
