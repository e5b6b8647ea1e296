"""Writes that arrive at a follower go to the leader in lanes, so that they may be sent again and run once.

A lane is a session of this process (raft/machine/sessions.py) with one Forward under way at a time. What
arrives in a turn goes together in one Forward; the log takes it as one command, and takes a repeat for what
it is. So when the leader is lost, the same Forward goes to the next one - which may be this node - and the
clients hear what became of their commands, not INDETERMINATE, if the next leader is there in time.

Three words about a copy of a Forward that was sent: it is *open* until it is answered; a refusal closes it,
for then it certainly carried out nothing; INDETERMINATE, a broken connection and silence leave it open. Only
commands none of whose copies is open are ever answered CLUSTERDOWN or BUSY.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raft.clients.batch import Batch
from raft.core.state import CoreState
from raft.machine.sessions import MAX_NAME_BYTES
from raft.replies import Error
from raft.runtime.errors import NO_SPACE, NOT_TAKEN, STOPPING, UNKNOWN
from raft.runtime.load import Load
from raft.runtime.passed import MAX_COMMANDS, Passed
from raft.transport.node_messages import Forward, ForwardReply, PeerMessage

_NEVER = float("inf")
LANES = 8  # Forwards under way at a time; what comes meanwhile goes together in the next ones
MAX_JOINED_BYTES = 256 * 1024  # of a Forward; the batch that passes it is its last
RETRY_MS = 20.0  # before a Forward is sent again to the same leader


class _Waiting(NamedTuple):
    """A client's batch. deadline: until when it may be held; unknown_at: when it is given up. Monotonic ms.
    alone: its commands may be why a Forward was refused, so others shall not share one with it."""

    batch: Batch
    deadline: float
    unknown_at: float
    alone: bool = False


class _Lane:
    """waiting: whose commands are under way. copies: the open ones, by request id the node that has it.

    newest: request id of the newest copy; asked: whether its answer may still come, else it is sent again.
    tried: the term and leader of the last attempt, which was at retry_at - RETRY_MS.
    """

    __slots__ = (
        "asked",
        "commands",
        "copies",
        "name",
        "newest",
        "number",
        "protocol",
        "retry_at",
        "tried",
        "unknown_at",
        "waiting",
    )

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.number = 0
        self.waiting: list[_Waiting] = []
        self.commands: list[list[bytes]] = []
        self.protocol = 2
        self.unknown_at = 0.0
        self.copies: dict[int, int] = {}
        self.newest = 0
        self.asked = False
        self.tried: tuple[int, int] | None = None
        self.retry_at = 0.0

    def load_with(self, waiting: list[_Waiting]) -> None:
        """Take these batches under the next number."""
        self.number += 1
        self.waiting = waiting
        self.protocol = waiting[0].batch.protocol
        self.commands = [args for each in waiting for _, args in each.batch.operations]
        self.unknown_at = min(each.unknown_at for each in waiting)
        self.asked, self.tried = False, None


class Lanes:
    """Owned by the worker, of the node that the clients talk to.

    send(peer, message) -> False if it certainly did not leave; hold(deadline, batch): wait for a leader, or
    fail at the deadline; propose(batch): this node leads now. origin names this process among all that ever
    were, at most 100 characters.
    """

    def __init__(
        self,
        state: CoreState,
        load: Load,
        *,
        send: Callable[[int, PeerMessage], bool],
        hold: Callable[[float, Batch], None],
        propose: Callable[[Batch], None],
        request_ids: Iterator[int],
        origin: str,
    ) -> None:
        self._state = state
        self._load = load
        self._send = send
        self._hold = hold
        self._propose = propose
        self._ids = request_ids
        self._origin = origin
        self._names = 0
        self._queue: deque[_Waiting] = deque()
        self._free: list[_Lane] = [_Lane(self._new_name()) for _ in range(LANES)]
        self._busy: dict[_Lane, None] = {}  # in the order of their first copies
        self._copies: dict[int, _Lane] = {}  # every open copy
        if len(self._free[0].name) > MAX_NAME_BYTES - 10:
            raise ValueError(f"a lane cannot be named after {origin!r}")

    def add(self, batch: Batch, deadline: float, unknown_at: float) -> None:
        """Take a client's batch for the next flush()."""
        self._queue.append(_Waiting(batch, deadline, unknown_at))

    def flush(self, now: float) -> None:
        """Send what waits, as far as there are free lanes, and again what lost its leader. Once a turn."""
        if not (self._queue or self._busy) or not self._led():
            return
        under = (self._state.term, self._state.leader_id)
        for lane in list(self._busy):
            if not lane.asked and (lane.tried != under or now >= lane.retry_at):
                self._offer(lane, now)
        while self._queue and self._free:
            # The lane used last: the others may expire, and the replicated table stays small.
            lane = self._free.pop()
            lane.load_with(self._next_load())
            self._busy[lane] = None
            self._offer(lane, now)

    def _led(self) -> bool:
        """Whether there is a leader that takes commands, as far as this node knows."""
        state = self._state
        if state.leader_id == state.node_id:
            return state.transfer_target is None
        return state.leader_id is not None

    def _next_load(self) -> list[_Waiting]:
        queue = self._queue
        first = queue.popleft()
        taken, count, size = [first], len(first.batch.operations), 0
        while queue and not first.alone:
            size += sum([len(word) for _, args in taken[-1].batch.operations for word in args])
            following = queue[0]
            count += len(following.batch.operations)
            if following.alone or following.batch.protocol != first.batch.protocol:
                break
            if size >= MAX_JOINED_BYTES or count > MAX_COMMANDS:
                break
            taken.append(queue.popleft())
        return taken

    def _offer(self, lane: _Lane, now: float) -> None:
        """Give the leader a copy; if none was ever given, and this one cannot be, the clients wait."""
        leader = self._state.leader_id
        assert leader is not None  # flush() has looked
        request_id = next(self._ids)
        message = Forward(request_id, lane.protocol, lane.commands, lane.name, lane.number)
        lane.tried, lane.retry_at = (self._state.term, leader), now + RETRY_MS
        here = leader == self._state.node_id
        if not here and not self._send(leader, message):
            if not lane.copies:
                self._hold_all(self._release(lane))
            return
        lane.newest, lane.asked = request_id, True
        lane.copies[request_id] = leader
        self._copies[request_id] = lane
        if here:
            # Its clients hold their places in Load already, so this takes none.
            self._propose(Passed(message, 0, lambda reply: self.on_reply(leader, reply)))

    # --- answers --------------------------------------------------------------------------------------

    def on_reply(self, sender: int, reply: ForwardReply) -> None:
        """What became of a copy. Late ones, whose clients have heard INDETERMINATE, find nobody."""
        lane = self._copies.get(reply.request_id)
        if lane is None or lane.copies[reply.request_id] != sender:
            return
        if reply.error is not None:
            self._refused(lane, reply.request_id, reply.error)
        elif len(reply.replies) != len(lane.commands):
            self._fail(self._release(lane), UNKNOWN)
        else:
            at = 0
            for each in self._release(lane):
                operations = each.batch.operations
                for (slot, _), data in zip(operations, reply.replies[at : at + len(operations)], strict=True):
                    each.batch.answer_encoded(slot, data)
                at += len(operations)
                self._load.give_back(len(operations))

    def _refused(self, lane: _Lane, request_id: int, error: str) -> None:
        if request_id == lane.newest:
            lane.asked = False
        if error.startswith("INDETERMINATE"):
            return
        del lane.copies[request_id], self._copies[request_id]
        expired = error.startswith("LANE")
        if lane.copies:
            if expired:  # no repeat will ever say what became of the open copies
                self._fail(self._release(lane), UNKNOWN)
                lane.name, lane.number = self._new_name(), 0
            return
        waiting = self._release(lane)
        if expired:
            lane.name, lane.number = self._new_name(), 0
            self._queue.extendleft(reversed(waiting))
        elif error.startswith("CLUSTERDOWN") and error != NO_SPACE:
            self._hold_all(waiting)  # a new leader may still come in time
        elif len(waiting) > 1 and not error.startswith("BUSY"):
            self._queue.extendleft(each._replace(alone=True) for each in reversed(waiting))
        else:
            self._fail(waiting, Error(error))

    # --- trouble --------------------------------------------------------------------------------------

    def leader_lost(self, leader: int, *, for_good: bool = False) -> None:
        """leader leads or is connected no more: what it has goes to the next one, too. for_good: this node
        was removed, no next one will answer it, and its clients had better ask elsewhere at once."""
        for lane in list(self._busy):
            if lane.copies.get(lane.newest) == leader:
                lane.asked = False
            if for_good and not lane.asked:
                self._fail(self._release(lane), UNKNOWN)
        waiting, self._queue = self._queue, deque()
        self._hold_all(list(waiting))

    def expire(self, now: float) -> None:
        """Give up what was not answered in time."""
        for lane in [lane for lane in self._busy if lane.unknown_at <= now]:
            self._fail(self._release(lane), UNKNOWN)
        while self._queue and self._queue[0].unknown_at <= now:
            self._fail([self._queue.popleft()], NOT_TAKEN)

    def next_deadline(self) -> float:
        """Monotonic ms of the earliest deadline; infinity if nothing waits."""
        if not self._queue and not self._busy:
            return _NEVER
        led = self._led()
        if self._queue and self._free and led:
            return 0.0
        earliest = self._queue[0].unknown_at if self._queue else float("inf")
        for lane in self._busy:
            earliest = min(earliest, lane.unknown_at if lane.asked or not led else lane.retry_at)
        return earliest

    def close(self) -> None:
        """The node stops: every client hears so."""
        for lane in list(self._busy):
            self._fail(self._release(lane), UNKNOWN)
        waiting, self._queue = self._queue, deque()
        self._fail(list(waiting), STOPPING)

    def _release(self, lane: _Lane) -> list[_Waiting]:
        """Free the lane; answers to its copies find nobody from now on. Returns who waited."""
        del self._busy[lane]
        for request_id in lane.copies:
            del self._copies[request_id]
        lane.copies.clear()
        waiting, lane.waiting, lane.commands = lane.waiting, [], []
        self._free.append(lane)
        return waiting

    def _fail(self, waiting: list[_Waiting], error: Error) -> None:
        for each in waiting:
            each.batch.fail(error)
            self._load.give_back(len(each.batch.operations))

    def _hold_all(self, waiting: list[_Waiting]) -> None:
        for each in waiting:
            self._hold(each.deadline, each.batch)

    def _new_name(self) -> bytes:
        self._names += 1
        return f"~{self._origin}.{self._names}".encode()
