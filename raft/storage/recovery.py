"""Reading the log again after a stop or a crash: verify everything, cut a torn tail, refuse anything else, or
repair it where that is allowed.

The rules stand in record.py, "How it is read again", and in repair.py.
"""

from __future__ import annotations

import contextlib
import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raft.core.membership import Configuration, ConfigurationFormatError, decode_configuration
from raft.storage import segments
from raft.storage.disk import Disk, write_all
from raft.storage.errors import CorruptLogError, FormatVersionError, StorageError
from raft.storage.outline import Outline
from raft.storage.record import (
    HEADER_SIZE,
    VERSION,
    FormatError,
    VersionMismatchError,
    decode_header,
    decode_records,
    find_evidence,
    scan_segment,
)
from raft.storage.repair import Repair
from raft.storage.segments import Segment

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Recovered:
    """The log as found: segments oldest first, only the last one's file open.

    base_index, base_term: the entry before the log's first, as far as the log is used. last_index, last_term:
    of its last entry, or the base. proven: the highest index that the files themselves say was durable.
    torn: None, or what the cut tail was like, for people.
    """

    segments: list[Segment] = field(default_factory=list)
    outline: Outline = field(default_factory=Outline)
    base_index: int = 0
    base_term: int = 0
    last_index: int = 0
    last_term: int = 0
    proven: int = 0
    torn: str | None = None


@dataclass(slots=True)
class _Fault:
    """The log breaks off: the record bad_index at byte offset of the segment file `file` is bad.

    proved: no crash leaves this. headless: not even the file's header can be believed. gap: the file is
    sound, but what should follow it is missing.
    """

    file: int
    offset: int
    bad_index: int
    reason: str
    proved: bool = False
    headless: bool = False
    gap: bool = False


class Recovery:
    """One pass over a data directory. Used by LogStore.open, on its thread.

    snapshot_index, snapshot_term: the last entry that the snapshot in force covers; 0, 0 without one. repair:
    the right to cut a damaged log, None to refuse it.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        snapshot_index: int,
        snapshot_term: int,
        on_progress: Progress | None,
        repair: Repair | None = None,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._snapshot_index = snapshot_index
        self._snapshot_term = snapshot_term
        self._on_progress = on_progress
        self._repair = repair
        self._files: list[tuple[int, Path]] = []
        self._found = Recovered()

    def run(self, fsync: bool) -> Recovered:
        """Verify the log, cut a torn tail, repair damage, fit the log to the snapshot; with fsync, make what
        is left durable.

        Raises CorruptLogError, FormatVersionError, StorageError; nothing stays open then.
        """
        try:
            self._list_files()
            self._put_right()
            self._fit_to_snapshot()
            if fsync:
                self._make_durable()
        except BaseException as error:
            self._close_all()
            if isinstance(error, OSError):
                raise StorageError(
                    f"{error.filename or self._directory}: cannot read the log: {error}"
                ) from error
            raise
        return self._found

    def _put_right(self) -> None:
        while (fault := self._verify()) is not None:
            damage = self._damage(fault)
            if damage is None:
                self._cut(fault)
                return
            if self._repair is None:
                raise damage
            if not self._set_covered_aside(fault, damage, self._repair):
                self._give_up(fault, damage, self._repair)
                return

    def _close_all(self) -> None:
        for segment in self._found.segments:
            segments.close(self._disk, segment)

    def _make_durable(self) -> None:
        """Write again, and fsync, every record that the files do not prove durable.

        They may be in the page cache only; and after a failed fsync the cache calls pages clean that never
        reached the disk, so that a mere fsync would not help.
        """
        for segment in reversed(self._found.segments):
            if segment.last_index <= self._found.proven:
                break
            lo = segment.cut_position(max(self._found.proven + 1, segment.first_index))
            fd = self._disk.open(segment.path) if segment.fd is None else segment.fd
            try:
                write_all(self._disk, fd, self._disk.pread(fd, segment.end - lo, lo), lo)
                self._disk.fdatasync(fd)
            except OSError as error:
                raise StorageError(f"{segment.path}: cannot make the log durable: {error}") from error
            finally:
                if fd != segment.fd:
                    self._disk.close(fd)

    def _list_files(self) -> None:
        for name in self._disk.listdir(self._directory):
            first_index = segments.first_index_of(name)
            if first_index is not None:
                self._files.append((first_index, self._directory / name))
            elif segments.is_temporary(name):
                self._disk.unlink(self._directory / name)
        self._disk.fsync_dir(self._directory)  # names found now must not vanish with a later power loss
        self._files.sort()

    def _missing_before(self) -> _Fault | None:
        """The log must reach back to the snapshot, or to 1."""
        wanted = self._snapshot_index + 1
        if not self._files or self._files[0][0] <= wanted:
            return None
        first, path = self._files[0]
        there = f"; the snapshot ends at {self._snapshot_index}" if self._snapshot_index else ""
        missing = f"entries {wanted} to {first - 1} are missing before it{there}"
        if not self._snapshot_index:  # its beginning is gone, or its snapshot: who knows what else?
            raise CorruptLogError(path, 0, missing)
        return _Fault(0, 0, wanted, missing, proved=True, headless=True)

    def _read(self, path: Path) -> tuple[int, bytes]:
        fd = self._disk.open(path)
        try:
            return fd, self._disk.pread(fd, self._disk.size(fd), 0)
        except BaseException:
            self._disk.close(fd)
            raise

    def _check_header(self, path: Path, blob: bytes, first_index: int) -> int:
        """The header's synced. Raises FormatError if the header is damaged, CorruptLogError if it is another
        file's, FormatVersionError."""
        try:
            found, synced = decode_header(blob)
        except VersionMismatchError as error:
            raise FormatVersionError(path, error.found, VERSION) from error
        if found != first_index:
            raise CorruptLogError(path, 0, f"its header says that it begins with entry {found}")
        return synced

    def _verify(self) -> _Fault | None:
        """Read the segments in order up to the first fault."""
        found, expected = self._found, 0
        missing = self._missing_before()
        if missing is not None:
            return missing
        for position, (first_index, path) in enumerate(self._files):
            if position and first_index != expected:
                last = found.segments[-1]
                if first_index < expected:
                    raise CorruptLogError(path, 0, f"begins again with {first_index}, which {last.path} has")
                reason = f"record {expected} is missing, the next file is {path.name}"
                return _Fault(position - 1, last.end, expected, reason, gap=True)
            fd, blob = self._read(path)
            if found.segments:
                segments.close(self._disk, found.segments[-1])
            segment = Segment(path, first_index, array("Q"), HEADER_SIZE, len(blob), fd)
            found.segments.append(segment)
            try:
                synced = self._check_header(path, blob, first_index)
            except FormatError as error:
                segments.close(self._disk, found.segments.pop())
                return _Fault(position, error.offset, first_index, error.reason, proved=True, headless=True)
            try:
                scan = scan_segment(blob, first_index, found.last_term)
            except FormatError as error:
                raise CorruptLogError(path, error.offset, error.reason) from error
            segment.offsets, segment.end = scan.offsets, scan.end
            found.last_term, found.proven = scan.last_term, max(found.proven, synced, scan.synced)
            for index, term in scan.runs:
                found.outline.add(index, term)
            found.outline.configurations += scan.configurations
            expected = segment.last_index + 1
            if scan.fault is not None:
                return _Fault(position, scan.end, expected, scan.fault)
            if self._on_progress is not None:
                self._on_progress(position + 1, len(self._files))
        return None

    def _damage(self, fault: _Fault) -> CorruptLogError | None:
        """What proves that the bad record had been durable; None: the log has a torn tail."""
        path = self._files[fault.file][1]
        if fault.proved:
            return CorruptLogError(path, fault.offset, fault.reason)
        if self._repair is not None and self._repair.goes_on(fault.bad_index, path):
            return CorruptLogError(path, fault.offset, f"{fault.reason}; its repair was interrupted")
        for position in range(fault.file, len(self._files)):
            first_index, later = self._files[position]
            blob = self._content(later)
            start = fault.offset if position == fault.file else HEADER_SIZE
            evidence = find_evidence(blob, start, fault.bad_index)
            if evidence is not None:
                offset, index = evidence
                proof = f"record {index} at byte {offset} of {later.name} says that it had been safe on disk"
                return CorruptLogError(path, fault.offset, f"{fault.reason}; {proof}")
            if position == fault.file:
                continue
            try:
                synced = self._check_header(later, blob, first_index)
            except FormatError as error:
                return CorruptLogError(later, error.offset, error.reason)
            if synced >= fault.bad_index:
                proof = f"the header of {later.name} says that it had been safe on disk"
                return CorruptLogError(path, fault.offset, f"{fault.reason}; {proof}")
        return None

    def _content(self, path: Path) -> bytes:
        fd, blob = self._read(path)
        self._disk.close(fd)
        return blob

    def _set_covered_aside(self, fault: _Fault, damage: CorruptLogError, repair: Repair) -> bool:
        """Set the files before the last one that goes with the snapshot aside, if the damage is in them: the
        oldest first, so that what is left is always a log."""
        going = [n for n, (first, _) in enumerate(self._files) if first <= self._snapshot_index + 1]
        if not going or going[-1] <= fault.file:
            return False
        repair.begin_covered(damage, self._snapshot_index)
        self._close_all()
        self._found = Recovered()
        covered = [path for _, path in self._files[: going[-1]]]
        repair.set_aside(covered, None)
        del self._files[: going[-1]]
        return True

    def _give_up(self, fault: _Fault, damage: CorruptLogError, repair: Repair) -> None:
        """Give up the log from the fault on, if that is allowed."""
        lost_from = max(fault.bad_index, self._snapshot_index + 1)
        repair.begin(damage, lost_from, self._newest_term(fault), self._newest_configuration())
        path = self._files[fault.file][1]
        later = [path for _, path in reversed(self._files[fault.file + 1 :])]
        if fault.headless:
            repair.set_aside([*later, path], None)
        else:
            repair.set_aside(later, None if fault.gap else path)
            segments.cut(self._disk, self._found.segments[fault.file], fault.bad_index)

    def _newest_term(self, fault: _Fault) -> int:
        """Of all records that can be read, also behind the fault, without searching for every one."""
        newest = max(self._found.last_term, self._snapshot_term)
        for position in range(fault.file, len(self._files)):
            first_index, path = self._files[position]
            blob = self._content(path)
            if len(blob) < HEADER_SIZE:
                continue
            with contextlib.suppress(FormatError):
                newest = max(newest, scan_segment(blob, first_index, 0).last_term)
            evidence = find_evidence(blob, HEADER_SIZE, fault.bad_index)
            if evidence is not None:
                newest = max(newest, decode_records(blob, *evidence[:1], 1, evidence[1])[0].term)
        return newest

    def _newest_configuration(self) -> Configuration | None:
        """In the intact part of the log, behind the snapshot."""
        for segment in reversed(self._found.segments):
            inside = [
                index
                for index in self._found.outline.configurations
                if max(segment.first_index, self._snapshot_index + 1) <= index <= segment.last_index
            ]
            if inside:
                fd = self._disk.open(segment.path)
                try:
                    entries = segments.read(self._disk, segment, fd, inside[-1], inside[-1] + 1)
                finally:
                    self._disk.close(fd)
                try:
                    return decode_configuration(entries[0].data)
                except ConfigurationFormatError as error:  # its checksum is right: no disk does that
                    offset = segment.offsets[inside[-1] - segment.first_index]
                    raise CorruptLogError(segment.path, offset, f"record {inside[-1]}: {error}") from error
        return None

    def _cut(self, fault: _Fault) -> None:
        """Cut the torn tail: later files newest first, then the rest of this one."""
        segment = self._found.segments[fault.file]
        removed = [path.name for _, path in self._files[fault.file + 1 :]]
        more = f"; removed {', '.join(removed)}" if removed else ""
        self._found.torn = f"{segment.path}: torn tail cut at byte {fault.offset}: {fault.reason}{more}"
        logger.warning("%s", self._found.torn)
        for _, path in reversed(self._files[fault.file + 1 :]):
            self._disk.unlink(path)
            self._disk.fsync_dir(self._directory)
        segments.cut(self._disk, segment, fault.bad_index)

    def _fit_to_snapshot(self) -> None:
        """Find the log's base; drop a log that the snapshot replaces.

        A crash between putting a received snapshot in place and emptying the log leaves one that ends before
        the snapshot, or that holds another, never committed entry at its index: none of it counts any more
        (paper figure 13, step 7).
        """
        found, index, term = self._found, self._snapshot_index, self._snapshot_term
        first = found.segments[0].first_index if found.segments else index + 1
        found.last_index = found.segments[-1].last_index if found.segments else index
        if found.last_index < index or (first <= index and found.outline.term(index) != term):
            what = f"ends at {found.last_index}" if found.last_index < index else "differs there"
            logger.warning(
                "%s: the log (%d to %d) is replaced by the snapshot of entry %d, term %d: it %s",
                *(self._directory, first, found.last_index, index, term, what),
            )
            remove_all(self._disk, self._directory, found.segments)
            found.outline, found.last_index, found.proven, first = Outline(), index, index, index + 1
        if first == index + 1:
            found.base_index, found.base_term = index, term
        elif first == 1:
            found.base_index, found.base_term = 0, 0
        else:  # nobody knows the term before the first entry any more: that entry only tells its own
            found.base_index, found.base_term = first, found.outline.term(first)
            found.outline.cut_prefix(first + 1)
        found.last_term = found.base_term
        if found.last_index > found.base_index:
            found.last_term = found.outline.term(found.last_index)


def remove_all(disk: Disk, directory: Path, found: list[Segment]) -> None:
    """Remove all segments, newest first, so that after a crash what is left is still told from a log that
    goes with the snapshot. Empties the list. Raises StorageError."""
    while found:
        segments.remove(disk, directory, found[-1])
        found.pop()
