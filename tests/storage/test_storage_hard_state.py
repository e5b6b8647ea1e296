"""Term and vote: never lost, never torn, never backwards (bugs 1 to 4)."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import google_crc32c
import pytest
from faulty_disk import FaultyDisk, PowerLoss
from hypothesis import given
from hypothesis import strategies as st
from storage_helpers import DIRECTORY, make_disk

from raft.core.invariants import InvariantViolation
from raft.storage.errors import DiskFullError, FormatVersionError, StorageError
from raft.storage.hard_state import HardState, HardStateFile, decode_hard_state, encode_hard_state

PATH = DIRECTORY / "hard-state"


def load(disk: FaultyDisk) -> HardState:
    return HardStateFile(DIRECTORY, disk).load()


def saved(disk: FaultyDisk, *states: HardState) -> HardStateFile:
    file = HardStateFile(DIRECTORY, disk)
    file.load()
    for state in states:
        file.save(state)
    return file


def test_a_new_node_has_term_0_and_no_vote() -> None:
    assert load(make_disk()) == HardState(0, None)


@given(st.integers(0, 2**64 - 1), st.none() | st.integers(0, 2**64 - 1))
def test_every_state_is_read_back(term: int, vote: int | None) -> None:
    state = HardState(term, vote)
    assert decode_hard_state(encode_hard_state(state), PATH) == state


def test_on_a_real_disk(tmp_path: Path) -> None:
    file = HardStateFile(tmp_path)
    assert file.load() == HardState(0, None)
    for state in (HardState(1, None), HardState(1, 2), HardState(7, 3)):
        file.save(state)
        assert HardStateFile(tmp_path).load() == state
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hard-state", "hard-state.tmp"]


@pytest.mark.parametrize("wrong", [HardState(2, 1), HardState(0, None), HardState(3, 2), HardState(3, None)])
def test_a_lower_term_or_another_vote_in_the_term_is_refused(wrong: HardState) -> None:
    disk = make_disk()
    file = saved(disk, HardState(3, 1))
    with pytest.raises(InvariantViolation):
        file.save(wrong)
    assert file.state == load(disk) == HardState(3, 1)


def test_the_file_is_fsynced_then_renamed_then_the_directory_fsynced() -> None:
    disk = make_disk()
    saved(disk, HardState(1, 1))
    assert disk.calls[-6:] == [
        "pwrite hard-state.tmp",
        "fsync hard-state.tmp",
        "rename hard-state",
        "fsync_dir data",
        "create hard-state.tmp",  # for the next one
        "pwrite hard-state.tmp",
    ]


def test_power_loss_at_every_operation_leaves_the_old_or_the_new_state() -> None:
    old, new = HardState(3, 1), HardState(4, None)
    for leftover in (False, True):
        for point in range(20):
            disk = make_disk(sector=8)
            file = saved(disk, old)
            if leftover:
                disk.put(DIRECTORY / "hard-state.tmp", b"from an earlier crash")
            disk.power_fails_at = len(disk.calls) + point
            done = False
            try:
                file.save(new)
                done = True
            except PowerLoss:
                pass
            for after in disk.power_loss_choices(seed=point, limit=128):
                assert load(after) in ([new] if done else [old, new])
                saved(after, HardState(5, 2))
                assert load(after) == HardState(5, 2)
            if done:
                break
        else:
            pytest.fail("save never came to its end")


def test_what_was_read_once_does_not_vanish_with_a_later_power_loss() -> None:
    """Killed between rename and directory fsync: the new vote is read, acted upon, and must stay."""
    disk = make_disk()
    file = saved(disk, HardState(3, 1))
    disk.fail("fsync_dir", errno.EIO, times=1)
    with pytest.raises(StorageError):
        file.save(HardState(4, 2))
    assert load(disk) == HardState(4, 2)
    for after in disk.power_loss_choices(seed=1):
        assert load(after) == HardState(4, 2)


@pytest.mark.parametrize("position", range(40))
def test_any_bit_flipped_is_refused(position: int) -> None:
    for bit in range(8):
        content = bytearray(encode_hard_state(HardState(5, 2)))
        content[position] ^= 1 << bit
        with pytest.raises(StorageError, match=str(PATH)):
            decode_hard_state(bytes(content), PATH)


@given(st.binary(max_size=80))
def test_random_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(StorageError, match=str(PATH)):
        decode_hard_state(content, PATH)


@pytest.mark.parametrize("content", [b"", b"x" * 10_000, encode_hard_state(HardState(5, 2))[:-1]])
def test_a_damaged_file_is_never_taken_for_a_new_node(content: bytes) -> None:
    disk = make_disk()
    disk.put(PATH, content)
    with pytest.raises(StorageError, match=str(PATH)):
        load(disk)


def with_checksum(content: bytes) -> bytes:
    crc = google_crc32c.value(content[:12] + content[16:])
    return content[:12] + struct.pack("<I", crc) + content[16:]


def test_another_version_is_refused_naming_both() -> None:
    content = encode_hard_state(HardState(5, 2))
    with pytest.raises(FormatVersionError, match="format version 3, this program reads version 1"):
        decode_hard_state(with_checksum(content[:8] + struct.pack("<I", 3) + content[12:]), PATH)


@pytest.mark.parametrize(("offset", "value"), [(24, 2), (24, 0), (25, 1), (31, 9)])
def test_impossible_content_is_refused(offset: int, value: int) -> None:
    content = bytearray(encode_hard_state(HardState(5, 2)))
    content[offset] = value
    with pytest.raises(StorageError, match="impossible"):
        decode_hard_state(with_checksum(bytes(content)), PATH)


def test_a_vote_is_stored_while_the_disk_is_full() -> None:
    """Once: its file is there already. The next one finds room again in the old state's."""
    disk = make_disk()
    file = saved(disk, HardState(3, 1))
    fault = disk.fail("create", errno.ENOSPC)
    file.save(HardState(4, 2))
    for after in disk.power_loss_choices(seed=1):
        assert load(after) == HardState(4, 2)
    with pytest.raises(DiskFullError):
        file.save(HardState(5, 2))
    disk.faults.remove(fault)
    file.save(HardState(5, 2))
    for after in disk.power_loss_choices(seed=1):
        assert load(after) == HardState(5, 2)


def test_a_reserved_file_of_an_earlier_run_is_not_written_on() -> None:
    """Its fsync may have failed then: the kernel would call its pages clean for ever."""
    disk = make_disk()
    saved(disk, HardState(3, 1))
    inode = disk.names[DIRECTORY / "hard-state.tmp"]
    HardStateFile(DIRECTORY, disk).load()
    assert disk.names[DIRECTORY / "hard-state.tmp"] is not inode


@pytest.mark.parametrize("call", ["create", "pwrite", "fsync"])
def test_a_full_disk_keeps_the_old_state_and_is_outlived(call: str) -> None:
    disk = make_disk()
    reserves = disk.fail("create", errno.ENOSPC, skip=1)
    file = saved(disk, HardState(3, 1))
    disk.faults.remove(reserves)
    fault = disk.fail(call, errno.ENOSPC, name=".tmp")
    with pytest.raises(DiskFullError):
        file.save(HardState(4, 2))
    assert file.state == HardState(3, 1)
    disk.faults.remove(fault)
    assert load(disk) == HardState(3, 1)
    file.save(HardState(4, 3))
    for after in disk.power_loss_choices(seed=1):
        assert load(after) == HardState(4, 3)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "fsync_dir"])
def test_any_other_error_is_fatal_for_good(call: str) -> None:
    disk = make_disk()
    file = saved(disk, HardState(3, 1))
    disk.fail(call, errno.EIO, times=1)
    with pytest.raises(StorageError, match=str(PATH)):
        file.save(HardState(4, 2))
    calls = list(disk.calls)
    with pytest.raises(StorageError, match=str(PATH)):
        file.save(HardState(5, 2))
    assert disk.calls == calls
