"""A node around the pure core: carries out its effects on a simulated disk, one step at a time.

This is raft/node.py without threads and sockets. carry_out() is a generator that stops before every single
effect, in the order of raft/core/effects.py, so that a crash can be put between any two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

from raft.core.core import RaftCore
from raft.core.effects import Effects, LogOperation, TruncateLog
from raft.core.entry import Entry
from raft.core.membership import Configuration
from raft.core.messages import Message
from raft.core.state import CoreOptions, Role
from tests.simulation.disk import Disk


class Observer(Protocol):
    """Who watches a node: the checker of the simulation, or nobody."""

    def started(self, node: Node) -> None: ...

    def changed(self, node: Node) -> None: ...

    def sending(self, node: Node, peer: int, message: Message) -> None: ...

    def writing(self, node: Node, operation: LogOperation) -> None: ...

    def applying(self, node: Node, entry: Entry) -> None: ...


class Node:
    """One server: core, disk and what it applied. `core` is None while the process is down."""

    def __init__(
        self,
        node_id: int,
        configuration: Configuration,
        *,
        options: CoreOptions,
        clock: Callable[[], float],
        send: Callable[[int, int, Message], None],
        disk: Disk | None = None,
        observer: Observer | None = None,
    ) -> None:
        """clock: this node's monotonic ms. send(from, to, message): into the network."""
        self.node_id = node_id
        self.configuration = configuration
        self.options = options
        self.clock = clock
        self.send = send
        self.disk = disk or Disk()
        self.observer = observer
        self.core: RaftCore | None = None
        self.incarnation = 0
        self.applied: list[Entry] = []
        self.reads_ready: list[tuple[int, int]] = []
        self.reads_failed: list[int] = []
        self.news: list[str] = []
        self.reads_waiting: list[tuple[int, int]] = []  # for their read index to be applied

    @property
    def running(self) -> RaftCore:
        """The core of a process that must be up."""
        assert self.core is not None, f"node {self.node_id} is down"
        return self.core

    @property
    def role(self) -> Role | None:
        """None while the process is down."""
        return self.core.state.role if self.core is not None else None

    def start(self, rng: random.Random) -> None:
        """Start the process on what the disk holds. The state machine begins empty: there is no snapshot."""
        self.incarnation += 1
        self.applied = []
        self.reads_waiting.clear()
        self.core = RaftCore(
            self.node_id,
            self.configuration,
            self.disk,
            hard_state=self.disk.hard_state,
            options=self.options,
            rng=rng,
            now=self.clock(),
        )
        if self.observer is not None:
            self.observer.started(self)

    def crash(self, rng: random.Random, *, power_cut: bool) -> None:
        """The process dies between two effects."""
        self.core = None
        self.disk.crash(rng, power_cut=power_cut)

    # --- events: the core's, with the observer told after each ------------------------------------------

    def receive(self, sender: int, message: Message) -> None:
        self.running.receive(sender, message, self.clock())
        self._changed()

    def tick(self) -> None:
        self.running.tick(self.clock())
        self._changed()

    def propose(self, payloads: list[bytes]) -> int | None:
        first = self.running.propose(payloads, self.clock())
        self._changed()
        return first

    def read(self, request_id: int) -> None:
        self.running.read(request_id, self.clock())
        self._changed()

    def suspect(self, peer: int) -> None:
        self.running.suspect(peer, self.clock())
        self._changed()

    def disconnected(self, peer: int) -> None:
        self.running.disconnected(peer, self.clock())
        self._changed()

    def _changed(self) -> None:
        if self.observer is not None:
            self.observer.changed(self)

    # --- effects ----------------------------------------------------------------------------------------

    def carry_out(self) -> Iterator[str]:
        """Carry out all effects there are. Yields the name of each step before it is done."""
        while True:
            effects = self.running.take_effects()
            self._changed()
            self.news.extend(effects.news)
            if not _has_work(effects):
                return
            yield from self._write_and_send(effects)
            yield from self._apply_and_answer(effects)

    def _write_and_send(self, effects: Effects) -> Iterator[str]:
        if effects.hard_state is not None:
            yield "hard state"
            self.disk.write_hard_state(effects.hard_state)
        for peer, message in effects.early_messages:
            yield "early message"
            self._send(peer, message)
        if effects.log:
            for operation in effects.log:
                yield "truncate" if isinstance(operation, TruncateLog) else "append"
                if self.observer is not None:
                    self.observer.writing(self, operation)
                self.disk.write(operation)
            yield "fsync"
            self.disk.sync()
            last = self.disk.last_index
            self.running.disk_done(last, self.disk.term(last), self.clock())
            self._changed()
        for peer, message in effects.messages:
            yield "message"
            self._send(peer, message)

    def _apply_and_answer(self, effects: Effects) -> Iterator[str]:
        if effects.committed is not None:
            yield "apply"
            while len(self.applied) < effects.committed:
                entry = self.disk.log[len(self.applied)]
                if self.observer is not None:
                    self.observer.applying(self, entry)
                self.applied.append(entry)
        if effects.reads_ready or effects.reads_failed:
            yield "answer reads"
            self.reads_waiting.extend(effects.reads_ready)
            self.reads_failed.extend(effects.reads_failed)
        if self.reads_waiting:
            applied = len(self.applied)
            self.reads_ready.extend(read for read in self.reads_waiting if read[1] <= applied)
            self.reads_waiting = [read for read in self.reads_waiting if read[1] > applied]

    def _send(self, peer: int, message: Message) -> None:
        if self.observer is not None:
            self.observer.sending(self, peer, message)
        self.send(self.node_id, peer, message)


def _has_work(effects: Effects) -> bool:
    return bool(
        effects.hard_state is not None
        or effects.early_messages
        or effects.log
        or effects.messages
        or effects.committed is not None
        or effects.reads_ready
        or effects.reads_failed
    )
