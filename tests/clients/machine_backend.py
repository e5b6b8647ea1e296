"""A backend with the real state machine behind it: what the log would get is applied at once."""

from __future__ import annotations

import queue
import threading

from clients_support import DEADLINE_S, DictBackend, make_status

from raft.clients.batch import Batch
from raft.machine.machine import Machine
from raft.replies import Error


class MachineBackend(DictBackend):
    """One entry per batch with writes, a read of the machine for the others. replica: a second machine that
    applies the same without wanting replies; fail: answers the next batch instead of carrying it out.
    """

    def __init__(self) -> None:
        self.machine = Machine("test")
        self.replica = Machine("test")
        self.now_ms = 1_700_000_000_000
        self.fail: Error | None = None
        self.logged: list[list[bytes]] = []
        self.current = make_status()
        self.full = False
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        super().stop()
        assert not self._thread.is_alive()
        assert self.machine.digest() == self.replica.digest()

    def _run(self) -> None:
        while (batch := self._queue.get(timeout=DEADLINE_S * 10)) is not None:
            self.gate.wait()
            failure, self.fail = self.fail, None
            if failure is not None:
                batch.fail(failure)
            elif batch.writes:
                self._apply(batch)
            else:
                for slot, args in batch.operations:
                    batch.answer(slot, self.machine.read(args, self.now_ms))

    def _apply(self, batch: Batch) -> None:
        commands = [args for _, args in batch.operations]
        self.logged += commands
        index = self.machine.applied_index + 1
        replies = self.machine.apply_commands(index, 1, self.now_ms, commands)
        self.replica.apply_commands(index, 1, self.now_ms, commands, want_replies=False)
        for (slot, _), reply in zip(batch.operations, replies, strict=True):
            batch.answer(slot, reply)
