"""A disk in memory that knows what a power loss would leave, and that fails on demand.

It keeps apart what is durable and what is merely written: the bytes of each file since its last fsync, in
sectors any subset of which may survive, and creations, renames and removals since the last directory fsync.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from raft.storage.disk import Disk

FD_BASE = 1000


class PowerLoss(BaseException):
    """The machine is off: this call did not happen, and nothing after it does."""


@dataclass
class Inode:
    """content: what reads see; durable: what has been fsynced; pending: what happened since, as pieces."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | int]] = field(default_factory=list)  # (offset, data) or (-1, new size)


@dataclass
class Fault:
    """Calls of `call` on files whose name contains `name` fail: the first `skip` do not, then `times` do.

    written: how many bytes a failing pwrite has put down nevertheless; short: it returns that count instead
    of raising.
    """

    call: str
    error: int
    name: str = ""
    skip: int = 0
    times: int = 1_000_000
    written: int = 0
    short: bool = False


class FaultyDisk(Disk):
    """One small file system. sector: bytes that are written or lost together."""

    def __init__(self, sector: int = 64) -> None:
        self.sector = sector
        self.names: dict[Path, Inode] = {}
        self.durable_names: dict[Path, Inode] = {}
        self.directories: set[Path] = {Path("/")}
        self.pending_names: list[tuple[Path, list[tuple[Path, Inode | None]]]] = []
        self.calls: list[str] = []  # every call that changes something: "pwrite log-0000000000000001.seg"
        self.faults: list[Fault] = []
        self.power_fails_at: int | None = None  # number of the changing call (0, 1, …) that does not happen
        self.off = False
        self._open: dict[int, tuple[Path, Inode]] = {}
        self._next_fd = FD_BASE
        self._locks: dict[Path, int] = {}
        self._mutex = threading.RLock()

    # --- what the tests do to it

    def fail(self, call: str, error: int, **options: object) -> Fault:
        """Install a fault and return it; take it out of self.faults to heal."""
        fault = Fault(call, error, **options)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def file(self, path: Path) -> bytes:
        """Content as a reader would see it now."""
        return bytes(self.names[path].content)

    def put(self, path: Path, content: bytes) -> None:
        """Replace a file's content, durably: damage done from outside."""
        inode = Inode(bytearray(content), bytes(content))
        self.names[path] = self.durable_names[path] = inode

    def drop(self, path: Path) -> None:
        """Remove a file, durably."""
        del self.names[path], self.durable_names[path]

    def copy(self) -> FaultyDisk:
        """Another disk with everything that is on this one, durable; nothing open."""
        return self.after_power_loss(lambda _: True)

    @property
    def open_files(self) -> list[str]:
        """Names of the files with an open descriptor."""
        return [path.name for path, _ in self._open.values()]

    def count_pieces(self) -> int:
        """How many pieces may each be lost or kept in a power loss now."""
        return sum(len(inode.pending) for inode in self._inodes()) + len(self.pending_names)

    def after_power_loss(self, keep: Callable[[int], bool]) -> FaultyDisk:
        """The disk after the next start: keep(n) says whether unsynced piece n survived."""
        number = 0
        survivors: dict[int, Inode] = {}
        for inode in self._inodes():
            content = bytearray(inode.durable)
            for offset, piece in inode.pending:
                if keep(number):
                    _put(content, offset, piece)
                number += 1
            survivors[id(inode)] = Inode(content, bytes(content))
        names = dict(self.durable_names)
        for _, changes in self.pending_names:
            if keep(number):
                _rename(names, changes)
            number += 1
        disk = FaultyDisk(self.sector)
        disk.directories = set(self.directories)
        disk.names = {path: survivors[id(inode)] for path, inode in names.items()}
        disk.durable_names = dict(disk.names)
        return disk

    def power_loss_choices(self, seed: int, limit: int = 40) -> Iterator[FaultyDisk]:
        """Many of the disks that a power loss may leave; all of them if there are few pieces."""
        count = self.count_pieces()
        if 2**count <= limit:
            for bits in range(2**count):
                yield self.after_power_loss(lambda n, bits=bits: bool(bits >> n & 1))  # type: ignore[misc]
            return
        rng = random.Random(seed)
        steps = sorted({0, count, *(rng.randrange(count + 1) for _ in range(limit // 4))})
        for step in steps:
            yield self.after_power_loss(lambda n, step=step: n < step)  # type: ignore[misc]
            yield self.after_power_loss(lambda n, step=step: n != step)  # type: ignore[misc]
            yield self.after_power_loss(lambda n, step=step: n >= step)  # type: ignore[misc]
        for _ in range(limit // 4):
            yield self.after_power_loss(lambda n: rng.random() < 0.5)

    # --- Disk

    def open(self, path: Path, *, create: bool = False) -> int:
        with self._mutex:
            self._change("create" if create else "open", path, changes=create)
            if create:
                if path in self.names:
                    raise FileExistsError(errno.EEXIST, "exists", str(path))
                self._rename_now(path.parent, [(path, Inode())])
            if path not in self.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self._next_fd += 1
            self._open[self._next_fd] = (path, self.names[path])
            return self._next_fd

    def close(self, fd: int) -> None:
        with self._mutex:
            path, _ = self._open.pop(fd)
            self._locks = {name: held for name, held in self._locks.items() if held != fd}
            self._change("close", path, changes=False)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with self._mutex:
            path, inode = self._open[fd]
            fault = self._change("pwrite", path, raises=False)
            if fault is None:
                self._write(inode, data, offset)
                return len(data)
            self._write(inode, data[: fault.written], offset)
            if fault.short:
                return fault.written
            raise OSError(fault.error, os.strerror(fault.error))

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        with self._mutex:
            path, inode = self._open[fd]
            self._change("pread", path, changes=False)
            return bytes(inode.content[offset : offset + count])

    def size(self, fd: int) -> int:
        return len(self._open[fd][1].content)

    def truncate(self, fd: int, length: int) -> None:
        with self._mutex:
            path, inode = self._open[fd]
            self._change("truncate", path)
            _put(inode.content, -1, length)
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
            for parent, changes in self.pending_names:
                if parent == directory:
                    _rename(self.durable_names, changes)
            self.pending_names = [change for change in self.pending_names if change[0] != directory]

    def lock(self, path: Path) -> int | None:
        if path in self._locks:
            return None
        fd = self.open(path, create=path not in self.names)
        self._locks[path] = fd
        return fd

    # --- inside

    def _inodes(self) -> list[Inode]:
        found = list(self.durable_names.values())
        for _, changes in self.pending_names:
            found += [inode for _, inode in changes if inode is not None]
        return list({id(inode): inode for inode in found}.values())

    def _change(self, call: str, path: Path, *, changes: bool = True, raises: bool = True) -> Fault | None:
        """Note a call; let the power or the call fail if that is due."""
        if changes and self.power_fails_at == len(self.calls):
            self.off = True
        if self.off:
            raise PowerLoss(f"{call} {path.name}")
        if changes:
            self.calls.append(f"{call} {path.name}")
        for fault in self.faults:
            if fault.call == call and fault.name in path.name and fault.times > 0:
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if raises:
                    raise OSError(fault.error, os.strerror(fault.error), str(path))
                return fault
        return None

    def _fsync(self, call: str, fd: int) -> None:
        with self._mutex:
            path, inode = self._open[fd]
            try:
                self._change(call, path)
            except OSError:
                # Like Linux: the pages are clean now although they are not on the disk (fsyncgate).
                inode.pending.clear()
                raise
            durable = bytearray(inode.durable)
            for offset, piece in inode.pending:  # not what an earlier, failed fsync forgot
                _put(durable, offset, piece)
            inode.durable = bytes(durable)
            inode.pending.clear()

    def _write(self, inode: Inode, data: bytes, offset: int) -> None:
        _put(inode.content, offset, data)
        position = 0
        while position < len(data):  # sectors are aligned in the file, not in the data
            step = self.sector - (offset + position) % self.sector
            inode.pending.append((offset + position, bytes(data[position : position + step])))
            position += step

    def _rename_now(self, directory: Path, changes: list[tuple[Path, Inode | None]]) -> None:
        _rename(self.names, changes)
        self.pending_names.append((directory, changes))


def _put(content: bytearray, offset: int, piece: bytes | int) -> None:
    """Apply a write, or a change of size, to a file's content."""
    if isinstance(piece, int):
        del content[piece:]
        content.extend(bytes(piece - len(content)))
    else:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(piece)] = piece


def _rename(names: dict[Path, Inode], changes: list[tuple[Path, Inode | None]]) -> None:
    for path, inode in changes:
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode
