"""The segment preparer: a thread that keeps one zero-filled file ready, for the worker to rename.

It is the first to learn that the disk is full: what the log has left then is the rest of its last file. So
the node stops taking entries before one of them finds no room, and tries on until there is space again.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from raft.storage.disk import Disk, is_full
from raft.storage.errors import StorageError
from raft.storage.segments import NewFile, discard, new_file

SPARE_BYTES = 1 << 20  # left to the rest of the node, above all to its hard state
RETRY_S = 0.2
COSTLY_RETRY_S = 5.0  # after a try that wrote until it failed (a quota, say)

logger = logging.getLogger(__name__)


class SegmentPreparer:
    """Makes files ahead of use. take() and close() belong to the log store's thread.

    failure: None, or the StorageError that ended the preparer; the store looks at it before every append
    and sync. full: the disk has no room for another file. That is no failure: take() finds nothing, and the
    thread tries again now and then.
    """

    def __init__(self, disk: Disk, directory: Path, size: int) -> None:
        self._disk = disk
        self._directory = directory
        self._size = size
        self._changed = threading.Condition()
        self._wanted = True  # a file is to be made or being made; guarded by _changed, like the rest below
        self._ready: NewFile | None = None
        self._stopping = False
        self._count = 0
        self.failure: StorageError | None = None
        self.full = self._is_full()  # any thread may look
        self._retry_s = RETRY_S
        self._thread = threading.Thread(target=self._run, name="segment-preparer", daemon=True)
        self._thread.start()

    def take(self) -> NewFile | None:
        """A ready file, or None if the disk was full: then the caller tries itself. Starts on the next one.

        Waits for a file that is being made: that is sooner done than a second one beside it.
        """
        with self._changed:
            if self._ready is None:
                self._wanted = True
                self._changed.notify_all()
            while self._wanted and self.failure is None:
                self._changed.wait()
            file, self._ready = self._ready, None
            self._wanted = file is not None
            self._changed.notify_all()
        return file

    def close(self) -> None:
        """Stop the thread (after the write that it is in) and remove the file that is not needed."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        if self._ready is not None:
            discard(self._disk, self._ready)
            self._ready = None

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                file = self._make()
                with self._changed:
                    self._ready = file
                    self.full = file is None
                    self._wanted = False
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, the worker must hear of it
            logger.exception("the segment preparer failed")
            with self._changed:
                self.failure = StorageError(f"{self._directory}: the segment preparer failed: {error!r}")
                self.failure.__cause__ = error
                self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._stopping and not self._wanted:
                if not self._changed.wait(self._retry_s if self.full else None):
                    break
            return not self._stopping

    def _make(self) -> NewFile | None:
        if self._is_full():
            self._say_full(f"{self._directory}: less than {self._size + SPARE_BYTES} bytes are free")
            self._retry_s = RETRY_S
            return None
        self._count += 1
        path = self._directory / f"prealloc-{self._count}.tmp"
        try:
            return new_file(self._disk, path, self._size)
        except OSError as error:
            if not is_full(error):
                raise
            self._say_full(f"{path}: {error}")
            self._retry_s = COSTLY_RETRY_S
            return None

    def _is_full(self) -> bool:
        return self._disk.free_bytes(self._directory) < self._size + SPARE_BYTES

    def _say_full(self, why: str) -> None:
        if not self.full:
            logger.warning("no space for the next log segment: %s", why)
