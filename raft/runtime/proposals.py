"""The leader's side of writes: commands wait for the turn's end, become one entry, and are answered when
that entry is applied. One entry for all that arrived meanwhile is what makes group commit cheap."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from raft.clients.batch import Batch
from raft.core.core import RaftCore
from raft.core.invariants import require
from raft.machine.batch import encode_batch
from raft.replies import Error, Reply
from raft.runtime.errors import NOT_LEADER
from raft.runtime.load import Load

log = logging.getLogger(__name__)

MAX_ENTRY_COMMANDS = 4096
MAX_ENTRY_BYTES = 512 * 1024  # encoded; the command that passes it is the entry's last, however large
WORD_BYTES = 5  # what a word takes in an entry beside its own bytes, at most


@dataclass(slots=True)
class InFlight:
    """An entry of this leadership that is not applied yet, and who waits for which of its commands."""

    index: int
    at_ms: int
    commands: list[list[bytes]]
    waiters: list[tuple[Batch, int] | None]
    clients: int  # places in Load that they hold


class Proposals:
    """Owned by the worker. Everything in it belongs to one leadership: fail_all() ends it."""

    def __init__(self, core: RaftCore, load: Load) -> None:
        self._core = core
        self._load = load
        self._inflight: deque[InFlight] = deque()
        self._commands: list[list[bytes]] = []
        self._waiters: list[tuple[Batch, int] | None] = []
        self._clients = 0
        self._bytes = 0

    def add(self, batch: Batch, now: float, at_ms: int) -> None:
        """Take a client's batch; its reads are logged too, so that they keep their place among the writes."""
        for slot, args in batch.operations:
            self._commands.append(args)
            self._waiters.append((batch, slot))
            self._clients += batch.weight
            self._bytes += sum(map(len, args)) + WORD_BYTES * len(args)  # many empty words are large, too
            if self._bytes >= MAX_ENTRY_BYTES or self._clients >= MAX_ENTRY_COMMANDS:
                self.flush(now, at_ms)

    def add_system(self, args: list[bytes]) -> None:
        """A command of the leader itself: nobody waits for it."""
        self._commands.append(args)
        self._waiters.append(None)

    def flush(self, now: float, at_ms: int) -> None:
        """Propose what has gathered as one entry, stamped at_ms (wall clock, ms). now: monotonic ms."""
        if not self._commands:
            return
        index = self._core.propose([encode_batch(at_ms, self._commands)], now)
        if index is None:
            # Leadership began to be handed over in this very turn: nothing of this is in the log.
            require(self._core.state.transfer_target is not None, "proposed without being the leader")
            self._fail(self._waiters, NOT_LEADER)
            self._commands, self._waiters, self._clients, self._bytes = [], [], 0, 0
            return
        self._inflight.append(InFlight(index, at_ms, self._commands, self._waiters, self._clients))
        self._commands, self._waiters, self._clients, self._bytes = [], [], 0, 0

    @property
    def first_index(self) -> int | None:
        """The oldest entry of this leadership that is not applied yet, None when there is none."""
        return self._inflight[0].index if self._inflight else None

    def next_if(self, index: int) -> InFlight | None:
        """The commands of the entry at index if this leadership proposed it: no need to decode it again."""
        first = self.first_index
        if first is None or first > index:
            return None
        require(first == index, f"entry {first} was applied past its clients; now comes {index}")
        return self._inflight.popleft()

    def answer(self, done: InFlight, replies: list[Reply]) -> None:
        """The entry is applied: every client hears its reply."""
        for waiter, reply in zip(done.waiters, replies, strict=True):
            if waiter is not None:
                waiter[0].answer(waiter[1], reply)
            elif isinstance(reply, Error):
                log.error("entry %d: a command of the leader itself failed: %s", done.index, reply)
        if done.clients:
            self._load.give_back(done.clients)

    def fail_all(self, taken: Error, waiting: Error) -> None:
        """Leadership is over: what is in the log may yet commit (`taken`), the rest cannot (`waiting`)."""
        for entry in self._inflight:
            self._fail(entry.waiters, taken)
        self._fail(self._waiters, waiting)
        self._inflight.clear()
        self._commands, self._waiters, self._clients, self._bytes = [], [], 0, 0

    def _fail(self, waiters: list[tuple[Batch, int] | None], error: Error) -> None:
        for waiter in waiters:
            if waiter is not None:
                waiter[0].answer(waiter[1], error)
                self._load.give_back(waiter[0].weight)
