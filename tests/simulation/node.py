"""A node around the pure core: carries out its effects on a simulated disk, one step at a time.

This is raft/node.py without threads and sockets. carry_out() is a generator that stops before every single
effect, in the order of raft/core/effects.py, so that a crash can be put between any two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from raft.core.core import RaftCore
from raft.core.effects import Effects, LogOperation, ResetLog, TruncateLog
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, decode_configuration
from raft.core.messages import InstallSnapshotResponse, Message
from raft.core.state import CoreOptions, Role
from raft.storage.errors import DiskFullError
from raft.transport.node_messages import NodeMessage, PeerMessage
from tests.simulation.disk import Disk, Snapshot
from tests.simulation.service import Service
from tests.simulation.streaming import Library, Receiver, Sender


class Observer(Protocol):
    """Who watches a node: the checker of the simulation, or nobody."""

    def started(self, node: Node) -> None: ...

    def changed(self, node: Node) -> None: ...

    def sending(self, node: Node, peer: int, message: Message) -> None: ...

    def writing(self, node: Node, operation: LogOperation) -> None: ...

    def applying(self, node: Node, entry: Entry) -> None: ...

    def saving(self, node: Node, snapshot: Snapshot) -> None: ...

    def loading(self, node: Node, snapshot: Snapshot) -> None: ...


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
        identity: str = "",
        library: Library | None = None,
        chunk_bytes: int = 1 << 20,
    ) -> None:
        """configuration: the founding one. clock: this node's monotonic ms. send(from, to, message): into the
        network. identity: of its data directory. chunk_bytes: of a snapshot, per message."""
        self.node_id = node_id
        self.founding = configuration
        self.options = options
        self.clock = clock
        self.send = send
        self.disk = disk or Disk()
        self.observer = observer
        self.identity = identity
        self.library = library or Library()
        self.chunk_bytes = chunk_bytes
        self.loads_at_once = True  # else someone calls finish_loading() once a snapshot has arrived
        self.make_service: Callable[[Node], Service] | None = None  # None: entries are kept, not carried out
        self.service: Service | None = None
        self.core: RaftCore | None = None
        self.incarnation = 0
        self.applied: list[Entry] = []
        self.applied_configuration = b""  # of the newest CONFIGURATION entry applied
        self.sender = Sender(node_id, self.library, chunk_bytes)
        self.receiver = Receiver(self.library, self._save)
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
        """Start the process on what the disk holds: the machine begins with the snapshot."""
        self.incarnation += 1
        self.disk.open()
        snapshot = self.disk.snapshot
        self._become(snapshot)
        self.sender = Sender(self.node_id, self.library, self.chunk_bytes)
        self.receiver = Receiver(self.library, self._save)
        self.reads_waiting.clear()
        self.core = RaftCore(
            self.node_id,
            self._configuration_of(snapshot),
            self.disk.reader,
            hard_state=self.disk.hard_state,
            options=self.options,
            rng=rng,
            now=self.clock(),
            identity=self.identity,
            snapshot_index=snapshot.index,
            later_configurations=self.disk.configurations(),
            lost=self.disk.lost,
        )
        self._started()
        self.service = self.make_service(self) if self.make_service is not None else None
        if self.observer is not None:
            self.observer.started(self)

    def _started(self) -> None:
        """The core is there; nothing has happened to it yet."""

    def _become(self, snapshot: Snapshot) -> None:
        self.applied = list(snapshot.applied)
        self.applied_configuration = snapshot.configuration

    def _configuration_of(self, snapshot: Snapshot) -> Configuration:
        data = snapshot.configuration
        return decode_configuration(data) if data else self.founding

    def crash(self, rng: random.Random, *, power_cut: bool) -> None:
        """The process dies between two effects."""
        self.core = self.service = None
        self.disk.crash(rng, power_cut=power_cut)

    # --- events: the core's, with the observer told after each ------------------------------------------

    def receive(self, sender: int, message: PeerMessage) -> None:
        if isinstance(message, NodeMessage):
            if self.service is not None:
                self.service.receive(sender, message)
            return
        self.running.receive(sender, message, self.clock())
        self._changed()
        if isinstance(message, InstallSnapshotResponse):
            self._on_snapshot_response(sender, message)

    def begin_turn(self) -> None:
        """Before anything is received in it."""
        if self.service is not None:
            self.service.begin_turn()

    def tick(self) -> None:
        self.running.tick(self.clock())
        self._changed()

    def advance(self) -> None:
        """After the tick: what clients and the ledger want."""
        if self.service is not None:
            self.service.advance()
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
        if self.service is not None:
            self.service.disconnected(peer)

    def transfer(self, target: int | None) -> str | None:
        refusal = self.running.transfer(target, self.clock())
        self._changed()
        return refusal

    def change_configuration(self, configuration: Configuration) -> int | str:
        answer = self.running.change_configuration(configuration, self.clock())
        self._changed()
        return answer

    def next_deadline_ms(self) -> float:
        """When a turn is due though nothing has arrived."""
        return self.running.next_deadline_ms()

    def _changed(self) -> None:
        if self.observer is not None:
            self.observer.changed(self)

    # --- snapshots --------------------------------------------------------------------------------------

    def take_snapshot(self) -> Snapshot | None:
        """Write a snapshot of what is applied; None if the newest one covers that."""
        if not self.applied or len(self.applied) <= self.disk.snapshot.index:
            return None
        last = self.applied[-1]
        machine = self.service.dump() if self.service is not None else b""
        snapshot = Snapshot(last.index, last.term, self.applied_configuration, tuple(self.applied), machine)
        self._save(snapshot)
        return snapshot

    def _save(self, snapshot: Snapshot) -> None:
        if self.observer is not None:
            self.observer.saving(self, snapshot)
        self.disk.save_snapshot(snapshot)

    def finish_loading(self) -> None:
        """The snapshot that was received is loaded now: the machine becomes it, if the core says so."""
        snapshot, self.receiver.complete = self.receiver.complete, None
        if snapshot is None:
            return
        configuration = self._configuration_of(snapshot)
        if self.running.snapshot_installed(snapshot.index, snapshot.term, configuration, self.clock()):
            if self.observer is not None:
                self.observer.loading(self, snapshot)
            self._become(snapshot)
            if self.service is not None:
                self.service.load(snapshot.machine, snapshot.configuration)
        self._changed()

    # --- effects ----------------------------------------------------------------------------------------

    def carry_out(self) -> Iterator[str]:
        """Carry out all effects there are. Yields the name of each step before it is done."""
        while True:
            effects = self.running.take_effects()
            self._changed()
            self.news.extend(effects.news)
            work = _has_work(effects)
            if effects.configuration_changed and self.service is not None:
                self.service.follow_configuration()
            if work:
                yield from self._write_and_send(effects)
                yield from self._apply_and_answer(effects)
            yield from self._stream(effects)
            if not work:
                return

    def _write_and_send(self, effects: Effects) -> Iterator[str]:
        if effects.hard_state is not None:
            yield "hard state"
            try:
                self.disk.write_hard_state(effects.hard_state)
            except DiskFullError:
                yield from self._outlast(partial(self.disk.write_hard_state, effects.hard_state))
        for peer, message in effects.early_messages:
            yield "early message"
            self._send(peer, message)
        if effects.log and effects.early_messages and self.running.state.role is Role.LEADER:
            yield from self._apply(effects)  # while the followers write
        if effects.log:
            for operation in effects.log:
                yield step_of(operation)
                if self.observer is not None:
                    self.observer.writing(self, operation)
                try:
                    self.disk.write(operation)
                except DiskFullError:
                    yield from self._outlast(partial(self.disk.write, operation))
            yield "fsync"
            self.disk.sync()
            reader = self.disk.reader
            self.running.disk_done(reader.last_index, reader.term(reader.last_index), self.clock())
            self._changed()
        if effects.healed:
            yield "healed"
            self.disk.healed()
        for peer, message in effects.messages:
            yield "message"
            self._send(peer, message)

    def _outlast(self, write: Callable[[], None]) -> Iterator[str]:
        """Wait out a full disk in silence, and write (Worker._outlast_full_disk)."""
        since = self.clock()
        while True:
            yield "disk full"
            if self.service is not None:
                self.service.desk.wait_out(self.clock(), self.clock() - since)
            try:
                write()
                return
            except DiskFullError:
                continue

    def _apply(self, effects: Effects) -> Iterator[str]:
        if effects.committed is not None and len(self.applied) < effects.committed:
            yield "apply"
            if self.service is not None:
                self.service.apply()
            while len(self.applied) < effects.committed:
                self.note_applied()

    def _apply_and_answer(self, effects: Effects) -> Iterator[str]:
        yield from self._apply(effects)
        if effects.reads_ready or effects.reads_failed:
            yield "answer reads"
            if self.service is not None:
                self.service.desk.on_reads(effects.reads_ready, effects.reads_failed)
                return
            self.reads_waiting.extend(effects.reads_ready)
            self.reads_failed.extend(effects.reads_failed)
        if self.reads_waiting:
            applied = len(self.applied)
            self.reads_ready.extend(read for read in self.reads_waiting if read[1] <= applied)
            self.reads_waiting = [read for read in self.reads_waiting if read[1] > applied]

    def note_applied(self) -> None:
        """The next committed entry is applied: keep it in the record."""
        entry = self.disk.entry(len(self.applied) + 1)
        if self.observer is not None:
            self.observer.applying(self, entry)
        self.applied.append(entry)
        if entry.kind == EntryKind.CONFIGURATION:
            self.applied_configuration = entry.data

    def end_turn(self) -> None:
        """All effects are carried out."""
        if self.service is not None:
            self.service.end_turn()

    def _stream(self, effects: Effects) -> Iterator[str]:
        state = self.running.state
        if state.role is not Role.LEADER:
            self.sender.streams.clear()
        for peer in effects.snapshots_wanted:
            chunk = self.sender.want(peer, state.term, self.disk.snapshot, self.clock())
            if chunk is not None and state.role is Role.LEADER:
                yield "chunk"
                self._send(peer, chunk)
        for leader, arrived in effects.snapshot_chunks:
            yield "receive chunk"
            self._send(leader, self.receiver.on_chunk(leader, arrived, state.term))
            if self.receiver.complete is not None and self.loads_at_once:
                yield "load"
                self.finish_loading()

    def _on_snapshot_response(self, peer: int, response: InstallSnapshotResponse) -> None:
        """Between turns, as the owner thread does it: what it sends leaves with this turn's effects."""
        state = self.running.state
        if state.role is Role.LEADER and peer in state.progress:
            chunk = self.sender.on_response(peer, response, state.term, self.clock())
            if chunk is not None:
                self._send(peer, chunk)

    def _send(self, peer: int, message: Message) -> None:
        if self.observer is not None:
            self.observer.sending(self, peer, message)
        self.send(self.node_id, peer, message)


def _has_work(effects: Effects) -> bool:
    return bool(
        effects.hard_state is not None
        or effects.early_messages
        or effects.log
        or effects.healed
        or effects.messages
        or effects.committed is not None
        or effects.reads_ready
        or effects.reads_failed
        or effects.snapshot_chunks
    )


def step_of(operation: LogOperation) -> str:
    """The name of a step that writes the log."""
    if isinstance(operation, TruncateLog):
        return "truncate"
    return "reset" if isinstance(operation, ResetLog) else "append"
