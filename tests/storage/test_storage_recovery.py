"""Opening the log again: a torn tail is cut, anything else refused with file and byte (bugs 48, 49, 50)."""

from __future__ import annotations

import logging
import struct

import google_crc32c
import pytest
from faulty_disk import FaultyDisk
from storage_helpers import DIRECTORY, make_disk, make_entries, open_store, read_log, reopen, segment_path

from raft.core.entry import Entry
from raft.storage.errors import CorruptLogError, FormatVersionError
from raft.storage.record import HEADER_SIZE, encode_header, encode_records, record_size


def written_log(last: int = 9, segment_bytes: int = 4096, step: int = 1) -> tuple[FaultyDisk, list[Entry]]:
    """A log of `last` entries, synced after every `step` of them."""
    disk = make_disk()
    store = open_store(disk, segment_bytes=segment_bytes)
    entries = make_entries(1, last)
    for start in range(0, last, step):
        store.append(entries[start : start + step])
        store.sync()
    store.close()
    return disk, entries


def offsets_of(entries: list[Entry]) -> list[int]:
    """Where each record begins in a segment that begins with entries[0], and where the last one ends."""
    offsets = [HEADER_SIZE]
    for entry in entries:
        offsets.append(offsets[-1] + record_size(len(entry.data)))
    return offsets


def flip(disk: FaultyDisk, first_index: int, offset: int, bit: int = 0) -> None:
    content = bytearray(disk.file(segment_path(first_index)))
    content[offset] ^= 1 << bit
    disk.put(segment_path(first_index), bytes(content))


def test_a_log_cut_at_every_byte_gives_exactly_its_whole_records() -> None:
    disk, entries = written_log()
    path = segment_path(1)
    content = disk.file(path)
    offsets = offsets_of(entries)
    for end in range(HEADER_SIZE, offsets[-1] + 50):
        disk.put(path, content[:end])
        whole = sum(1 for offset in offsets[1:] if offset <= end)
        assert reopen(disk) == entries[:whole], end
        assert reopen(disk) == entries[:whole], "a second start finds the same"


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\xa5"])
def test_a_tail_torn_at_every_byte_is_cut(filler: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The file keeps its length; from some byte of the last, unsynced batch on something else is there."""
    disk, entries = written_log(last=8, step=4)
    path = segment_path(1)
    content = disk.file(path)
    offsets = offsets_of(entries)
    for end in range(offsets[4], offsets[8]):
        disk.put(path, content[:end] + filler * (offsets[8] + 40 - end) + bytes(400))
        found = reopen(disk)
        whole = sum(1 for offset in offsets[1:] if offset <= end)
        assert len(found) >= whole
        assert found == entries[: len(found)], end
        if filler != b"\0":
            assert len(found) == whole
            assert f"{path}: torn tail cut at byte {offsets[whole]}" in caplog.messages[-1]


def test_every_byte_flipped_in_a_record_known_to_be_safe_is_refused() -> None:
    disk, entries = written_log(last=6)
    offsets = offsets_of(entries)
    record = 0
    for offset in range(HEADER_SIZE, offsets[5]):
        record += offset == offsets[record + 1]
        flip(disk, 1, offset, bit=offset % 8)
        before = disk.file(segment_path(1))
        with pytest.raises(CorruptLogError) as caught:
            open_store(disk)
        assert (caught.value.file, caught.value.offset) == (segment_path(1), offsets[record])
        assert str(segment_path(1)) in str(caught.value)
        assert f"byte {offsets[record]}" in str(caught.value)
        assert disk.file(segment_path(1)) == before, "a refused log is left as it is"
        flip(disk, 1, offset, bit=offset % 8)
    assert reopen(disk) == entries


def test_the_last_batch_cannot_be_told_from_a_torn_one() -> None:
    """The documented limit: nothing was written after it, so nothing proves that it had been durable."""
    disk, entries = written_log(last=6)
    flip(disk, 1, offsets_of(entries)[5] + 41)
    assert reopen(disk) == entries[:5]


@pytest.mark.parametrize("offset", range(HEADER_SIZE))
def test_a_damaged_segment_header_is_refused(offset: int) -> None:
    disk, _ = written_log(last=12, segment_bytes=300)
    last = max(int(name[4:-4]) for name in disk.listdir(DIRECTORY))
    for first_index in (1, last):
        flip(disk, first_index, offset)
        with pytest.raises(CorruptLogError, match=segment_path(first_index).name):
            open_store(disk)
        flip(disk, first_index, offset)


@pytest.mark.parametrize("end", [0, 1, 31])
def test_a_file_cut_inside_its_header_is_refused(end: int) -> None:
    """The header is durable before the file has its name, so no crash leaves this."""
    disk, _ = written_log()
    disk.put(segment_path(1), disk.file(segment_path(1))[:end])
    with pytest.raises(CorruptLogError, match="header"):
        open_store(disk)


def test_a_bad_record_before_a_later_segment_is_refused() -> None:
    """The last record of a segment: the proof stands in the next file's header or records."""
    disk, entries = written_log(last=12, segment_bytes=300)
    firsts = sorted(int(name[4:-4]) for name in disk.listdir(DIRECTORY))
    assert len(firsts) > 2
    offset = offsets_of(entries[: firsts[1] - 1])[-2]
    flip(disk, 1, offset + 8)
    with pytest.raises(CorruptLogError) as caught:
        open_store(disk)
    assert (caught.value.file, caught.value.offset) == (segment_path(1), offset)


def test_a_segment_cut_before_a_later_empty_segment_is_refused() -> None:
    """Only the later file's header proves that what is missing had been durable."""
    disk, entries = written_log(last=4)
    offsets = offsets_of(entries)
    disk.put(segment_path(1), disk.file(segment_path(1))[: offsets[3]])
    disk.put(segment_path(5), encode_header(5, 4) + bytes(500))
    with pytest.raises(CorruptLogError, match="record 4 is missing"):
        open_store(disk)


def test_a_torn_segment_before_a_later_unsynced_one_is_cut_and_the_later_removed() -> None:
    disk, entries = written_log(last=4)
    pieces, _, _ = encode_records(make_entries(8, 9), 4, HEADER_SIZE)
    disk.put(segment_path(8), encode_header(8, 4) + b"".join(pieces) + bytes(500))
    assert reopen(disk) == entries  # 5 to 7 were written, not synced, and lost
    assert disk.listdir(DIRECTORY) == [segment_path(1).name]


def test_a_torn_tail_is_removed_newest_first_and_durably_at_each_step() -> None:
    disk, entries = written_log(last=4)
    disk.put(segment_path(8), encode_header(8, 4) + bytes(500))
    disk.put(segment_path(9), encode_header(9, 4) + bytes(500))
    assert reopen(disk) == entries
    tail = [call for call in disk.calls if call.split()[0] in ("unlink", "fsync_dir", "truncate", "fsync")][
        -6:
    ]
    unlinks = [f"unlink {segment_path(9).name}", f"unlink {segment_path(8).name}"]
    name = segment_path(1).name
    assert tail == [
        unlinks[0],
        "fsync_dir data",
        unlinks[1],
        "fsync_dir data",
        f"truncate {name}",
        f"fsync {name}",
    ]


def test_a_missing_segment_in_the_middle_is_refused() -> None:
    disk, _ = written_log(last=20, segment_bytes=300)
    firsts = sorted(int(name[4:-4]) for name in disk.listdir(DIRECTORY))
    disk.drop(segment_path(firsts[1]))
    with pytest.raises(CorruptLogError, match=f"record {firsts[1]} is missing") as caught:
        open_store(disk)
    assert caught.value.file == segment_path(1)


def test_a_missing_first_segment_is_refused_unless_a_snapshot_covers_it() -> None:
    disk, entries = written_log(last=20, segment_bytes=300)
    firsts = sorted(int(name[4:-4]) for name in disk.listdir(DIRECTORY))
    disk.drop(segment_path(1))
    with pytest.raises(CorruptLogError, match=f"entries 1 to {firsts[1] - 1} are missing"):
        open_store(disk)
    store = open_store(disk, snapshot_index=firsts[1] - 1, snapshot_term=1)
    assert store.first_index == firsts[1]
    assert store.entries(firsts[1], 21, 1 << 20) == tuple(entries[firsts[1] - 1 :])
    with pytest.raises(IndexError):
        store.term(0)


def test_a_segment_under_another_name_is_refused() -> None:
    disk, _ = written_log()
    disk.put(segment_path(10), disk.file(segment_path(1)))
    with pytest.raises(CorruptLogError, match="begins with entry 1"):
        open_store(disk)


def test_a_segment_that_repeats_entries_is_refused() -> None:
    disk, entries = written_log()
    pieces, _, _ = encode_records(entries[4:], 4, HEADER_SIZE)
    disk.put(segment_path(5), encode_header(5, 4) + b"".join(pieces))
    with pytest.raises(CorruptLogError, match="begins again with 5"):
        open_store(disk)


def test_another_format_version_is_refused_naming_both() -> None:
    disk, _ = written_log()
    head, tail = struct.pack("<8sI", b"SNRAFTLG", 2), struct.pack("<QQ", 1, 0)
    header = head + struct.pack("<I", google_crc32c.value(head + tail)) + tail
    disk.put(segment_path(1), header + disk.file(segment_path(1))[HEADER_SIZE:])
    with pytest.raises(FormatVersionError, match=r"format version 2, this program reads version 1") as caught:
        open_store(disk)
    assert str(segment_path(1)) in str(caught.value)


def test_a_wrong_checksum_is_not_the_end_of_the_log() -> None:
    """Bug 49: half of the log must not vanish because one record in the middle is bad."""
    disk, entries = written_log(last=40, segment_bytes=100_000)
    flip(disk, 1, offsets_of(entries)[20] + 40)
    with pytest.raises(CorruptLogError, match="wrong checksum"):
        open_store(disk)


def test_zeros_in_the_middle_are_not_the_end_of_the_log() -> None:
    disk, entries = written_log(last=40, segment_bytes=100_000)
    content = bytearray(disk.file(segment_path(1)))
    start, end = offsets_of(entries)[10], offsets_of(entries)[13]
    content[start:end] = bytes(end - start)
    disk.put(segment_path(1), bytes(content))
    with pytest.raises(CorruptLogError) as caught:
        open_store(disk)
    assert caught.value.offset == start


def test_records_appended_behind_a_torn_tail_stay() -> None:
    """Bug 48: the torn bytes must be gone before anything is written behind them."""
    disk, entries = written_log(last=8, step=4)
    flip(disk, 1, offsets_of(entries)[5] + 50 - 10)
    store = open_store(disk)
    assert read_log(store) == entries[:5]
    new = make_entries(6, 20, term=2)
    for entry in new:
        store.append([entry])
        store.sync()
    store.close()
    assert reopen(disk) == entries[:5] + new
    for after in disk.power_loss_choices(seed=1):
        assert reopen(after) == entries[:5] + new


def test_a_bad_record_found_while_reading_is_named() -> None:
    disk, entries = written_log(last=20)
    store = open_store(disk, cache_bytes=0)
    offset = offsets_of(entries)[10]
    disk.names[segment_path(1)].content[offset + 41] ^= 4
    assert store.entries(1, 11, 1 << 20) == tuple(entries[:10])
    with pytest.raises(CorruptLogError) as caught:
        store.entries(8, 15, 1 << 20)
    assert (caught.value.file, caught.value.offset) == (segment_path(1), offset)


def test_what_is_found_is_durable_before_it_is_told() -> None:
    """A process killed before its fsync leaves records that only the page cache has."""
    disk = make_disk()
    store = open_store(disk, segment_bytes=300)
    store.append(make_entries(1, 30))
    again = open_store(disk)  # killed and started again: the machine stayed on
    assert again.durable_index == 30
    for after in disk.power_loss_choices(seed=2):
        assert reopen(after) == make_entries(1, 30)


def test_a_log_with_fsync_off_counts_every_bad_record_as_torn(caplog: pytest.LogCaptureFixture) -> None:
    disk = make_disk()
    store = open_store(disk, fsync=False)
    entries = make_entries(1, 20)
    for entry in entries:
        store.append([entry])
        store.sync()
    store.close()
    flip(disk, 1, offsets_of(entries)[10] + 8)
    with caplog.at_level(logging.WARNING):
        assert reopen(disk, fsync=False) == entries[:10]
    assert "torn tail" in caplog.text
