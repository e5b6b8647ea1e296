"""Linearizable reads on this node: batches wait for a read index, then for the machine to reach it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from raft.clients.batch import Batch
from raft.core.core import RaftCore
from raft.machine.commands import SLOW_READS
from raft.machine.machine import Machine
from raft.replies import Reply
from raft.runtime.load import Load

_NEVER = float("inf")


_deadline = itemgetter(0)


_SLOW_LETTERS = frozenset({b"K", b"k", b"R", b"r"})  # b"K" in b"KkRr" makes an exception first


def is_slow(batch: Batch) -> bool:
    """Whether the batch is a read that goes through everything there is; handlers send those alone."""
    operations = batch.operations
    return (
        len(operations) == 1
        and operations[0][1][0][:1] in _SLOW_LETTERS
        and operations[0][1][0].upper() in SLOW_READS
    )


def may_pass_on(batch: Batch) -> bool:
    """Whether the leader may answer a batch of reads in this node's place, which it does out of the log: not
    what goes through everything, and no ~VERSION. That stands in no log: the machines would end for good."""
    return not is_slow(batch) and all(args[0] != b"~VERSION" for _, args in batch.operations)


@dataclass(slots=True)
class Waiting:
    """Batches that share a read index. deadline: monotonic ms."""

    deadline: float
    batches: deque[tuple[float, Batch]]  # each with its own deadline


class Reads:
    """Owned by the worker. retry(deadline, batch): what became of reads whose leader went away."""

    def __init__(
        self,
        core: RaftCore,
        machine: Machine,
        load: Load,
        first_request_id: int,
        retry: Callable[[float, Batch], None],
        lease_ended: Callable[[], bool] | None,
    ) -> None:
        self._core = core
        self._machine = machine
        self._load = load
        self._ids = itertools.count(first_request_id)
        self._retry = retry
        self._lease_ended = lease_ended
        self._void = False  # a transfer has ended this leadership's lease
        self.unfinished = False  # confirmed reads were left for the next turn
        self._gathered: deque[tuple[float, Batch]] = deque()
        self._asked: dict[int, Waiting] = {}
        self._confirmed: deque[tuple[int, Waiting]] = deque()  # (read index, who)

    def add(self, batch: Batch, deadline: float) -> None:
        """Take a batch of reads only."""
        self._gathered.append((deadline, batch))

    def flush(self, now: float) -> None:
        """One read index for all that gathered in this turn."""
        if self._gathered:
            request_id = next(self._ids)
            earliest = min(self._gathered, key=_deadline)[0]
            self._asked[request_id] = Waiting(earliest, self._gathered)
            self._gathered = deque()
            self._core.read(request_id, now)

    def ready(self, request_id: int, read_index: int) -> None:
        """The core confirmed a read index."""
        waiting = self._asked.pop(request_id, None)
        if waiting is not None:
            self._confirmed.append((read_index, waiting))

    def failed(self, request_id: int) -> None:
        """The leader changed before it answered: reads may safely be asked again."""
        waiting = self._asked.pop(request_id, None)
        if waiting is not None:
            for deadline, batch in waiting.batches:
                self._retry(deadline, batch)

    def leadership_lost(self) -> None:
        """With lease reads, what this leader confirmed must be asked again: the lease that is looked at after
        the read would be another one, or none, and the confirmation may date from before a pause."""
        self._void = False
        if self._lease_ended is not None:
            self._ask_again()

    def _ask_again(self) -> None:
        confirmed = [waiting for _, waiting in self._confirmed]
        self._confirmed.clear()
        for waiting in confirmed:
            for deadline, batch in waiting.batches:
                self._retry(deadline, batch)

    def serve(self, wall_ms: int) -> None:
        """Answer what the machine has reached. wall_ms only shows how long a key has to live."""
        self.unfinished = False
        if self._lease_ended is not None and self._core.state.lease_void != self._void:
            self._void = self._core.state.lease_void
            if self._void:
                # A transfer has begun: who is told to campaign waits for no lease. What was confirmed until
                # now may rest on one; what is confirmed from now on, in this leadership, a quorum has.
                self._ask_again()
        for _ in range(len(self._confirmed)):
            read_index, waiting = self._confirmed.popleft()
            if read_index > self._machine.applied_index:
                self._confirmed.append((read_index, waiting))
                continue
            while waiting.batches:
                deadline, batch = waiting.batches.popleft()
                self._answer(deadline, batch, wall_ms)
                if (waiting.batches or self._confirmed) and is_slow(batch):
                    # Heartbeats and everybody else come before the next slow one.
                    if waiting.batches:
                        self._confirmed.appendleft((read_index, waiting))
                    self.unfinished = True
                    return

    def _answer(self, deadline: float, batch: Batch, wall_ms: int) -> None:
        read = self._machine.read
        if self._lease_ended is None and len(batch.operations) == 1:  # nearly always
            slot, args = batch.operations[0]
            batch.answer(slot, read(args, wall_ms))
            self._load.give_back(1)
            return
        replies: list[Reply] = [read(args, wall_ms) for _, args in batch.operations]
        if self._lease_ended is not None and self._lease_ended():
            # The process may have been paused between the check of the lease and the read (thesis 6.4.1).
            self._retry(deadline, batch)
            return
        for (slot, _), reply in zip(batch.operations, replies, strict=True):
            batch.answer(slot, reply)
        self._load.give_back(len(replies))

    def expire(self, now: float) -> None:
        """Hand back what no leader answered in time; retry() knows that the deadline has passed."""
        late = [request_id for request_id, waiting in self._asked.items() if waiting.deadline <= now]
        for request_id in late:
            self.failed(request_id)
        for _ in range(len(self._confirmed)):
            read_index, waiting = self._confirmed.popleft()
            if waiting.deadline <= now:
                for deadline, batch in waiting.batches:
                    self._retry(deadline, batch)
            else:
                self._confirmed.append((read_index, waiting))

    def next_deadline(self) -> float:
        """Monotonic ms of the earliest deadline; infinity if nothing waits."""
        if not self._asked and not self._confirmed:
            return _NEVER
        asked = min((waiting.deadline for waiting in self._asked.values()), default=_NEVER)
        return min(asked, min((waiting.deadline for _, waiting in self._confirmed), default=_NEVER))

    def drain(self) -> list[Batch]:
        """Everything that waits, for the end of the node."""
        waits = [*self._asked.values(), *(waiting for _, waiting in self._confirmed)]
        batches = [batch for waiting in waits for _, batch in waiting.batches]
        batches += [batch for _, batch in self._gathered]
        self._asked.clear()
        self._confirmed.clear()
        self._gathered.clear()
        return batches
