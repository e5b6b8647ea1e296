"""Reading entries back from segment files. Of those no longer written, at most one is kept open."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from raft.core.entry import Entry
from raft.storage import segments
from raft.storage.disk import Disk
from raft.storage.errors import StorageError
from raft.storage.record import RECORD_OVERHEAD
from raft.storage.segments import Segment

READ_BYTES = 1 << 20  # of data at a time, and as much of what is around it; unless one record is larger


class SegmentReader:
    """Owned by the log store's thread."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._open: tuple[Segment, int] | None = None

    def read(self, found: Sequence[Segment], lo: int, hi: int, room: int) -> list[Entry]:
        """Entries from lo on: up to hi - 1, the end of lo's segment or about `room` bytes of data, whichever
        is first, but at least one. Checksums are verified. found: the log's segments, oldest first.

        Raises CorruptLogError, StorageError.
        """
        segment = found[bisect_right(found, lo, key=lambda each: each.first_index) - 1]
        hi = min(hi, segment.last_index + 1, lo + READ_BYTES // RECORD_OVERHEAD)

        def data_before(index: int) -> int:
            return segment.cut_position(index) - RECORD_OVERHEAD * index  # padding is data here

        # Whoever reads in small pieces must not have a large one decoded each time.
        limit = data_before(lo) + min(max(room, 0), READ_BYTES)
        fitting = bisect_right(range(lo + 1, hi + 1), limit, key=data_before)
        return segments.read(self._disk, segment, self._descriptor(segment), lo, lo + max(1, fitting))

    def _descriptor(self, segment: Segment) -> int:
        if segment.fd is not None:
            return segment.fd
        if self._open is not None and self._open[0] is segment:
            return self._open[1]
        self.close()
        try:
            fd = self._disk.open(segment.path)
        except OSError as error:
            raise StorageError(f"{segment.path}: cannot open the file: {error}") from error
        self._open = (segment, fd)
        return fd

    def close(self) -> None:
        """Close what is open. Raises StorageError."""
        if self._open is not None:
            segment, fd = self._open
            self._open = None
            try:
                self._disk.close(fd)
            except OSError as error:
                raise StorageError(f"{segment.path}: cannot close the file: {error}") from error
