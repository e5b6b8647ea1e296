"""The real disk, with a note of every call under way: a thread that hangs in one cannot tell so itself."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import NamedTuple, TypeVar

from raft.storage.disk import Disk

T = TypeVar("T")


class DiskCall(NamedTuple):
    """A system call under way. number: its own; where: a path or a descriptor; began_ms: monotonic."""

    number: int
    what: str
    where: Path | int
    began_ms: float

    def __str__(self) -> str:
        """For people, with the file's name."""
        try:
            fds = Path("/proc/self/fd")
            where = self.where if isinstance(self.where, Path) else (fds / str(self.where)).readlink()
        except OSError:
            return f"descriptor {self.where}: {self.what}"
        return f"{where}: {self.what}"


class WatchedDisk(Disk):
    """calls: what each thread (by its identifier) is in; any thread may look. A call costs 1 µs more."""

    def __init__(self) -> None:
        self.calls: dict[int, DiskCall] = {}
        self._numbers = itertools.count(1)

    def _run(self, what: str, where: Path | int, call: Callable[[], T]) -> T:
        thread = get_ident()
        self.calls[thread] = DiskCall(next(self._numbers), what, where, time.monotonic() * 1000.0)
        try:
            return call()
        finally:
            del self.calls[thread]

    def open(self, path: Path, *, create: bool = False) -> int:
        return self._run("open", path, lambda: Disk.open(self, path, create=create))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        thread = get_ident()  # as _run, written out: this and fdatasync stand on the path of every write
        self.calls[thread] = DiskCall(next(self._numbers), "write", fd, time.monotonic() * 1000.0)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            del self.calls[thread]

    def fdatasync(self, fd: int) -> None:
        thread = get_ident()
        self.calls[thread] = DiskCall(next(self._numbers), "fdatasync", fd, time.monotonic() * 1000.0)
        try:
            os.fdatasync(fd)
        finally:
            del self.calls[thread]

    def fsync(self, fd: int) -> None:
        self._run("fsync", fd, lambda: os.fsync(fd))

    def truncate(self, fd: int, length: int) -> None:
        self._run("truncate", fd, lambda: os.ftruncate(fd, length))

    def close(self, fd: int) -> None:
        self._run("close", fd, lambda: os.close(fd))

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return self._run("read", fd, lambda: Disk.pread(self, fd, count, offset))

    def rename(self, old: Path, new: Path) -> None:
        self._run("rename", old, lambda: Disk.rename(self, old, new))

    def unlink(self, path: Path) -> None:
        self._run("unlink", path, lambda: Disk.unlink(self, path))

    def listdir(self, directory: Path) -> list[str]:
        return self._run("list", directory, lambda: Disk.listdir(self, directory))

    def fsync_dir(self, directory: Path) -> None:
        self._run("fsync of the directory", directory, lambda: Disk.fsync_dir(self, directory))
