"""What a node begins with: the machine of the newest snapshot and the configuration in force there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from raft.core.membership import Configuration, ConfigurationFormatError, decode_configuration
from raft.machine.machine import Machine
from raft.machine.snapshot import SnapshotFormatError
from raft.storage.errors import StorageError
from raft.storage.node_storage import NodeStorage
from raft.storage.snapshots import SnapshotInfo, SnapshotStore

log = logging.getLogger(__name__)

TELL_EVERY_S = 2.0


def restore(
    storage: NodeStorage, cluster_name: str, founding: Configuration
) -> tuple[Machine, Configuration, int]:
    """(machine, configuration, snapshot_index) of the newest snapshot; before the first one an empty
    machine, the founding configuration and 0. The log holds what comes after. Raises StorageError."""
    info = storage.snapshots.latest()
    if info is None:
        return Machine(cluster_name), founding, 0
    machine, configuration = load_snapshot(storage.snapshots, info, cluster_name)
    return machine, configuration, info.index


def load_snapshot(
    store: SnapshotStore, info: SnapshotInfo, cluster_name: str
) -> tuple[Machine, Configuration]:
    """The machine and the configuration in this snapshot. Tells of its progress in the log when it takes
    long. Raises StorageError, naming the file."""
    started = time.monotonic()
    log.info("loading the snapshot of entry %d: %.1f MB", info.index, info.bytes / 1e6)
    try:
        configuration = decode_configuration(info.configuration)
        machine = Machine.load(cluster_name, store.open_chunks(info), _teller(info.index))
    except (SnapshotFormatError, ConfigurationFormatError) as error:
        raise StorageError(f"{info.path}: {error}") from error
    if (machine.applied_index, machine.applied_term) != (info.index, info.term):
        raise StorageError(
            f"{info.path}: its header says entry {info.index}, term {info.term}, its content "
            f"entry {machine.applied_index}, term {machine.applied_term}"
        )
    keys, took_s = len(machine.kv.values), time.monotonic() - started
    log.info("loaded the snapshot of entry %d: %d keys in %.1f s", info.index, keys, took_s)
    return machine, configuration


def _teller(index: int) -> Callable[[int, int], None]:
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= TELL_EVERY_S:
            told = now
            log.info("loading the snapshot of entry %d: %d of %d rows", index, done, total)

    return tell
