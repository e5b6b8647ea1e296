"""A descriptor for reading a segment that is no longer written: at most one is kept open."""

from __future__ import annotations

from raft.storage.disk import Disk
from raft.storage.errors import StorageError
from raft.storage.segments import Segment


class OlderSegment:
    """Owned by the log store's thread."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._open: tuple[Segment, int] | None = None

    def descriptor(self, segment: Segment) -> int:
        """A descriptor for reading this segment. Raises StorageError."""
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
