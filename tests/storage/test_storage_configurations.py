"""The configurations in the log: what was appended counts again after a restart (bug 38), and none is lost or
kept by mistake when either end of the log goes (bug 40: a snapshot carries the one before)."""

from __future__ import annotations

import contextlib
import errno

import pytest
from faulty_disk import FaultyDisk
from msgspec.structs import replace
from storage_helpers import DIRECTORY, make_disk, make_entries, open_store, segment_path, take_snapshot

from raft.core.effects import HardState
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server, decode_configuration, encode_configuration
from raft.storage.errors import DiskFullError
from raft.storage.log_store import LogStore
from raft.storage.node_storage import NodeStorage
from raft.storage.record import encode_header, encode_records, scan_segment

SMALL = 400  # bytes of a segment: about seven entries
KIND = EntryKind.CONFIGURATION.value


def mixed(first: int, last: int, *configurations: int, term: int = 1) -> list[Entry]:
    """Entries first to last, those of the given indexes configurations."""
    return [
        Entry(entry.index, term, KIND if entry.index in configurations else entry.index % 2, entry.data)
        for entry in make_entries(first, last, term)
    ]


def indexes(store: LogStore) -> list[int]:
    found = store.configurations()
    assert all(entry.kind == KIND for entry in found)
    return [entry.index for entry in found]


def written(*configurations: int, last: int = 40, **options: object) -> tuple[FaultyDisk, LogStore]:
    disk = make_disk()
    store = open_store(disk, segment_bytes=SMALL, **options)
    store.append(mixed(1, last, *configurations))
    store.sync()
    return disk, store


@pytest.mark.parametrize("cache_bytes", [0, 1000, 1 << 20])
def test_what_was_appended_is_found_before_and_after_a_restart(cache_bytes: int) -> None:
    """Bug 38."""
    disk, store = written(1, 7, 8, 23, 40, cache_bytes=cache_bytes)
    assert len(disk.listdir(DIRECTORY)) > 4
    expected = [entry for entry in mixed(1, 40, 1, 7, 8, 23, 40) if entry.kind == KIND]
    assert store.configurations() == expected
    store.append(mixed(41, 50, 45))
    store.close()
    again = open_store(disk, segment_bytes=SMALL, cache_bytes=cache_bytes)
    assert again.configurations() == [*expected, *(e for e in mixed(41, 50, 45) if e.kind == KIND)]


def test_a_log_without_any() -> None:
    disk, store = written()
    assert store.configurations() == []
    store.close()
    assert open_store(disk).configurations() == []
    assert open_store(make_disk()).configurations() == []


@pytest.mark.parametrize("from_index", [1, 6, 7, 8, 9, 22, 23, 24, 40, 41])
def test_a_truncated_one_counts_no_more(from_index: int) -> None:
    """A follower gives up what was never committed: the configuration before is in force again (4.1)."""
    disk, store = written(1, 7, 8, 23, 40)
    store.truncate_suffix(from_index)
    kept = [index for index in (1, 7, 8, 23, 40) if index < from_index]
    assert indexes(store) == kept
    store.append(mixed(from_index, from_index + 3, from_index + 1, term=2))
    assert indexes(store) == [*kept, from_index + 1]
    store.close()
    assert indexes(open_store(disk)) == [*kept, from_index + 1]


def test_an_emptied_log_has_none() -> None:
    _, store = written(3, 30)
    store.reset(50, 2)
    assert store.configurations() == []
    store.append(mixed(51, 53, 52, term=2))
    assert indexes(store) == [52]


@pytest.mark.parametrize("upto", range(0, 41, 4))
def test_compaction_forgets_those_that_went_and_no_other(upto: int) -> None:
    """Bug 40."""
    marked = tuple(range(1, 41, 3))
    disk, store = written(*marked)
    store.truncate_prefix(upto)
    first = store.first_index
    assert indexes(store) == [index for index in marked if index >= first]
    store.append(mixed(41, 44, 43))
    assert indexes(store)[-1] == 43
    store.close()
    again = open_store(disk, snapshot_index=max(upto, first - 1), snapshot_term=1 if upto else 0)
    assert indexes(again) == [index for index in (*marked, 43) if index >= again.first_index]
    assert again.first_index <= max(upto, first - 1) + 1


def test_one_at_the_very_end_of_what_went_is_not_read() -> None:
    """The first entry of a log that begins in the middle only tells its term, so it cannot be read."""
    disk, store = written(*range(1, 41))
    store.truncate_prefix(20)
    store.close()
    again = open_store(disk, snapshot_index=20, snapshot_term=1)
    assert indexes(again) == list(range(again.first_index, 41))


def test_a_log_that_a_snapshot_replaces_has_none() -> None:
    disk, store = written(3, 30)
    store.close()
    for index, term in ((100, 1), (20, 7)):  # the log ends before it; differs there
        assert open_store(disk.copy(), snapshot_index=index, snapshot_term=term).configurations() == []


def test_a_torn_one_does_not_count() -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(mixed(1, 8, 3, 8))
    store.close()
    content = disk.file(segment_path(1))
    used = len(content.rstrip(b"\0"))
    disk.put(segment_path(1), content[: used - 1] + bytes(len(content) - used + 1))
    again = open_store(disk)
    assert (again.last_index, indexes(again)) == (7, [3])


def test_what_a_full_disk_refused_does_not_count() -> None:
    disk, store = written(3)
    fault = disk.fail("pwrite", errno.ENOSPC)
    with contextlib.suppress(DiskFullError):
        store.append(mixed(41, 60, 42, 59))
    assert indexes(store) == [3]
    disk.faults.remove(fault)
    store.append(mixed(41, 60, 42, 59))
    assert indexes(store) == [3, 42, 59]


def test_the_scan_notes_that_kind_alone() -> None:
    entries = [Entry(index, 1, index % 5, b"") for index in range(1, 21)]
    pieces, _, _ = encode_records(entries, 0, 32)
    scan = scan_segment(encode_header(1, 0) + b"".join(pieces), 1, 0)
    assert scan.configurations == [2, 7, 12, 17]


def test_a_snapshot_carries_the_configuration_that_compaction_takes_away() -> None:
    """Bug 40, with the snapshots: what is in force is the log's newest, else the snapshot's own."""
    one, two = (Configuration((n,), servers=(Server(n, "h", 1, 2, 3),)) for n in (1, 2))
    disk = make_disk()
    node = NodeStorage.open(DIRECTORY, "c", 1, disk=disk, segment_bytes=SMALL, prepare_ahead=False)
    node.save_hard_state(HardState(1, None))
    entries = mixed(1, 40, 5, 35)
    entries[4] = Entry(5, 1, KIND, encode_configuration(one))
    entries[34] = Entry(35, 1, KIND, encode_configuration(two))
    node.log.append(entries)
    node.log.sync()
    writer = node.snapshots.writer(20, 1, encode_configuration(one))
    writer.commit()
    node.log.truncate_prefix(20)
    node.close()
    again = NodeStorage.open(DIRECTORY, "c", 1, disk=disk, segment_bytes=SMALL, prepare_ahead=False)
    snapshot = again.snapshots.latest()
    assert snapshot is not None
    assert decode_configuration(snapshot.configuration) == one
    assert [decode_configuration(entry.data) for entry in again.log.configurations()] == [two]
    again.close()


def test_after_falling_back_to_the_snapshot_before_those_in_between_are_there() -> None:
    disk = make_disk()
    node = NodeStorage.open(DIRECTORY, "c", 1, disk=disk, segment_bytes=SMALL, prepare_ahead=False)
    node.save_hard_state(HardState(1, None))
    readable = encode_configuration(Configuration((1,)))
    node.log.append([replace(e, data=readable) if e.kind == KIND else e for e in mixed(1, 40, 5, 25)])
    node.log.sync()
    take_snapshot(node.snapshots, 20)
    newest = take_snapshot(node.snapshots, 30)
    node.log.truncate_prefix(20)
    node.close()
    disk.put(newest.path, disk.file(newest.path)[:-1])
    again = NodeStorage.open(DIRECTORY, "c", 1, disk=disk, segment_bytes=SMALL, prepare_ahead=False)
    snapshot = again.snapshots.latest()
    assert snapshot is not None
    assert (snapshot.index, indexes(again.log)) == (20, [25])
    again.close()
