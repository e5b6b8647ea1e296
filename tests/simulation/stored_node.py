"""A simulated node as it really is below the core: storage, and streams of snapshots.

raft/storage, and raft/runtime/installs.py with its sender and receiver, run here as they are; only the thread
that loads a received snapshot and the forked child that writes one are steps of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from raft.core.effects import Effects
from raft.core.membership import encode_configuration
from raft.core.messages import InstallSnapshotResponse, Message
from raft.machine.machine import Machine
from raft.runtime.applier import Applier
from raft.runtime.install import SnapshotReceiver, SnapshotSender
from raft.runtime.installs import Installs
from raft.storage.errors import DiskFullError
from raft.transport.node_messages import PeerMessage
from tests.simulation.disk import Snapshot
from tests.simulation.node import Node
from tests.simulation.stored import CLUSTER, StoredDisk

STALL_MS = 100.0


class Load:
    """The thread that loads a snapshot, as a job that the simulation runs when it likes."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run
        self.ended = False

    def join(self, timeout: float | None = None) -> None:
        """Nothing runs beside the simulation."""


class StoredNode(Node):
    """Node on a StoredDisk. `become` and `configuration` are what Installs wants of machine and applier."""

    disk: StoredDisk

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.installs: Installs
        self.incoming: SnapshotReceiver
        self.load_job: Load | None = None
        self.loaded: Snapshot | None = None
        self.child: Iterator[None] | None = None  # writes a snapshot
        self.compact_to = 0
        self._seen: tuple[object, ...] = ()

    def _started(self) -> None:
        """As raft/runtime/assembly.py builds a node."""
        core, store = self.running, self.disk.running.snapshots
        core.state.room = self.disk.running.log.room
        sender = SnapshotSender(
            store, self.node_id, self._queue, chunk_bytes=self.chunk_bytes, stall_ms=STALL_MS
        )
        self.incoming = SnapshotReceiver(
            store, CLUSTER, self._queue, lambda: None, load=self._load, start=self._start_load
        )
        machine, applier = cast(Machine, self), cast(Applier, self)
        self.installs = Installs(core, machine, applier, sender, self.incoming)
        self.load_job = self.loaded = self.child = None
        self.compact_to = 0
        self._seen = ()

    def crash(self, rng: Any, *, power_cut: bool) -> None:
        self.load_job = self.loaded = self.child = None
        super().crash(rng, power_cut=power_cut)

    # --- turns, as Worker has them ------------------------------------------------------------------------

    def tick(self) -> None:
        super().tick()
        now = self.clock()
        self._notice_role()
        arriving = self.incoming.index
        self.installs.advance(now)
        if arriving:
            self.disk.note_newest()
            self._changed()

    def _notice_role(self) -> None:
        state = self.running.state
        seen = (state.role, state.term, state.leader_id)
        if seen != self._seen:
            self._seen = seen
            self.installs.role_changed()

    def disconnected(self, peer: int) -> None:
        super().disconnected(peer)
        self.installs.disconnected(peer)

    def next_deadline_ms(self) -> float:
        """When a turn is due though nothing has arrived."""
        return min(super().next_deadline_ms(), self.installs.next_deadline())

    # --- snapshots ----------------------------------------------------------------------------------------

    def begin_snapshot(self) -> bool:
        """Fork a child that writes what is applied now, if that is news."""
        if self.child is not None or self.incoming.loading or not self.applied:
            return False
        last = self.applied[-1]
        if last.index <= self.disk.snapshot.index:
            return False
        configuration = self.applied_configuration or encode_configuration(self.founding)
        machine = self.service.dump() if self.service is not None else b""
        snapshot = Snapshot(last.index, last.term, configuration, tuple(self.applied), machine)
        if self.observer is not None:
            self.observer.saving(self, snapshot)
        self.child = self.disk.take(snapshot)
        return True

    def advance_snapshot(self) -> bool:
        """The child's next step, or its parent's last. Returns whether it has ended."""
        assert self.child is not None
        try:
            next(self.child)
            return False
        except StopIteration:
            self.child = None
        except DiskFullError:
            self.child = None
            return True
        return True

    def compact(self) -> None:
        """Remove at most one file of the log (Snapshots._compact)."""
        pinned = self.installs.pinned_index()
        upto = min(self.compact_to, len(self.applied), self.disk.snapshot.index)
        if pinned is not None:
            upto = min(upto, pinned)
        if upto and not self.disk.compact_to(upto) and upto == self.compact_to:
            self.compact_to = 0

    def abort_snapshot(self) -> int:
        """Forget a snapshot that comes in. Returns how much of it had come."""
        progress = self.incoming.progress()
        self.incoming.drop()
        self.load_job = self.loaded = None
        return 0 if progress is None else progress[0]

    def load_now(self) -> None:
        """The thread that loads what has arrived ends now."""
        job, self.load_job = self.load_job, None
        if job is not None:
            job.run()

    def _start_load(self, run: Callable[[], None]) -> Load:
        self.load_job = Load(run)
        return self.load_job

    def _load(self, cluster: str, pieces: Iterable[bytes]) -> Any:
        snapshot = self.disk.library.snapshot_of(pieces)
        if self.observer is not None:
            self.observer.saving(self, snapshot)
        self.disk.candidates[snapshot.index] = snapshot
        return Loaded(snapshot)

    def become(self, loaded: Loaded) -> None:
        """The core says that the snapshot counts: the machine is what was loaded."""
        self.disk.note_newest()
        if self.observer is not None:
            self.observer.loading(self, loaded.snapshot)
        self._become(loaded.snapshot)
        if self.service is not None:
            self.service.load(loaded.snapshot.machine, loaded.snapshot.configuration)

    @property
    def configuration(self) -> bytes:
        return self.applied_configuration

    @configuration.setter
    def configuration(self, data: bytes) -> None:
        if data != self.applied_configuration:
            raise AssertionError(f"the snapshot's header says {data!r}, not {self.applied_configuration!r}")

    def _stream(self, effects: Effects) -> Iterator[str]:
        if effects.snapshots_wanted or effects.snapshot_chunks:
            yield "stream"
            self._notice_role()
            self.installs.carry_out(effects, self.clock())
        if effects.configuration_changed:
            self.installs.members_changed(self.running.state.progress)

    def _on_snapshot_response(self, peer: int, response: InstallSnapshotResponse) -> None:
        self._notice_role()
        self.installs.on_response(peer, response, self.clock())

    def _queue(self, peer: int, message: PeerMessage) -> bool:
        self._send(peer, cast(Message, message))
        return True


class Loaded:
    """A machine, as far as the receiver looks at it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.applied_index = snapshot.index
        self.applied_term = snapshot.term
