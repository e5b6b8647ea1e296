"""The leader's side of forwarded writes: what a peer may make it take, and the batch that the log gets."""

from __future__ import annotations

from collections.abc import Callable

from raft.clients.batch import Batch
from raft.clients.dispatch import once_error
from raft.clients.resp import encode_reply
from raft.machine.batch import BatchFormatError, encode_commands
from raft.machine.commands import CommandSpec, Kind, lookup
from raft.machine.sessions import is_lane
from raft.machine.transactions import decode_transaction, may_stand_inside
from raft.replies import Error, Reply
from raft.runtime.control import is_control_command
from raft.runtime.proposals import WORD_BYTES
from raft.transport.node_messages import Forward, ForwardReply

MAX_COMMANDS = 4096  # in one Forward; a client's batch has fewer
MAX_FORWARD_BYTES = 14 << 20  # as it stands in an entry, which must fit into a frame with others before it
MAX_REPLY_BYTES = 8 << 20  # of one Forward; a frame carries twice as much
TOO_LARGE = b"-ERR the command was executed, but its answer is too large to pass on: ask the leader\r\n"
_LARGEST_NUMBER = 2**63 - 1


class Passed(Batch):
    """Everything that a Forward holds, as one ~ONCE. answered() gets the reply, once."""

    __slots__ = ("_answered", "_request_id")

    def __init__(self, message: Forward, weight: int, answered: Callable[[ForwardReply], None]) -> None:
        """weight: how many places in Load it holds."""
        words = [b"~ONCE", message.lane, b"%d" % message.number, encode_commands(message.commands)]
        super().__init__(message.protocol, [(0, words)], 1, [None], _nobody)
        self.weight = weight
        self._request_id = message.request_id
        self._answered = answered

    def answer(self, slot: int, reply: Reply) -> None:
        """The machine's replies, or why there are none."""
        if self.remaining != 1:
            raise RuntimeError(f"slot {slot} of a forwarded batch was answered twice")
        self.remaining = 0
        if isinstance(reply, list):
            protocol = self.protocol
            encoded = [encode_reply(each, protocol) for each in reply]
            self._answered(ForwardReply(self._request_id, within_a_frame(encoded)))
        elif isinstance(reply, Error) and reply.startswith(("CLUSTERDOWN", "INDETERMINATE")):
            self._answered(ForwardReply(self._request_id, [], str(reply)))
        else:
            self._answered(ForwardReply(self._request_id, [], f"LANE {reply!s}"))


def _nobody(_answers: list[bytes]) -> None:
    """Passed has its own way to answer."""


def within_a_frame(replies: list[bytes]) -> list[bytes]:
    """The replies, those that would not fit into a frame between nodes replaced by an error."""
    room = MAX_REPLY_BYTES - len(replies) * len(TOO_LARGE)
    if sum(map(len, replies)) <= room:
        return replies
    fitting: list[bytes] = []
    for reply in replies:
        room -= len(reply)
        if room < 0:
            room += len(reply)
            reply = TOO_LARGE
        fitting.append(reply)
    return fitting


def acceptable(message: Forward) -> bool:
    """Whether the leader may take what a peer passes on. Its version may know other commands than this one:
    one that the machine does not know would, once in the log, stop every node for good."""
    if message.protocol not in (2, 3) or not 0 < len(message.commands) <= MAX_COMMANDS:
        return False
    if sum([sum(map(len, args)) + WORD_BYTES * len(args) for args in message.commands]) > MAX_FORWARD_BYTES:
        return False  # nothing but a peer that is not like us makes so much of its clients' batches
    if not message.lane:
        return len(message.commands) == 1 and is_control_command(message.commands[0])
    if not is_lane(message.lane) or not 0 < message.number <= _LARGEST_NUMBER:
        return False
    return all(_may_be_logged(args) for args in message.commands)


def _may_be_logged(args: list[bytes]) -> bool:
    if args[:1] == [b"~EXEC"]:
        return len(args) == 2 and _is_transaction(args[1])
    spec = lookup(args)
    if not isinstance(spec, CommandSpec) or spec.kind not in (Kind.READ, Kind.WRITE):
        return False
    if spec.name == b"RAFT DIGEST":  # goes alone, and never in a command
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
