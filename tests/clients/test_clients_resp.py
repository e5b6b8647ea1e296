"""encode_reply against hiredis, the reference reader of replies, and byte for byte where it matters."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.clients.resp import encode_push, encode_reply
from raft.replies import OK, Error, Reply, Simple


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("reply", "resp2", "resp3"),
    [
        (OK, b"+OK\r\n", b"+OK\r\n"),
        (Simple("PONG"), b"+PONG\r\n", b"+PONG\r\n"),
        (None, b"$-1\r\n", b"_\r\n"),
        (b"", b"$0\r\n\r\n", b"$0\r\n\r\n"),
        (b"a\r\nb", b"$4\r\na\r\nb\r\n", b"$4\r\na\r\nb\r\n"),
        ("é", b"$2\r\n\xc3\xa9\r\n", b"$2\r\n\xc3\xa9\r\n"),
        ("\udc80", b"$6\r\n\\udc80\r\n", b"$6\r\n\\udc80\r\n"),
        (0, b":0\r\n", b":0\r\n"),
        (-1, b":-1\r\n", b":-1\r\n"),
        (2**62, b":4611686018427387904\r\n", b":4611686018427387904\r\n"),
        (Error("ERR a\r\nb\nc"), b"-ERR a  b c\r\n", b"-ERR a  b c\r\n"),
        (Simple("a\r\n+OK"), b"+a  +OK\r\n", b"+a  +OK\r\n"),
        (Error("X \udcff"), b"-X \\udcff\r\n", b"-X \\udcff\r\n"),
        ([], b"*0\r\n", b"*0\r\n"),
        ({}, b"*0\r\n", b"%0\r\n"),
        (
            {"a": 1, "b": None},
            b"*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n$-1\r\n",
            b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n_\r\n",
        ),
        ([OK, [Error("E"), {"x": [1]}]], b"*2\r\n+OK\r\n*2\r\n-E\r\n*2\r\n$1\r\nx\r\n*1\r\n:1\r\n", None),
        (Colour.RED, b"$3\r\nred\r\n", b"$3\r\nred\r\n"),
    ],
)
def test_known_encodings(reply: Reply, resp2: bytes, resp3: bytes | None) -> None:
    assert encode_reply(reply, 2) == resp2
    if resp3 is not None:
        assert encode_reply(reply, 3) == resp3


@pytest.mark.parametrize("size", [0, 9, 10, 1023, 1024, 2047, 2048, 2049, 100_000])
def test_bulk_strings_of_every_header_width(size: int) -> None:
    assert encode_reply(b"x" * size, 2) == b"$%d\r\n" % size + b"x" * size + b"\r\n"


@pytest.mark.parametrize("number", [-1, 0, 1023, 1024, 1025])
def test_integers_around_the_table(number: int) -> None:
    assert encode_reply(number, 2) == b":%d\r\n" % number


@pytest.mark.parametrize("bad", [1.5, True, object(), {1, 2}, (1, 2), [1, 2.5], {"a": True}, bytearray(b"x")])
def test_what_is_no_reply_is_loud(bad: Any) -> None:
    with pytest.raises(TypeError, match="is no reply"):
        encode_reply(bad, 2)


def test_pushes() -> None:
    assert encode_push([b"message", b"c", b"p"], 3) == b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\np\r\n"
    assert encode_push([b"subscribe", None, 1], 2) == b"*3\r\n$9\r\nsubscribe\r\n$-1\r\n:1\r\n"


replies = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary() | st.text("aé\r\n$", max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _as_read(reply: Any, protocol: int) -> Any:
    if isinstance(reply, str):
        return reply.encode()
    if isinstance(reply, list):
        return [_as_read(item, protocol) for item in reply]
    if isinstance(reply, dict):
        pairs = [(_as_read(key, protocol), _as_read(value, protocol)) for key, value in reply.items()]
        return dict(pairs) if protocol == 3 else [part for pair in pairs for part in pair]
    return reply


@given(replies, st.sampled_from([2, 3]))
def test_hiredis_reads_back_what_is_written(reply: Any, protocol: int) -> None:
    reader = hiredis.Reader()
    reader.feed(encode_reply(reply, protocol) + b"+end\r\n")
    assert reader.gets() == _as_read(reply, protocol)
    assert reader.gets() == b"end"
