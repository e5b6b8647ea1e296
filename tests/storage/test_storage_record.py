"""The log's codec: what is encoded is decoded, and any other bytes give a typed error."""

from __future__ import annotations

import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_helpers import make_entries

from raft.core.entry import Entry
from raft.storage.record import (
    HEADER_SIZE,
    FormatError,
    VersionMismatchError,
    decode_header,
    decode_records,
    encode_header,
    encode_records,
    find_evidence,
    record_size,
    scan_segment,
)


def blob_of(entries: list[Entry], synced: int = 0, zeros: int = 64) -> bytes:
    pieces, _, _ = encode_records(entries, synced, HEADER_SIZE)
    return encode_header(entries[0].index, synced) + b"".join(pieces) + bytes(zeros)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1023, 1024, 1025, 1031, 5000])
def test_a_record_of_any_length_is_read_back(size: int) -> None:
    entries = make_entries(7, 9, term=3, size=size)
    pieces, offsets, end = encode_records(entries, 6, HEADER_SIZE)
    blob = blob_of(entries, 6)
    assert end - HEADER_SIZE == sum(map(len, pieces)) == 3 * record_size(size)
    assert decode_records(blob, HEADER_SIZE, 3, 7) == entries
    scan = scan_segment(blob, 7, 2)
    assert (list(scan.offsets), scan.end, scan.synced, scan.fault) == (offsets, end, 6, None)
    assert scan.runs == [(7, 3)]


def test_the_layout_is_the_documented_one() -> None:
    pieces, _, _ = encode_records([Entry(5, 3, 2, b"abc")], 4, 0)
    body = struct.pack("<IQQQB7x", 3, 5, 3, 4, 2) + b"abc" + bytes(5)
    assert b"".join(pieces) == struct.pack("<I", google_crc32c.value(body)) + body
    head = struct.pack("<8sI", b"SNRAFTLG", 1)
    tail = struct.pack("<QQ", 5, 4)
    assert encode_header(5, 4) == head + struct.pack("<I", google_crc32c.value(head + tail)) + tail


def test_a_header_of_another_version_names_it() -> None:
    head = struct.pack("<8sI", b"SNRAFTLG", 9)
    tail = struct.pack("<QQ", 1, 0)
    with pytest.raises(VersionMismatchError) as caught:
        decode_header(head + struct.pack("<I", google_crc32c.value(head + tail)) + tail)
    assert caught.value.found == 9


@pytest.mark.parametrize("position", range(HEADER_SIZE))
def test_a_header_with_any_bit_flipped_is_refused(position: int) -> None:
    for bit in range(8):
        header = bytearray(encode_header(1, 0))
        header[position] ^= 1 << bit
        with pytest.raises(FormatError):
            decode_header(bytes(header))


@given(st.binary(max_size=300), st.integers(1, 50))
def test_random_bytes_give_typed_errors_only(data: bytes, index: int) -> None:
    with pytest.raises((FormatError, VersionMismatchError)):
        decode_header(data)
    with pytest.raises(FormatError):
        decode_records(data, 0, 1, index)
    scan = scan_segment(encode_header(index, 0) + data, index, 1)
    assert not scan.offsets
    assert (scan.fault is None) == (not any(data))
    assert find_evidence(data, 0, index) is None


@given(st.binary(min_size=1, max_size=90), st.integers(0, 400))
def test_damage_anywhere_never_yields_another_entry(damage: bytes, position: int) -> None:
    entries = make_entries(1, 5)
    blob = bytearray(blob_of(entries))
    position %= len(blob)
    blob[position : position + len(damage)] = damage
    found = scan_segment(bytes(blob), 1, 0)
    good = decode_records(bytes(blob), HEADER_SIZE, len(found.offsets), 1)
    assert good == entries[: len(good)]


@pytest.mark.parametrize(
    ("entry", "synced", "what"),
    [
        (Entry(9, 3, 1, b"x"), 0, "record 9"),
        (Entry(6, 3, 1, b"x"), 0, "record 6"),
        (Entry(8, 2, 1, b"x"), 0, "term 2 after term 3"),
        (Entry(8, 3, 1, b"x"), 8, "synced 8"),
        (Entry(8, 3, 256, b"x"), 0, "record 8"),
    ],
)
def test_a_valid_record_that_no_crash_leaves_is_refused(entry: Entry, synced: int, what: str) -> None:
    pieces, _, _ = encode_records([entry], synced, 0)
    blob = blob_of([Entry(7, 3, 1, b"good")], zeros=0)
    with pytest.raises(FormatError, match=what) as caught:
        scan_segment(blob + b"".join(pieces), 7, 3)
    assert caught.value.offset == len(blob)


def test_evidence_is_a_valid_record_that_knew_the_bad_one_safe() -> None:
    pieces, offsets, _ = encode_records(make_entries(21, 23), 20, 800)
    blob = b"\xff" * 800 + b"".join(pieces)
    assert find_evidence(blob, 3, 20) == (offsets[0], 21)
    assert find_evidence(blob, 0, 21) is None  # written when 21 was not known safe
    assert find_evidence(blob[:-1], offsets[2] + 1, 20) is None  # the only one left is cut short
    assert find_evidence(blob, offsets[1], 20) == (offsets[1], 22)
