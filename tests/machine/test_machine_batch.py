"""The encoding of a command batch: exact round trip, typed errors for everything else."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.machine.batch import BatchFormatError, decode_batch, encode_batch

COMMANDS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=6), max_size=10)


@given(st.integers(0, 2**53), COMMANDS)
def test_what_was_encoded_is_decoded(at_ms: int, commands: list[list[bytes]]) -> None:
    batch = decode_batch(encode_batch(at_ms, commands))
    assert (batch.at_ms, batch.commands) == (at_ms, commands)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_batch_or_a_typed_error(data: bytes) -> None:
    try:
        batch = decode_batch(data)
    except BatchFormatError:
        return
    assert decode_batch(encode_batch(batch.at_ms, batch.commands)) == batch


@given(COMMANDS.filter(bool), st.data())
def test_a_damaged_batch_never_raises_anything_else(commands: list[list[bytes]], data: st.DataObject) -> None:
    encoded = bytearray(encode_batch(1_700_000_000_000, commands))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    for damaged in (bytes(encoded), bytes(encoded[:cut])):
        with suppress(BatchFormatError):
            decode_batch(damaged)


@pytest.mark.parametrize(
    "value",
    [
        [],
        [1],
        [1, []][:1],
        [1, [], "a newer version's field"],
        ["1", []],
        [1.5, []],
        [True, []],
        [-1, []],
        [2**54, []],
        [2**64 - 1, []],
        [None, []],
        [1, None],
        [1, {}],
        [1, [[]]],
        [1, [b"GET"]],
        [1, [["GET"]]],
        [1, [[b"GET", None]]],
        [1, [[b"GET", 5]]],
        {"at_ms": 1, "commands": []},
    ],
)
def test_what_is_no_batch_is_refused(value: object) -> None:
    with pytest.raises(BatchFormatError):
        decode_batch(msgspec.msgpack.encode(value))


def test_bytes_behind_the_batch_are_refused() -> None:
    with pytest.raises(BatchFormatError):
        decode_batch(encode_batch(1, [[b"GET", b"k"]]) + b"\x00")
