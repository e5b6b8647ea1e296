"""The log store in good weather: append, read, truncate, reopen; on a real disk and on one in memory."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk
from storage_helpers import DIRECTORY, make_disk, make_entries, open_store, read_log, reopen, segment_path

from raft.core.entry import Entry
from raft.core.invariants import InvariantViolation
from raft.core.log import RaftLog
from raft.storage.errors import StorageError
from raft.storage.log_store import LogStore


def test_an_empty_log() -> None:
    store = open_store(make_disk())
    assert (store.first_index, store.last_index, store.durable_index, store.byte_size) == (1, 0, 0, 0)
    assert store.term(0) == 0
    assert store.entries(1, 1, 100) == ()
    store.append([])
    store.sync()
    store.truncate_suffix(1)
    assert store.last_index == 0


@pytest.mark.parametrize("prepare_ahead", [True, False])
@pytest.mark.parametrize("fsync", [True, False])
def test_what_was_appended_is_there_after_a_restart(tmp_path: Path, prepare_ahead: bool, fsync: bool) -> None:
    entries = make_entries(1, 50) + make_entries(51, 90, term=4)
    options = {"segment_bytes": 1024, "prepare_ahead": prepare_ahead, "fsync": fsync}
    store = LogStore.open(tmp_path, **options)  # type: ignore[arg-type]
    for start in range(0, 90, 7):
        store.append(entries[start : start + 7])
        store.sync()
    assert read_log(store) == entries
    store.close()
    again = LogStore.open(tmp_path, **options)  # type: ignore[arg-type]
    assert read_log(again) == entries
    assert again.durable_index == 90
    assert (again.term(50), again.term(51)) == (1, 4)
    again.append(make_entries(91, 95, term=5))
    again.sync()
    assert again.last_index == 95
    again.close()
    assert len(list(tmp_path.glob("log-*.seg"))) > 3
    assert not list(tmp_path.glob("*.tmp"))


def test_durable_index_follows_sync() -> None:
    store = open_store(make_disk())
    store.append(make_entries(1, 3))
    assert (store.last_index, store.durable_index) == (3, 0)
    store.sync()
    assert store.durable_index == 3


def test_one_write_an_append_and_one_fdatasync_a_sync() -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 2))
    store.sync()
    before = len(disk.calls)
    store.append(make_entries(3, 6))
    store.append(make_entries(7, 8))
    store.sync()
    store.sync()
    name = segment_path(1).name
    assert disk.calls[before:] == [f"pwrite {name}", f"pwrite {name}", f"fdatasync {name}"]


def test_without_fsync_nothing_is_synced_on_the_way() -> None:
    disk = make_disk()
    store = open_store(disk, fsync=False)
    store.append(make_entries(1, 2))
    before = len(disk.calls)
    store.append(make_entries(3, 6))
    store.sync()
    assert disk.calls[before:] == [f"pwrite {segment_path(1).name}"]
    assert store.durable_index == 6


def test_a_new_segment_is_whole_before_it_gets_its_name_and_its_name_durable_before_use() -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 1))
    name = segment_path(1).name
    renamed = disk.calls.index(f"rename {name}")
    assert disk.calls[renamed - 2 : renamed + 3] == [
        "pwrite prealloc-now.tmp",  # the header
        "fdatasync prealloc-now.tmp",
        f"rename {name}",
        "fsync_dir data",
        f"pwrite {name}",
    ]


def test_a_record_larger_than_a_segment_gets_its_own() -> None:
    disk = make_disk()
    store = open_store(disk)
    entries = make_entries(1, 3) + make_entries(4, 4, size=50_000) + make_entries(5, 9)
    store.append(entries)
    store.sync()
    assert read_log(store) == entries
    store.close()
    assert reopen(disk) == entries
    assert len(disk.file(segment_path(4))) > 50_000


def test_a_batch_over_several_segments() -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300)
    store.append(make_entries(1, 2))
    store.append(make_entries(3, 40))
    store.sync()
    assert read_log(store) == make_entries(1, 40)
    assert len(disk.open_files) == 1, "files behind the last one are closed once they are synced"
    store.close()
    assert reopen(disk) == make_entries(1, 40)


@pytest.mark.parametrize("cache_bytes", [0, 3000, 1 << 20])
def test_entries_are_bounded_alike_from_memory_and_from_disk(cache_bytes: int) -> None:
    store = open_store(make_disk(), segment_bytes=700, cache_bytes=cache_bytes)
    written = make_entries(1, 60)
    for entry in written:
        store.append([entry])
    rng = random.Random(1)
    for _ in range(300):
        lo = rng.randint(1, 61)
        hi = rng.randint(lo, 61)
        max_bytes = rng.choice([0, 1, 25, 100, 300, 1 << 20])
        expected: list[Entry] = []
        for entry in written[lo - 1 : hi - 1]:
            if expected and sum(len(one.data) for one in [*expected, entry]) > max_bytes:
                break
            expected.append(entry)
        assert store.entries(lo, hi, max_bytes) == tuple(expected)


def test_reading_in_small_pieces_decodes_little_more_than_is_returned() -> None:
    """Once each piece of 64 KiB cost the decoding of a megabyte, and a restart took three times as long."""
    disk = make_disk()
    store = open_store(disk, segment_bytes=1 << 20, cache_bytes=0)
    store.append(make_entries(1, 9000, size=70))
    store.sync()
    read, pread = 0, disk.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        nonlocal read
        read += count
        return pread(fd, count, offset)

    disk.pread = counted  # type: ignore[method-assign]
    lo = 1
    while lo <= 9000:
        lo += len(store.entries(lo, 9001, 8192))
    assert read < 1.2 * store.byte_size


def test_empty_entries_are_read_in_pieces_too() -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=8 << 20, cache_bytes=0)
    written = make_entries(1, 60_000, size=0)
    store.append(written)
    largest, pread = 0, disk.pread

    def seen(fd: int, count: int, offset: int) -> bytes:
        nonlocal largest
        largest = max(largest, count)
        return pread(fd, count, offset)

    disk.pread = seen  # type: ignore[method-assign]
    assert store.entries(1, 60_001, 0) == tuple(written)
    assert largest <= 1 << 20


@pytest.mark.parametrize(("lo", "hi"), [(0, 2), (1, 7), (6, 7), (-3, 1)])
def test_entries_outside_the_log(lo: int, hi: int) -> None:
    store = open_store(make_disk())
    store.append(make_entries(1, 5))
    with pytest.raises(IndexError):
        store.entries(lo, hi, 100)


@pytest.mark.parametrize("index", [-1, 6, 100])
def test_the_term_of_an_entry_outside_the_log_is_never_zero(index: int) -> None:
    store = open_store(make_disk())
    store.append(make_entries(1, 5))
    with pytest.raises(IndexError):
        store.term(index)


@pytest.mark.parametrize(
    "wrong",
    [
        [Entry(5, 2, 1, b"")],
        [Entry(3, 2, 1, b"")],
        [Entry(4, 1, 1, b"")],
        [Entry(4, 2, 1, b""), Entry(6, 2, 1, b"")],
        [Entry(4, 3, 1, b""), Entry(5, 2, 1, b"")],
    ],
)
def test_entries_that_do_not_follow_are_an_error_and_change_nothing(wrong: list[Entry]) -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 3, term=2))
    before = disk.file(segment_path(1))
    with pytest.raises(InvariantViolation):
        store.append(wrong)
    assert disk.file(segment_path(1)) == before
    store.append(make_entries(4, 4, term=2))
    assert store.last_index == 4


@pytest.mark.parametrize("from_index", range(1, 32))
def test_truncate_suffix(from_index: int) -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300)
    old = make_entries(1, 10) + make_entries(11, 20, term=2) + make_entries(21, 30, term=3)
    store.append(old)
    store.truncate_suffix(from_index)
    assert (store.last_index, store.durable_index) == (from_index - 1, from_index - 1)
    assert read_log(store) == old[: from_index - 1]
    new = make_entries(from_index, from_index + 12, term=4)
    store.append(new[:5])
    store.append(new[5:])
    store.sync()
    assert read_log(store) == old[: from_index - 1] + new
    store.close()
    assert reopen(disk) == old[: from_index - 1] + new


@pytest.mark.parametrize("from_index", [0, -1, 7])
def test_truncation_outside_the_log_is_an_error(from_index: int) -> None:
    store = open_store(make_disk())
    store.append(make_entries(1, 5))
    with pytest.raises(InvariantViolation):
        store.truncate_suffix(from_index)
    assert store.last_index == 5


def test_leftover_temporary_files_are_removed_and_foreign_files_left_alone() -> None:
    disk = make_disk()
    disk.put(DIRECTORY / "prealloc-3.tmp", b"garbage")
    disk.put(DIRECTORY / "prealloc-now.tmp", b"")
    disk.put(DIRECTORY / "notes.txt", b"mine")
    open_store(disk)
    assert disk.listdir(DIRECTORY) == ["notes.txt"]


def test_progress_is_told() -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300)
    store.append(make_entries(1, 30))
    store.close()
    seen: list[tuple[int, int]] = []
    open_store(disk, on_progress=lambda done, total: seen.append((done, total)))
    total = len(disk.listdir(DIRECTORY))
    assert total > 3
    assert seen == [(n + 1, total) for n in range(total)]


def test_segments_of_another_size_than_configured_are_fine() -> None:
    disk = make_disk()
    written: list[Entry] = []
    for segment_bytes in (300, 1000, 200):
        store = open_store(disk, segment_bytes=segment_bytes)
        more = make_entries(len(written) + 1, len(written) + 20)
        store.append(more)
        written += more
        store.sync()
        store.close()
    assert reopen(disk) == written


def test_a_closed_store_refuses_to_write_and_leaves_nothing_open() -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300, cache_bytes=0)
    store.append(make_entries(1, 30))
    store.sync()
    store.entries(1, 5, 1000)  # opens an old file
    store.close()
    assert disk.open_files == []
    with pytest.raises(StorageError, match="closed"):
        store.append(make_entries(31, 31))


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    def rounds(count: int) -> int:
        for _ in range(count):
            store = LogStore.open(tmp_path, segment_bytes=512, cache_bytes=0)
            store.append(make_entries(store.last_index + 1, store.last_index + 20))
            store.sync()
            store.entries(1, 10, 1000)
            store.truncate_suffix(store.last_index - 5)
            store.close()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    assert rounds(2) == rounds(5)


def test_the_core_reads_it() -> None:
    store = open_store(make_disk())
    store.append(make_entries(1, 5) + make_entries(6, 8, term=3))
    log = RaftLog(store)
    assert (log.last_index, log.last_term, log.term(5), log.term(0)) == (8, 3, 1, 0)
    assert log.last_index_of_term(1) == 5


def test_the_preparer_keeps_a_file_ready() -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300, prepare_ahead=True)
    store.append(make_entries(1, 40))
    store.sync()
    store.close()
    assert "create prealloc-now.tmp" not in disk.calls
    assert "create prealloc-5.tmp" in disk.calls
    assert reopen(disk) == make_entries(1, 40)


def test_an_exception_in_the_preparer_reaches_the_worker() -> None:
    disk = make_disk()
    disk.fail("pwrite", 5, name="prealloc-2")
    store = open_store(disk, segment_bytes=300, prepare_ahead=True)
    with pytest.raises(StorageError, match="segment preparer failed"):
        store.append(make_entries(1, 40))  # needs the second file
    for call in (store.sync, store.check_alive):
        with pytest.raises(StorageError, match="segment preparer failed"):
            call()
    store.close()


def test_a_fault_of_the_preparer_is_seen_without_a_write() -> None:
    disk = make_disk()
    disk.fail("fdatasync", 5, name="prealloc-2")
    store = open_store(disk, segment_bytes=300, prepare_ahead=True)
    store.check_alive()
    store.append(make_entries(1, 3))  # takes the first file: the second is made
    preparer = store._preparer
    assert preparer is not None
    preparer._thread.join(10)
    with pytest.raises(StorageError, match="segment preparer failed"):
        store.check_alive()
    store.close()


def test_a_full_disk_in_the_preparer_is_not_fatal() -> None:
    disk: FaultyDisk = make_disk()
    fault = disk.fail("pwrite", 28, name="prealloc-1", times=1)
    store = open_store(disk, segment_bytes=300, prepare_ahead=True)
    store.append(make_entries(1, 40))
    store.sync()
    store.close()
    assert fault.times == 0
    assert reopen(disk) == make_entries(1, 40)
