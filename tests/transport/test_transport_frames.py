"""Frames: whatever the network does to the bytes, the payloads come out right or an error is raised."""

from __future__ import annotations

import random
import struct
import time

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.transport.frames import (
    HEADER_BYTES,
    MAX_HELLO_BYTES,
    MAX_PAYLOAD_BYTES,
    WIRE_VERSION,
    BadChecksumError,
    BadHeaderError,
    BadMagicError,
    BadVersionError,
    FrameDecoder,
    FrameError,
    FrameTooLongError,
    FrameType,
    encode_frame,
)

FRAMES = [(FrameType.HELLO, b"hello"), (FrameType.MESSAGE, b""), (FrameType.MESSAGE, bytes(range(50)))]
STREAM = b"".join(encode_frame(*frame) for frame in FRAMES)


def header(
    magic: bytes = b"SNRF", version: int = WIRE_VERSION, kind: int = 4, flags: int = 0, length: int = 0
) -> bytes:
    """A header by hand, with sound CRCs for an empty payload."""
    checked = struct.pack(">4sBBHI", magic, version, kind, flags, length)
    crc = google_crc32c.value(checked)
    return checked + struct.pack(">II", crc, crc)


def test_the_wire_format_is_the_documented_one() -> None:
    payload = b"abc"
    frame = encode_frame(FrameType.MESSAGE, payload)
    head_crc = google_crc32c.value(frame[:12])
    assert (
        frame
        == header(length=3)[:12]
        + struct.pack(">II", head_crc, google_crc32c.extend(head_crc, b"abc"))
        + payload
    )
    assert frame[:12] == b"SNRF\x01\x04\x00\x00\x00\x00\x00\x03"
    assert HEADER_BYTES == 20


@pytest.mark.parametrize("position", range(len(STREAM) + 1))
def test_split_at_every_byte(position: int) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(STREAM[:position]) + decoder.feed(STREAM[position:]) == FRAMES


@pytest.mark.parametrize("step", [1, 2, 3, 7, 19, 20, 21, 64])
def test_fed_in_small_pieces(step: int) -> None:
    decoder = FrameDecoder()
    got = []
    for start in range(0, len(STREAM), step):
        got += decoder.feed(STREAM[start : start + step])
    assert got == FRAMES


@given(st.lists(st.binary(max_size=200), max_size=8), st.randoms(use_true_random=False))
def test_any_payloads_split_anywhere(payloads: list[bytes], rng: random.Random) -> None:
    frames = [(FrameType.MESSAGE, payload) for payload in payloads]
    stream = b"".join(encode_frame(*frame) for frame in frames)
    decoder = FrameDecoder()
    got = []
    while stream:
        cut = rng.randint(1, len(stream))
        got += decoder.feed(bytearray(stream[:cut]))
        stream = stream[cut:]
    assert got == frames


@pytest.mark.parametrize("position", range(len(STREAM)))
def test_every_single_byte_corruption_is_detected(position: int) -> None:
    for mask in (*(1 << bit for bit in range(8)), 0xFF):
        damaged = bytearray(STREAM)
        damaged[position] ^= mask
        with pytest.raises(FrameError):
            FrameDecoder().feed(damaged)
        decoder = FrameDecoder()
        with pytest.raises(FrameError):
            for byte in damaged:
                decoder.feed(bytes([byte]))


def test_a_broken_length_shows_with_the_header_not_16_mib_later() -> None:
    damaged = bytearray(encode_frame(FrameType.MESSAGE, b"x"))
    damaged[9] ^= 0x40  # now 4 MiB
    with pytest.raises(BadChecksumError):
        FrameDecoder().feed(damaged[:HEADER_BYTES])


@given(st.binary(max_size=300), st.integers(0, 20))
def test_random_bytes_raise_only_frame_errors(data: bytes, keep: int) -> None:
    for stream in (data, STREAM[:keep] + data):
        decoder = FrameDecoder()
        try:
            frames = decoder.feed(stream)
        except FrameError:
            continue
        assert frames == [] or stream.startswith(STREAM[:20])


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", BadMagicError, "GET"),
        (b"*", BadMagicError, "SNRF"),
        (header(version=2), BadVersionError, "version 2, this node speaks 1"),
        (header(kind=0), BadHeaderError, "frame type 0"),
        (header(kind=9), BadHeaderError, "frame type 9"),
        (header(flags=0x8000), BadHeaderError, "0x8000"),
        (header(length=MAX_PAYLOAD_BYTES + 1), FrameTooLongError, str(MAX_PAYLOAD_BYTES + 1)),
        (header(length=0xFFFFFFFF), FrameTooLongError, str(0xFFFFFFFF)),
    ],
)
def test_bad_headers_name_what_is_wrong(data: bytes, error: type[FrameError], says: str) -> None:
    decoder = FrameDecoder()
    with pytest.raises(error, match=says):
        decoder.feed(data)
    with pytest.raises(error):  # no resynchronising, not even on a good frame
        decoder.feed(STREAM)


def test_a_version_error_carries_both_versions() -> None:
    with pytest.raises(BadVersionError) as caught:
        FrameDecoder().feed(header(version=7))
    assert (caught.value.theirs, caught.value.ours) == (7, WIRE_VERSION)


def test_the_cap_holds_to_the_byte() -> None:
    longest = encode_frame(FrameType.HELLO, b"x" * MAX_HELLO_BYTES, MAX_HELLO_BYTES)
    assert FrameDecoder(MAX_HELLO_BYTES).feed(longest) == [(FrameType.HELLO, b"x" * MAX_HELLO_BYTES)]
    too_long = encode_frame(FrameType.HELLO, b"x" * (MAX_HELLO_BYTES + 1))
    with pytest.raises(FrameTooLongError):
        FrameDecoder(MAX_HELLO_BYTES).feed(too_long[:HEADER_BYTES])  # the header alone is enough
    with pytest.raises(FrameTooLongError):
        encode_frame(FrameType.HELLO, b"x" * (MAX_HELLO_BYTES + 1), MAX_HELLO_BYTES)


def test_missing_bytes_never_reads_beyond_the_frame() -> None:
    decoder = FrameDecoder()
    rest = STREAM
    for frame in FRAMES:
        got: list[tuple[FrameType, bytes]] = []
        while not got:
            size = decoder.missing_bytes
            assert size > 0
            got = decoder.feed(rest[:size])
            rest = rest[size:]
        assert got == [frame]
    assert rest == b""


def test_the_buffer_may_be_used_again() -> None:
    buffer = bytearray(STREAM)
    decoder = FrameDecoder()
    got = decoder.feed(memoryview(buffer)[:70])
    buffer[:70] = bytes(70)
    assert got + decoder.feed(memoryview(buffer)[70:]) == FRAMES


def test_a_large_frame_in_small_pieces_takes_linear_time() -> None:
    payload = random.Random(1).randbytes(MAX_PAYLOAD_BYTES)
    stream = memoryview(encode_frame(FrameType.MESSAGE, payload))
    decoder = FrameDecoder()
    began = time.monotonic()
    got = []
    for start in range(0, len(stream), 1024):
        got += decoder.feed(stream[start : start + 1024])
    assert got == [(FrameType.MESSAGE, payload)]
    assert time.monotonic() - began < 4  # copying all again for each piece would move 128 GiB
