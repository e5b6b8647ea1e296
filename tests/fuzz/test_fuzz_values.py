"""Both directions: any value that an encoder takes comes back from its decoder as it was."""

from __future__ import annotations

import itertools
from pathlib import Path

import hiredis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raft.clients.resp import encode_reply
from raft.core.effects import HardState
from raft.core.entry import Entry
from raft.core.membership import Configuration, Server, decode_configuration, encode_configuration
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.machine.batch import decode_batch, encode_batch
from raft.machine.sessions import pack, unpack
from raft.machine.transactions import decode_transaction, encode_transaction
from raft.replies import Error, Simple
from raft.storage.hard_state import decode_hard_state, encode_hard_state
from raft.storage.record import decode_records, encode_header, encode_records, scan_segment
from raft.storage.snapshot_format import SnapshotDecoder, SnapshotEncoder, SnapshotHeader
from raft.transport.codec import MessageCodec
from raft.transport.frames import FrameDecoder, FrameType, encode_frame
from raft.transport.node_messages import DigestReport, Forward, ForwardReply, Ping, Pong
from tests.fuzz.client_targets import LIMIT, NeverFast, parse, request
from tests.fuzz.machine_targets import VOCABULARY

FAST = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
numbers = st.integers(-(2**63), 2**64 - 1)
natural = st.integers(0, 2**64 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
words = st.binary(max_size=20) | st.sampled_from(VOCABULARY)
commands = st.lists(st.lists(words, min_size=1, max_size=4), max_size=5)
entry = st.builds(Entry, natural, natural, numbers, st.binary(max_size=40))
flag = st.booleans()
message = st.one_of(
    st.builds(RequestVote, numbers, numbers, numbers, numbers, flag, flag),
    st.builds(RequestVoteResponse, numbers, flag, flag),
    st.builds(AppendEntries, *[numbers] * 4, st.lists(entry, max_size=3).map(tuple), numbers, numbers),
    st.builds(AppendEntriesResponse, numbers, flag, *[numbers] * 5),
    st.builds(ReadIndexRequest, numbers, numbers),
    st.builds(ReadIndexResponse, numbers, numbers, numbers, flag),
    st.builds(TimeoutNow, numbers),
    st.builds(InstallSnapshot, *[numbers] * 6, st.binary(max_size=50)),
    st.builds(InstallSnapshotResponse, numbers, numbers, numbers),
    st.builds(Ping, numbers, numbers),
    st.builds(Pong, numbers, numbers),
    st.builds(Forward, numbers, numbers, commands, st.binary(max_size=10), numbers),
    st.builds(ForwardReply, numbers, st.lists(st.binary(max_size=20), max_size=3), st.none() | text),
    st.builds(DigestReport, numbers, text, flag),
)


@FAST
@given(st.lists(message, max_size=4), st.lists(st.integers(0, 2000), max_size=5))
def test_messages_however_the_stream_is_cut(messages: list, cuts: list[int]) -> None:
    codec, decoder = MessageCodec(), FrameDecoder()
    stream = b"".join(codec.encode(each) for each in messages)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    frames = [frame for a, b in itertools.pairwise(edges) for frame in decoder.feed(stream[a:b])]
    assert [kind for kind, _ in frames] == [FrameType.MESSAGE] * len(messages)
    assert [codec.decode(payload) for _, payload in frames] == messages


@FAST
@given(st.binary(max_size=60))
def test_a_frame_cut_at_every_byte(payload: bytes) -> None:
    frame = encode_frame(FrameType.HELLO, payload)
    for cut in range(len(frame)):
        decoder = FrameDecoder()
        assert decoder.feed(frame[:cut]) + decoder.feed(frame[cut:]) == [(FrameType.HELLO, payload)]


@FAST
@given(st.integers(1, 2**40), st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=30)), max_size=6))
def test_records(first: int, steps: list[tuple[int, bytes]]) -> None:
    term, entries = 1, []
    for n, (step, data) in enumerate(steps):
        term += step
        entries.append(Entry(first + n, term, 1, data))
    pieces, offsets, end = encode_records(entries, first - 1, 32)
    blob = encode_header(first, first - 1) + b"".join(pieces) + bytes(64)
    assert decode_records(blob, 32, len(entries), first) == entries
    scan = scan_segment(blob, first, 0)
    assert (list(scan.offsets), scan.end, scan.fault) == (offsets, end, None)


@FAST
@given(natural, st.none() | natural)
def test_hard_state(term: int, vote: int | None) -> None:
    assert decode_hard_state(encode_hard_state(HardState(term, vote)), Path("f")) == HardState(term, vote)


server = st.builds(Server, st.just(0), text, *[st.integers(0, 65535)] * 3, text)


@FAST
@given(st.sets(st.integers(1, 50), min_size=1, max_size=7), st.data())
def test_configurations(ids: set[int], data: st.DataObject) -> None:
    everyone = sorted(ids)
    split = data.draw(st.integers(1, len(everyone)))
    servers = [Server(n, *data.draw(st.tuples(text, *[st.integers(0, 65535)] * 3, text))) for n in everyone]
    learners = tuple(everyone[split:])
    made = Configuration(tuple(everyone[:split]), learners, tuple(servers), data.draw(text), learners[:1])
    assert decode_configuration(encode_configuration(made)) == made


@FAST
@given(st.integers(0, 2**53), commands, st.lists(st.tuples(words, natural), max_size=4))
def test_batches_and_transactions(at_ms: int, lines: list[list[bytes]], watched: list) -> None:
    batch = decode_batch(encode_batch(at_ms, lines))
    assert (batch.at_ms, batch.commands) == (at_ms, lines)
    transaction = decode_transaction(encode_transaction(watched, lines))
    assert (transaction.watched, transaction.commands) == (watched, lines)


@FAST
@given(
    st.integers(1, 2**63),
    st.integers(1, 2**63),
    text,
    st.binary(max_size=40),
    st.lists(st.binary(min_size=1)),
)
def test_snapshots(index: int, term: int, cluster: str, configuration: bytes, chunks: list[bytes]) -> None:
    header = SnapshotHeader(index, term, cluster, configuration)
    encoder, decoder = SnapshotEncoder(header), SnapshotDecoder()
    stream = b"".join([encoder.header(), *map(encoder.chunk, chunks), encoder.footer()])
    assert [each for byte in stream for each in decoder.feed(bytes([byte]))] == chunks
    decoder.end()
    assert decoder.header == header


plain = st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20) | text
lines = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=10)
reply = st.recursive(
    plain | lines.map(Simple) | lines.map(Error),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(text, each, max_size=3),
    max_leaves=8,
)


@FAST
@given(reply, st.sampled_from((2, 3)))
def test_replies_as_hiredis_reads_them(value: object, protocol: int) -> None:
    reader = hiredis.Reader()
    reader.feed(encode_reply(value, protocol))  # type: ignore[arg-type]
    assert as_read(reader.gets()) == as_sent(value, protocol)
    assert reader.gets() is False
    assert unpack(pack(value)) == value  # type: ignore[arg-type]


def as_read(value: object) -> object:
    """hiredis' values, errors as text and everything else as bytes."""
    if isinstance(value, list):
        return [as_read(each) for each in value]
    if isinstance(value, dict):
        return [(as_read(field), as_read(each)) for field, each in value.items()]
    return f"-{value}" if isinstance(value, hiredis.ReplyError) else value


def as_sent(value: object, protocol: int) -> object:
    """What as_read should give for it."""
    if isinstance(value, list):
        return [as_sent(each, protocol) for each in value]
    if isinstance(value, dict):
        pairs = [(as_sent(field, protocol), as_sent(each, protocol)) for field, each in value.items()]
        return pairs if protocol == 3 else [each for pair in pairs for each in pair]
    if isinstance(value, Error):
        return f"-{value}"
    return value.encode() if isinstance(value, str) else value


@FAST
@given(
    st.lists(st.lists(words, min_size=1, max_size=5), max_size=6), st.lists(st.integers(0, 400), max_size=4)
)
def test_requests_as_hiredis_and_both_our_parsers_read_them(
    lines: list[list[bytes]], cuts: list[int]
) -> None:
    lines = [line for line in lines if len(request(line)) <= LIMIT]
    stream = b"".join(map(request, lines))
    reader = hiredis.Reader()
    reader.feed(stream)
    assert [reader.gets() for _ in lines] == lines
    assert parse(stream, cuts, NeverFast(), 2) == (lines, None)
