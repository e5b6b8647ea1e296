"""When this node takes a snapshot, and what follows from it: the log behind it goes (thesis chapter 5).

A forked child writes it (raft/runtime/snapshotting.py) while the worker goes on. One begins after
storage.snapshot_every_entries applied entries, or when a client asks with RAFT SNAPSHOT. Once it is durable
the log is given up as far as the snapshot BEFORE it reaches, one file at a time: should the newest turn out
damaged, the one before stands in for it, and a follower that was away for a moment finds its entries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.clients.batch import Batch
from raft.machine.machine import Machine
from raft.replies import OK, Error, Reply
from raft.runtime.errors import STOPPING
from raft.runtime.load import Load
from raft.runtime.snapshotting import ChildSnapshot, Outcome, Result, take_snapshot
from raft.storage.errors import StorageError
from raft.storage.log_store import LogStore
from raft.storage.snapshots import SnapshotStore

log = logging.getLogger(__name__)

POLL_MS = 20.0  # how often a running child is looked at
COMPACT_EVERY_MS = 20.0  # one log file at a time: each takes an fsync of the directory
RETRY_MS = 60_000.0  # after a failure that the node outlives; a client that asks need not wait for it

Fork = Callable[[Machine, SnapshotStore, bytes], ChildSnapshot]

_ADVICE = {
    Result.DISK_FULL: "free some space on this disk: until then the log keeps growing",
    Result.KILLED: "if the kernel did it because memory ran out (dmesg says so), give this machine more: a "
    "snapshot may take as much again as keys and values do. Until one succeeds the log keeps growing",
    Result.TIMEOUT: "is the disk or the CPU overloaded? Until one succeeds the log keeps growing",
    Result.CANCELLED: "the node is stopping",
}


def is_snapshot_command(batch: Batch) -> bool:
    """Whether this batch is RAFT SNAPSHOT, alone as handlers send it: for this node, whoever leads."""
    args = batch.operations[0][1]
    return (
        len(batch.operations) == 1
        and len(args) == 2
        and args[0].upper() == b"RAFT"
        and args[1].upper() == b"SNAPSHOT"
    )


class Snapshots:
    """Owned by the worker: advance() at the end of a turn, when all effects are carried out.

    configuration(): the applied one, encoded. pinned(): up to where the log may go although a snapshot is
    being streamed to somebody, None if none is. fork: for tests.
    """

    def __init__(
        self,
        machine: Machine,
        store: SnapshotStore,
        log_store: LogStore,
        load: Load,
        *,
        configuration: Callable[[], bytes],
        every_entries: int,
        pinned: Callable[[], int | None] = lambda: None,
        fork: Fork = take_snapshot,
    ) -> None:
        self.pinned = pinned
        self._machine = machine
        self._store = store
        self._log = log_store
        self._load = load
        self._configuration = configuration
        self._every_entries = every_entries
        self._fork = fork
        self._child: ChildSnapshot | None = None
        self._taking = (0, 0)  # index and keys of the snapshot that the child writes
        self._waiters: list[tuple[int, Batch]] = []  # each with the entry that its snapshot must cover
        self._answers: list[tuple[Batch, Reply]] = []
        self._poll_at = 0.0
        self._retry_at = 0.0
        self._compact_to = 0  # entries up to here may go; 0: there is nothing left to do
        self._compact_at = 0.0

    @property
    def index(self) -> int:
        """The last entry that the newest snapshot covers; 0 if there is none."""
        latest = self._store.latest()
        return 0 if latest is None else latest.index

    @property
    def running(self) -> bool:
        """Whether a child is writing one."""
        return self._child is not None

    @property
    def busy(self) -> bool:
        """Whether advance() may have something to do."""
        return (
            self._child is not None
            or self._compact_to > 0
            or bool(self._waiters)
            or self._machine.applied_index - self.index >= self._every_entries
        )

    def request(self, batch: Batch) -> None:
        """RAFT SNAPSHOT: answered OK once a durable snapshot covers all that this node has applied by now."""
        self._waiters.append((self._machine.applied_index, batch))

    def advance(self, now: float) -> None:
        """Look after the child, begin a snapshot that is due, remove at most one log file. now: monotonic ms.

        Raises StorageError if one failed in a way that the node must not outlive.
        """
        if self._waiters:
            self._answer(self.index, OK)
        if self._child is not None and now >= self._poll_at:
            self._poll(self._child, now)
        if self._child is None and self._is_due(now):
            self._begin(now)
        if self._compact_to and now >= self._compact_at:
            self._compact(now)

    def deliver(self) -> None:
        """Give the answers that advance() has found; once the new status is published, for who looks then."""
        if self._answers:
            answers, self._answers = self._answers, []
            for batch, reply in answers:
                batch.answer(batch.operations[0][0], reply)
                self._load.give_back(1)

    def next_deadline(self) -> float:
        """Monotonic ms: when advance() has something to do; infinity if only entries can bring that."""
        poll_at = float("inf") if self._child is None else self._poll_at
        return min(poll_at, self._compact_at) if self._compact_to else poll_at

    def close(self) -> None:
        """End a running child and refuse whoever waits. Idempotent. Raises StorageError."""
        child, self._child = self._child, None
        if child is not None:
            child.cancel()
            self._store.discard_unfinished()
        self._answer(self._machine.applied_index, STOPPING)
        self.deliver()

    # --- inside

    def _is_due(self, now: float) -> bool:
        if self._waiters:
            return True
        return self._machine.applied_index - self.index >= self._every_entries and now >= self._retry_at

    def _begin(self, now: float) -> None:
        machine = self._machine
        index = machine.applied_index
        try:
            self._child = self._fork(machine, self._store, self._configuration())
        except OSError as error:
            self._put_off(index, f"there can be no child process: {error}", _ADVICE[Result.KILLED], now)
            return
        self._taking = (index, len(machine.kv.values))
        self._poll_at = now + POLL_MS
        log.info("snapshot of entry %d begun: %d entries since the last one", index, index - self.index)

    def _poll(self, child: ChildSnapshot, now: float) -> None:
        outcome = child.poll()
        if outcome is None:
            self._poll_at = now + POLL_MS
            return
        self._child = None
        index, keys = self._taking
        if outcome.result is Result.DONE:
            self._adopt(index, keys, child.pause_s, outcome, now)
            return
        self._store.discard_unfinished()
        if outcome.result is Result.FAILED:
            raise StorageError(f"the snapshot of entry {index} failed: {outcome.message}")
        self._put_off(index, outcome.message, _ADVICE[outcome.result], now)

    def _adopt(self, index: int, keys: int, pause_s: float, outcome: Outcome, now: float) -> None:
        before = self.index
        info = self._store.adopt(index)
        self._store.prune()
        log.info(
            "snapshot of entry %d done: %d keys, %.1f MB in %.1f s; the fork held the node up for %.1f ms",
            index,
            keys,
            info.bytes / 1e6,
            outcome.seconds,
            pause_s * 1000,
        )
        self._retry_at = 0.0
        if info.index == index and before < index:  # else a leader's newer one came meanwhile
            self._compact_to, self._compact_at = before, now
        self._answer(info.index, OK)

    def _put_off(self, index: int, problem: str, advice: str, now: float) -> None:
        self._retry_at = now + RETRY_MS
        log.warning(
            "no snapshot of entry %d: %s; %s. Next try in %.0f s", index, problem, advice, RETRY_MS / 1000
        )
        self._answer(index, Error(f"ERR no snapshot of entry {index}: {problem}"))

    def _answer(self, index: int, reply: Reply) -> None:
        """Answer those whose snapshot need not cover more than index."""
        waiting, self._waiters = self._waiters, []
        for needed, batch in waiting:
            if needed > index:
                self._waiters.append((needed, batch))
            else:
                self._answers.append((batch, reply))

    def _compact(self, now: float) -> None:
        pinned = self.pinned()
        upto = self._compact_to if pinned is None else min(self._compact_to, pinned)
        more = self._log.truncate_prefix(min(upto, self._machine.applied_index), max_files=1)
        self._compact_at = now + COMPACT_EVERY_MS
        if not more and upto == self._compact_to:
            self._compact_to = 0
            log.info("the log begins at entry %d now", self._log.first_index)
