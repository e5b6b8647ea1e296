"""Where a client's batch goes: into the log, to a read index, to the leader, or into a short wait for one.

Every batch has a deadline from its arrival. Without a leader it is held until then and answered CLUSTERDOWN,
so that an election is a pause and not an error; what a lost leader may have taken is asked of the next one
(raft/runtime/lanes.py), or answered INDETERMINATE if this node was the leader. No batch is ever dropped
without an answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raft.clients.batch import Batch
from raft.core.core import RaftCore
from raft.core.state import Role
from raft.machine.machine import Machine
from raft.replies import Error
from raft.runtime.backups import Backups, is_backup
from raft.runtime.control import Control, is_control
from raft.runtime.errors import NO_LEADER, NOT_A_MEMBER, NOT_LEADER, STOPPING, UNKNOWN
from raft.runtime.forwarding import Forwarding
from raft.runtime.load import Load
from raft.runtime.membership import Membership
from raft.runtime.proposals import Proposals
from raft.runtime.reads import Reads, may_pass_on
from raft.runtime.snapshots import is_snapshot_command
from raft.storage.snapshots import SnapshotStore
from raft.transport.node_messages import Forward, ForwardReply, PeerMessage

_NEVER = float("inf")
RETRY_MS = 20.0  # how long a batch waits before it is offered to the same leader again
_LETTERS = frozenset({b"R", b"r"})  # see raft/runtime/reads.py


def _may_be_special(batch: Batch) -> bool:
    """False: certainly none of the commands that go round the log, which are RAFT …, each alone. One look
    instead of three at every write."""
    operations = batch.operations
    return len(operations) == 1 and operations[0][1][0][:1] in _LETTERS


class Desk:
    """Owned by the worker, but for submit()."""

    def __init__(
        self,
        core: RaftCore,
        machine: Machine,
        *,
        snapshots: SnapshotStore,
        send: Callable[[int, PeerMessage], bool],
        wake: Callable[[], None],
        max_pending: int,
        first_request_id: int,
        origin: str,
        lease_ended: Callable[[], bool] | None,
        heard_identities: Callable[[], dict[int, str]] = dict,
        new_cluster_id: str = "",
    ) -> None:
        """origin: names this process among all that ever were; first_request_id: beyond any earlier one's.
        heard_identities, new_cluster_id: see raft/runtime/membership.py."""
        self._state = core.state
        self._wake = wake
        self.load = Load(max_pending)
        self.proposals = Proposals(core, self.load, self._take_back)
        self.reads = Reads(core, machine, self.load, first_request_id, self._hold, lease_ended)
        membership = Membership(core, self.load, heard_identities, new_cluster_id)
        self.control = Control(core, self.load, membership)
        self.backups = Backups(snapshots, self.load)
        self.forwarding = Forwarding(
            core.state,
            self.load,
            send=send,
            hold=self._hold,
            propose=lambda batch: self.proposals.add(batch, self._now, self._at_ms),
            first_request_id=first_request_id,
            origin=origin,
        )
        self._inbox: deque[Batch] = deque()
        self._snapshot_requests: list[Batch] = []
        self._held: list[tuple[float, Batch]] = []
        self._held_under: tuple[int, int | None] = (0, None)  # the term and leader that did not take them
        self._retry_at = 0.0
        self._hold_ms = core.state.options.election_timeout_max_ms
        self._now = core.state.now
        self._at_ms = 0
        self.refusal: Error | None = None  # this node leads, but takes no writes: see raft/runtime/space.py
        self.pass_reads_on = False  # this node's machine falls behind
        self._open = True

    def submit(self, batch: Batch) -> bool:
        """Take a batch from a handler thread. Any thread. False: too much is pending, answer BUSY."""
        if not self._open or not self.load.take(len(batch.operations)):
            return False
        self._inbox.append(batch)
        self._wake()
        return True

    def wants_a_turn(self, now: float) -> bool:
        """Whether a turn would find something to route, or to propose. now: monotonic ms."""
        return bool(self._inbox or self._held) or self.proposals.due(now)

    # --- one turn -------------------------------------------------------------------------------------

    def begin_turn(self, now: float, at_ms: int) -> None:
        """now: monotonic ms; at_ms: what this turn's entries are stamped with. Before anything else."""
        self._now, self._at_ms = now, at_ms

    def take_batches(self) -> None:
        """Route everything that arrived, and what was held if there is a leader now."""
        if self._held and self._may_retry():
            held, self._held = self._held, []
            for deadline, batch in held:
                self._route(batch, deadline)
        inbox = self._inbox
        deadline = self._now + self._hold_ms
        while inbox:
            self._route(inbox.popleft(), deadline)

    def _may_retry(self) -> bool:
        """A new leader is tried at once; one that has just refused, or is not connected, after a moment."""
        leader = self._state.leader_id
        return leader is not None and (
            self._now >= self._retry_at or self._held_under != (self._state.term, leader)
        )

    def flush(self) -> None:
        """Turn what was routed into one entry, one read index and few messages."""
        self.forwarding.lanes.flush(self._now)
        self.proposals.flush(self._now, self._at_ms)
        self.reads.flush(self._now)
        self.control.advance(self._now)

    def _route(self, batch: Batch, deadline: float) -> None:
        state = self._state
        special = batch.writes and _may_be_special(batch)
        if special and is_snapshot_command(batch):
            self._snapshot_requests.append(batch)  # this node's own affair, whoever leads
        elif special and is_backup(batch):
            self.backups.take(batch, self._now)
        elif state.role is Role.LEADER:
            if not batch.writes:
                self.reads.add(batch, deadline)
            elif special and is_control(batch):
                self.control.take(batch, self._now)
            elif state.transfer_target is not None:
                self._hold(deadline, batch)  # for the next leader
            elif self.refusal is not None:
                self._refuse(batch, self.refusal)
            else:
                self.proposals.add(batch, self._now, self._at_ms)
        elif state.leader_id is None:
            self._hold(deadline, batch)
        elif batch.writes or (self.pass_reads_on and may_pass_on(batch)):
            self.forwarding.forward(state.leader_id, batch, deadline, self._now + 2 * self._hold_ms)
        else:
            self.reads.add(batch, deadline)

    def take_snapshot_requests(self) -> list[Batch]:
        """The RAFT SNAPSHOTs that came since the last call."""
        taken, self._snapshot_requests = self._snapshot_requests, []
        return taken

    def on_forward(self, sender: int, message: Forward) -> None:
        """A peer forwards its client's commands."""
        takes = self._state.role is Role.LEADER and self._state.transfer_target is None
        batch = self.forwarding.accept(sender, message, self.refusal if takes else NOT_LEADER)
        if batch is not None and is_control(batch):
            self.control.take(batch, self._now)
        elif batch is not None:
            self.proposals.add(batch, self._now, self._at_ms)

    def on_forward_reply(self, sender: int, reply: ForwardReply) -> None:
        """The leader answers what this node forwarded."""
        self.forwarding.on_reply(sender, reply)

    def on_reads(self, ready: list[tuple[int, int]], failed: list[int]) -> None:
        """The core's verdict on read indexes."""
        for request_id, read_index in ready:
            self.reads.ready(request_id, read_index)
        for request_id in failed:
            self.reads.failed(request_id)

    # --- trouble --------------------------------------------------------------------------------------

    def _belongs(self) -> bool:
        """Whether some leader will take what waits here: none does of a node that was removed."""
        return self._state.committed_configuration.has(self._state.node_id)

    def _hold(self, deadline: float, batch: Batch) -> None:
        if not self._belongs():
            self._refuse(batch, NOT_A_MEMBER)
        elif deadline <= self._now:
            self._refuse(batch, NO_LEADER)
        else:
            if not self._held:  # else whoever comes would put off those who wait already
                self._retry_at = self._now + RETRY_MS
            self._held.append((deadline, batch))
            self._held_under = (self._state.term, self._state.leader_id)

    def _take_back(self, batch: Batch) -> None:
        """Nothing of it is in the log: it is for the next leader, who may be known already."""
        self._hold(self._now + self._hold_ms, batch)
        self._held_under = (0, None)

    def _refuse(self, batch: Batch, error: Error) -> None:
        batch.fail(error)
        self.load.give_back(len(batch.operations))

    def leadership_lost(self) -> None:
        """This node led and does not any more."""
        self.proposals.fail_all(UNKNOWN, NOT_LEADER)
        self.control.leadership_lost()
        self.reads.leadership_lost()

    def leader_lost(self, leader: int) -> None:
        """Another node led, or was connected, and is not any more."""
        self.forwarding.leader_lost(leader, for_good=not self._belongs())

    def expire(self) -> None:
        """Answer what has waited long enough. Cheap when nothing waits."""
        self.backups.expire(self._now)
        self.reads.expire(self._now)
        self.forwarding.expire(self._now)
        late = [batch for deadline, batch in self._held if deadline <= self._now]
        if late:
            # The others keep their place and their moment of retry: looking at them must not put it off.
            self._held = [waiting for waiting in self._held if waiting[0] > self._now]
            for batch in late:
                self._refuse(batch, NO_LEADER)

    def wait_out(self, now: float, waited_ms: float) -> None:
        """The worker waits in mid-turn, for space on the disk: clients shall not hang as long as that.

        What arrived is held and refused in its time; what is in the log is answered INDETERMINATE once even a
        forwarded command would be. now, waited_ms: monotonic ms, how long the wait has lasted.
        """
        self._now = now
        self.proposals.give_back()
        while self._inbox:
            self._hold(now + self._hold_ms, self._inbox.popleft())
        self.expire()
        if waited_ms >= 2 * self._hold_ms:
            self.proposals.fail_all(UNKNOWN, NOT_LEADER)

    def next_deadline(self) -> float:
        """Monotonic ms of the earliest deadline; infinity if nothing waits."""
        held = _NEVER
        if self._held:
            held = min([deadline for deadline, _ in self._held])
            if self._state.leader_id is not None:
                held = min(held, self._retry_at)
        return min(held, self.reads.next_deadline(), self.forwarding.next_deadline())

    def close(self) -> None:
        """The node stops: every client hears so."""
        self._open = False
        self.control.close(STOPPING)
        self.backups.close()
        self.proposals.fail_all(UNKNOWN, STOPPING)
        self.forwarding.close()
        batches = [batch for _, batch in self._held] + self.reads.drain() + list(self._inbox)
        batches += self.take_snapshot_requests()
        self._held.clear()
        self._inbox.clear()
        for batch in batches:
            self._refuse(batch, STOPPING)
