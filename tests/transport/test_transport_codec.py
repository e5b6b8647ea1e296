"""Messages to bytes and back; rubbish raises MessageError and nothing else."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.entry import Entry
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)
from raft.transport.codec import MessageCodec, MessageError
from raft.transport.frames import FrameDecoder, FrameTooLongError, FrameType
from raft.transport.node_messages import Forward, ForwardReply, PeerMessage, Ping, Pong

ENTRIES = (Entry(8, 3, 1, b"\x00\xffdata"), Entry(9, 4, 0, b""))
MESSAGES: list[PeerMessage] = [
    RequestVote(4, 2, 9, 3, True),
    RequestVoteResponse(4, False),
    AppendEntries(4, 1, 7, 3, ENTRIES, 6, 11),
    AppendEntries(4, 1, 9, 4, (), 9),
    AppendEntriesResponse(4, False, 0, 11, 7, 5, 2),
    ReadIndexRequest(4, 77),
    ReadIndexResponse(4, 77, 9, True),
    Ping(2**63 - 1, 123),
    Pong(0, 123),
    Forward(5, 3, [[b"SET", b"k", b"\xff\x00"], [b"GET", b"k"]], b"~1.run.1", 7),
    Forward(5, 3, [[b"RAFT", b"TRANSFER"]]),
    ForwardReply(5, [b"+OK\r\n", b"$-1\r\n"]),
    ForwardReply(6, [], "CLUSTERDOWN no leader"),
]


def payload_of(frame: bytes) -> bytes:
    ((frame_type, payload),) = FrameDecoder().feed(frame)
    assert frame_type is FrameType.MESSAGE
    return payload


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: PeerMessage) -> None:
    back = MessageCodec().decode(payload_of(MessageCodec().encode(message)))
    assert back == message
    assert type(back) is type(message)


def test_every_message_type_has_its_own_tag() -> None:
    tags = [msgspec.inspect.type_info(type(message)).tag for message in MESSAGES]  # type: ignore[attr-defined]
    assert len(set(tags)) == len({type(message) for message in MESSAGES})


def test_an_equal_append_to_the_next_peer_is_encoded_once() -> None:
    codec = MessageCodec()
    first = codec.encode(AppendEntries(4, 1, 7, 3, ENTRIES, 6, 11))
    assert codec.encode(AppendEntries(4, 1, 7, 3, ENTRIES, 6, 11)) is first


@pytest.mark.parametrize(
    "other",
    [
        AppendEntries(4, 1, 7, 3, ENTRIES, 7, 11),
        AppendEntries(4, 1, 7, 3, ENTRIES, 6, 12),
        AppendEntries(4, 1, 6, 3, ENTRIES, 6, 11),
        AppendEntries(4, 1, 7, 3, ENTRIES[:1], 6, 11),
        Ping(1, 2),
    ],
)
def test_what_differs_is_encoded_afresh(other: PeerMessage) -> None:
    codec = MessageCodec()
    codec.encode(AppendEntries(4, 1, 7, 3, ENTRIES, 6, 11))
    assert codec.encode(other) == MessageCodec().encode(other)


def test_too_long_a_message_is_refused_and_leaves_the_codec_sound() -> None:
    codec = MessageCodec()
    too_long = ForwardReply(1, [bytes(17 * 1024 * 1024)])
    for _ in range(2):
        with pytest.raises(FrameTooLongError):
            codec.encode(too_long)
    assert codec.decode(payload_of(codec.encode(Ping(1, 2)))) == Ping(1, 2)


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_message_errors(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        MessageCodec().decode(data)


@given(st.sampled_from(MESSAGES), st.data())
def test_damaged_messages_raise_only_message_errors(message: PeerMessage, data: st.DataObject) -> None:
    payload = bytearray(payload_of(MessageCodec().encode(message)))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut])):
        with contextlib.suppress(MessageError):
            MessageCodec().decode(damaged)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x80",
        msgspec.msgpack.encode(["no such tag", 1]),
        msgspec.msgpack.encode(["pi"]),
        msgspec.msgpack.encode(["pi", "one", 2]),
        msgspec.msgpack.encode(["ae", 1, 2, 3, 4, [[1, 2]], 5]),
        msgspec.msgpack.encode(Ping(1, 2)) + b"\x00",
        msgspec.msgpack.encode(["fw", 1, 2, [["text, not bytes"]]]),
        msgspec.msgpack.encode(["pi", 1, 2])[:-1] + b"\x91" * 100_000,
        b"\x94\xa2pi\x01\x02" + b"\x91" * 100_000,
        b"\x93\xa3fwr\x01\xdd\xff\xff\xff\xff",
        b"\x98\xa2ae\x01\x01\x01\x01\xdd\xff\xff\xff\xff",
        b"\x96\xa2\x80v\x04\x02\t\x03\xc3",
    ],
    ids=range(14),
)
def test_rubbish_is_a_message_error(payload: bytes) -> None:
    with pytest.raises(MessageError):
        MessageCodec().decode(payload)
