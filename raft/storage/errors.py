"""What can go wrong with a node's disk. Every message names the file and, where there is one, the byte."""

from __future__ import annotations

from pathlib import Path


class StorageError(Exception):
    """Fatal: the disk failed or holds what it must not hold. The node must stop (exit 1).

    After a failed write or fsync nothing is tried again on the same file: the kernel may have dropped the
    bytes and marked the pages clean, so that a second fsync would lie.
    """


class CorruptFileError(StorageError):
    """A file of this node is damaged: data that was once safe on disk cannot be read back.

    file: the damaged file; offset: the byte in it at which the damage was noticed; reason: what is wrong.
    """

    def __init__(self, file: Path, offset: int, reason: str) -> None:
        self.file = file
        self.offset = offset
        self.reason = reason
        super().__init__(
            f"{file}: damaged at byte {offset}: {reason}. The file was left as it is. Check the disk. If a "
            f"majority of the other members is healthy, they give this node everything anew: RAFT REMOVE its "
            f"id on one of them, empty its data directory, start it, and RAFT ADD it again. Otherwise "
            f"restore the directory from a copy"
        )


class CorruptLogError(CorruptFileError):
    """A segment of the log is damaged, or entries are missing."""


class CorruptSnapshotError(CorruptFileError):
    """A snapshot is damaged and nothing else on this disk can stand in for it."""


class SnapshotRefusedError(Exception):
    """A snapshot that is being received is not what it should be. Nothing of it is kept; the node goes on,
    and the same snapshot may be received again from its beginning."""


class CompactedError(IndexError):
    """The entry is no longer in the log: a snapshot covers it. Never answered with a made-up term."""


class FormatVersionError(StorageError):
    """A file was written in another format version; the message names both versions."""

    def __init__(self, file: Path, found: int, wanted: int) -> None:
        self.file = file
        self.found = found
        self.wanted = wanted
        super().__init__(f"{file}: has format version {found}, this program reads version {wanted}")


class IdentityError(StorageError):
    """The data directory belongs to another node or cluster, or nobody can tell to whom."""


class DirectoryLockedError(StorageError):
    """Another process has the data directory open."""


class DiskFullError(Exception):
    """No space left (ENOSPC or EDQUOT) before anything was promised. Recoverable: the log is as it was before
    the call that failed, and the same call works once there is space again. Not a StorageError, so that
    `except StorageError` means "stop the node"."""
