"""A disk in memory that fails on demand, and notes every call: for the tests of the storage."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.storage.memory_disk import Inode, MemoryDisk, PowerLoss, failure

__all__ = ["Fault", "FaultyDisk", "PowerLoss"]


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


class FaultyDisk(MemoryDisk):
    """One small file system. sector: bytes that are written or lost together."""

    def __init__(self, sector: int = 64) -> None:
        super().__init__(sector)
        self.calls: list[str] = []  # every call that changes something: "pwrite log-0000000000000001.seg"
        self.faults: list[Fault] = []
        self.power_fails_at: int | None = None  # number of the changing call (0, 1, …) that does not happen
        self.off = False

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
        inode = Inode(bytearray(content), bytearray(content))
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

    def after_power_loss(self, keep: Callable[[int], bool]) -> FaultyDisk:
        """The disk after the next start: keep(n) says whether unsynced piece n survived."""
        disk = FaultyDisk(self.sector)
        disk.directories = set(self.directories)
        disk.names = self.left_by_power_loss(keep)
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

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with self._mutex:
            path, inode = self._open[fd]
            fault = self._fault("pwrite", path, changes=True)
            if fault is None:
                self._write(inode, data, offset)
                return len(data)
            self._write(inode, data[: fault.written], offset)
            if fault.short:
                return fault.written
            raise failure(fault.error, path)

    def _change(self, call: str, path: Path) -> None:
        fault = self._fault(call, path, changes=True)
        if fault is not None:
            raise failure(fault.error, path)

    def _look(self, call: str, path: Path) -> None:
        fault = self._fault(call, path, changes=False)
        if fault is not None:
            raise failure(fault.error, path)

    def _fault(self, call: str, path: Path, *, changes: bool) -> Fault | None:
        """Note a call; let the power fail if that is due. The fault with which the call is to fail."""
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
                return fault
        return None
