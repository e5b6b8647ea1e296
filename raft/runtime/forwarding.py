"""What a follower's clients want and only the leader may do goes there in one hop, and the answer comes back
already encoded. A node that is not the leader refuses: nothing goes round.

Writes travel in lanes (raft/runtime/lanes.py), so that they may be sent again. Commands to the leader itself
(raft/runtime/control.py) travel alone, and once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from raft.clients.batch import Batch
from raft.core.state import CoreState
from raft.replies import OK, Error
from raft.runtime.control import is_control, is_transfer
from raft.runtime.errors import BUSY, UNKNOWN, UNKNOWN_COMMAND
from raft.runtime.lanes import Lanes
from raft.runtime.load import Load
from raft.runtime.passed import Passed, acceptable, within_a_frame
from raft.transport.node_messages import Forward, ForwardReply, PeerMessage


class Forwarding:
    """Owned by the worker. send(peer, message) -> False if it certainly did not leave.

    hold(deadline, batch): wait for a leader, or fail at the deadline. propose(batch): this node leads.
    """

    def __init__(
        self,
        state: CoreState,
        load: Load,
        *,
        send: Callable[[int, PeerMessage], bool],
        hold: Callable[[float, Batch], None],
        propose: Callable[[Batch], None],
        first_request_id: int,
        origin: str,
    ) -> None:
        self._send = send
        self._hold = hold
        self._load = load
        self._ids = itertools.count(first_request_id)
        self._controls: dict[int, tuple[int, float, float, Batch]] = {}  # leader, unknown at, deadline, batch
        self.lanes = Lanes(
            state, load, send=send, hold=hold, propose=propose, request_ids=self._ids, origin=origin
        )

    # --- the node that the client talks to ------------------------------------------------------------

    def forward(self, leader: int, batch: Batch, deadline: float, unknown_at: float) -> None:
        """Send the batch on, writes with the next flush(). deadline: until when it may be held; unknown_at:
        when a missing answer means INDETERMINATE. Both monotonic ms."""
        if not is_control(batch):
            self.lanes.add(batch, deadline, unknown_at)
            return
        request_id = next(self._ids)
        message = Forward(request_id, batch.protocol, [args for _, args in batch.operations])
        if self._send(leader, message):
            self._controls[request_id] = (leader, unknown_at, deadline, batch)
        else:
            self._hold(deadline, batch)

    def on_reply(self, sender: int, reply: ForwardReply) -> None:
        """The leader's answer."""
        found = self._controls.get(reply.request_id)
        if found is None:
            self.lanes.on_reply(sender, reply)
            return
        if found[0] != sender:
            return
        del self._controls[reply.request_id]
        _, _, deadline, batch = found
        if reply.error is not None and reply.error.startswith("CLUSTERDOWN"):
            self._hold(deadline, batch)  # certainly not executed: a new leader may still come in time
            return
        if reply.error is not None or len(reply.replies) != 1:
            batch.fail(Error(reply.error) if reply.error is not None else UNKNOWN)
        else:
            batch.answer_encoded(batch.operations[0][0], reply.replies[0])
        self._load.give_back(1)

    def leader_lost(self, leader: int, *, for_good: bool = False) -> None:
        """leader leads or is connected no more: what it took is unknown, or sent to the next one. for_good:
        there will be no next one for this node."""
        self._give_up([rid for rid, (to, *_) in self._controls.items() if to == leader])
        self.lanes.leader_lost(leader, for_good=for_good)

    def expire(self, now: float) -> None:
        """Answers that did not come in time."""
        self._give_up([rid for rid, (_, unknown_at, *_) in self._controls.items() if unknown_at <= now])
        self.lanes.expire(now)

    def next_deadline(self) -> float:
        """Monotonic ms of the earliest deadline; infinity if nothing waits."""
        lanes = self.lanes.next_deadline()
        if not self._controls:
            return lanes
        return min(next(iter(self._controls.values()))[1], lanes)  # each waits equally long

    def close(self) -> None:
        """The node stops: every client hears so."""
        self._give_up(list(self._controls))
        self.lanes.close()

    def _give_up(self, request_ids: list[int]) -> None:
        for request_id in request_ids:
            batch = self._controls.pop(request_id)[3]
            # Of a transfer another leader is all that was wanted.
            batch.answer(batch.operations[0][0], OK if is_transfer(batch) else UNKNOWN)
            self._load.give_back(1)

    # --- the leader -----------------------------------------------------------------------------------

    def accept(self, sender: int, message: Forward, refusal: Error | None) -> Batch | None:
        """A peer's client wants these commands. refusal: why this node takes none now. Returns the batch to
        propose, or for Control, or None after a refusal."""
        if refusal is not None:
            pass
        elif not acceptable(message):
            refusal = UNKNOWN_COMMAND
        elif not self._load.take(len(message.commands)):
            refusal = BUSY
        if refusal is not None:
            self._send(sender, ForwardReply(message.request_id, [], str(refusal)))
            return None

        def answered(reply: ForwardReply) -> None:
            self._send(sender, reply)  # if it does not leave, the asker asks again

        if message.lane:
            return Passed(message, len(message.commands), answered)
        return Batch.of_commands(
            message.commands,
            len(message.commands),
            message.protocol,
            lambda replies: answered(ForwardReply(message.request_id, within_a_frame(replies))),
        )
