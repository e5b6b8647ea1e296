"""Every file operation of the storage goes through a Disk, so that tests and the simulator can put a faulty
one in its place. The real one is a thin name for the system calls: no buffering, no retry, OSError as it
comes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from raft.storage.errors import StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})  # the errors that a node outlives
ZEROS = bytes(256 << 10)


class Disk:
    """The real file system. Stateless; any thread may call. Sizes and offsets are in bytes."""

    if TYPE_CHECKING:

        def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...
        def fdatasync(self, fd: int) -> None: ...
        def fsync(self, fd: int) -> None: ...
        def truncate(self, fd: int, length: int) -> None: ...
        def close(self, fd: int) -> None: ...
    else:  # the system calls themselves: the hot path pays no Python frame for going through Disk
        pwrite = staticmethod(os.pwrite)
        fdatasync = staticmethod(os.fdatasync)
        fsync = staticmethod(os.fsync)
        truncate = staticmethod(os.ftruncate)
        close = staticmethod(os.close)

    def open(self, path: Path, *, create: bool = False) -> int:
        """A descriptor for reading and writing; create=True makes a new file and refuses an existing one."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Exactly count bytes, fewer only at the end of the file."""
        data = os.pread(fd, count, offset)
        if len(data) == count or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < count and (data := os.pread(fd, count - got, offset + got)):
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def size(self, fd: int) -> int:
        """The file's length."""
        return os.fstat(fd).st_size

    def rename(self, old: Path, new: Path) -> None:
        """Replaces new if it exists; durable only after fsync_dir."""
        os.rename(old, new)  # noqa: PTH104 - Path.rename is a slower name for it

    def unlink(self, path: Path) -> None:
        """Durable only after fsync_dir. Raises FileNotFoundError."""
        path.unlink()

    def listdir(self, directory: Path) -> list[str]:
        """The names in a directory, in no order."""
        return os.listdir(directory)  # noqa: PTH208 - names are wanted, not paths

    def exists(self, path: Path) -> bool:
        """Whether there is such a file or directory."""
        return path.exists()

    def mkdir(self, directory: Path) -> None:
        """Make one directory, for the owner only; durable only after fsync_dir of its parent."""
        directory.mkdir(mode=0o700)

    def free_bytes(self, directory: Path) -> int:
        """How much may still be written there, as far as the file system tells (quotas it does not)."""
        try:
            there = os.statvfs(directory)
        except OSError:
            return 1 << 62
        return there.f_bavail * there.f_frsize

    def fsync_dir(self, directory: Path) -> None:
        """Make the creations, renames and removals in a directory durable."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: Path) -> int | None:
        """Hold an exclusive lock on a file until its descriptor, the result, is closed or the process ends.

        Returns None if another process (or another descriptor of this one) holds it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd


def is_full(error: OSError) -> bool:
    """Whether the error says that there is no space left (on the disk or in the quota)."""
    return error.errno in FULL


def write_all(disk: Disk, fd: int, data: bytes, offset: int) -> None:
    """One pwrite. A short count raises OSError ENOSPC: on Linux that is what a short write means."""
    written = disk.pwrite(fd, data, offset)
    if written != len(data):
        raise OSError(errno.ENOSPC, f"short write: {written} of {len(data)} bytes")


def write_zeros(disk: Disk, fd: int, size: int) -> None:
    """Fill the first `size` bytes with zeros, durably, in steps that leave the disk free for others."""
    for offset in range(0, size, len(ZEROS)):
        write_all(disk, fd, ZEROS[: min(len(ZEROS), size - offset)], offset)
        disk.fdatasync(fd)
    disk.fsync(fd)


def ensure_directory(disk: Disk, directory: Path) -> None:
    """Make the directory and its missing parents, durably. Raises StorageError naming the one that failed."""
    missing = []
    while not disk.exists(directory):
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        try:
            with contextlib.suppress(FileExistsError):  # another node was faster
                disk.mkdir(path)
            disk.fsync_dir(path.parent)
        except OSError as error:
            raise StorageError(f"{path}: cannot make the data directory: {error}") from error
