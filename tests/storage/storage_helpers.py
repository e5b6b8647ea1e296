"""Shared by the storage tests: entries to write, stores to open, logs to read back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from faulty_disk import FaultyDisk

from raft.core.entry import Entry
from raft.storage.log_store import LogStore

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
    assert [entry.index for entry in found] == list(range(1, store.last_index + 1))
    assert [store.term(entry.index) for entry in found] == [entry.term for entry in found]
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
