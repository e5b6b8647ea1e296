"""Commands that arrive at a follower and only the leader may answer go there in one hop, and the answer
comes back already encoded for the client. A node that is not the leader refuses: nothing goes round."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from raft.clients.batch import Batch
from raft.clients.dispatch import once_error
from raft.machine.batch import BatchFormatError
from raft.machine.commands import CommandSpec, Kind, lookup
from raft.machine.transactions import decode_transaction, may_stand_inside
from raft.replies import OK, Error
from raft.runtime.control import is_control_command, is_transfer
from raft.runtime.errors import BUSY, NOT_LEADER, UNKNOWN, UNKNOWN_COMMAND
from raft.runtime.load import Load
from raft.transport.node_messages import Forward, ForwardReply, PeerMessage

MAX_COMMANDS = 4096  # in one forwarded batch; a client's batch has fewer
MAX_REPLY_BYTES = 8 << 20  # of one forwarded batch; a frame carries twice as much
TOO_LARGE = b"-ERR the command was executed, but its answer is too large to pass on: ask the leader\r\n"


def within_a_frame(replies: list[bytes]) -> list[bytes]:
    """The replies, those that would not fit into a frame between nodes replaced by an error."""
    room = MAX_REPLY_BYTES - len(replies) * len(TOO_LARGE)
    fitting: list[bytes] = []
    for reply in replies:
        room -= len(reply)
        if room < 0:
            room += len(reply)
            reply = TOO_LARGE
        fitting.append(reply)
    return fitting


def acceptable(message: Forward) -> bool:
    """Whether the log may take what a peer passes on. Its version may know other commands than this one: one
    that the machine does not know would, once in the log, stop every node for good."""
    if message.protocol not in (2, 3) or not 0 < len(message.commands) <= MAX_COMMANDS:
        return False
    if len(message.commands) == 1 and is_control_command(message.commands[0]):
        return True
    return all(_may_be_logged(args) for args in message.commands)


def _may_be_logged(args: list[bytes]) -> bool:
    if args[:1] == [b"~EXEC"]:
        return len(args) == 2 and _is_transaction(args[1])
    spec = lookup(args)
    if not isinstance(spec, CommandSpec) or spec.kind not in (Kind.READ, Kind.WRITE):
        return False
    return spec.name != b"ONCE" or once_error(args) is None


def _is_transaction(data: bytes) -> bool:
    try:
        commands = decode_transaction(data).commands
    except BatchFormatError:
        return False
    specs = [lookup(words) for words in commands]
    return all(
        isinstance(spec, CommandSpec) and may_stand_inside(spec.name, spec.kind in (Kind.READ, Kind.WRITE))
        for spec in specs
    )


class Forwarding:
    """Owned by the worker. send(peer, message) -> False if it certainly did not leave.

    hold(deadline, batch): wait for a leader, or fail at the deadline.
    """

    def __init__(
        self,
        send: Callable[[int, PeerMessage], bool],
        hold: Callable[[float, Batch], None],
        load: Load,
        first_request_id: int,
    ) -> None:
        self._send = send
        self._hold = hold
        self._load = load
        self._ids = itertools.count(first_request_id)
        self._outstanding: dict[
            int, tuple[int, float, float, Batch]
        ] = {}  # leader, unknown at, deadline, batch

    # --- the node that the client talks to ------------------------------------------------------------

    def forward(self, leader: int, batch: Batch, deadline: float, unknown_at: float) -> None:
        """Send the batch on. deadline: until when it may be held; unknown_at: when a missing answer means
        INDETERMINATE. Both monotonic ms."""
        request_id = next(self._ids)
        message = Forward(request_id, batch.protocol, [args for _, args in batch.operations])
        if self._send(leader, message):
            self._outstanding[request_id] = (leader, unknown_at, deadline, batch)
        else:
            self._hold(deadline, batch)

    def on_reply(self, sender: int, reply: ForwardReply) -> None:
        """The leader's answer. Late ones, whose client has heard INDETERMINATE, find nobody."""
        found = self._outstanding.get(reply.request_id)
        if found is None or found[0] != sender:
            return
        del self._outstanding[reply.request_id]
        _, _, deadline, batch = found
        if reply.error is not None and reply.error.startswith("CLUSTERDOWN"):
            self._hold(deadline, batch)  # certainly not executed: a new leader may still come in time
            return
        if reply.error is not None or len(reply.replies) != len(batch.operations):
            batch.fail(Error(reply.error) if reply.error is not None else UNKNOWN)
        else:
            for (slot, _), data in zip(batch.operations, reply.replies, strict=True):
                batch.answer_encoded(slot, data)
        self._load.give_back(len(batch.operations))

    def leader_lost(self, leader: int | None) -> None:
        """leader leads or is connected no more (None: whoever it was): what it took is unknown."""
        self._give_up([rid for rid, (to, *_) in self._outstanding.items() if leader is None or to == leader])

    def expire(self, now: float) -> None:
        """Answers that did not come in time."""
        self._give_up([rid for rid, (_, unknown_at, *_) in self._outstanding.items() if unknown_at <= now])

    def next_deadline(self) -> float:
        """Monotonic ms of the earliest deadline; infinity if nothing waits."""
        oldest = next(iter(self._outstanding.values()), None)  # each waits equally long
        return oldest[1] if oldest is not None else float("inf")

    def _give_up(self, request_ids: list[int]) -> None:
        for request_id in request_ids:
            batch = self._outstanding.pop(request_id)[3]
            if is_transfer(batch):
                batch.answer(batch.operations[0][0], OK)  # another leader is what it wanted
            else:
                batch.fail(UNKNOWN)
            self._load.give_back(len(batch.operations))

    # --- the leader -----------------------------------------------------------------------------------

    def accept(self, sender: int, message: Forward, takes: bool) -> Batch | None:
        """A peer's client wants these commands. takes: this node leads and is not handing over. Returns the
        batch to propose, or None after a refusal."""
        if not takes:
            self._send(sender, ForwardReply(message.request_id, [], str(NOT_LEADER)))
            return None
        if not acceptable(message):
            self._send(sender, ForwardReply(message.request_id, [], str(UNKNOWN_COMMAND)))
            return None
        if not self._load.take(len(message.commands)):
            self._send(sender, ForwardReply(message.request_id, [], str(BUSY)))
            return None
        request_id = message.request_id

        def done(replies: list[bytes]) -> None:
            self._send(sender, ForwardReply(request_id, within_a_frame(replies)))

        return Batch.of_commands(message.commands, len(message.commands), message.protocol, done)
