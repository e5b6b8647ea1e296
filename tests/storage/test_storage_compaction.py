"""The log behind a snapshot: what may go, what must stay, what a crash leaves (bugs 23, 24, 40)."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Callable

import pytest
from faulty_disk import FaultyDisk, PowerLoss
from storage_helpers import (
    DIRECTORY,
    make_disk,
    make_entries,
    open_store,
    read_log,
    segment_path,
    take_snapshot,
)

from raft.core.effects import HardState
from raft.core.entry import Entry
from raft.core.invariants import InvariantViolation
from raft.storage.errors import CompactedError, CorruptLogError, CorruptSnapshotError, StorageError
from raft.storage.log_store import LogStore
from raft.storage.node_storage import NodeStorage

SMALL = 400  # bytes of a segment: about seven entries


def written(last: int = 40, term: int = 1, **options: object) -> tuple[FaultyDisk, LogStore, list[Entry]]:
    disk = make_disk()
    store = open_store(disk, segment_bytes=SMALL, **options)
    entries = make_entries(1, last, term)
    for entry in entries:
        store.append([entry])
        store.sync()
    return disk, store, entries


def segment_firsts(disk: FaultyDisk) -> list[int]:
    return sorted(int(name[4:-4]) for name in disk.listdir(DIRECTORY) if name.endswith(".seg"))


def test_whole_files_go_and_the_rest_stays_readable() -> None:
    disk, store, entries = written(cache_bytes=1000)
    firsts = segment_firsts(disk)
    assert len(firsts) > 4
    for upto in range(41):
        assert store.truncate_prefix(upto) is False
        kept = max(first for first in firsts if first <= upto + 1)
        assert segment_firsts(disk)[0] == store.first_index == kept
        assert read_log(store) == entries[kept - 1 :]
        assert store.term(kept - 1) == (1 if kept > 1 else 0)
    assert segment_firsts(disk) == firsts[-1:], "the file that is being written stays"
    new = make_entries(41, 60, 2)
    store.append(new)
    store.sync()
    assert read_log(store) == entries[firsts[-1] - 1 :] + new
    with pytest.raises(InvariantViolation, match="log ends at 60"):
        store.truncate_prefix(61)


def test_compacted_entries_are_a_typed_error_never_term_0() -> None:
    """Bug 24."""
    _, store, _ = written()
    store.truncate_prefix(20)
    first = store.first_index
    for index in range(first - 1):
        with pytest.raises(CompactedError, match=f"entry {index}: the log has {first} to 40"):
            store.term(index)
        with pytest.raises(CompactedError, match=f"the log has {first} to 40"):
            store.entries(index, first + 3, 1000)
    assert store.entries(first - 1, first - 1, 1000) == ()
    for index in (41, 1000):
        with pytest.raises(IndexError) as caught:
            store.term(index)
        assert not isinstance(caught.value, CompactedError)
    with pytest.raises(InvariantViolation):
        store.truncate_suffix(first - 1)


def test_at_most_so_many_files_at_a_time() -> None:
    disk, store, _ = written()
    count = len(segment_firsts(disk))
    for left in range(count - 1, 1, -1):
        assert store.truncate_prefix(40, max_files=1) is True
        assert len(segment_firsts(disk)) == left
    assert store.truncate_prefix(40, max_files=1) is False
    assert len(segment_firsts(disk)) == 1


def test_terms_survive_compaction() -> None:
    disk = make_disk()
    store = open_store(disk, segment_bytes=SMALL)
    entries = [make_entries(index, index, 1 + index // 5)[0] for index in range(1, 41)]
    store.append(entries)
    store.sync()
    store.truncate_prefix(23)
    first = store.first_index
    assert store.term(first - 1) == entries[first - 2].term
    assert read_log(store) == entries[first - 1 :]
    store.truncate_suffix(30)
    assert (store.last_index, store.term(29)) == (29, entries[28].term)
    store.truncate_suffix(first)
    assert (store.last_index, store.term(first - 1)) == (first - 1, entries[first - 2].term)
    store.append(make_entries(first, first + 3, 20))
    assert [each.term for each in read_log(store)] == [20] * 4


@pytest.mark.parametrize("snapshot", [20, 21, 27, 33, 40])
def test_opened_again_the_log_goes_on_from_the_snapshot(snapshot: int) -> None:
    disk, store, entries = written(term=3)
    store.truncate_prefix(min(snapshot, 25))
    firsts = segment_firsts(disk)
    store.close()
    again = open_store(disk, segment_bytes=SMALL, snapshot_index=snapshot, snapshot_term=3)
    # The first entry on disk only tells its own term: who stood before it is forgotten.
    assert again.first_index == firsts[0] + 1
    assert again.term(firsts[0]) == 3
    assert read_log(again) == entries[firsts[0] :]
    again.append(make_entries(41, 50, 4))
    again.sync()
    again.close()
    once_more = open_store(disk, segment_bytes=SMALL, snapshot_index=snapshot, snapshot_term=3)
    assert read_log(once_more) == entries[firsts[0] :] + make_entries(41, 50, 4)


def test_a_log_that_begins_right_behind_the_snapshot_has_the_snapshots_term() -> None:
    disk, store, _ = written()
    store.reset(100, 7)
    assert (store.first_index, store.last_index, store.durable_index, store.term(100)) == (101, 100, 100, 7)
    assert segment_firsts(disk) == []
    assert store.entries(101, 101, 10) == ()
    with pytest.raises(CompactedError):
        store.entries(100, 101, 10)
    new = make_entries(101, 130, 7)
    store.append(new[:2])
    store.sync()
    store.append(new[2:])
    store.sync()
    assert read_log(store) == new
    store.close()
    again = open_store(disk, segment_bytes=SMALL, snapshot_index=100, snapshot_term=7)
    assert (again.first_index, again.term(100)) == (101, 7)
    assert read_log(again) == new
    again.truncate_suffix(101)
    assert (again.last_index, again.term(100)) == (100, 7)


def test_the_log_must_not_go_on_with_a_lower_term_than_the_snapshots() -> None:
    _, store, _ = written()
    store.reset(100, 7)
    with pytest.raises(InvariantViolation):
        store.append(make_entries(101, 101, 6))
    with pytest.raises(InvariantViolation):
        store.append(make_entries(41, 41, 7))


def test_an_emptied_log_stays_empty_when_opened_again() -> None:
    disk, store, _ = written()
    store.reset(100, 7)
    store.close()
    again = open_store(disk, segment_bytes=SMALL, snapshot_index=100, snapshot_term=7)
    assert (again.first_index, again.last_index, again.term(100)) == (101, 100, 7)
    assert read_log(again) == []


def test_a_reset_may_go_back_over_entries_that_were_never_committed() -> None:
    disk, store, _ = written()
    store.reset(30, 2)
    assert (store.first_index, store.last_index, store.durable_index) == (31, 30, 30)
    store.append(make_entries(31, 33, 2))
    store.sync()
    store.close()
    again = open_store(disk, snapshot_index=30, snapshot_term=2)
    assert read_log(again) == make_entries(31, 33, 2)


def test_a_log_entirely_older_than_the_snapshot_is_emptied(caplog: pytest.LogCaptureFixture) -> None:
    """A crash between putting a received snapshot in place and reset()."""
    disk, store, _ = written()
    store.close()
    with caplog.at_level(logging.WARNING):
        again = open_store(disk, snapshot_index=41, snapshot_term=2)
    assert "replaced by the snapshot of entry 41" in caplog.text
    assert (again.first_index, again.last_index, again.term(41)) == (42, 41, 2)
    assert segment_firsts(disk) == []


def test_a_log_that_contradicts_the_snapshot_is_emptied(caplog: pytest.LogCaptureFixture) -> None:
    """Its entry there was never committed: the same crash."""
    disk, store, _ = written()
    store.close()
    with caplog.at_level(logging.WARNING):
        again = open_store(disk, snapshot_index=30, snapshot_term=2)
    assert "differs there" in caplog.text
    assert (again.first_index, again.last_index) == (31, 30)
    assert segment_firsts(disk) == []


@pytest.mark.parametrize("snapshot", [40, 35])
def test_a_log_that_agrees_with_the_snapshot_is_kept_whole(snapshot: int) -> None:
    disk, store, entries = written()
    store.close()
    again = open_store(disk, snapshot_index=snapshot, snapshot_term=1)
    assert again.first_index == 1
    assert read_log(again) == entries


@pytest.mark.parametrize("behind", [1, 5])
def test_a_gap_between_snapshot_and_log_is_refused(behind: int) -> None:
    disk, store, _ = written()
    store.truncate_prefix(30)
    first = segment_firsts(disk)[0]
    store.close()
    snapshot = first - 1 - behind
    missing = rf"entries {snapshot + 1} to {first - 1} are missing.*snapshot ends at {snapshot}"
    with pytest.raises(CorruptLogError, match=missing) as caught:
        open_store(disk, snapshot_index=snapshot, snapshot_term=1)
    assert caught.value.file == segment_path(first)
    assert segment_firsts(disk)[0] == first


def test_a_failed_removal_kills_the_store() -> None:
    for call in ("unlink", "fsync_dir"):
        for change in (lambda store: store.truncate_prefix(40), lambda store: store.reset(99, 1)):
            disk, store, _ = written()
            disk.fail(call, errno.EIO)
            with pytest.raises(StorageError):
                change(store)
            disk.faults.clear()
            for dead in (store.sync, lambda: store.truncate_prefix(40), lambda: store.reset(99, 1)):  # noqa: B023
                with pytest.raises(StorageError):
                    dead()


# --- power loss


class Life:
    """A store's life with snapshots. snapshot: (index, term) that is durable; promised: entries that must be
    there behind it; written: all that may be there."""

    def __init__(self, disk: FaultyDisk) -> None:
        self.store = open_store(disk, segment_bytes=256)
        self.snapshot = (0, 0)
        self.written: dict[int, Entry] = {}
        self.promised = 0

    def append(self, count: int, term: int) -> None:
        first = self.store.last_index + 1
        entries = make_entries(first, first + count - 1, term)
        self.written = {index: each for index, each in self.written.items() if index < first}
        self.written |= {entry.index: entry for entry in entries}
        self.store.append(entries)

    def sync(self) -> None:
        self.store.sync()
        self.promised = self.store.last_index

    def compact(self, snapshot: int, upto: int) -> None:
        self.snapshot = (snapshot, self.store.term(snapshot))
        self.store.truncate_prefix(upto)

    def install(self, index: int, term: int) -> None:
        """The snapshot is durable from here on; the log may still be the old one."""
        self.snapshot = (index, term)
        kept = self.written.get(index)
        if kept is None or kept.term != term:
            self.written = {}
            self.promised = index
        self.store.reset(index, term)


def compaction(life: Life) -> None:
    life.append(12, 1)
    life.sync()
    life.compact(9, 6)
    life.append(8, 2)
    life.sync()
    life.append(3, 2)
    life.compact(20, 20)
    life.append(2, 3)
    life.sync()


def install_over_an_older_log(life: Life) -> None:
    life.append(14, 1)
    life.sync()
    life.install(50, 2)
    life.append(9, 2)
    life.sync()
    life.compact(55, 55)


def install_over_a_conflicting_log(life: Life) -> None:
    life.append(20, 1)
    life.sync()
    life.install(8, 2)
    life.append(3, 2)
    life.sync()
    life.install(30, 4)
    life.append(1, 5)
    life.sync()


@pytest.mark.parametrize("sector", [32, 4096])
@pytest.mark.parametrize("scenario", [compaction, install_over_an_older_log, install_over_a_conflicting_log])
def test_power_loss_at_every_operation(scenario: Callable[[Life], None], sector: int) -> None:
    rng = random.Random(sector)
    for point in range(1000):
        disk = make_disk(sector)
        life = Life(disk)
        disk.power_fails_at = len(disk.calls) + point
        try:
            scenario(life)
            finished = True
        except PowerLoss:
            finished = False
        for after in disk.power_loss_choices(seed=point, limit=6):
            check_and_go_on(after, life, rng)
        if finished:
            assert point > 20
            return
    pytest.fail("the scenario never came to its end")


def check_and_go_on(disk: FaultyDisk, life: Life, rng: random.Random) -> None:
    index, term = life.snapshot
    options = {"segment_bytes": 256, "snapshot_index": index, "snapshot_term": term}
    again = disk.copy()
    again.power_fails_at = rng.randrange(6)
    try:
        open_store(again, **options)
    except PowerLoss:
        again = again.after_power_loss(lambda _: rng.random() < 0.5)
    again.power_fails_at = None
    for start in (disk, again):
        store = open_store(start, **options)
        found = read_log(store)
        assert store.first_index <= index + 1, "the snapshot and the log have no gap between them"
        assert store.term(index) == term
        assert found == [life.written[entry.index] for entry in found]
        assert store.last_index >= max(index, life.promised)
        new = make_entries(store.last_index + 1, store.last_index + 3, 99)
        store.append(new)
        store.sync()
        for later in start.power_loss_choices(seed=1, limit=2):
            reread = read_log(open_store(later, **options))
            assert reread == found + new


# --- together with the snapshot store


def open_node(disk: FaultyDisk) -> NodeStorage:
    return NodeStorage.open(DIRECTORY, "test", 1, disk=disk, segment_bytes=SMALL, prepare_ahead=False)


def node_with(last: int, term: int = 1) -> tuple[FaultyDisk, NodeStorage]:
    disk = make_disk()
    node = open_node(disk)
    node.save_hard_state(HardState(9, None))
    node.log.append(make_entries(1, last, term))
    node.log.sync()
    return disk, node


def test_a_node_starts_from_its_snapshot() -> None:
    disk, node = node_with(40)
    take_snapshot(node.snapshots, 30)
    node.log.truncate_prefix(25)
    node.close()
    again = open_node(disk)
    latest = again.snapshots.latest()
    assert latest is not None
    assert latest.index == 30
    assert again.log.first_index <= 26
    assert again.log.last_index == 40
    again.close()
    assert disk.open_files == []


def test_a_node_falls_back_to_the_snapshot_before_and_a_longer_log() -> None:
    disk, node = node_with(40)
    take_snapshot(node.snapshots, 20)
    take_snapshot(node.snapshots, 30)
    node.log.truncate_prefix(20)
    node.close()
    path = DIRECTORY / "snapshot-0000000000000030.snap"
    content = disk.file(path)
    disk.put(path, content[:-1])
    again = open_node(disk)
    latest = again.snapshots.latest()
    assert latest is not None
    assert latest.index == 20
    assert again.log.first_index <= 21
    again.close()
    disk.put(path, content)
    node = open_node(disk)
    node.log.truncate_prefix(30)
    node.close()
    disk.put(path, content[:-1])
    with pytest.raises(CorruptSnapshotError, match="the log begins at entry"):
        open_node(disk)
    assert disk.open_files == []


def test_a_node_does_not_forget_what_a_damaged_installed_snapshot_had() -> None:
    """The log goes back far enough but ends before the snapshot: entries in between were acknowledged."""
    disk, node = node_with(40)
    take_snapshot(node.snapshots, 100)
    node.close()  # no reset(): a crash
    path = DIRECTORY / "snapshot-0000000000000100.snap"
    disk.put(path, disk.file(path)[:-1])
    with pytest.raises(CorruptSnapshotError, match="the log ends at 40, before it"):
        open_node(disk)
    assert disk.open_files == []
    assert segment_firsts(disk)[0] == 1


def test_a_lost_hard_state_is_noticed_by_the_snapshots_term() -> None:
    disk, node = node_with(10)
    take_snapshot(node.snapshots, 100, term=5)
    node.log.reset(100, 5)
    node.close()
    disk.drop(DIRECTORY / "hard-state")
    with pytest.raises(StorageError, match="hard-state"):
        open_node(disk)


def test_a_directory_with_only_a_snapshot_and_no_identity_is_refused() -> None:
    disk, node = node_with(10)
    take_snapshot(node.snapshots, 5)
    node.close()
    for name in disk.listdir(DIRECTORY):
        if not name.startswith("snapshot-"):
            disk.drop(DIRECTORY / name)
    with pytest.raises(StorageError, match=r"has data \(snapshot-"):
        open_node(disk)
