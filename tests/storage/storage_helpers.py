"""Shared by the storage tests: entries to write, stores to open, logs to read back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from faulty_disk import FaultyDisk

from raft.core.entry import Entry
from raft.storage.errors import CompactedError
from raft.storage.log_store import LogStore
from raft.storage.snapshots import SnapshotInfo, SnapshotStore

DIRECTORY = Path("/data")


def make_disk(sector: int = 64) -> FaultyDisk:
    """A disk in memory with an empty data directory."""
    disk = FaultyDisk(sector)
    disk.directories.add(DIRECTORY)
    return disk


def make_entries(first: int, last: int, term: int = 1, size: int | None = None) -> list[Entry]:
    """Entries first to last; data differs for each (index, term), `size` bytes or a varying length."""
    result = []
    for index in range(first, last + 1):
        length = (index * 7 + term * 11) % 30 if size is None else size
        pattern = hashlib.blake2b(b"%d %d" % (index, term)).digest()
        result.append(Entry(index, term, 1, (pattern * (length // 64 + 1))[:length]))
    return result


def open_store(disk: FaultyDisk, **options: Any) -> LogStore:
    """The log on that disk, with small segments and without a thread unless options say otherwise."""
    options = {"segment_bytes": 4096, "prepare_ahead": False, **options}
    return LogStore.open(DIRECTORY, disk=disk, **options)


def read_log(store: LogStore) -> list[Entry]:
    """All entries of a log, and a check that its other answers agree with them."""
    found = list(store.entries(store.first_index, store.last_index + 1, 1 << 30))
    assert [entry.index for entry in found] == list(range(store.first_index, store.last_index + 1))
    assert [store.term(entry.index) for entry in found] == [entry.term for entry in found]
    if found:
        assert store.term(store.first_index - 1) <= found[0].term
    for before in (store.first_index - 2, 0):
        if before < store.first_index - 1:  # bug 24: never answered with 0
            with pytest.raises(CompactedError):
                store.term(before)
            with pytest.raises(CompactedError):
                store.entries(before + 1, store.first_index + 1, 100)
    return found


def reopen(disk: FaultyDisk, **options: Any) -> list[Entry]:
    """Open, read everything and close."""
    store = open_store(disk, **options)
    try:
        return read_log(store)
    finally:
        store.close()


def segment_path(first_index: int) -> Path:
    """Where the segment that begins with this entry is."""
    return DIRECTORY / f"log-{first_index:016d}.seg"


def open_snapshots(disk: FaultyDisk, cluster: str = "test") -> SnapshotStore:
    """The snapshots on that disk."""
    return SnapshotStore.open(DIRECTORY, cluster, disk=disk)


def make_chunks(index: int, count: int = 3, size: int = 100) -> list[bytes]:
    """What the snapshot of entry index holds: different for each index."""
    return [hashlib.blake2b(b"%d %d" % (index, n)).digest() * (size // 64) + b"." for n in range(count)]


def take_snapshot(store: SnapshotStore, index: int, term: int = 1, count: int = 3) -> SnapshotInfo:
    """Write the snapshot of entry index, with its own configuration."""
    writer = store.writer(index, term, b"configuration %d" % index)
    for chunk in make_chunks(index, count):
        writer.write(chunk)
    return writer.commit()


def snapshot_path(index: int) -> Path:
    """Where the snapshot of entry index is."""
    return DIRECTORY / f"snapshot-{index:016d}.snap"


def check_snapshot(store: SnapshotStore, index: int | None, term: int = 1, count: int = 3) -> None:
    """The newest snapshot is that of entry index, whole."""
    info = store.latest()
    if index is None:
        assert info is None
        return
    assert info is not None
    assert (info.index, info.term, info.configuration) == (index, term, b"configuration %d" % index)
    assert list(store.open_chunks(info)) == make_chunks(index, count)
