"""The simulated disks and their witness: a witness that sees nothing proves nothing."""

from __future__ import annotations

import errno
import random

import pytest

from raft.core.effects import AppendLog, HardState, ResetLog, TruncateLog
from raft.core.entry import Entry
from raft.storage.errors import CorruptLogError, DiskFullError, StorageError
from tests.core.lab import log_of, terms_of
from tests.simulation.checker import SafetyViolation
from tests.simulation.disk import NO_SNAPSHOT, Image, Snapshot
from tests.simulation.platter import DIRECTORY, Place, RetriedAfterFailureError
from tests.simulation.simulation import Simulation, is_read_race
from tests.simulation.stored import StorageOptions, StoredDisk
from tests.simulation.streaming import Library
from tests.simulation.witness import Found, Witness
from tests.storage.memory_disk import PowerLoss

NEVER_VOTED = HardState()


def opened(**options: int) -> StoredDisk:
    """A new disk whose process runs."""
    disk = StoredDisk(1, StorageOptions(**options), Library())
    disk.open()
    disk.write_hard_state(HardState(9, 1))
    return disk


def restarted(disk: StoredDisk, seed: int = 0, *, power_cut: bool = True) -> list[Entry]:
    """The log after a crash."""
    disk.crash(random.Random(seed), power_cut=power_cut)
    disk.open()
    return list(disk.log)


def at(name: str) -> Place:
    return Place(DIRECTORY) / name


# --- the witness


def told() -> Witness:
    """A witness of the synced entries 1.1 and 2.1, and of 3.2, which is not synced."""
    witness = Witness()
    for operation in (AppendLog(log_of(1, 1)), AppendLog(log_of(1, 1, 2)[2:])):
        witness.synced_now()
        witness.begin(operation)
        witness.ended(operation)
    return witness


def found(*terms: int, hard_state: HardState = NEVER_VOTED, snapshot: Snapshot = NO_SNAPSHOT) -> Found:
    return Found(hard_state, snapshot, 0, 0, log_of(*terms))


@pytest.mark.parametrize("terms", [(1, 1), (1, 1, 2)])
def test_what_was_not_synced_may_be_there_or_not_after_a_power_cut(terms: tuple[int, ...]) -> None:
    witness = told()
    witness.crash_under_way(power_cut=True)
    witness.compare(found(*terms))
    assert terms_of(witness.synced) == list(terms)


@pytest.mark.parametrize("terms", [(1,), (1, 2), (1, 1, 1), (1, 1, 2, 2), ()])
def test_nothing_else_may(terms: tuple[int, ...]) -> None:
    witness = told()
    witness.crash_under_way(power_cut=True)
    with pytest.raises(SafetyViolation, match="synced were 1 to 2"):
        witness.compare(found(*terms))


def test_a_crash_without_a_power_cut_costs_nothing() -> None:
    witness = told()
    witness.crash_under_way(power_cut=False)
    with pytest.raises(SafetyViolation, match="synced were"):
        witness.compare(found(1, 1))


def test_a_write_that_was_under_way_may_be_there_in_part() -> None:
    for terms in ((1, 1, 2), (1, 1, 2, 2), (1, 1, 2, 2, 2)):
        witness = told()
        witness.begin(AppendLog(log_of(1, 1, 2, 2, 2)[3:]))
        witness.compare(found(*terms))
    for operation in (TruncateLog(2), TruncateLog(3)):
        witness = told()
        witness.begin(operation)
        witness.compare(found(1, 1))


def test_term_and_vote_are_the_last_or_those_being_written() -> None:
    witness = Witness()
    witness.hard_state, witness.attempted_hard_state = HardState(3, 1), HardState(4)
    witness.compare(found(hard_state=HardState(4)))
    with pytest.raises(SafetyViolation, match="written was"):
        witness.compare(found(hard_state=HardState(3, 1)))


def test_a_snapshot_does_not_go_back_and_none_comes_from_nowhere() -> None:
    snapshot = Snapshot(2, 1, b"", tuple(log_of(1, 1)))
    witness = told()
    with pytest.raises(SafetyViolation, match="which nobody took"):
        witness.snapshot_is_newest(2)
    witness.candidates[2] = snapshot
    witness.snapshot_is_newest(2)
    with pytest.raises(SafetyViolation, match="the snapshot of 0"):
        witness.compare(found(1, 1, 2))


def test_a_log_that_goes_back_to_where_it_was_not_compacted_to_is_found() -> None:
    witness = told()
    with pytest.raises(SafetyViolation, match="entries up to 1 are gone"):
        witness.compacted(2)


@pytest.mark.parametrize(("terms", "fine"), [((1, 1, 1, 1), True), ((1, 2, 1, 1), False), ((1, 1, 1), False)])
def test_an_entry_that_could_not_be_used_comes_back_with_the_snapshot_before_it(
    terms: tuple[int, ...], fine: bool
) -> None:
    """Behind the snapshot of 3 entry 2 lies unused, for the term before it is unknown; that of 1 knows it."""
    older, newer = (Snapshot(index, 1, b"", (), b"") for index in (1, 3))
    witness = told()
    witness.log = Image(log_of(1, 1, 1, 1))
    witness.synced = Image(log_of(1, 1, 1, 1))
    witness.compactable = 1
    witness.hard_state = NEVER_VOTED
    witness.unsynced.clear()
    witness.kept, witness.snapshot = [NO_SNAPSHOT, older, newer], newer
    witness.compare(Found(NEVER_VOTED, newer, 2, 1, log_of(1, 1, 1, 1)[2:]))
    witness.snapshot_damaged = True
    back = Found(NEVER_VOTED, older, 1, 1, log_of(*terms)[1:])
    if fine:
        witness.compare(back)
    else:
        with pytest.raises(SafetyViolation, match="behind the snapshot of 1"):
            witness.compare(back)


def test_damage_may_cost_the_last_batch_only() -> None:
    for terms, fine in (((1, 1), True), ((1,), False)):
        witness = told()
        witness.synced_now()
        witness.lost_from = witness.may_lose_from()
        assert witness.lost_from == 3
        if fine:
            witness.compare(found(*terms))
            assert witness.has_lost
        else:
            with pytest.raises(SafetyViolation):
                witness.compare(found(*terms))


# --- the real storage on a simulated disk


def test_a_crash_between_any_two_calls_is_survived() -> None:
    """Truncation, append over several files and a reset, each broken off at every call; all kinds of power
    cuts. The witness compares."""
    for operation in (AppendLog(log_of(*[1] * 9, *[2] * 6)[9:]), TruncateLog(3), ResetLog(20, 3)):
        for calls in range(60):
            disk = opened(segment_bytes=200)
            disk.write(AppendLog(log_of(*[1] * 9)))
            disk.sync()
            if isinstance(operation, ResetLog):
                entries = log_of(*[1] * 9, *[2] * 10, 3)
                for _ in disk.take(Snapshot(20, 3, b"", tuple(entries))):
                    pass
            disk.platter.dies_in = calls
            try:
                disk.write(operation)
                disk.sync()
            except PowerLoss:
                restarted(disk, calls)
            else:
                break
        else:
            pytest.fail("the calls never end")


def test_a_failed_fsync_ends_the_node_and_the_next_one_does_not_trust_the_page_cache() -> None:
    disk = opened()
    disk.write(AppendLog(log_of(1, 1)))
    disk.sync()
    disk.write(AppendLog(log_of(1, 1, 1)[2:]))
    disk.platter.failing, disk.platter.fails_in = ("fdatasync",), 0
    with pytest.raises(StorageError, match="fsync failed"):
        disk.sync()
    assert len(restarted(disk, power_cut=False)) == 3, "the cache still has it"
    assert len(restarted(disk, power_cut=True)) == 3, "and the start has written it again"


def test_a_file_whose_fsync_failed_is_not_touched_again() -> None:
    disk = opened()
    disk.write(AppendLog(log_of(1)))
    disk.platter.failing, disk.platter.fails_in = ("fdatasync",), 0
    with pytest.raises(StorageError):
        disk.sync()
    with pytest.raises(RetriedAfterFailureError):
        disk.platter.fdatasync(next(fd for fd, (path, _) in disk.platter._open.items() if "log-" in path))


def test_a_full_disk_takes_no_more_and_goes_on_once_there_is_space() -> None:
    disk = opened(segment_bytes=200)
    disk.write(AppendLog(log_of(1)))
    disk.sync()
    room = disk.running.log.room
    assert not room.low and room.fits(log_of(*[1] * 9))
    disk.platter.free = 0
    assert not room.fits(log_of(*[1] * 9))
    with pytest.raises(DiskFullError):
        disk.write(AppendLog(log_of(*[1] * 9)[1:]))
    disk.platter.free = None
    disk.write(AppendLog(log_of(*[1] * 9)[1:]))
    disk.sync()
    assert len(restarted(disk)) == 9


def test_space_is_counted() -> None:
    disk = opened()
    disk.platter.free = 1000
    fd = disk.platter.open(at("x"), create=True)
    assert disk.platter.pwrite(fd, bytes(600), 0) == 600
    assert disk.platter.pwrite(fd, bytes(600), 300) == 600, "half of it is there already"
    assert disk.platter.free == 100
    assert disk.platter.pwrite(fd, bytes(300), 900) == 100
    with pytest.raises(OSError, match="No space") as error:
        disk.platter.pwrite(fd, b"x", 1000)
    assert error.value.errno == errno.ENOSPC
    disk.platter.unlink(at("x"))
    assert disk.platter.free == 1000


def test_damage_before_the_last_batch_is_refused() -> None:
    disk = opened(segment_bytes=4096)
    for index in range(1, 4):
        disk.write(AppendLog(log_of(*[1] * index)[index - 1 :]))
        disk.sync()
    disk.crash(random.Random(0), power_cut=False)
    name = next(path for path in disk.platter.names if path.name.startswith("log-"))
    disk.platter.names[name].content[40] ^= 1
    with pytest.raises(CorruptLogError):
        disk.open()


# --- the schedules


def test_disks_fail_in_the_schedules() -> None:
    """Crashes between calls, torn tails, EIO, full disks, damage that is refused: all of it happens. Not in
    the races for stale reads, which keep their disks whole."""
    happened: dict[str, int] = {}
    torn = errors = refused = 0
    for seed in (seed for seed in range(2030, 2070) if not is_read_race(seed)):
        simulation = Simulation(seed)
        for _ in range(1500):
            simulation.step()
        for event in simulation.plan.happened:
            happened[event.kind] = happened.get(event.kind, 0) + 1
        disks = [node.disk for node in simulation.nodes.values()]
        torn += sum(disk.torn_tails for disk in disks)
        errors += sum(disk.platter.failures for disk in disks)
        refused += len(simulation.refusals)
    assert happened["crash"] >= 50, happened
    assert happened["disk_full"] >= 8, happened
    assert happened["damage"] >= 3, happened
    assert torn >= 2, torn
    assert errors >= 8, errors
    assert refused >= 1, refused
