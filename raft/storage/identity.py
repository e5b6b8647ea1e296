"""Whose data directory this is: a node must never go on with another node's vote and log."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from raft.core.membership import Server
from raft.storage import hard_state, lost_entries, segments, snapshot_format
from raft.storage.atomic_file import read_file, replace_file
from raft.storage.disk import Disk
from raft.storage.errors import DirectoryLockedError, FormatVersionError, IdentityError, StorageError

NAME = "identity.json"
LOCK_NAME = "lock"
VERSION = 2
MAX_BYTES = 4 << 20  # the founding list of more servers than any cluster has


class Founder(msgspec.Struct, frozen=True):
    """A founding member as it stands in identity.json: Server without an identity, its fields named."""

    id: int
    host: str
    raft_port: int
    client_port: int
    http_port: int


class Identity(msgspec.Struct, frozen=True):
    """The content of identity.json. created_at: ISO 8601, for people only.

    identity: the random name of this directory: whoever comes with another one under the same node id has
    lost its vote and its log. founding: the members as config.yaml had them when the directory was made; they
    are the configuration at index 0 and must never change, or nodes would count different quorums for the
    same entries. cluster_id: "" unless a restore gave the cluster a new one.
    """

    format_version: int
    cluster: str
    node_id: int
    created_at: str
    identity: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    founding: tuple[Founder, ...]
    cluster_id: str

    def founding_servers(self) -> tuple[Server, ...]:
        """The founding members with ascending ids, as the core wants them."""
        servers = (Server(*msgspec.structs.astuple(founder)) for founder in self.founding)
        return tuple(sorted(servers, key=lambda server: server.id))


class _Versioned(msgspec.Struct):
    format_version: int


class DirectoryLock:
    """Keeps a second process out of a data directory. The kernel frees it on any exit."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        """Raises DirectoryLockedError, StorageError."""
        self._disk = disk or Disk()
        self.path = directory / LOCK_NAME
        try:
            self._fd = self._disk.lock(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot lock the data directory: {error}") from error
        if self._fd is None:
            raise DirectoryLockedError(f"{directory}: another process is using this data directory")

    def release(self) -> None:
        """Let go. A second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._disk.close(fd)


def decode_identity(content: bytes, file: Path) -> Identity:
    """Raises IdentityError, FormatVersionError; both name the file."""
    try:
        version = msgspec.json.decode(content, type=_Versioned).format_version
        if version != VERSION:
            raise FormatVersionError(file, version, VERSION)
        return msgspec.json.decode(content, type=Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IdentityError(f"{file}: not a valid identity file: {error}") from error


def check_identity(
    directory: Path,
    cluster: str,
    node_id: int,
    *,
    founding: Sequence[Server] = (),
    cluster_id: str = "",
    disk: Disk | None = None,
    now: str | None = None,
) -> Identity:
    """Make sure that an existing directory belongs to this node; a new one is made to belong to it.

    founding, cluster_id, now (an ISO 8601 time): for a new identity; an existing one keeps its own. Raises
    IdentityError saying what was found and what is wanted, FormatVersionError, StorageError, DiskFullError.
    """
    disk = disk or Disk()
    path = directory / NAME
    content = read_file(disk, path, MAX_BYTES)
    if content is None:
        foreign = sorted(name for name in disk.listdir(directory) if _is_data(name))
        if foreign:
            raise IdentityError(
                f"{directory}: has data ({foreign[0]}) but no {NAME}, so nobody can tell whose it is; "
                f"wanted node {node_id} of cluster {cluster!r}"
            )
        created_at = now or datetime.now(UTC).isoformat(timespec="seconds")
        founders = tuple(Founder(*msgspec.structs.astuple(server)[:5]) for server in founding)
        identity = Identity(VERSION, cluster, node_id, created_at, os.urandom(16).hex(), founders, cluster_id)
        replace_file(disk, path, msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
        return identity
    found = decode_identity(content, path)
    if (found.cluster, found.node_id) != (cluster, node_id):
        raise IdentityError(
            f"{path}: this directory belongs to node {found.node_id} of cluster {found.cluster!r}, "
            f"wanted node {node_id} of cluster {cluster!r}"
        )
    return found


def _is_data(name: str) -> bool:
    return (
        name in (hard_state.NAME, lost_entries.NAME)
        or segments.first_index_of(name) is not None
        or snapshot_format.index_of(name) is not None
    )
