"""The disk of one simulated machine: in memory, and with everything that may go wrong with a disk.

A process dies between two calls that change something, a call fails with EIO, there is no space left, a power
cut keeps any of what was not fsynced, a bit flips. Each happens when the simulation says so.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

from tests.storage.memory_disk import Inode, MemoryDisk, PowerLoss, failure

DIRECTORY = "/data"


class RetriedAfterFailureError(AssertionError):
    """A file whose write or fsync has failed was written or fsynced again (fsyncgate)."""


class Place(str):
    """A path, for those who only join and split it: pathlib takes ten times as long."""

    __slots__ = ()

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self}/{name}")

    @property
    def name(self) -> str:
        return self.rpartition("/")[2]

    @property
    def parent(self) -> Place:
        return Place(self.rpartition("/")[0] or "/")

    def with_name(self, name: str) -> Place:
        return Place(f"{self.rpartition('/')[0]}/{name}")


class Platter(MemoryDisk):
    """One machine's disk.

    dies_in: after so many more changing calls the process dies; None: it does not. failing, fails_in: the
    call of these names that will fail with EIO, and how many of them are to work before. free: bytes; None:
    without end. injected: how many faults this process has met.
    """

    def __init__(self, sector: int, *, copies_on_write: bool = False) -> None:
        """copies_on_write: what is overwritten takes new space, too."""
        super().__init__(sector)
        self.directories.add(Place(DIRECTORY))
        self.dies_in: int | None = None
        self.failing: tuple[str, ...] = ()
        self.fails_in = 0
        self.free: int | None = None
        self.injected = 0
        self.copies_on_write = copies_on_write
        self.failures = 0  # in all processes
        self._off = False
        self._failed: set[Inode] = set()

    # --- what the simulation does to it

    def end_process(self) -> None:
        """Whatever the process had open is closed; no call is going to fail any more."""
        self._off = False
        self._open.clear()
        self._locks.clear()
        self._failed.clear()
        self.dies_in, self.failing, self.injected = None, (), 0

    def cut_power(self, rng: random.Random) -> None:
        """What was not fsynced is lost or kept piece by piece: none, all, a prefix, all but one, any."""
        pieces = self.count_pieces()
        kind = rng.choice(("none", "all", "prefix", "but one", "any", "any"))
        some = rng.randrange(pieces + 1)
        keeps: dict[str, Callable[[int], bool]] = {
            "none": lambda n: False,
            "all": lambda n: True,
            "prefix": lambda n: n < some,
            "but one": lambda n: n != some,
            "any": lambda n: rng.random() < 0.5,
        }
        self.names = self.left_by_power_loss(keeps[kind])
        self.durable_names = dict(self.names)
        self.pending_names.clear()

    def damage(self, rng: random.Random, path: Path) -> str:
        """A bit flips, or the file is cut, for good. Returns what was done."""
        content = self.names[path].content
        at = rng.randrange(len(content))
        if rng.random() < 0.3:
            del content[at:]
            told = f"{path.name} is cut at byte {at}"
        else:
            content[at] ^= 1 << rng.randrange(8)
            told = f"{path.name} has another byte {at}"
        self.names[path] = self.durable_names[path] = Inode(content, bytearray(content))
        return told

    # --- Disk

    def free_bytes(self, directory: Path) -> int:
        return 1 << 62 if self.free is None else self.free

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        path, inode = self._open[fd]
        try:
            self._change("pwrite", path)
        except OSError:
            self._failed.add(inode)
            self._write(inode, data[: len(data) // 2], offset)
            raise
        if inode in self._failed:
            raise RetriedAfterFailureError(f"{path}: written again")
        if self.free is not None:
            growth = max(0, offset + len(data) - len(inode.content))
            if self.copies_on_write:
                growth = len(data)
            if growth > self.free:
                data = data[: len(data) - growth + self.free]
                if not data:
                    raise failure(errno.ENOSPC, path)
                growth = self.free
            self.free -= growth
        self._write(inode, data, offset)
        return len(data)

    def truncate(self, fd: int, length: int) -> None:
        if self.free is not None:
            self.free += len(self._open[fd][1].content) - length
        super().truncate(fd, length)

    def unlink(self, path: Path) -> None:
        inode = self.names.get(path)
        super().unlink(path)
        if self.free is not None and inode is not None:
            self.free += len(inode.content)

    def _fsync(self, call: str, fd: int) -> None:
        path, inode = self._open[fd]
        if inode in self._failed:
            raise RetriedAfterFailureError(f"{path}: {call} again")
        try:
            super()._fsync(call, fd)
        except OSError:
            self._failed.add(inode)
            raise

    def _change(self, call: str, path: Path) -> None:
        if self._off:
            raise PowerLoss(f"{call} {path}")
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0:
                self._off = True
                raise PowerLoss(f"{call} {path}")
        if call in self.failing:
            self.fails_in -= 1
            if self.fails_in < 0:
                self.failing = ()
                self.injected += 1
                self.failures += 1
                raise failure(errno.EIO, path)

    def _look(self, call: str, path: Path) -> None:
        if self._off:
            raise PowerLoss(f"{call} {path}")
