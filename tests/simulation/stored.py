"""A simulated node's disk with the real storage on it (raft/storage), and a witness beside it.

Everything the node stores goes through NodeStorage to a disk in memory; the witness is told, and compares at
each start. Whoever asks what a node holds asks the witness.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from raft.core.effects import AppendLog, HardState, LogOperation, TruncateLog
from raft.core.entry import Entry
from raft.core.log import LogReader
from raft.storage.errors import DiskFullError
from raft.storage.lost_entries import LostEntriesFile
from raft.storage.node_storage import NodeStorage
from raft.storage.preparer import SegmentPreparer
from raft.storage.room import LogRoom
from raft.storage.snapshots import SnapshotInfo
from tests.simulation.disk import NO_SNAPSHOT, Snapshot
from tests.simulation.platter import DIRECTORY, Place, Platter
from tests.simulation.streaming import Library
from tests.simulation.witness import Found, Witness

CLUSTER = "simulated"
SPARE_BYTES = 1000


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Sizes in bytes. sector: what is written or lost together. copies_on_write: as Platter."""

    segment_bytes: int = 400
    cache_bytes: int = 1 << 20
    sector: int = 64
    copies_on_write: bool = False


DEFAULT_STORAGE = StorageOptions()


class Gauge:
    """As much of the segment preparer as LogRoom looks at: whether there is space for another file."""

    def __init__(self, platter: Platter, size: int) -> None:
        self._platter = platter
        self._least = size + SPARE_BYTES

    @property
    def full(self) -> bool:
        free = self._platter.free
        return free is not None and free < self._least


class StoredDisk(Witness):
    """storage: None while the process is down."""

    def __init__(self, node_id: int, options: StorageOptions, library: Library) -> None:
        super().__init__()
        self.node_id = node_id
        self.options = options
        self.library = library
        self.platter = Platter(options.sector, copies_on_write=options.copies_on_write)
        self.storage: NodeStorage | None = None
        self.torn_tails = 0
        self.damaged = ""  # what was done to a file since the last start

    def blank(self) -> StoredDisk:
        """Another disk, with nothing on it."""
        return StoredDisk(self.node_id, self.options, self.library)

    @property
    def running(self) -> NodeStorage:
        """The storage of a process that must be up."""
        assert self.storage is not None, f"the storage of node {self.node_id} is closed"
        return self.storage

    @property
    def reader(self) -> LogReader:
        return self.running.log

    def open(self) -> None:
        """Recover. Raises what NodeStorage.open() raises, and SafetyViolation."""
        options = self.options
        storage = self._open_files()
        self.lost = storage.lost_entries
        log = storage.log
        gauge = cast(SegmentPreparer, Gauge(self.platter, options.segment_bytes))
        log.room = LogRoom(log._segments, gauge, options.segment_bytes)
        self.storage = storage
        self.torn_tails += log.torn_tail is not None
        base = log.first_index - 1
        entries = list(log.entries(base + 1, log.last_index + 1, 1 << 30))
        self.compare(Found(storage.hard_state, self.load_newest(), base, log.term(base), entries))

        self.damaged = ""

    def _open_files(self) -> NodeStorage:
        return NodeStorage.open(
            Place(DIRECTORY),
            CLUSTER,
            self.node_id,
            segment_bytes=self.options.segment_bytes,
            cache_bytes=self.options.cache_bytes,
            disk=self.platter,
            prepare_ahead=False,
        )

    def load_newest(self) -> Snapshot:
        """What the newest snapshot's file holds."""
        store = self.running.snapshots
        info = store.latest()
        return NO_SNAPSHOT if info is None else self.load(info)

    def load(self, info: SnapshotInfo) -> Snapshot:
        """What a snapshot's file holds."""
        snapshot = self.library.snapshot_of(self.running.snapshots.open_chunks(info))
        found = (info.index, info.term, info.configuration)
        assert found == (snapshot.index, snapshot.term, snapshot.configuration), (info, snapshot)
        return snapshot

    def configurations(self) -> list[Entry]:
        return self.running.log.configurations()

    def entry(self, index: int) -> Entry:
        return self.running.log.entries(index, index + 1, 0)[0]

    def lose(self, from_index: int) -> None:
        """As the repair of a damaged log does it (raft/storage/repair.py): first the marker, then the cut."""
        super().lose(from_index)
        assert self.lost is not None
        free, self.platter.free = self.platter.free, None  # without room there is no repair, and no loss
        marker = LostEntriesFile(Place(DIRECTORY), self.platter)
        marker.load()
        marker.add(self.lost)
        storage = self._open_files()
        log = storage.log
        if self.synced.last_index < log.last_index:
            log.truncate_suffix(max(self.synced.last_index + 1, log.first_index))
        storage.close()
        self.platter.end_process()
        self.platter.free = free
        self.unsynced.clear()
        self.attempt.clear()

    def healed(self) -> None:
        self.running.healed()
        super().healed()

    def crash(self, rng: random.Random, *, power_cut: bool) -> None:
        """The process is gone: nothing is closed in order."""
        self.storage = None
        self.platter.end_process()
        if power_cut:
            self.platter.cut_power(rng)
        self.crash_under_way(power_cut=power_cut)

    # --- writing ----------------------------------------------------------------------------------------

    def write_hard_state(self, hard_state: HardState) -> None:
        self.attempted_hard_state = hard_state
        self.running.save_hard_state(hard_state)
        self.hard_state, self.attempted_hard_state = hard_state, None

    def write(self, operation: LogOperation) -> None:
        log = self.running.log
        self.begin(operation)
        if isinstance(operation, AppendLog):
            try:
                log.append(operation.entries)
            except DiskFullError:
                self.attempt.clear()  # the log is as it was
                raise
        elif isinstance(operation, TruncateLog):
            log.truncate_suffix(operation.from_index)
        else:
            log.reset(operation.index, operation.term)
        self.ended(operation)

    def sync(self) -> None:
        self.running.log.sync()
        self.synced_now()

    def compact_to(self, index: int) -> bool:
        """Give up a file of the log that has no entries behind index. Returns whether more can go."""
        log = self.running.log
        self.compactable = max(self.compactable, index)
        more = log.truncate_prefix(index, max_files=1)
        self.compacted(log.first_index)
        return more

    # --- snapshots --------------------------------------------------------------------------------------

    def take(self, snapshot: Snapshot) -> Iterator[None]:
        """Write a snapshot as a forked child does, which has a copy of the store; pauses between its steps.
        The last one is the parent's again: it adopts the file. Raises DiskFullError, StorageError."""
        store = self.running.snapshots
        child = copy.copy(store)
        child._damaged, child._readers = dict(store._damaged), {}
        self.candidates[snapshot.index] = snapshot
        try:
            writer = child.writer(snapshot.index, snapshot.term, snapshot.configuration)
            for chunk in self.library.chunks_of(self.node_id, snapshot):
                yield
                writer.write(chunk)
            yield
            writer.commit()
        except DiskFullError:
            store.discard_unfinished()
            self.candidates.pop(snapshot.index, None)
            raise
        yield
        store.adopt(snapshot.index)
        store.prune()
        self.note_newest()

    def note_newest(self) -> None:
        """Tell the witness which snapshot counts now."""
        info = self.running.snapshots.latest()
        if info is not None:
            self.snapshot_is_newest(info.index)
