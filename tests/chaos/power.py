"""A disk whose unsynced bytes live in the node's memory only: kill -9 does to files what losing power does.

What is written stays with the process until fdatasync or fsync of that file; reads see it. Now and then the
"kernel" writes some of it early: all, or the first sectors. Space is taken at once, so that a full disk is
noticed by the write, as with a real one. Not modelled: renames, new names and removals that were not synced
(tests/storage/faulty_disk.py does); sectors that are half written.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from raft.storage.disk import Disk
from raft.storage.watched_disk import WatchedDisk

SECTOR = 512
_Inode = tuple[int, int]


class Unsynced:
    """What no disk has yet, by file. Each file has one writer at a time; the lists are only ever replaced
    whole or appended to, so that a reader in another thread sees no half of it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pending: dict[_Inode, list[tuple[int, bytes]]] = {}

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Keep it; a short count where there is no space."""
        size, end = os.fstat(fd).st_size, offset + len(data)
        if end > size:
            written = os.pwrite(fd, bytes(end - size), size)
            if written < end - size:
                return max(0, size + written - offset)
        self._pending.setdefault(_inode(fd), []).append((offset, data))
        luck = self._rng.random()
        if luck < 0.2:
            os.pwrite(fd, data, offset)
        elif luck < 0.5 and (first := offset // SECTOR + 1) <= (last := end // SECTOR):
            os.pwrite(fd, data[: self._rng.randint(first, last) * SECTOR - offset], offset)
        return len(data)

    def overlay(self, fd: int, data: bytes, offset: int) -> bytes:
        """What a read of these bytes has to see."""
        pending = self._pending.get(_inode(fd))
        if not pending:
            return data
        seen, end = bytearray(data), offset + len(data)
        for at, written in list(pending):
            begin, stop = max(at, offset), min(at + len(written), end)
            if begin < stop:
                seen[begin - offset : stop - offset] = written[begin - at : stop - at]
        return bytes(seen)

    def flush(self, fd: int) -> None:
        """To be called before the real sync."""
        for offset, data in self._pending.pop(_inode(fd), ()):
            if os.pwrite(fd, data, offset) != len(data):
                raise OSError(5, "the harness could not write what has its space")

    def cut(self, fd: int, length: int) -> None:
        """The file is truncated to length."""
        if pending := self._pending.get(_inode(fd)):
            kept = [(at, data[: max(0, length - at)]) for at, data in pending]
            self._pending[_inode(fd)] = [(at, data) for at, data in kept if data]

    def forget(self, path: Path) -> None:
        """The file under this name is about to go, or has just been made."""
        if path.exists():
            there = path.stat()
            self._pending.pop((there.st_dev, there.st_ino), None)


def _inode(fd: int) -> _Inode:
    there = os.fstat(fd)
    return there.st_dev, there.st_ino


def lose_unsynced_bytes(rng: random.Random) -> None:
    """From now on every WatchedDisk of this process is like that."""
    unsynced = Unsynced(rng)

    def opened(self: WatchedDisk, path: Path, *, create: bool = False) -> int:
        fd = Disk.open(self, path, create=create)
        if create:
            unsynced.forget(path)
        return fd

    def pwrite(self: WatchedDisk, fd: int, data: bytes, offset: int) -> int:
        return self._run("write", fd, lambda: unsynced.pwrite(fd, bytes(data), offset))

    def pread(self: WatchedDisk, fd: int, count: int, offset: int) -> bytes:
        return self._run(
            "read", fd, lambda: unsynced.overlay(fd, Disk.pread(self, fd, count, offset), offset)
        )

    def fdatasync(self: WatchedDisk, fd: int) -> None:
        unsynced.flush(fd)
        self._run("fdatasync", fd, lambda: os.fdatasync(fd))

    def fsync(self: WatchedDisk, fd: int) -> None:
        unsynced.flush(fd)
        self._run("fsync", fd, lambda: os.fsync(fd))

    def truncate(self: WatchedDisk, fd: int, length: int) -> None:
        unsynced.cut(fd, length)
        self._run("truncate", fd, lambda: os.ftruncate(fd, length))

    def rename(self: WatchedDisk, old: Path, new: Path) -> None:
        unsynced.forget(new)
        self._run("rename", old, lambda: Disk.rename(self, old, new))

    def unlink(self: WatchedDisk, path: Path) -> None:
        unsynced.forget(path)
        self._run("unlink", path, lambda: Disk.unlink(self, path))

    for method in (pwrite, pread, fdatasync, fsync, truncate, rename, unlink):
        setattr(WatchedDisk, method.__name__, method)
    WatchedDisk.open = opened  # type: ignore[method-assign]
