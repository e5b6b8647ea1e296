"""How much more the log can take once the disk is full: what its last file has left."""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.entry import Entry
from raft.storage.preparer import SegmentPreparer
from raft.storage.record import record_size
from raft.storage.segments import Segment

LOW_BYTES = 2 << 20


class LogRoom:
    """Satisfies raft.core.log.Room. Owned by the log store's thread.

    segments: the store's own list. preparer: None if it has none; then the disk counts as endless.
    """

    def __init__(self, segments: list[Segment], preparer: SegmentPreparer | None, segment_bytes: int) -> None:
        self._segments = segments
        self._preparer = preparer
        self._low_bytes = min(LOW_BYTES, segment_bytes // 4)

    @property
    def low(self) -> bool:
        """Whether the disk is full, and so, nearly, is the last file: what matters most may still fit."""
        return self._full() and self._left() < self._low_bytes

    def fits(self, entries: Sequence[Entry]) -> bool:
        """Whether append() of all these will find room, as far as that can be known."""
        return not self._full() or sum(record_size(len(e.data)) for e in entries) <= self._left()

    def _full(self) -> bool:
        return self._preparer is not None and self._preparer.full

    def _left(self) -> int:
        return self._segments[-1].capacity - self._segments[-1].end if self._segments else 0
