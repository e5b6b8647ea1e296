"""The durable log of one node: append, sync, truncate, read. Format and crash rules: record.py.

Owned by one thread, the raft worker; only the segment preparer runs beside it. Nothing here is promised to
anyone before sync() has returned.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from raft.core.entry import Entry
from raft.core.invariants import require
from raft.storage import segments
from raft.storage.disk import Disk, is_full, write_all
from raft.storage.entry_cache import EntryCache
from raft.storage.errors import DiskFullError, StorageError
from raft.storage.preparer import SegmentPreparer
from raft.storage.record import HEADER_SIZE, RECORD_OVERHEAD, encode_records, record_size
from raft.storage.recovery import Recovered, Recovery
from raft.storage.segments import NewFile, Segment

SEGMENT_BYTES = 16 << 20
CACHE_BYTES = 64 << 20
READ_BYTES = 1 << 20  # how much is read from a file at a time at most, unless one record is larger


class LogStore:
    """The log on disk. Make one with LogStore.open. Satisfies raft.core.log.LogReader.

    After any StorageError out of append, sync or truncate_suffix the store is dead: each of them raises
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
        self._runs = recovered.runs
        self._last_index = recovered.segments[-1].last_index if recovered.segments else 0
        self._last_term = recovered.last_term
        self._durable_index = self._last_index
        self._proven = self._last_index if fsync else 0  # what records may call synced
        self._dirty: list[Segment] = []  # written since the last sync
        self._cache = EntryCache(cache_bytes, self._last_index + 1)
        self._failure: StorageError | None = None
        self._preparer: SegmentPreparer | None = None
        self._reader: tuple[Segment, int] | None = None  # one older file that is open for reading

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        fsync: bool = True,
        cache_bytes: int = CACHE_BYTES,
        on_progress: Callable[[int, int], None] | None = None,
        oldest_needed: int = 1,
        disk: Disk | None = None,
        prepare_ahead: bool = True,
    ) -> LogStore:
        """Open the log in an existing directory, verifying every record; all that is found is durable then.

        segment_bytes: size of a segment file; cache_bytes: how much of the newest entries stays in memory.
        fsync=False: sync() does nothing and a power loss may cost acknowledged entries (segment files are
        still made and cut durably). on_progress(files done, files in all). oldest_needed: the first entry
        that must be there if anything is (a snapshot covers what is before). prepare_ahead=False: no thread.

        Raises CorruptLogError, FormatVersionError, StorageError.
        """
        if segment_bytes < HEADER_SIZE + RECORD_OVERHEAD:
            raise ValueError(f"segment_bytes {segment_bytes} has no room for a record")
        disk = disk or Disk()
        recovery = Recovery(disk, directory, oldest_needed, on_progress)
        recovered = recovery.run(fsync)
        store = cls(
            disk, directory, recovered, segment_bytes=segment_bytes, fsync=fsync, cache_bytes=cache_bytes
        )
        if prepare_ahead:
            store._preparer = SegmentPreparer(disk, directory, segment_bytes)
        return store

    @property
    def first_index(self) -> int:
        """Index of the oldest entry in the log; 1 when the log is empty."""
        return self._segments[0].first_index if self._segments else 1

    @property
    def last_index(self) -> int:
        """Index of the newest entry, synced or not; 0 when the log is empty."""
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
        self._check_alive()
        if not entries:
            return
        self._check_follows(entries)
        segment = self._segments[-1] if self._segments else None
        if segment is None or not self._write(segment, entries):
            self._append_rolling(entries)
        last = entries[-1]
        if last.term != self._last_term:
            for entry in entries:
                self._runs.add(entry.index, entry.term)
            self._last_term = last.term
        self._last_index = last.index
        self._cache.extend(entries)

    def sync(self) -> None:
        """Make everything appended so far durable: one fdatasync for each file written since, normally one.

        Raises StorageError; a failed fsync is never tried again.
        """
        self._check_alive()
        if self._dirty:
            self._sync_dirty() if self._fsync else self._leave_dirty()
        self._durable_index = self._last_index

    def truncate_suffix(self, from_index: int) -> None:
        """Remove every entry from from_index on; durable on return, like everything before it.

        from_index = last_index + 1 only syncs. Raises InvariantViolation for an index outside the log,
        StorageError (the store is dead).
        """
        self._check_alive()
        in_log = self.first_index <= from_index <= self._last_index + 1
        require(in_log, f"truncation from {from_index}, log is {self.first_index} to {self._last_index}")
        if from_index <= self._last_index:
            self._remove_from(from_index)
            self._last_index = from_index - 1
            self._runs.cut(from_index)
            self._cache.cut(from_index)
            # Raft never truncates committed entries, so nothing behind a snapshot's index is asked for here.
            self._last_term = self._runs.term(from_index - 1) if from_index > self.first_index else 0
        self._sync_dirty()
        self._durable_index = self._last_index

    def term(self, index: int) -> int:
        """The term of the entry at index; 0 for index 0 if the log begins at 1. Raises IndexError outside."""
        if index == self._last_index:
            return self._last_term
        if self.first_index <= index < self._last_index:
            return self._runs.term(index)
        if index == 0 and self.first_index == 1:
            return 0
        raise IndexError(f"entry {index} is not in the log, {self.first_index} to {self._last_index}")

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries lo to hi - 1: at least one if lo < hi, then as many as fit into max_bytes of data.

        Recent ones come from memory, others from disk, checksums verified. Raises IndexError outside the
        log, CorruptLogError, StorageError.
        """
        if lo >= hi:
            return ()
        if lo < self.first_index or hi > self._last_index + 1:
            raise IndexError(f"entries {lo} to {hi - 1}, log is {self.first_index} to {self._last_index}")
        chosen: list[Entry] = []
        size = 0
        while lo < hi:
            more = (
                self._cache.slice(lo, hi)
                if lo >= self._cache.first
                else self._read_some(lo, hi, max_bytes - size)
            )
            for entry in more:
                size += len(entry.data)
                if size > max_bytes and chosen:
                    return tuple(chosen)
                chosen.append(entry)
            lo += len(more)
        return tuple(chosen)

    def close(self) -> None:
        """Stop the preparer, close the files. Does not sync: what was not synced was promised to nobody."""
        self._failure = self._failure or StorageError(f"{self._directory}: the log is closed")
        if self._preparer is not None:
            self._preparer.close()
            self._preparer = None
        self._close_reader()
        for segment in self._segments:
            segments.close(self._disk, segment)

    # --- writing

    def _check_alive(self) -> None:
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
            self._check_alive()
        return file or segments.new_file(self._disk, self._directory / "prealloc-now.tmp", size)

    def _undo_append(self) -> None:
        """Take back what an append that failed has written, so that the log is as it was before it."""
        self._remove_from(self._last_index + 1)

    def _remove_from(self, from_index: int) -> None:
        """Remove from_index and all behind it from the files: whole files newest first, then one is cut."""
        self._close_reader()
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

    # --- reading

    def _read_some(self, lo: int, hi: int, room: int) -> Sequence[Entry]:
        """At least one entry from disk, up to the segment's end, the cache's beginning or the room's end."""
        position = bisect_right(self._segments, lo, key=lambda segment: segment.first_index) - 1
        segment = self._segments[position]
        hi = min(hi, segment.last_index + 1, self._cache.first)
        start = segment.cut_position(lo)
        limit = start + min(max(room, 0) + RECORD_OVERHEAD * (hi - lo), READ_BYTES)
        fitting = bisect_right(range(lo + 1, hi + 1), limit, key=segment.cut_position)
        return segments.read(self._disk, segment, self._fd_of(segment), lo, lo + max(1, fitting))

    def _fd_of(self, segment: Segment) -> int:
        """A descriptor for reading. At most one older file is kept open for it."""
        if segment.fd is not None:
            return segment.fd
        if self._reader is not None and self._reader[0] is segment:
            return self._reader[1]
        self._close_reader()
        try:
            fd = self._disk.open(segment.path)
        except OSError as error:
            raise StorageError(f"{segment.path}: cannot open the file: {error}") from error
        self._reader = (segment, fd)
        return fd

    def _close_reader(self) -> None:
        if self._reader is not None:
            segment, fd = self._reader
            self._reader = None
            try:
                self._disk.close(fd)
            except OSError as error:
                raise StorageError(f"{segment.path}: cannot close the file: {error}") from error
