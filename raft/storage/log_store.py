"""The durable log of one node: append, sync, truncate, read. Format and crash rules: record.py.

Owned by the raft worker; only the segment preparer runs beside it. Nothing is promised before sync() returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from raft.core.entry import Entry
from raft.core.invariants import require
from raft.storage import segments
from raft.storage.disk import Disk, is_full, write_all
from raft.storage.entry_cache import EntryCache
from raft.storage.errors import CompactedError, DiskFullError, StorageError
from raft.storage.outline import Outline
from raft.storage.preparer import SegmentPreparer
from raft.storage.record import HEADER_SIZE, RECORD_OVERHEAD, encode_records, record_size
from raft.storage.recovery import Recovered, Recovery, remove_all
from raft.storage.repair import Repair
from raft.storage.room import LogRoom
from raft.storage.segment_reader import SegmentReader
from raft.storage.segments import NewFile, Segment

SEGMENT_BYTES = 16 << 20
CACHE_BYTES = 64 << 20


class LogStore:
    """The log on disk. Make one with LogStore.open. Satisfies raft.core.log.LogReader.

    After any StorageError out of append, sync, truncate_* or reset the store is dead: each of them raises
    StorageError from then on. Reading goes on working.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        recovered: Recovered,
        *,
        segment_bytes: int,
        fsync: bool,
        cache_bytes: int,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._fsync = fsync
        self._segments = recovered.segments
        self._outline = recovered.outline
        self._base_index = recovered.base_index  # of the entry before the log's first
        self._base_term = recovered.base_term
        self._last_index = recovered.last_index
        self._last_term = recovered.last_term
        self._durable_index = self._last_index
        self._proven = self._last_index if fsync else 0  # what records may call synced
        self._dirty: list[Segment] = []  # written since the last sync
        self._cache = EntryCache(cache_bytes, self._last_index + 1)
        self._failure: StorageError | None = None
        self._preparer: SegmentPreparer | None = None
        self._reader = SegmentReader(disk)
        self.room = LogRoom(self._segments, None, segment_bytes)
        self.torn_tail = recovered.torn  # what was cut when the log was opened, for people

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        fsync: bool = True,
        cache_bytes: int = CACHE_BYTES,
        on_progress: Callable[[int, int], None] | None = None,
        snapshot_index: int = 0,
        snapshot_term: int = 0,
        disk: Disk | None = None,
        prepare_ahead: bool = True,
        repair: Repair | None = None,
    ) -> LogStore:
        """Open the log in an existing directory, verifying every record; all that is found is durable then.

        segment_bytes: size of a segment file; cache_bytes: how much of the newest entries stays in memory.
        fsync=False: sync() does nothing and a power loss may cost acknowledged entries (segment files are
        still made and cut durably). on_progress(files done, files in all). prepare_ahead=False: no thread.
        snapshot_index, snapshot_term: the last entry that the snapshot in force covers; the log must reach
        back to it. A log that ends before it, or has another entry there, is emptied: the snapshot came from
        a leader, and a crash left the log (paper figure 13). repair: the right to cut a damaged log.

        Raises CorruptLogError, FormatVersionError, StorageError.
        """
        if segment_bytes < HEADER_SIZE + RECORD_OVERHEAD:
            raise ValueError(f"segment_bytes {segment_bytes} has no room for a record")
        disk = disk or Disk()
        recovery = Recovery(disk, directory, snapshot_index, snapshot_term, on_progress, repair)
        recovered = recovery.run(fsync)
        store = cls(
            disk, directory, recovered, segment_bytes=segment_bytes, fsync=fsync, cache_bytes=cache_bytes
        )
        if prepare_ahead:
            store._preparer = SegmentPreparer(disk, directory, segment_bytes)
        store.room = LogRoom(store._segments, store._preparer, segment_bytes)
        return store

    @property
    def first_index(self) -> int:
        """Index of the oldest entry that can be read; one after the snapshot's when the log is empty."""
        return self._base_index + 1

    @property
    def last_index(self) -> int:
        """Index of the newest entry, synced or not; first_index - 1 when the log is empty."""
        return self._last_index

    @property
    def durable_index(self) -> int:
        """Everything up to here has been synced."""
        return self._durable_index

    @property
    def byte_size(self) -> int:
        """Bytes of all records and headers, without the zeros behind them."""
        return sum(segment.end for segment in self._segments)

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries that follow directly on the last one; durable only after sync().

        One write per call, or one per segment where the entries do not fit into the current one. Raises
        DiskFullError (the log is as before, try again later), InvariantViolation (entries do not follow; the
        log is as before) or StorageError (the store is dead).
        """
        self.check_alive()
        if not entries:
            return
        self._check_follows(entries)
        segment = self._segments[-1] if self._segments else None
        if segment is None or not self._write(segment, entries):
            self._append_rolling(entries)
        self._outline.extend(entries)
        self._last_index, self._last_term = entries[-1].index, entries[-1].term
        self._cache.extend(entries)

    def sync(self) -> None:
        """Make everything appended so far durable: one fdatasync for each file written since, normally one.

        Raises StorageError; a failed fsync is never tried again.
        """
        self.check_alive()
        if self._dirty:
            self._sync_dirty() if self._fsync else self._leave_dirty()
        self._durable_index = self._last_index

    def truncate_suffix(self, from_index: int) -> None:
        """Remove every entry from from_index on; durable on return, like everything before it.

        from_index = last_index + 1 only syncs. Raises InvariantViolation for an index outside the log,
        StorageError (the store is dead).
        """
        self.check_alive()
        in_log = self.first_index <= from_index <= self._last_index + 1
        require(in_log, f"truncation from {from_index}, log is {self.first_index} to {self._last_index}")
        if from_index <= self._last_index:
            last_term = self.term(from_index - 1)
            self._remove_from(from_index)
            self._last_index, self._last_term = from_index - 1, last_term
            self._outline.cut(from_index)
            self._cache.cut(from_index)
        self._sync_dirty()
        self._durable_index = self._last_index

    def truncate_prefix(self, upto_index: int, *, max_files: int | None = None) -> bool:
        """Give up entries up to upto_index, which a durable snapshot covers: whole files only, never the one
        that is being written, so that entries up to upto_index may stay.

        max_files: how many to remove at most now (each takes an fsync of the directory). Returns whether
        more could go. Nothing changes for an upto_index before the log. Raises InvariantViolation for one
        behind it, StorageError (the store is dead).
        """
        self.check_alive()
        require(upto_index <= self._last_index, f"prefix to {upto_index}, log ends at {self._last_index}")
        removed = 0
        while len(self._segments) > 1 and self._segments[0].last_index <= upto_index:
            if max_files is not None and removed >= max_files:
                return True
            self._drop_first()
            removed += 1
        return False

    def reset(self, index: int, term: int) -> None:
        """Empty the log: a durable snapshot, whose last entry is this one, stands for it (figure 13, step 7).

        The log goes on at index + 1; a crash in here is put right by the next open. Raises StorageError (the
        store is dead).
        """
        self.check_alive()
        self._reader.close()
        try:
            remove_all(self._disk, self._directory, self._segments)
        except StorageError as error:
            self._failure = error
            raise
        self._dirty.clear()
        self._outline = Outline()
        self._cache.clear(index + 1)
        self._base_index = self._last_index = self._durable_index = index
        self._base_term = self._last_term = term
        self._proven = index if self._fsync else 0

    def term(self, index: int) -> int:
        """The term of the entry at index, from first_index - 1 (0 if that is 0) to last_index.

        Raises CompactedError before, IndexError behind.
        """
        if index == self._last_index:
            return self._last_term
        if self._base_index < index < self._last_index:
            return self._outline.term(index)
        if index == self._base_index:
            return self._base_term
        raise self._outside(index, index + 1)

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries lo to hi - 1: at least one if lo < hi, then as many as fit into max_bytes of data.

        Recent ones come from memory, others from disk, checksums verified. Raises CompactedError for what
        is before the log, IndexError for what is behind it, CorruptLogError, StorageError.
        """
        if lo >= hi:
            return ()
        if lo < self.first_index or hi > self._last_index + 1:
            raise self._outside(lo, hi)
        chosen: list[Entry] = []
        size = 0
        while lo < hi:
            more = (
                self._cache.slice(lo, hi)
                if lo >= self._cache.first
                else self._reader.read(self._segments, lo, min(hi, self._cache.first), max_bytes - size)
            )
            for entry in more:
                size += len(entry.data)
                if size > max_bytes and chosen:
                    return tuple(chosen)
                chosen.append(entry)
            lo += len(more)
        return tuple(chosen)

    def configurations(self) -> list[Entry]:
        """All entries of kind CONFIGURATION in the log, oldest first; a snapshot carries the one before.

        Raises as entries().
        """
        return [
            entry for index in self._outline.configurations for entry in self.entries(index, index + 1, 0)
        ]

    def close(self) -> None:
        """Stop the preparer, close the files. Does not sync: what was not synced was promised to nobody."""
        self._failure = self._failure or StorageError(f"{self._directory}: the log is closed")
        if self._preparer is not None:
            self._preparer.close()
            self._preparer = None
        self._reader.close()
        for segment in self._segments:
            segments.close(self._disk, segment)

    # --- writing

    def check_alive(self) -> None:
        """Raises StorageError if a write, a sync or the thread that makes files ahead has failed. Cheap,
        for every turn: else a node that writes nothing would outlive a fault."""
        if self._preparer is not None and self._preparer.failure is not None and self._failure is None:
            self._failure = self._preparer.failure
        if self._failure is not None:
            raise StorageError(str(self._failure)) from self._failure

    def _die(self, segment_path: Path, what: str, error: OSError) -> StorageError:
        self._failure = StorageError(f"{segment_path}: {what}: {error}")
        return self._failure

    def _check_follows(self, entries: Sequence[Entry]) -> None:
        index, term = self._last_index, self._last_term
        for entry in entries:
            index += 1
            if entry.index != index or entry.term < term:
                require(
                    False, f"append of entry {entry.index}, term {entry.term}, after {index - 1}, term {term}"
                )
            term = entry.term

    def _write(self, segment: Segment, entries: Sequence[Entry]) -> bool:
        """Write entries behind the segment's last record. False, with nothing written, if they do not fit."""
        pieces, offsets, end = encode_records(entries, self._proven, segment.end)
        if end > segment.capacity:
            return False
        assert segment.fd is not None  # the last segment's file is always open
        try:
            write_all(self._disk, segment.fd, b"".join(pieces), segment.end)
        except OSError as error:
            if not is_full(error):
                raise self._die(segment.path, "cannot write", error) from error
            self._undo_append()
            raise DiskFullError(f"{segment.path}: the disk is full") from error
        segment.offsets.extend(offsets)
        segment.end = end
        if not self._dirty or self._dirty[-1] is not segment:
            self._dirty.append(segment)
        return True

    def _append_rolling(self, entries: Sequence[Entry]) -> None:
        """Write entries that need a new segment: as many as fit into the current one, the rest into new."""
        position = 0
        while position < len(entries):
            segment = self._segments[-1] if self._segments else None
            room = segment.capacity - segment.end if segment else 0
            stop = position
            while stop < len(entries) and (room := room - record_size(len(entries[stop].data))) >= 0:
                stop += 1
            if stop == position:
                self._roll(entries[position])
            else:
                assert segment is not None
                fits = self._write(segment, entries[position:stop])
                require(fits, f"{segment.path}: miscalculated the room for entries")
                position = stop

    def _roll(self, entry: Entry) -> None:
        """Begin a new segment with this entry. A segment without records that is too small is replaced."""
        size = segments.size_for(self._segment_bytes, record_size(len(entry.data)))
        try:
            file = self._take_file(size)
            segment = segments.put_in_place(self._disk, self._directory, file, entry.index, self._proven)
        except StorageError as error:
            self._failure = error
            raise
        except OSError as error:
            path = self._directory / segments.segment_name(entry.index)
            if not is_full(error):
                raise self._die(path, "cannot make the segment", error) from error
            if self._segments and self._segments[-1].last_index > self._last_index:
                self._undo_append()
            raise DiskFullError(f"{path}: the disk is full") from error
        if self._segments and self._segments[-1].first_index == entry.index:
            self._drop_last()
        elif self._segments and self._segments[-1] not in self._dirty:
            segments.close(self._disk, self._segments[-1])
        self._segments.append(segment)

    def _take_file(self, size: int) -> NewFile:
        file = None
        if self._preparer is not None and size == self._segment_bytes:
            file = self._preparer.take()
            self.check_alive()
        return file or segments.new_file(self._disk, self._directory / "prealloc-now.tmp", size)

    def _drop_first(self) -> None:
        """Remove the oldest segment, durably, so that the log always lies without gaps on the disk."""
        segment, after = self._segments[0], self._segments[1]
        base_index = max(self._base_index, after.first_index - 1)
        base_term = self.term(base_index)
        self._reader.close()
        try:
            segments.remove(self._disk, self._directory, segment)
        except StorageError as error:
            self._failure = error
            raise
        del self._segments[0]
        if segment in self._dirty:
            self._dirty.remove(segment)
        self._base_index, self._base_term = base_index, base_term
        self._outline.cut_prefix(after.first_index)
        self._cache.cut_prefix(base_index + 1)

    def _undo_append(self) -> None:
        """Take back what an append that failed has written, so that the log is as it was before it."""
        self._remove_from(self._last_index + 1)

    def _remove_from(self, from_index: int) -> None:
        """Remove from_index and all behind it from the files: whole files newest first, then one is cut."""
        self._reader.close()
        try:
            while len(self._segments) > 1 and self._segments[-1].first_index >= from_index:
                segments.remove(self._disk, self._directory, self._segments[-1])
                self._drop_last()
            if self._segments:
                segments.cut(self._disk, self._segments[-1], from_index)
        except StorageError as error:
            self._failure = error
            raise

    def _drop_last(self) -> None:
        segment = self._segments.pop()
        segments.close(self._disk, segment)
        if segment in self._dirty:
            self._dirty.remove(segment)

    def _sync_dirty(self) -> None:
        for segment in self._dirty:
            assert segment.fd is not None  # files stay open until they are synced
            try:
                self._disk.fdatasync(segment.fd)
            except OSError as error:
                raise self._die(segment.path, "fsync failed", error) from error
        if self._fsync:
            self._proven = self._last_index
        self._leave_dirty()

    def _leave_dirty(self) -> None:
        """Nothing is dirty any more; older files need no descriptor."""
        for segment in self._dirty:
            if segment is not self._segments[-1]:
                segments.close(self._disk, segment)
        self._dirty.clear()

    def _outside(self, lo: int, hi: int) -> IndexError:
        what = f"entry {lo}" if hi == lo + 1 else f"entries {lo} to {hi - 1}"
        text = f"{what}: the log has {self.first_index} to {self._last_index}"
        return CompactedError(text) if lo <= self._base_index else IndexError(text)
