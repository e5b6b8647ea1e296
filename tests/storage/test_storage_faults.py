"""A disk that fails: full is outlived (bugs 46, 47), anything else kills the store for good (bug 51)."""

from __future__ import annotations

import errno

import pytest
from storage_helpers import make_disk, make_entries, open_store, read_log, reopen, segment_path

from raft.storage.errors import CorruptLogError, DiskFullError, StorageError


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("written", "short"),
    [(0, False), (1, False), (60, False), (130, False), (100_000, False), (0, True), (60, True), (130, True)],
)
def test_a_full_disk_leaves_the_log_as_it_was(error: int, written: int, short: bool) -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 5))
    store.sync()
    fault = disk.fail("pwrite", error, name="log-", written=written, short=short)
    for _ in range(3):  # however often it is tried
        with pytest.raises(DiskFullError, match="log-"):
            store.append(make_entries(6, 9, size=40))
        disk.faults[0].name = ""  # now no new segment can be made either
    assert (store.last_index, store.durable_index) == (5, 5)
    assert read_log(store) == make_entries(1, 5)
    assert reopen(disk.copy()) == make_entries(1, 5), "the failed append does not come back"
    store.sync()
    disk.faults.remove(fault)
    new = make_entries(6, 9, term=2, size=40)  # as long as those that failed: nothing old may follow on them
    store.append(new[:2])
    for after in disk.power_loss_choices(seed=3):
        found = reopen(after)
        assert found == (make_entries(1, 5) + new)[: len(found)]
    store.append(new[2:])
    store.sync()
    assert read_log(store) == make_entries(1, 5) + new
    for after in disk.power_loss_choices(seed=3):
        assert reopen(after) == make_entries(1, 5) + new


@pytest.mark.parametrize("call", ["create", "pwrite", "fdatasync", "fsync", "rename"])
def test_a_disk_too_full_for_a_new_segment_leaves_the_log_as_it_was(call: str) -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300)
    store.append(make_entries(1, 3))
    before = read_log(store)
    # Renames are noted under the new name, everything else under the temporary one.
    fault = disk.fail(call, errno.ENOSPC, name="log-" if call == "rename" else "prealloc-", skip=1)
    with pytest.raises(DiskFullError):
        store.append(make_entries(4, 60))  # several new segments: the first can be made
    assert read_log(store) == before
    assert not [name for name in disk.calls if name == "unlink log-0000000000000001.seg"]
    assert reopen(disk.copy()) == before
    disk.faults.remove(fault)
    store.append(make_entries(4, 60))
    store.sync()
    for after in disk.power_loss_choices(seed=4):
        assert reopen(after) == make_entries(1, 60)


def test_a_full_disk_at_the_very_first_append() -> None:
    disk = make_disk()
    store = open_store(disk)
    fault = disk.fail("pwrite", errno.ENOSPC)
    with pytest.raises(DiskFullError):
        store.append(make_entries(1, 3))
    assert store.last_index == 0
    disk.faults.remove(fault)
    fault = disk.fail("pwrite", errno.ENOSPC, name="log-", written=50)
    with pytest.raises(DiskFullError):
        store.append(make_entries(1, 3))
    disk.faults.remove(fault)
    store.append(make_entries(1, 3))
    store.sync()
    for after in disk.power_loss_choices(seed=5):
        assert reopen(after) == make_entries(1, 3)


def test_a_failed_fsync_is_never_tried_again() -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 3))
    store.sync()
    store.append(make_entries(4, 6))
    disk.fail("fdatasync", errno.EIO, times=1)  # the next one would succeed, and lie
    with pytest.raises(StorageError, match="fsync failed") as caught:
        store.sync()
    assert str(segment_path(1)) in str(caught.value)
    assert store.durable_index == 3
    calls = list(disk.calls)
    for _ in range(2):
        with pytest.raises(StorageError, match="fsync failed"):
            store.sync()
        with pytest.raises(StorageError, match="fsync failed"):
            store.append(make_entries(7, 7))
        with pytest.raises(StorageError, match="fsync failed"):
            store.truncate_suffix(5)
    store.close()
    assert disk.calls == calls, "nothing touches the disk any more"


def test_a_full_disk_reported_by_fsync_is_fatal() -> None:
    """Delayed allocation: the bytes were taken and are lost now, so this is no longer a clean refusal."""
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 3))
    disk.fail("fdatasync", errno.ENOSPC, times=1)
    with pytest.raises(StorageError):
        store.sync()
    with pytest.raises(StorageError):
        store.sync()


def test_the_start_after_a_failed_fsync_does_not_trust_the_page_cache() -> None:
    """The cache still has the records and calls them clean: an fsync alone would not write them."""
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 3))
    store.sync()
    store.append(make_entries(4, 6))
    disk.fail("fdatasync", errno.EIO, times=1)
    with pytest.raises(StorageError):
        store.sync()
    again = open_store(disk)  # the machine stayed on
    assert again.durable_index == 6
    for after in disk.power_loss_choices(seed=6):
        assert reopen(after) == make_entries(1, 6)


@pytest.mark.parametrize(
    ("call", "name"), [("pwrite", "log-"), ("pwrite", "prealloc"), ("fsync_dir", ""), ("rename", "")]
)
def test_any_other_error_of_an_append_kills_the_store(call: str, name: str) -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300)
    store.append(make_entries(1, 3))
    store.sync()
    disk.fail(call, errno.EIO, name=name, times=1)
    with pytest.raises(StorageError, match="/data/log-"):
        store.append(make_entries(4, 30))
    for operation in (store.sync, lambda: store.append(make_entries(4, 4)), lambda: store.truncate_suffix(2)):
        with pytest.raises(StorageError):
            operation()
    assert store.durable_index == 3
    assert store.entries(1, 4, 1 << 20) == tuple(make_entries(1, 3)), "reading goes on"


@pytest.mark.parametrize("call", ["truncate", "fsync", "unlink", "fsync_dir"])
def test_an_error_of_a_truncation_kills_the_store(call: str) -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=300)
    store.append(make_entries(1, 30))
    store.sync()
    disk.fail(call, errno.EIO, times=1)
    with pytest.raises(StorageError, match="/data/log-"):
        store.truncate_suffix(2)
    with pytest.raises(StorageError):
        store.append(make_entries(31, 31))


def test_a_full_disk_that_cannot_even_be_tidied_up_is_fatal() -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 3))
    disk.fail("pwrite", errno.ENOSPC, written=70)
    disk.fail("truncate", errno.EIO)
    with pytest.raises(StorageError, match="cannot cut"):
        store.append(make_entries(4, 9))
    with pytest.raises(StorageError, match="cannot cut"):
        store.sync()


@pytest.mark.parametrize("call", ["open", "pread", "fsync_dir", "pwrite", "fdatasync"])
def test_an_error_while_opening_names_the_place(call: str) -> None:
    disk = make_disk()
    store = open_store(disk)
    store.append(make_entries(1, 3))
    store.close()
    disk.fail(call, errno.EIO)
    with pytest.raises(StorageError, match="/data"):
        open_store(disk)
    disk.faults.clear()
    assert disk.open_files == []
    assert reopen(disk) == make_entries(1, 3)


def test_an_error_while_reading_names_the_file() -> None:
    disk = make_disk()
    store = open_store(disk, cache_bytes=0)
    store.append(make_entries(1, 3))
    disk.fail("pread", errno.EIO)
    with pytest.raises(StorageError, match=str(segment_path(1))) as caught:
        store.entries(1, 3, 100)
    assert not isinstance(caught.value, CorruptLogError)
