"""A batch: the commands of one connection (or of one forwarded message) that the worker answers together.

A handler thread builds it and hands it over with Backend.submit; from then on the worker alone touches it,
until the last open slot is answered: then `on_done` is called, once, on the thread that gave that answer,
with the encoded answers of all slots in the order of the requests.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.clients.resp import OK_BYTES, encode_reply
from raft.replies import OK, Error, Reply

MAX_ANSWERS_BYTES = 128 * 1024 * 1024  # of one batch; a client that leaves half as much unread is dropped
_LARGE = 64 * 1024
_TOO_MUCH = encode_reply(
    Error("ERR the command was carried out, but the answers before it are too large: ask for less at a time"),
    2,
)

OnDone = Callable[[list[bytes]], None]


class Batch:
    """Slots for answers; some may be filled already (local commands), the others wait in `operations`.

    protocol: RESP version of the answers. operations: (slot, words) in order. writes: how many of them are
    Kind.WRITE. remaining: open slots. weight: how many places in Load an operation holds.
    """

    __slots__ = ("_answers", "_on_done", "_room", "operations", "protocol", "remaining", "weight", "writes")

    def __init__(
        self,
        protocol: int,
        operations: list[tuple[int, list[bytes]]],
        writes: int,
        answers: list[bytes | None],
        on_done: OnDone,
    ) -> None:
        """answers: one item a slot, None for exactly the slots in operations. ValueError without any."""
        if not operations:
            raise ValueError("a batch without operations would never be done")
        self.protocol = protocol
        self.operations = operations
        self.writes = writes
        self.remaining = len(operations)
        self.weight = 1
        self._room = MAX_ANSWERS_BYTES  # for large answers
        self._answers = answers
        self._on_done = on_done

    @classmethod
    def of_commands(cls, commands: list[list[bytes]], writes: int, protocol: int, on_done: OnDone) -> Batch:
        """A batch of nothing but operations, such as a follower forwards. ValueError when it is empty."""
        return cls(protocol, list(enumerate(commands)), writes, [None] * len(commands), on_done)

    def answer(self, slot: int, reply: Reply) -> None:
        """Answers one operation. RuntimeError if it was answered before, TypeError if it is no Reply."""
        data = OK_BYTES if reply is OK else encode_reply(reply, self.protocol)
        if len(data) > _LARGE:
            data = self._within(data)
        # As answer_encoded, without the call: the worker comes here once per command.
        answers = self._answers
        if answers[slot] is not None:
            raise _answered_twice(slot)
        answers[slot] = data
        self.remaining = remaining = self.remaining - 1
        if not remaining:
            self._on_done(answers)  # type: ignore[arg-type]  # no slot is None any more

    def answer_run(self, start: int, stop: int, replies: list[Reply], at: int) -> None:
        """Answers operations[start:stop] with replies[at:], as answer() one by one."""
        answers, protocol, data = self._answers, self.protocol, b""
        for slot, _ in self.operations[start:stop]:
            reply = replies[at]
            at += 1
            if reply is OK:
                data = OK_BYTES
            else:
                data = encode_reply(reply, protocol)
                if len(data) > _LARGE:
                    data = self._within(data)
            if answers[slot] is not None:
                raise _answered_twice(slot)
            answers[slot] = data
        self.remaining = remaining = self.remaining - (stop - start)
        if not remaining:
            self._on_done(answers)  # type: ignore[arg-type]  # no slot is None any more

    def _within(self, data: bytes) -> bytes:
        """A large answer, or an error in its place: answers are held until the last of the batch is there."""
        if len(data) > self._room:
            return _TOO_MUCH
        self._room -= len(data)
        return data

    def answer_encoded(self, slot: int, data: bytes) -> None:
        """Answers one operation with bytes in this batch's protocol, as another node's Batch encoded them."""
        answers = self._answers
        if answers[slot] is not None:
            raise _answered_twice(slot)
        answers[slot] = data
        self.remaining = remaining = self.remaining - 1
        if not remaining:
            self._on_done(answers)  # type: ignore[arg-type]  # no slot is None any more

    def fail(self, error: Error) -> None:
        """Answers every open slot with `error`; those answered keep their answer. Nothing if all are."""
        data = encode_reply(error, self.protocol)
        for slot, _ in self.operations:
            if self._answers[slot] is None:
                self.answer_encoded(slot, data)


def _answered_twice(slot: int) -> RuntimeError:
    return RuntimeError(f"slot {slot} of a batch was answered twice")
