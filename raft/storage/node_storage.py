"""Everything that a node keeps on disk, opened in order: lock, identity, hard state, what it knows to have
lost, snapshots, log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from raft.core.effects import HardState, LostEntries
from raft.core.membership import Configuration, ConfigurationFormatError, Server, decode_configuration
from raft.storage.disk import Disk, ensure_directory
from raft.storage.errors import StorageError
from raft.storage.hard_state import HardStateFile
from raft.storage.identity import DirectoryLock, Identity, check_identity
from raft.storage.log_store import CACHE_BYTES, SEGMENT_BYTES, LogStore
from raft.storage.lost_entries import LostEntriesFile
from raft.storage.repair import Repair
from raft.storage.snapshots import SnapshotInfo, SnapshotStore


class NodeStorage:
    """Make one with NodeStorage.open. Owned by the raft worker."""

    def __init__(
        self,
        lock: DirectoryLock,
        identity: Identity,
        hard_state: HardStateFile,
        snapshots: SnapshotStore,
        log: LogStore,
        lost: LostEntriesFile,
    ) -> None:
        self._lock = lock
        self._hard_state = hard_state
        self._lost = lost
        self.identity = identity
        self.snapshots = snapshots
        self.log = log

    @classmethod
    def open(
        cls,
        directory: Path,
        cluster: str,
        node_id: int,
        *,
        founding: Sequence[Server] = (),
        fsync: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        on_progress: Callable[[int, int], None] | None = None,
        disk: Disk | None = None,
        prepare_ahead: bool = True,
        repair: bool = False,
    ) -> NodeStorage:
        """Open the data directory of node node_id, making it if it is new.

        founding: the founding members that a new directory notes for ever; an existing one has its own.
        repair: cut a damaged log where that is safe (raft/storage/repair.py). Other arguments as for
        LogStore.open.

        Raises DirectoryLockedError, IdentityError, FormatVersionError, CorruptLogError, CorruptSnapshotError,
        StorageError, DiskFullError (only while a new directory is set up, or a log repaired). After an error
        nothing stays open.
        """
        disk = disk or Disk()
        ensure_directory(disk, directory)
        lock = DirectoryLock(directory, disk)
        log = None
        try:
            identity = check_identity(directory, cluster, node_id, founding=founding, disk=disk)
            hard_state = HardStateFile(directory, disk)
            hard_state.load()
            lost = LostEntriesFile(directory, disk)
            lost.load()
            snapshots = SnapshotStore.open(directory, cluster, disk=disk)
            snapshot = snapshots.latest()
            first = partial(_first_configuration, identity, snapshot)
            rights = Repair(disk, directory, node_id, hard_state.state, lost, first, snapshots.check_log)
            log = LogStore.open(
                directory,
                segment_bytes=segment_bytes,
                fsync=fsync,
                cache_bytes=cache_bytes,
                on_progress=on_progress,
                snapshot_index=0 if snapshot is None else snapshot.index,
                snapshot_term=0 if snapshot is None else snapshot.term,
                disk=disk,
                prepare_ahead=prepare_ahead,
                repair=rights if repair else None,
            )
            snapshots.check_log(log.last_index)
            _check_terms(hard_state, log, lost)
            _check_configurations(directory, log)
        except BaseException:
            if log is not None:
                log.close()
            lock.release()
            raise
        return cls(lock, identity, hard_state, snapshots, log, lost)

    @property
    def hard_state(self) -> HardState:
        """Term and vote as they are on disk."""
        return self._hard_state.state

    def save_hard_state(self, state: HardState) -> None:
        """Durable on return. See HardStateFile.save for the errors."""
        self._hard_state.save(state)

    @property
    def lost_entries(self) -> LostEntries | None:
        """What the log has lost of what this node may have acknowledged; None: nothing, as far as known."""
        return self._lost.value

    def healed(self) -> None:
        """Nothing is missing any more. Durable on return. Raises StorageError."""
        self._lost.remove()

    def close(self) -> None:
        """Close everything and let go of the directory. Does not sync the log."""
        try:
            self.snapshots.close()
            self.log.close()
        finally:
            self._lock.release()


def _first_configuration(identity: Identity, snapshot: SnapshotInfo | None) -> Configuration:
    """In force before the log's first entry. Raises StorageError."""
    if snapshot is None:
        return Configuration(tuple(server.id for server in identity.founding_servers()))
    try:
        return decode_configuration(snapshot.configuration)
    except ConfigurationFormatError as error:
        raise StorageError(f"{snapshot.path}: {error}") from error


def _check_configurations(directory: Path, log: LogStore) -> None:
    """No leader proposes and no follower takes one that cannot be read: where the checksum is right, a
    program is at fault. Raises StorageError."""
    for entry in log.configurations():
        try:
            decode_configuration(entry.data)
        except ConfigurationFormatError as error:
            raise StorageError(
                f"{directory}: entry {entry.index} of the log, whose checksum is right: {error}. A node "
                f"must not go on without knowing who belongs to its cluster: let it join as a new member"
            ) from error


def _check_terms(hard_state: HardStateFile, log: LogStore, lost: LostEntriesFile) -> None:
    """The term is saved before any entry of that term: a log that is ahead means that hard-state was lost."""
    last_term, found, where = log.term(log.last_index), "the log's last entry has", hard_state.path
    if lost.value is not None and lost.value.term > last_term:
        last_term, found = lost.value.term, f"{lost.path.name} has"
    if last_term > hard_state.state.term:
        raise StorageError(
            f"{where}: has term {hard_state.state.term} (0: no file), but {found} "
            f"term {last_term}: the file was lost or replaced by an older one. A node must not go on without "
            f"its vote: take it out of the cluster and let it join as a new member"
        )
