"""Clients with sessions: they send their commands under ONCE until they are answered, through whatever node,
and some plain ones, which they send once.

What may be relied on: a command under ONCE is carried out at most once and answered alike each time; a plain
one is carried out at most once, and not at all if the answer was CLUSTERDOWN or BUSY.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis

from raft.machine.transactions import encode_transaction
from tests.simulation.checker import violated
from tests.simulation.model import Words
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.workload import Workload

PATIENCE_MS = (40.0, 400.0)  # before a command under ONCE is sent once more
REMEMBERED = 12  # commands whose late repeats arrive
READ_KEYS = (b"n0", b"n1", b"n2", b"k0", b"k1", b"k2", b"x0", b"x1", b"a", b"b", b"last", b"opt")


@dataclass(slots=True, eq=False)
class Operation:
    """A command and what is known of it. copies: under way now; answer: as first heard, an error as text."""

    words: Words
    number: int
    once: bool
    sent_ms: float = 0.0
    copies: int = 0
    answered: bool = False
    answer: Any = None


class Client:
    """One client: a session, one command at a time, and reads in between."""

    def __init__(self, workload: Workload, number: int) -> None:
        self.workload = workload
        self.number = number
        self.sessions = 0
        self.tags = 0
        self.waiting: Operation | None = None
        self.done: deque[Operation] = deque(maxlen=REMEMBERED)
        self._begin_session()

    def _begin_session(self) -> None:
        self.sessions += 1
        self.session, self.sequence = b"c%d.%d" % (self.number, self.sessions), 0

    def waits_since_before(self, fresh: float) -> bool:
        """Whether a command under ONCE from before the request numbered `fresh` is still unanswered."""
        waiting = self.waiting
        return waiting is not None and waiting.once and waiting.number < fresh

    def act(self, rng: random.Random) -> None:
        """The client's next move, at a node of its choice."""
        node = self.workload.cluster.any_node(rng)
        if node is None:
            return
        if self.done and rng.random() < 0.08:
            self._send(rng.choice(self.done), node)  # a late repeat
        if rng.random() < 0.5:
            self._read(node, rng)
        elif self.waiting is not None:
            self._wait(self.waiting, node, rng)
        else:
            self._begin(node, rng)

    # --- writes -----------------------------------------------------------------------------------------

    def _wait(self, operation: Operation, node: Node, rng: random.Random) -> None:
        patience = rng.uniform(*PATIENCE_MS)
        if operation.once and (
            not operation.copies or self.workload.cluster.now - operation.sent_ms > patience
        ):
            self._send(operation, node)
        elif not operation.once and not operation.copies:
            self.waiting = None  # nobody will ever know

    def _begin(self, node: Node, rng: random.Random) -> None:
        if rng.random() < 0.65:
            self.sequence += 1
            words = [b"ONCE", self.session, b"%d" % self.sequence, *self._command(rng)]
            self._start(words, True, node)
        elif rng.random() < 0.3:
            self._swap(node)
        else:
            self._start(self._plain_command(rng), False, node)

    def _start(self, words: list[bytes], once: bool, node: Node) -> None:
        self.waiting = Operation(tuple(words), self.workload.next_number, once)
        if not once:
            self.workload.machines.model.single.add(self.waiting.words)
        self._send(self.waiting, node)

    def _tag(self) -> bytes:
        self.tags += 1
        return b"%d.%d;" % (self.number, self.tags)

    def _command(self, rng: random.Random) -> list[bytes]:
        kind = rng.choice(("incr", "incr", "set", "expiring", "append", "claim"))
        if kind == "incr":
            return [b"INCR", b"n%d" % rng.randrange(3)]
        if kind == "set":
            return [b"SET", b"k%d" % rng.randrange(3), self._tag().ljust(rng.choice((0, 30)), b".")]
        if kind == "expiring":
            return [b"SET", b"x%d" % rng.randrange(2), self._tag(), b"PX", b"%d" % rng.choice((30, 200, 900))]
        if kind == "append":
            return [b"APPEND", b"once%d" % rng.randrange(2), self._tag()]
        return self.workload.crowd.claim(rng)

    def _plain_command(self, rng: random.Random) -> list[bytes]:
        if rng.random() < 0.5:
            return [b"APPEND", b"plain", self._tag()]
        amount = rng.randrange(1, 10)
        moves = [[b"INCRBY", b"a", b"%d" % -amount], [b"INCRBY", b"b", b"%d" % amount]]
        return [b"~EXEC", encode_transaction((), [*moves, [b"SET", b"last", self._tag()]])]

    def _swap(self, node: Node) -> None:
        """WATCH opt, MULTI, SET opt, GET opt, EXEC: as raft/clients/transactions.py asks the worker."""

        def watched(replies: list[Any]) -> None:
            if not isinstance(replies[0], int) or self.waiting is not None:
                return
            queued = [[b"SET", b"opt", self._tag()], [b"GET", b"opt"]]
            words = (b"~EXEC", encode_transaction([(b"opt", replies[0])], queued))
            # Sent later, when this client acts again: nothing is submitted from inside a node's turn.
            self.waiting = Operation(words, self.workload.next_number, False, copies=1)
            self.workload.machines.model.single.add(words)
            self.workload.cluster.at(self.workload.cluster.now, partial(self._send_swap, self.waiting, node))

        self.workload.ask(node, [[b"~VERSION"]], False, watched, _nothing)

    def _send_swap(self, operation: Operation, node: Node) -> None:
        operation.copies = 0
        if node.service is not None:
            self._send(operation, node)

    def _send(self, operation: Operation, node: Node) -> None:
        operation.copies += 1
        operation.sent_ms = self.workload.cluster.now

        def lost() -> None:
            operation.copies -= 1

        answered = partial(self._answered, operation)
        self.workload.ask(node, [list(operation.words)], True, answered, lost)

    def _answered(self, operation: Operation, replies: list[Any]) -> None:
        operation.copies -= 1
        workload, machines = self.workload, self.workload.machines
        reply = replies[0]
        is_error = isinstance(reply, hiredis.ReplyError)
        text = str(reply) if is_error else ""
        if text.startswith(("CLUSTERDOWN", "BUSY", "INDETERMINATE")):
            if not operation.once:
                if not text.startswith("INDETERMINATE"):
                    machines.refuse(operation.words)
                self._finish(operation)
            return
        answer = text if is_error else reply
        workload.written(operation.number, machines.index_of(operation.words, answer))
        expired = text.startswith("ERR session expired")
        if not (expired and not machines.exact):
            machines.check_answer(operation.words, answer)
            if operation.answered and answer != operation.answer:
                violated(f"{operation.words} was answered {operation.answer!r}, and now {answer!r}")
            operation.answered, operation.answer = True, answer
        if self.waiting is operation:
            self._finish(operation)
            if expired:
                self._begin_session()
            elif operation.once:
                self.done.append(operation)

    def _finish(self, operation: Operation) -> None:
        if self.waiting is operation:
            self.waiting = None

    # --- reads ------------------------------------------------------------------------------------------

    def _read(self, node: Node, rng: random.Random) -> None:
        if rng.random() < 0.15:
            name = self.workload.crowd.anyone(rng)
            keys = [b"balance " + name]
            commands = [[b"REWARD", b"BALANCE", name]]
        else:
            keys = rng.sample(READ_KEYS, rng.choice((1, 2, 3)))
            commands = [[b"MGET", *keys]]
        floor = self.workload.floor
        self.workload.ask(node, commands, False, self._reader(node, keys, floor), _nothing)

    def _reader(self, node: Node, keys: list[bytes], floor: int) -> Callable[[list[Any]], None]:
        def answered(replies: list[Any]) -> None:
            reply = replies[0]
            if isinstance(reply, hiredis.ReplyError):
                if not str(reply).startswith("NOFOLLOWER"):
                    return
                reply = None
            values = reply if isinstance(reply, list) else [reply]
            self.workload.machines.check_read(keys, values, floor, f"at {node.node_id}")

        return answered


def _nothing() -> None:
    pass
