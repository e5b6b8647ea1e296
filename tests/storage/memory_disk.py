"""A file system in memory that knows what a power loss would leave.

It keeps apart what is durable and what is merely written: the bytes of each file since its last fsync, in
sectors any subset of which may survive, and creations, renames and removals since the last directory fsync.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from raft.storage.disk import Disk

FD_BASE = 1000


class PowerLoss(BaseException):
    """The machine is off: this call did not happen, and nothing after it does."""


@dataclass(slots=True, eq=False)
class Inode:
    """content: what reads see; durable: what has been fsynced; pending: what happened since."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | int]] = field(default_factory=list)  # (offset, data) or (-1, new size)


class MemoryDisk(Disk):
    """One small file system. sector: bytes that are written or lost together.

    Every call that changes something goes through _change(), every other one through _look(): there a
    subclass lets calls, or the power, fail."""

    def __init__(self, sector: int = 64) -> None:
        self.sector = sector
        self.names: dict[Path, Inode] = {}
        self.durable_names: dict[Path, Inode] = {}
        self.directories: set[Path] = {Path("/")}
        self.pending_names: list[tuple[Path, list[tuple[Path, Inode | None]]]] = []
        self._open: dict[int, tuple[Path, Inode]] = {}
        self._next_fd = FD_BASE
        self._locks: dict[Path, int] = {}
        self._mutex = threading.RLock()

    def _change(self, call: str, path: Path) -> None:
        """The call is about to change something. May raise instead."""

    def _look(self, call: str, path: Path) -> None:
        """The call is about to be made. May raise instead."""

    # --- a power loss

    def count_pieces(self) -> int:
        """How many pieces may each be lost or kept in a power loss now."""
        return sum(1 for inode in self._inodes() for _ in self._pieces(inode)) + len(self.pending_names)

    def left_by_power_loss(self, keep: Callable[[int], bool]) -> dict[Path, Inode]:
        """The files at the next start: keep(n) says whether unsynced piece n survived. All is durable."""
        number = 0
        survivors: dict[int, Inode] = {}
        for inode in self._inodes():
            content = bytearray(inode.durable)
            for offset, piece in self._pieces(inode):
                if keep(number):
                    put(content, offset, piece)
                number += 1
            survivors[id(inode)] = Inode(content, bytearray(content))
        names = dict(self.durable_names)
        for _, changes in self.pending_names:
            if keep(number):
                _rename(names, changes)
            number += 1
        return {path: survivors[id(inode)] for path, inode in names.items()}

    def _inodes(self) -> list[Inode]:
        found = list(self.durable_names.values())
        for _, changes in self.pending_names:
            found += [inode for _, inode in changes if inode is not None]
        return list(dict.fromkeys(found))

    def _pieces(self, inode: Inode) -> Iterator[tuple[int, bytes | int]]:
        """What is pending, cut at the sectors: these are aligned in the file, not in the data."""
        for offset, data in inode.pending:
            if isinstance(data, int):
                yield offset, data
                continue
            position = 0
            while position < len(data):
                step = self.sector - (offset + position) % self.sector
                yield offset + position, data[position : position + step]
                position += step

    # --- Disk

    def open(self, path: Path, *, create: bool = False) -> int:
        with self._mutex:
            if create:
                self._change("create", path)
                if path in self.names:
                    raise FileExistsError(errno.EEXIST, "exists", str(path))
                self._rename_now(path.parent, [(path, Inode())])
            else:
                self._look("open", path)
                if path not in self.names:
                    raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self._next_fd += 1
            self._open[self._next_fd] = (path, self.names[path])
            return self._next_fd

    def close(self, fd: int) -> None:
        with self._mutex:
            path, _ = self._open.pop(fd)
            if fd in self._locks.values():
                self._locks = {name: held for name, held in self._locks.items() if held != fd}
            self._look("close", path)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with self._mutex:
            path, inode = self._open[fd]
            self._change("pwrite", path)
            self._write(inode, data, offset)
            return len(data)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        with self._mutex:
            path, inode = self._open[fd]
            self._look("pread", path)
            return bytes(inode.content[offset : offset + count])

    def size(self, fd: int) -> int:
        return len(self._open[fd][1].content)

    def truncate(self, fd: int, length: int) -> None:
        with self._mutex:
            path, inode = self._open[fd]
            self._change("truncate", path)
            put(inode.content, -1, length)
            inode.pending.append((-1, length))

    def fdatasync(self, fd: int) -> None:
        self._fsync("fdatasync", fd)

    def fsync(self, fd: int) -> None:
        self._fsync("fsync", fd)

    def rename(self, old: Path, new: Path) -> None:
        with self._mutex:
            self._change("rename", new)
            inode = self.names[old]
            for fd, (_, opened) in self._open.items():
                if opened is inode:
                    self._open[fd] = (new, inode)
            self._rename_now(new.parent, [(old, None), (new, inode)])

    def unlink(self, path: Path) -> None:
        with self._mutex:
            if path not in self.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self._change("unlink", path)
            self._rename_now(path.parent, [(path, None)])

    def listdir(self, directory: Path) -> list[str]:
        return [path.name for path in self.names if path.parent == directory]

    def exists(self, path: Path) -> bool:
        return path in self.names or path in self.directories

    def mkdir(self, directory: Path) -> None:
        self._change("mkdir", directory)
        self.directories.add(directory)

    def fsync_dir(self, directory: Path) -> None:
        with self._mutex:
            self._change("fsync_dir", directory)
            others = []
            for change in self.pending_names:
                if change[0] == directory:
                    _rename(self.durable_names, change[1])
                else:
                    others.append(change)
            self.pending_names = others

    def free_bytes(self, directory: Path) -> int:
        return 1 << 62

    def lock(self, path: Path) -> int | None:
        if path in self._locks:
            return None
        fd = self.open(path, create=path not in self.names)
        self._locks[path] = fd
        return fd

    # --- inside

    def _fsync(self, call: str, fd: int) -> None:
        with self._mutex:
            path, inode = self._open[fd]
            try:
                self._change(call, path)
            except OSError:
                # Like Linux: the pages are clean now although they are not on the disk (fsyncgate).
                inode.pending.clear()
                raise
            for offset, piece in inode.pending:  # not what an earlier, failed fsync forgot
                put(inode.durable, offset, piece)
            inode.pending.clear()

    def _write(self, inode: Inode, data: bytes, offset: int) -> None:
        put(inode.content, offset, data)
        if data:
            inode.pending.append((offset, bytes(data)))

    def _rename_now(self, directory: Path, changes: list[tuple[Path, Inode | None]]) -> None:
        _rename(self.names, changes)
        self.pending_names.append((directory, changes))


def failure(error: int, path: Path) -> OSError:
    """The error that a system call on the path would raise."""
    return OSError(error, os.strerror(error), str(path))


def put(content: bytearray, offset: int, piece: bytes | int) -> None:
    """Apply a write, or a change of size, to a file's content."""
    if isinstance(piece, int):
        del content[piece:]
        content.extend(bytes(piece - len(content)))
    else:
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(piece)] = piece


def _rename(names: dict[Path, Inode], changes: list[tuple[Path, Inode | None]]) -> None:
    for path, inode in changes:
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode
