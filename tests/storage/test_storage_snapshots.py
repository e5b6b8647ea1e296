"""Snapshots on disk: format, damage, crashes, receiving (bugs 43, 44, 58)."""

from __future__ import annotations

import errno
import logging
import random
import struct
from collections.abc import Callable

import google_crc32c
import pytest
from faulty_disk import FaultyDisk, PowerLoss
from storage_helpers import (
    DIRECTORY,
    check_snapshot,
    make_chunks,
    make_disk,
    make_entries,
    open_snapshots,
    open_store,
    snapshot_path,
    take_snapshot,
)

from raft.core.invariants import InvariantViolation
from raft.storage.errors import (
    CorruptSnapshotError,
    DiskFullError,
    FormatVersionError,
    IdentityError,
    SnapshotRefusedError,
    StorageError,
)
from raft.storage.snapshot_files import SYNC_BYTES
from raft.storage.snapshot_format import MAX_CHUNK
from raft.storage.snapshots import SnapshotInfo, SnapshotReceiver, SnapshotStore


def with_snapshots(*indexes: int) -> FaultyDisk:
    disk = make_disk()
    store = open_snapshots(disk)
    for index in indexes:
        take_snapshot(store, index)
    return disk


def raw(index: int, cluster: str = "test", term: int = 1) -> bytes:
    """The file of a snapshot as a leader would send it."""
    disk = make_disk()
    take_snapshot(open_snapshots(disk, cluster), index, term)
    return disk.file(snapshot_path(index))


def snapshot_files(disk: FaultyDisk) -> list[str]:
    return sorted(name for name in disk.listdir(DIRECTORY) if name.startswith("snapshot-"))


def test_what_was_written_is_read_again() -> None:
    disk = make_disk()
    store = open_snapshots(disk)
    assert store.latest() is None
    check_snapshot(store, None)
    info = take_snapshot(store, 7, term=3)
    assert info.bytes == len(disk.file(info.path))
    for again in (store, open_snapshots(disk)):
        check_snapshot(again, 7, term=3)
        assert again.latest() == info
    assert [name for name in disk.open_files if name != "lock"] == []


@pytest.mark.parametrize("count", [0, 1, 50])
def test_any_number_of_chunks(count: int) -> None:
    disk = make_disk()
    take_snapshot(open_snapshots(disk), 9, count=count)
    check_snapshot(open_snapshots(disk), 9, count=count)


@pytest.mark.parametrize("size", [0, MAX_CHUNK + 1])
def test_a_chunk_of_an_impossible_size_is_refused(size: int) -> None:
    writer = open_snapshots(make_disk()).writer(1, 1, b"")
    with pytest.raises(ValueError, match=f"{size} bytes"):
        writer.write(bytes(size))


def test_a_large_snapshot_is_synced_in_steps() -> None:
    """One fsync of everything at the end would make the log's own fsyncs wait behind it."""
    disk = make_disk(sector=1 << 20)
    writer = open_snapshots(disk).writer(1, 1, b"")
    for _ in range(3 * SYNC_BYTES // MAX_CHUNK + 1):
        writer.write(bytes(MAX_CHUNK))
    assert sum(call.startswith("fdatasync snapshot-") for call in disk.calls) == 3
    writer.commit()
    assert open_snapshots(disk).latest() is not None


# --- damage


def test_every_cut_and_every_flipped_byte_of_the_only_snapshot_is_refused() -> None:
    disk = with_snapshots(9)
    content = disk.file(snapshot_path(9))
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        for damaged in (content[:at], bytes(flipped)):
            disk.put(snapshot_path(9), damaged)
            with pytest.raises((CorruptSnapshotError, FormatVersionError)) as caught:
                open_snapshots(disk)
            assert snapshot_path(9).name in str(caught.value)
            assert disk.file(snapshot_path(9)) == damaged, "a damaged file is left as it is"
    disk.put(snapshot_path(9), content + b"\0")
    with pytest.raises(CorruptSnapshotError, match="behind the end"):
        open_snapshots(disk)
    disk.put(snapshot_path(9), content)
    check_snapshot(open_snapshots(disk), 9)


def test_chunks_that_are_swapped_doubled_or_missing_are_noticed() -> None:
    """Each chunk by itself is sound."""
    disk = with_snapshots(9)
    content = disk.file(snapshot_path(9))
    size = 8 + len(make_chunks(9)[0])
    start = len(content) - 32 - 3 * size
    one, two, three = (content[start + n * size : start + (n + 1) * size] for n in range(3))
    head, foot = content[:start], content[-32:]
    assert head + one + two + three + foot == content
    for body in (two + one + three, one + two + two + three, one + three, one + two, b""):
        disk.put(snapshot_path(9), head + body + foot)
        with pytest.raises(CorruptSnapshotError, match="footer"):
            open_snapshots(disk)


def test_damage_found_while_loading_is_told() -> None:
    disk = with_snapshots(9)
    store = open_snapshots(disk)
    info = store.latest()
    assert info is not None
    disk.names[snapshot_path(9)].content[info.bytes // 2] ^= 1
    with pytest.raises(CorruptSnapshotError, match="checksum"):
        list(store.open_chunks(info))


def version_2(content: bytes) -> bytes:
    blob = content[:8] + struct.pack("<I", 2) + bytes(4) + content[16:]
    cluster, configuration = struct.unpack_from("<II", content, 32)
    end = 40 + cluster + configuration
    crc = google_crc32c.value(blob[:12] + blob[16:end])
    return blob[:12] + struct.pack("<I", crc) + blob[16:]


def test_another_format_version_is_refused_naming_both() -> None:
    disk = with_snapshots(5, 9)
    disk.put(snapshot_path(9), version_2(disk.file(snapshot_path(9))))
    with pytest.raises(FormatVersionError, match=r"format version 2, this program reads version 1"):
        open_snapshots(disk)


def test_another_clusters_snapshot_is_refused() -> None:
    disk = with_snapshots(9)
    with pytest.raises(IdentityError, match=r"'test'.*'other'"):
        open_snapshots(disk, "other")


def test_a_snapshot_under_another_name_is_refused() -> None:
    disk = make_disk()
    disk.put(snapshot_path(9), raw(8))
    with pytest.raises(CorruptSnapshotError, match="covers entry 8"):
        open_snapshots(disk)


# --- falling back


def with_log(disk: FaultyDisk, first: int, last: int) -> None:
    store = open_store(disk, snapshot_index=first - 1, snapshot_term=1)
    store.append(make_entries(first, last))
    store.sync()
    store.close()


def damage(disk: FaultyDisk, index: int) -> None:
    content = bytearray(disk.file(snapshot_path(index)))
    content[len(content) // 2] ^= 8
    disk.put(snapshot_path(index), bytes(content))


@pytest.mark.parametrize(("first", "older"), [(1, 5), (6, 5), (3, 5), (1, None)])
def test_a_damaged_newest_is_replaced_by_the_one_before_and_the_log(
    first: int, older: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    disk = with_snapshots(*([older] if older else []), 9)
    damage(disk, 9)
    with_log(disk, first, 12)
    with caplog.at_level(logging.ERROR):
        store = open_snapshots(disk)
    check_snapshot(store, older)
    assert snapshot_path(9).name in caplog.text
    store.check_log(12)
    store.check_log(9)
    with pytest.raises(CorruptSnapshotError, match="ends at 8, before it"):
        store.check_log(8)


@pytest.mark.parametrize(("first", "older"), [(7, 5), (10, 5), (None, 5), (2, None), (None, None)])
def test_a_damaged_newest_is_fatal_when_the_log_does_not_reach_back(
    first: int | None, older: int | None
) -> None:
    disk = with_snapshots(*([older] if older else []), 9)
    damage(disk, 9)
    if first is not None:
        with_log(disk, first, 12)
    with pytest.raises(CorruptSnapshotError) as caught:
        open_snapshots(disk)
    assert caught.value.file == snapshot_path(9)
    assert "no log" in str(caught.value) if first is None else f"begins at entry {first}" in str(caught.value)


def test_a_damaged_snapshot_is_replaced_by_the_next_of_the_same_entry_and_is_not_kept() -> None:
    disk = with_snapshots(5, 9)
    damage(disk, 9)
    with_log(disk, 1, 12)
    store = open_snapshots(disk)
    take_snapshot(store, 11)
    store.prune()
    assert snapshot_files(disk) == [snapshot_path(5).name, snapshot_path(11).name]
    damage(disk, 11)
    again = open_snapshots(disk)
    take_snapshot(again, 11)
    check_snapshot(open_snapshots(disk), 11)


# --- keeping


def test_the_last_two_are_kept() -> None:
    disk = make_disk()
    store = open_snapshots(disk)
    for index in (3, 5, 9, 12):
        take_snapshot(store, index)
        store.prune()
    assert snapshot_files(disk) == [snapshot_path(9).name, snapshot_path(12).name]
    check_snapshot(store, 12)
    store.prune(keep=1)
    assert snapshot_files(disk) == [snapshot_path(12).name]


def test_leftovers_of_unfinished_snapshots_are_removed() -> None:
    disk = with_snapshots(9)
    store = open_snapshots(disk)
    store.writer(12, 1, b"").write(b"half")
    store.receive(13, 1).write(0, raw(13)[:100])
    assert len(snapshot_files(disk)) == 3
    store.discard_unfinished()
    assert snapshot_files(disk) == [snapshot_path(9).name, "snapshot-0000000000000013.incoming.tmp"]
    check_snapshot(open_snapshots(disk), 9)
    assert snapshot_files(disk) == [snapshot_path(9).name]


def test_a_snapshot_that_is_not_newer_changes_nothing() -> None:
    disk = with_snapshots(5, 9)
    store = open_snapshots(disk)
    before = disk.file(snapshot_path(9))
    for index in (5, 7, 9):
        info = take_snapshot(store, index, count=7)
        assert info.index == 9
    assert disk.file(snapshot_path(9)) == before
    assert snapshot_files(disk) == [snapshot_path(5).name, snapshot_path(9).name]
    with pytest.raises(InvariantViolation, match="term"):
        take_snapshot(store, 9, term=2)


def test_aborted_snapshots_leave_nothing() -> None:
    disk = with_snapshots(5)
    store = open_snapshots(disk)
    writer = store.writer(9, 1, b"")
    writer.write(b"half")
    writer.abort()
    writer.abort()
    with pytest.raises(StorageError, match="given up"):
        writer.write(b"more")
    assert snapshot_files(disk) == [snapshot_path(5).name]
    assert disk.open_files == []


def test_a_child_finishes_a_snapshot_and_the_worker_adopts_it() -> None:
    disk = with_snapshots(5)
    worker, child = open_snapshots(disk), open_snapshots(disk)
    take_snapshot(child, 9)
    check_snapshot(worker, 5)
    assert worker.adopt(9).index == 9
    check_snapshot(worker, 9)
    assert worker.adopt(7).index == 9
    with pytest.raises(StorageError, match="snapshot-0000000000000012"):
        worker.adopt(12)


def test_adopting_a_cut_file_is_refused() -> None:
    disk = with_snapshots(5, 9)
    content = disk.file(snapshot_path(9))
    for end in (0, 10, 39, 60, len(content) - 1):
        disk.drop(snapshot_path(9))
        store = open_snapshots(disk)
        disk.put(snapshot_path(9), content[:end])
        with pytest.raises(CorruptSnapshotError):
            store.adopt(9)
        check_snapshot(store, 5)


# --- full and failing disks


@pytest.mark.parametrize("call", ["create", "pwrite", "fsync", "rename"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("incoming", [False, True])
def test_a_write_error_leaves_the_one_before(call: str, error: int, incoming: bool) -> None:
    disk = with_snapshots(5)
    store = open_snapshots(disk)
    fault = disk.fail(call, error, name="snapshot-")

    def make() -> None:
        if incoming:
            receiver = store.receive(9, 1)
            receiver.write(0, raw(9))
            receiver.finish()
        else:
            take_snapshot(store, 9)

    with pytest.raises(DiskFullError if error == errno.ENOSPC else StorageError):
        make()
    disk.faults.remove(fault)
    assert snapshot_files(disk) == [snapshot_path(5).name]
    assert disk.open_files == []
    check_snapshot(store, 5)
    make()  # there is space again
    check_snapshot(open_snapshots(disk), 9)


@pytest.mark.parametrize("written", [0, 1, 100])
def test_a_short_write_is_a_full_disk(written: int) -> None:
    disk = with_snapshots(5)
    store = open_snapshots(disk)
    disk.fail("pwrite", 0, name="snapshot-", written=written, short=True, skip=1, times=1)
    with pytest.raises(DiskFullError):
        take_snapshot(store, 9)
    check_snapshot(open_snapshots(disk), 5)


def test_a_failed_directory_fsync_is_fatal() -> None:
    disk = with_snapshots(5)
    store = open_snapshots(disk)
    disk.fail("fsync_dir", errno.EIO)
    with pytest.raises(StorageError, match="directory"):
        take_snapshot(store, 9)


# --- power loss


def take_three(disk: FaultyDisk, note: Callable[[int], None]) -> None:
    store = open_snapshots(disk)
    for index in (5, 9, 12):
        take_snapshot(store, index)
        note(index)
        store.prune()


def receive_two(disk: FaultyDisk, note: Callable[[int], None]) -> None:
    store = open_snapshots(disk)
    for index in (5, 9):
        data = raw(index)
        receiver = store.receive(index, 1)
        for offset in range(0, len(data), 150):
            receiver.write(offset, data[offset : offset + 150])
        receiver.finish()
        note(index)
    store.prune(keep=1)


@pytest.mark.parametrize("sector", [64, 4096])
@pytest.mark.parametrize("scenario", [take_three, receive_two])
def test_power_loss_at_every_operation_leaves_a_whole_snapshot(
    scenario: Callable[[FaultyDisk, Callable[[int], None]], None], sector: int
) -> None:
    """Bug 44. What was promised or a newer one; never a file that does not load."""
    following = {0: 5, 5: 9, 9: 12, 12: 12}
    rng = random.Random(sector)
    for point in range(500):
        disk = make_disk(sector)
        disk.power_fails_at = point
        promised = [0]
        try:
            scenario(disk, promised.append)
            finished = True
        except PowerLoss:
            finished = False
        for after in disk.power_loss_choices(seed=point, limit=12):
            again = after.copy()
            again.power_fails_at = rng.randrange(4)
            try:
                open_snapshots(again)
            except PowerLoss:
                again = again.after_power_loss(lambda _: rng.random() < 0.5)
            for start in (after, again):
                start.power_fails_at = None
                store = open_snapshots(start)
                info = store.latest()
                found = 0 if info is None else info.index
                assert found in (promised[-1], following[promised[-1]])
                check_snapshot(store, found or None)
                assert not [name for name in start.listdir(DIRECTORY) if name.endswith(".tmp")]
                take_snapshot(store, 20)
                for later in start.power_loss_choices(seed=1, limit=4):
                    check_snapshot(open_snapshots(later), 20)
        if finished:
            return
    pytest.fail("the scenario never came to its end")


# --- receiving


def feed(receiver: SnapshotReceiver, data: bytes, step: int) -> SnapshotInfo:
    offset = 0
    while offset < len(data):
        assert not receiver.complete
        offset = receiver.write(offset, data[offset : offset + step])
    assert receiver.complete
    return receiver.finish()


@pytest.mark.parametrize("step", [1, 7, 100, 1 << 20])
def test_a_streamed_snapshot_equals_the_senders(step: int) -> None:
    sender_disk, disk = with_snapshots(5, 9), make_disk()
    sender, store = open_snapshots(sender_disk), open_snapshots(disk)
    info = sender.latest()
    assert info is not None
    receiver = store.receive(9, 1)
    while not receiver.complete:
        receiver.write(receiver.received, sender.read_at(info, receiver.received, step))
    assert receiver.finish().bytes == info.bytes
    assert sender.read_at(info, info.bytes, 10) == b""
    assert disk.file(snapshot_path(9)) == sender_disk.file(snapshot_path(9))
    check_snapshot(store, 9)
    check_snapshot(open_snapshots(disk), 9)


def test_a_snapshot_that_is_being_sent_outlives_its_pruning() -> None:
    disk = with_snapshots(9)
    store = open_snapshots(disk)
    info = store.latest()
    assert info is not None
    content = store.read_at(info, 0, 100)
    for index in (20, 30):
        take_snapshot(store, index)
        store.prune()
    assert snapshot_path(9).name not in snapshot_files(disk)
    while data := store.read_at(info, len(content), 100):
        content += data
    assert content == raw(9)
    store.release(info)
    store.release(info)
    assert disk.open_files == []


def test_pieces_that_come_twice_or_too_early_do_no_harm() -> None:
    """Bug 43, within one install: the network repeats and reorders."""
    disk, data = make_disk(), raw(9)
    store = open_snapshots(disk)
    receiver = store.receive(9, 1)
    rng = random.Random(4)
    pieces = [(at, data[at : at + 64]) for at in range(0, len(data), 40)]  # they overlap as well
    while not receiver.complete:
        offset, piece = rng.choice(pieces)
        before = receiver.received
        after = receiver.write(offset, piece)
        assert after == receiver.received == max(before, offset + len(piece) if offset <= before else before)
    receiver.finish()
    check_snapshot(open_snapshots(disk), 9)


def test_the_same_snapshot_installed_again_changes_nothing() -> None:
    """Bug 43: a duplicate install must not disable the follower."""
    disk = with_snapshots(5)
    store = open_snapshots(disk)
    for _ in range(3):
        assert feed(store.receive(9, 1), raw(9), 100).index == 9
        check_snapshot(store, 9)
    assert feed(store.receive(5, 1), raw(5), 100).index == 9, "an older one neither"
    check_snapshot(open_snapshots(disk), 9)
    assert disk.open_files == []
    assert snapshot_files(disk) == [snapshot_path(5).name, snapshot_path(9).name]


@pytest.mark.parametrize("done", [0, 1, 50, 300])
def test_an_install_that_is_given_up_is_begun_afresh(done: int) -> None:
    disk = make_disk()
    store = open_snapshots(disk)
    first = store.receive(9, 1)
    first.write(0, raw(9)[:done])
    second = store.receive(9, 1)  # without abort: the leader began again
    assert second.received == 0
    with pytest.raises(StorageError, match="given up"):
        first.write(done, raw(9)[done:])
    feed(second, raw(9), 33)
    check_snapshot(store, 9)
    third = store.receive(20, 1)
    third.write(0, raw(20)[:done])
    third.abort()
    third.abort()
    assert disk.open_files == []
    assert snapshot_files(disk) == [snapshot_path(9).name]


def test_every_damaged_byte_and_every_early_end_is_refused_before_the_rename() -> None:
    """Bug 58: what was refused leaves nothing behind, and the next install works."""
    data = raw(9)
    disk = with_snapshots(5)
    store = open_snapshots(disk)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(SnapshotRefusedError, match="entry 9"):
            receiver = store.receive(9, 1)
            for offset in range(0, len(data), 64):
                receiver.write(offset, bytes(flipped)[offset : offset + 64])
            receiver.finish()  # a length that grew waits for more, which never comes
        early = store.receive(9, 1)
        early.write(0, data[:at])
        assert not early.complete
        with pytest.raises(SnapshotRefusedError, match="before its end"):
            early.finish()
        assert snapshot_files(disk) == [snapshot_path(5).name]
    assert disk.open_files == []
    check_snapshot(store, 5)
    feed(store.receive(9, 1), data, 64)
    check_snapshot(store, 9)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(9, cluster="other"), "cluster 'other'"),
        (raw(8), "covers entry 8"),
        (raw(9, term=2), "term 2"),
        (version_2(raw(9)), "version 2"),
        (b"GET / HTTP/1.1\r\n", "wrong magic"),
        (raw(9) + b"x", "behind the end"),
        (b"SNSNAPSH" + b"\xff" * 100, "impossible lengths"),
    ],
)
def test_a_foreign_snapshot_is_refused(data: bytes, reason: str) -> None:
    disk = make_disk()
    store = open_snapshots(disk)
    with pytest.raises(SnapshotRefusedError, match=reason):
        feed(store.receive(9, 1), data, 1 << 20)
    assert snapshot_files(disk) == []
    assert store.latest() is None


def test_progress_is_told() -> None:
    disk = with_snapshots(9)
    told: list[tuple[int, int]] = []
    store = SnapshotStore.open(DIRECTORY, "test", disk=disk, on_progress=lambda *done: told.append(done))
    info = store.latest()
    assert info is not None
    assert told == [(info.bytes, info.bytes)]
