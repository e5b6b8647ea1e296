"""Everything that a node keeps on disk, opened in order: lock, identity, hard state, snapshots, log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from raft.core.effects import HardState
from raft.core.membership import Server
from raft.storage.disk import Disk, ensure_directory
from raft.storage.errors import StorageError
from raft.storage.hard_state import HardStateFile
from raft.storage.identity import DirectoryLock, Identity, check_identity
from raft.storage.log_store import CACHE_BYTES, SEGMENT_BYTES, LogStore
from raft.storage.snapshots import SnapshotStore


class NodeStorage:
    """Make one with NodeStorage.open. Owned by the raft worker."""

    def __init__(
        self,
        lock: DirectoryLock,
        identity: Identity,
        hard_state: HardStateFile,
        snapshots: SnapshotStore,
        log: LogStore,
    ) -> None:
        self._lock = lock
        self._hard_state = hard_state
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
    ) -> NodeStorage:
        """Open the data directory of node node_id, making it if it is new.

        founding: the founding members that a new directory notes for ever; an existing one has its own. Other
        arguments as for LogStore.open.

        Raises DirectoryLockedError, IdentityError, FormatVersionError, CorruptLogError, CorruptSnapshotError,
        StorageError, DiskFullError (only while a new directory is set up). After an error nothing stays open.
        """
        disk = disk or Disk()
        ensure_directory(disk, directory)
        lock = DirectoryLock(directory, disk)
        log = None
        try:
            identity = check_identity(directory, cluster, node_id, founding=founding, disk=disk)
            hard_state = HardStateFile(directory, disk)
            hard_state.load()
            snapshots = SnapshotStore.open(directory, cluster, disk=disk)
            snapshot = snapshots.latest()
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
            )
            snapshots.check_log(log.last_index)
            _check_terms(hard_state, log)
        except BaseException:
            if log is not None:
                log.close()
            lock.release()
            raise
        return cls(lock, identity, hard_state, snapshots, log)

    @property
    def hard_state(self) -> HardState:
        """Term and vote as they are on disk."""
        return self._hard_state.state

    def save_hard_state(self, state: HardState) -> None:
        """Durable on return. See HardStateFile.save for the errors."""
        self._hard_state.save(state)

    def close(self) -> None:
        """Close everything and let go of the directory. Does not sync the log."""
        try:
            self.snapshots.close()
            self.log.close()
        finally:
            self._lock.release()


def _check_terms(hard_state: HardStateFile, log: LogStore) -> None:
    """The term is saved before any entry of that term: a log that is ahead means that hard-state was lost."""
    last_term = log.term(log.last_index)
    if last_term > hard_state.state.term:
        raise StorageError(
            f"{hard_state.path}: has term {hard_state.state.term} (0: no file), but the log's last entry has "
            f"term {last_term}: the file was lost or replaced by an older one. A node must not go on without "
            f"its vote: take it out of the cluster and let it join as a new member"
        )
