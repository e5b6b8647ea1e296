"""A damaged log is cut where that is safe: first the marker, then the log. Nothing is thrown away."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import google_crc32c
import pytest
from faulty_disk import FaultyDisk, PowerLoss
from storage_helpers import (
    DIRECTORY,
    make_chunks,
    make_disk,
    make_entries,
    read_log,
    segment_path,
    snapshot_path,
)

from raft.core.effects import HardState, LostEntries
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server, encode_configuration
from raft.storage.errors import CorruptFileError, CorruptLogError, FormatVersionError, StorageError
from raft.storage.lost_entries import encode_lost_entries
from raft.storage.node_storage import NodeStorage
from raft.storage.record import HEADER_SIZE, encode_header, encode_records, record_size
from raft.storage.repair import MAX_ASIDE

MARKER = DIRECTORY / "lost-entries"
HARD_STATE = DIRECTORY / "hard-state"
TERM = 3  # of the hard state
LAST = 30
THREE = tuple(Server(n, "h", n, n + 10, n + 20) for n in (1, 2, 3))


def open_node(disk: FaultyDisk, *, repair: bool = True, voters: int = 3) -> NodeStorage:
    return NodeStorage.open(
        *(DIRECTORY, "c", 1),
        founding=THREE[:voters],
        disk=disk,
        segment_bytes=400,
        cache_bytes=1000,
        prepare_ahead=False,
        repair=repair,
    )


def written(*, voters: int = 3, snapshot: int = 0, configuration: Entry | None = None) -> FaultyDisk:
    """A node with LAST entries of term 1 in several segments, each synced; snapshot: of that entry."""
    disk = make_disk()
    storage = open_node(disk, voters=voters)
    storage.save_hard_state(HardState(TERM, 2))
    for entry in entries(configuration):
        storage.log.append([entry])
        storage.log.sync()
        if entry.index == snapshot:
            three = encode_configuration(Configuration((1, 2, 3)))
            writer = storage.snapshots.writer(snapshot, 1, three)
            for chunk in make_chunks(snapshot):
                writer.write(chunk)
            writer.commit()
    storage.close()
    return disk


def entries(configuration: Entry | None = None) -> list[Entry]:
    every = make_entries(1, LAST, size=20)
    if configuration is not None:
        every[configuration.index - 1] = configuration
    return every


def firsts(disk: FaultyDisk) -> list[int]:
    """The first entries of the segments."""
    return sorted(int(name[4:-4]) for name in disk.listdir(DIRECTORY) if name.startswith("log-"))


def aside(disk: FaultyDisk) -> dict[str, bytes]:
    return {
        name: disk.file(DIRECTORY / name) for name in disk.listdir(DIRECTORY) if name.startswith("damaged-")
    }


def flip(disk: FaultyDisk, first: int, offset: int) -> None:
    content = bytearray(disk.file(segment_path(first)))
    content[offset] ^= 16
    disk.put(segment_path(first), bytes(content))


def flip_record(disk: FaultyDisk, index: int) -> None:
    """Damage the data of this entry, all of which have the same size."""
    first = max(each for each in firsts(disk) if each <= index)
    flip(disk, first, HEADER_SIZE + (index - first) * record_size(20) + 45)


def check_repaired(disk: FaultyDisk, lost_from: int) -> None:
    """The node opens, knows what it lost, has what came before, and takes new entries; also the next time."""
    for start in range(2):
        storage = open_node(disk)
        try:
            assert storage.lost_entries == LostEntries(lost_from, TERM)
            assert storage.hard_state == HardState(TERM, 2)
            kept = read_log(storage.log)
            again = make_entries(lost_from, lost_from + 5, term=2, size=20)
            before = [each for each in entries() if each.index < lost_from][-len(kept) :] if kept else []
            assert kept == (before if not start else [*before, *again][-len(kept) :])
            if not start:
                storage.log.append(again)
                storage.log.sync()
            else:
                assert storage.log.last_index == lost_from + 5
        finally:
            storage.close()


def test_every_record_of_a_log_can_be_lost() -> None:
    for index in range(1, LAST):
        disk = written()
        flip_record(disk, index)
        damaged = {first: disk.file(segment_path(first)) for first in firsts(disk)}
        before = open_error(disk)
        assert f"record {index} " in before.reason
        check_repaired(disk, index)
        kept_as = aside(disk)
        first = max(each for each in damaged if each <= index)
        assert set(kept_as) == {f"damaged-1-{segment_path(each).name}" for each in damaged if each >= first}
        for each, content in damaged.items():
            if each >= first:
                assert kept_as[f"damaged-1-{segment_path(each).name}"] == content, "nothing is thrown away"


def open_error(disk: FaultyDisk) -> CorruptLogError:
    """Without the right to repair the damage is refused, and nothing changed."""
    copy = disk.copy()
    with pytest.raises(CorruptLogError) as caught:
        open_node(copy, repair=False)
    assert not copy.exists(MARKER)
    assert not aside(copy)
    return caught.value


def test_a_damaged_header_costs_its_file_and_what_follows(caplog: pytest.LogCaptureFixture) -> None:
    for position in range(len(firsts(written()))):
        disk = written()
        first = firsts(disk)[position]
        flip(disk, first, 3)
        check_repaired(disk, first)
        assert f"damaged-1-{segment_path(first).name}" in aside(disk)
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR][-1]
        assert f"{segment_path(first)}: damaged at byte 0" in told
        assert f"Entries from {first} on are given up" in told


def test_a_missing_file_costs_what_follows() -> None:
    for position in range(1, len(firsts(written())) - 1):
        disk = written()
        gone, behind = firsts(disk)[position : position + 2]
        disk.drop(segment_path(gone))
        check_repaired(disk, gone)
        assert min(aside(disk)) == f"damaged-1-{segment_path(behind).name}"


def test_a_missing_beginning_is_repaired_only_behind_a_snapshot() -> None:
    disk = written()
    disk.drop(segment_path(1))
    with pytest.raises(CorruptLogError, match="missing before it"):
        open_node(disk)
    disk = written(snapshot=5)
    for first in [first for first in firsts(disk) if first <= 6]:
        disk.drop(segment_path(first))
    storage = open_node(disk)
    assert storage.lost_entries == LostEntries(6, TERM)
    assert (storage.log.first_index, storage.log.last_index) == (6, 5)
    storage.close()
    assert len(aside(disk)) == len([first for first in firsts(written()) if first > 6])


def test_what_the_snapshot_covers_costs_nothing() -> None:
    """Files that end before it are set aside, and the rest of the log stays."""
    for index in (1, 5, 9):
        disk = written(snapshot=20)
        boundary = max(first for first in firsts(disk) if first <= 21)
        flip_record(disk, index)
        open_error(disk)
        storage = open_node(disk)
        assert storage.lost_entries is None
        assert read_log(storage.log)[-5:] == entries()[-5:]
        assert storage.log.last_index == LAST
        storage.close()
        assert firsts(disk)[0] == boundary
        assert len(aside(disk)) == len([f for f in firsts(written()) if f < boundary])


def test_damage_in_the_snapshots_last_file_costs_what_follows_the_snapshot() -> None:
    """The log would end before the snapshot, which stands for all of it."""
    disk = written(snapshot=22)
    flip_record(disk, 21)
    storage = open_node(disk)
    assert storage.lost_entries == LostEntries(23, TERM)
    assert (storage.log.first_index, storage.log.last_index) == (23, 22)
    storage.close()


# --- refused --------------------------------------------------------------------------------------------


def remove_hard_state(disk: FaultyDisk) -> None:
    disk.drop(HARD_STATE)


def set_hard_state_back(disk: FaultyDisk) -> None:
    """To before the term of a record that can still be read behind the damage."""
    storage = open_node(disk)
    storage.log.append(make_entries(LAST + 1, LAST + 9, term=TERM, size=20))
    storage.log.sync()
    storage.log.append(make_entries(LAST + 10, LAST + 11, term=TERM, size=20))
    storage.log.sync()
    storage.close()
    disk.drop(HARD_STATE)
    other = make_disk()
    node = open_node(other)
    node.save_hard_state(HardState(TERM - 1))
    node.close()
    disk.put(HARD_STATE, other.file(HARD_STATE))


@pytest.mark.parametrize("spoil", [remove_hard_state, set_hard_state_back])
def test_a_node_without_its_vote_is_refused(spoil: Callable[[FaultyDisk], None]) -> None:
    disk = written()
    spoil(disk)
    flip_record(disk, 4)
    check_refused(disk)


def check_refused(disk: FaultyDisk, error: type[StorageError] = CorruptLogError, voters: int = 3) -> None:
    """Nothing is changed by trying."""
    files = {name: disk.file(DIRECTORY / name) for name in disk.listdir(DIRECTORY)}
    with pytest.raises(error):
        open_node(disk, voters=voters)
    files_now = {name: disk.file(DIRECTORY / name) for name in disk.listdir(DIRECTORY)}
    for reserved in ("hard-state.tmp", "lock"):
        files.pop(reserved, None), files_now.pop(reserved, None)
    assert files_now == files


def test_a_single_voter_is_refused() -> None:
    """Nobody else has what it lost."""
    disk = written(voters=1)
    flip_record(disk, 9)
    check_refused(disk, voters=1)


def configuration(*voters: int) -> Entry:
    servers = tuple(server for server in THREE if server.id in voters)
    return Entry(2, 1, EntryKind.CONFIGURATION, encode_configuration(Configuration(voters, (), servers)))


def test_the_log_says_who_else_votes() -> None:
    disk = written(voters=1, configuration=configuration(1, 2))
    flip(disk, max(firsts(disk)), HEADER_SIZE + 45)
    storage = open_node(disk, voters=1)
    assert storage.lost_entries is not None
    storage.close()
    disk = written(voters=3, configuration=configuration(1))
    flip(disk, max(firsts(disk)), HEADER_SIZE + 45)
    check_refused(disk)


def test_what_no_disk_does_is_refused() -> None:
    """A valid checksum over what cannot be: a program's fault, or another node's file."""
    disk = written()
    pieces, _, end = encode_records([Entry(7, 1, 1, b"")], 0, HEADER_SIZE)
    content = encode_header(1, 0) + b"".join(pieces)
    disk.put(segment_path(1), content.ljust(400, b"\0"))
    check_refused(disk)
    disk = written()
    content = disk.file(segment_path(firsts(disk)[1]))
    disk.put(segment_path(firsts(disk)[2]), content)
    check_refused(disk)
    assert end > HEADER_SIZE


def test_a_configuration_that_nobody_can_read_is_refused() -> None:
    """A valid checksum over it, too. (Found by fuzzing: it was no StorageError.)"""
    unreadable = Entry(2, 1, EntryKind.CONFIGURATION, b"\x96" * 20)
    disk = written()
    place = HEADER_SIZE + record_size(20)
    pieces, _, _ = encode_records([unreadable], 1, place)
    content = disk.file(segment_path(1))
    disk.put(segment_path(1), content[:place] + b"".join(pieces) + content[place + record_size(20) :])
    for repair in (True, False):
        with pytest.raises(StorageError, match="entry 2 of the log, whose checksum is right: not a config"):
            open_node(disk, repair=repair)
    flip(disk, max(firsts(disk)), HEADER_SIZE + 45)
    check_refused(disk)
    with pytest.raises(CorruptLogError, match=f"damaged at byte {place}: record 2: not a configuration"):
        open_node(disk)


def test_another_format_version_is_refused() -> None:
    disk = written()
    disk.put(MARKER, b"SNLOSTEN\x02" + encode_lost_entries(LostEntries(4, 1))[9:])
    check_refused(disk, StorageError)  # its checksum is wrong, too
    disk = written()
    flip_record(disk, 4)
    good = encode_lost_entries(LostEntries(4, 1))
    assert len(good) == 32
    changed = bytearray(good)
    changed[8] = 2
    changed[12:16] = google_crc32c.value(bytes(changed[:12] + changed[16:])).to_bytes(4, "little")
    disk.put(MARKER, bytes(changed))
    check_refused(disk, FormatVersionError)


def test_a_damaged_marker_is_refused_at_every_byte() -> None:
    disk = written()
    good = encode_lost_entries(LostEntries(4, TERM))
    for offset in range(len(good)):
        bad = bytearray(good)
        bad[offset] ^= 1
        disk.put(MARKER, bytes(bad))
        check_refused(disk, StorageError)
    disk.put(MARKER, good[:-1])
    check_refused(disk, StorageError)
    disk.put(MARKER, encode_lost_entries(LostEntries(4, TERM + 1)))
    check_refused(disk, StorageError)  # the hard state was set back since


def test_a_damaged_snapshot_that_relies_on_the_lost_part_is_refused() -> None:
    disk = written(snapshot=20)
    content = bytearray(disk.file(snapshot_path(20)))
    content[-60] ^= 1
    disk.put(snapshot_path(20), bytes(content))
    open_node(disk, repair=False).close()  # the whole log stands in for it
    flip_record(disk, 10)
    check_refused(disk, CorruptFileError)


def test_a_disk_that_goes_on_rotting_is_refused() -> None:
    disk = written()
    for number in range(1, MAX_ASIDE + 1):
        disk.put(DIRECTORY / f"damaged-{number}-log-0000000000000001.seg", b"")
    flip_record(disk, 4)
    with pytest.raises(CorruptLogError, match="not the first time"):
        open_node(disk)
    check_refused(disk)
    disk.drop(DIRECTORY / "damaged-1-log-0000000000000001.seg")
    check_repaired(disk, 4)


def test_a_full_disk_is_no_reason_to_throw_anything_away() -> None:
    disk = written()
    flip_record(disk, 4)
    damaged = disk.file(segment_path(1))
    disk.fail("pwrite", errno.ENOSPC, name="prealloc-aside")
    with pytest.raises(StorageError, match="cannot keep a copy"):
        open_node(disk)
    assert disk.open_files == []
    assert disk.file(segment_path(1)) == damaged
    disk.faults.clear()
    check_repaired(disk, 4)


# --- crashes --------------------------------------------------------------------------------------------


def damage_middle(disk: FaultyDisk) -> int:
    flip_record(disk, 13)
    return 13


def damage_end_of_file(disk: FaultyDisk) -> int:
    """Only the next file says that this record had been durable, and is renamed first."""
    last = firsts(disk)[3] - 1
    flip_record(disk, last)
    return last


def damage_header(disk: FaultyDisk) -> int:
    flip(disk, firsts(disk)[1], 3)
    return firsts(disk)[1]


def damage_gap(disk: FaultyDisk) -> int:
    gone = firsts(disk)[1]
    disk.drop(segment_path(gone))
    return gone


@pytest.mark.parametrize("damage", [damage_middle, damage_end_of_file, damage_header, damage_gap])
def test_a_crash_at_every_step_of_the_repair(damage: Callable[[FaultyDisk], int]) -> None:
    """Afterwards the node never takes its log for whole, and the damaged files are all there."""
    pristine = written()
    lost_from = damage(pristine)
    holds = lost_from if damage is damage_gap else max(f for f in firsts(pristine) if f <= lost_from)
    paths = [segment_path(first) for first in firsts(pristine) if first >= holds]
    contents = {path.name: pristine.file(path) for path in paths}
    for step in range(1000):
        disk = pristine.copy()
        disk.power_fails_at = step
        try:
            open_node(disk).close()
            break
        except PowerLoss:
            pass
        for after in disk.power_loss_choices(step, limit=12):
            twice = after.copy()
            twice.power_fails_at = step % 7  # and once more, early in the next start
            try:
                open_node(twice).close()
            except PowerLoss:
                after = twice.after_power_loss(lambda n: bool(n % 2))
            check_repaired(after, lost_from)
            found = aside(after)
            for name, content in contents.items():
                assert content in [kept for key, kept in found.items() if key.endswith(name)], (step, name)
    assert step > 10


def test_a_crash_while_it_is_healed_costs_nothing() -> None:
    pristine = written()
    flip_record(pristine, 13)
    open_node(pristine).close()
    for step in range(100):
        disk = pristine.copy()
        storage = open_node(disk)
        storage.log.append(make_entries(13, 20, term=TERM, size=20))
        storage.log.sync()
        disk.power_fails_at = len(disk.calls) + step
        try:
            storage.healed()
            break
        except PowerLoss:
            pass
        for after in disk.power_loss_choices(step):
            again = open_node(after)
            assert again.lost_entries in (None, LostEntries(13, TERM))
            assert again.log.last_index == 20
            again.close()
    assert step == 2
    assert storage.lost_entries is None
    disk.power_fails_at = None
    storage.close()
    storage = open_node(disk)
    assert storage.lost_entries is None
    assert aside(disk), "for the operator to look at, and to remove"
    storage.close()


# --- once more ------------------------------------------------------------------------------------------


def test_damage_during_a_recovery_adds_to_what_is_missing() -> None:
    disk = written()
    flip_record(disk, 13)
    storage = open_node(disk)
    storage.save_hard_state(HardState(TERM + 2))
    storage.log.append(make_entries(13, 28, term=TERM, size=20))
    storage.log.sync()
    storage.log.append(make_entries(29, 29, term=TERM, size=20))
    storage.log.sync()
    storage.close()
    names = set(aside(disk))
    flip_record(disk, 3)
    storage = open_node(disk)
    assert storage.lost_entries == LostEntries(3, TERM + 2), "in the meantime it may have acknowledged more"
    storage.close()
    assert set(aside(disk)) > names
    flip_record(disk, 1)
    storage = open_node(disk)
    assert storage.lost_entries == LostEntries(1, TERM + 2)
    storage.close()


def test_a_torn_tail_of_a_recovering_node_is_cut_as_ever() -> None:
    disk = written()
    flip_record(disk, 13)
    storage = open_node(disk)
    storage.log.append(make_entries(13, 20, term=TERM, size=20))
    storage.log.sync()
    storage.close()
    names = set(aside(disk))
    flip_record(disk, 20)
    storage = open_node(disk)
    assert storage.log.torn_tail is not None
    assert (storage.log.last_index, storage.lost_entries) == (19, LostEntries(13, TERM))
    storage.close()
    assert set(aside(disk)) == names


def test_what_was_kept_is_never_written_over() -> None:
    """The same file is damaged again: while the node recovers, and after it has healed."""
    disk = written()
    kept: dict[str, bytes] = {}
    for record, heals in ((13, False), (12, True), (11, False)):
        flip_record(disk, record)
        storage = open_node(disk)
        storage.log.append(make_entries(record, 29, term=TERM, size=20))
        storage.log.sync()
        storage.log.append(make_entries(30, 30, term=TERM, size=20))
        storage.log.sync()
        if heals:
            storage.healed()
        storage.close()
        now = aside(disk)
        assert {name: now[name] for name in kept} == kept
        assert len(now) > len(kept)
        kept = now
    assert len({name.split("-")[1] for name in kept}) == 3
