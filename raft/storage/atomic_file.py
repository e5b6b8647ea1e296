"""Replacing a small file so that after any crash either the old or the new content is there, whole."""

from __future__ import annotations

import contextlib
from pathlib import Path

from raft.storage.disk import Disk, is_full, write_all
from raft.storage.errors import DiskFullError, StorageError


def replace_file(disk: Disk, path: Path, content: bytes, *, reserved: bool = False) -> None:
    """Write a new file beside it, fsync, rename over the old one, fsync the directory.

    reserved: reserve_file() has made that file, and nothing was written to it since: it takes no space more.

    Raises DiskFullError (the old content is still in force) or StorageError (before the rename the old one
    is; a failed directory fsync leaves it unknown which one a power loss would bring back).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        fd = disk.open(temporary) if reserved else _new(disk, temporary)
        try:
            write_all(disk, fd, content, 0)
            disk.fsync(fd)
        finally:
            disk.close(fd)
        disk.rename(temporary, path)
    except OSError as error:
        if is_full(error):
            raise DiskFullError(f"{path}: the disk is full") from error
        raise StorageError(f"{path}: cannot write the file: {error}") from error
    try:
        disk.fsync_dir(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot fsync its directory: {error}") from error


def reserve_file(disk: Disk, path: Path, size: int) -> bool:
    """Make the file that the next replace_file() writes, with room for its content: that one then works on a
    full disk, too. Returns whether there was space; whatever else is wrong replace_file() finds out."""
    try:
        fd = _new(disk, path.with_name(path.name + ".tmp"))
        try:
            write_all(disk, fd, bytes(size), 0)
        finally:
            disk.close(fd)
    except OSError:
        return False
    return True


def _new(disk: Disk, path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)  # never write on in a file whose fsync may have failed
    return disk.open(path, create=True)


def read_file(disk: Disk, path: Path, max_bytes: int) -> bytes | None:
    """The content, made durable first. None if there is no such file.

    What a crash left between rename and directory fsync is acted upon from now on, so a later power loss
    must not undo it.

    Raises StorageError, also if the file is larger than max_bytes.
    """
    try:
        if not disk.exists(path):
            return None
        fd = disk.open(path)
        try:
            disk.fsync(fd)
            content = disk.pread(fd, max_bytes + 1, 0)
        finally:
            disk.close(fd)
        disk.fsync_dir(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot read the file: {error}") from error
    if len(content) > max_bytes:
        raise StorageError(f"{path}: larger than {max_bytes} bytes")
    return content
