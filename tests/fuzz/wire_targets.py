"""Targets: what comes over a peer's connection, from bytes to the core's state and the machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, cast

import google_crc32c
import msgspec

from raft.core.core import RaftCore
from raft.core.effects import AppendLog, Effects, HardState, TruncateLog
from raft.core.entry import Entry, EntryKind
from raft.core.invariants import ProtocolViolation
from raft.core.membership import ConfigurationFormatError, decode_configuration, encode_configuration
from raft.core.messages import AppendEntries, Message, RequestVote, RequestVoteResponse
from raft.core.state import CoreOptions, Role
from raft.machine.batch import encode_batch
from raft.machine.machine import Machine
from raft.replies import Error
from raft.runtime.passed import Passed, acceptable
from raft.storage.hard_state import encode_hard_state
from raft.storage.record import encode_header, encode_records, scan_segment
from raft.transport.admission import Credentials
from raft.transport.codec import MessageCodec, MessageError
from raft.transport.frames import (
    HEADER_BYTES,
    MAX_HELLO_BYTES,
    FrameDecoder,
    FrameError,
    FrameType,
    encode_frame,
)
from raft.transport.handover import Handover
from raft.transport.handshake import HandshakeError, Hello, PeerAddress, Refused, Welcome, introduce, receive
from raft.transport.membership import Membership
from raft.transport.node_messages import Forward, PeerMessage
from raft.transport.quiet_log import QuietLog
from tests.fuzz import samples
from tests.fuzz.target import Feed, Target, check, piece

_codec = MessageCodec()
_pack = msgspec.msgpack.encode


# --- frames ---------------------------------------------------------------------------------------------


def seal_frames(data: bytes) -> bytes:
    """The same with the checksums of its frames put right, as far as their lengths lead through it."""
    out, at = bytearray(data), 0
    while at + HEADER_BYTES <= len(out):
        length = int.from_bytes(out[at + 8 : at + 12], "big")
        head_crc = google_crc32c.value(bytes(out[at : at + 12]))
        out[at + 12 : at + 16] = head_crc.to_bytes(4, "big")
        payload = bytes(out[at + HEADER_BYTES : at + HEADER_BYTES + length])
        out[at + 16 : at + 20] = google_crc32c.extend(head_crc, payload).to_bytes(4, "big")
        at += HEADER_BYTES + length
    return bytes(out)


def read_frames(data: bytes, cuts: list[int], cap: int) -> tuple[list[tuple[FrameType, bytes]], str | None]:
    """What a decoder makes of a stream that arrives cut at these places: frames, and the error's name."""
    decoder, found, start = FrameDecoder(cap), [], 0
    try:
        for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
            found += decoder.feed(data[start:end])
            check(0 < decoder.missing_bytes <= HEADER_BYTES + cap, f"missing_bytes {decoder.missing_bytes}")
            check(len(decoder._pending) < HEADER_BYTES + cap, "more is held back than a frame")
            start = end
    except FrameError as error:
        return found, type(error).__name__
    return found, None


def frames(data: bytes) -> None:
    """A stream of frames, whole and in pieces: the same frames, the same error."""
    feed = Feed(data)
    flags = feed.byte()
    cuts = [feed.byte() << 8 | feed.byte() for _ in range(flags >> 6)]
    stream = seal_frames(feed.rest()) if flags & 1 else feed.rest()
    whole, error = read_frames(stream, [], 512)
    pieces, error_in_pieces = read_frames(stream, cuts, 512)
    if flags & 6:  # bytewise is slow
        bytewise, error_bytewise = pieces, error_in_pieces
    else:
        bytewise, error_bytewise = read_frames(stream, list(range(len(stream))), 512)
    # A frame that stands whole before a bad one in one read goes with it; in pieces it has been given out.
    check(error_in_pieces == error == error_bytewise, f"{error} whole, {error_in_pieces} in pieces")
    check(error is not None or whole == pieces == bytewise, "other frames when cut")
    check(bytewise[: len(pieces)] == pieces, "other frames when cut bytewise")
    again = b"".join(encode_frame(kind, payload) for kind, payload in bytewise)
    check(stream.startswith(again), "the frames do not encode to what was read")


def _frame_seeds() -> Iterator[bytes]:
    messages = [_codec.encode(message) for message in samples.messages()[:9]]
    for flags in (0, 7, 0x47, 0xC6, 0xC7):
        yield bytes([flags, 0, 5, 0, 30, 0, 31][: 1 + 2 * (flags >> 6)]) + b"".join(messages[:3])
        yield bytes([flags & 7]) + encode_frame(FrameType.HELLO, b"x" * 100) + messages[8]


# --- handshake ------------------------------------------------------------------------------------------


class FakeSocket:
    """A blocking socket whose other end has sent `data` in pieces and closed; keeps what is sent."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = data
        self._step = step or 1 << 20
        self.sent = b""

    def settimeout(self, seconds: float) -> None:
        pass

    def recv(self, size: int) -> bytes:
        size = min(size, self._step)
        check(size > 0, "recv of nothing")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def sendall(self, data: bytes) -> None:
        self.sent += data


class NoDialers(Membership):
    """Membership that dials nobody."""

    def _dial(self, peer_id: int, address: tuple[str, int]) -> None:
        check(0 < address[1] < 65536, f"dials {address}")


OWN = Credentials(1, "test", "run", "ab" * 16, "cd" * 16, "127.0.0.1", 7101)


def _fatal(name: str, error: BaseException) -> None:
    raise error


def handshake(data: bytes) -> None:
    """One end of a handshake against a stranger's bytes; an answer is a sound frame, and says no more."""
    feed = Feed(data)
    mode = feed.byte()
    stream = seal_frames(feed.rest()) if mode & 1 else feed.rest()
    sock = FakeSocket(stream, mode >> 4)
    if mode & 2:
        welcome = introduce(cast("Any", sock), OWN.hello(2, "ab" * 16))
        check(isinstance(welcome, Welcome) and welcome.node_id == 2, "welcomed by another")
        return
    members = {1: PeerAddress("h", 1), 2: PeerAddress("h", 2, "ab" * 16), 3: PeerAddress("h", 3)}
    membership = NoDialers(
        OWN, members, lambda: bool(mode & 4), Handover(lambda: None), QuietLog(_LOG), _fatal
    )
    membership._running = True
    try:
        receive(cast("Any", sock), lambda hello: membership.admit(hello, "10.0.0.9"))
    finally:
        if sock.sent:
            ((kind, payload),) = FrameDecoder(MAX_HELLO_BYTES).feed(sock.sent)
            expected = Welcome if kind is FrameType.WELCOME else Refused
            msgspec.msgpack.decode(payload, type=expected)


def _handshake_seeds() -> Iterator[bytes]:
    theirs = OWN._replace(node_id=2, identity="ab" * 16)
    stranger = OWN._replace(node_id=9, host="0.0.0.0")
    for own in (theirs, stranger, OWN._replace(cluster="other", node_id=3)):
        for mode in (0, 1, 5, 0x35):
            yield bytes([mode]) + encode_frame(FrameType.HELLO, _pack(own.hello(1, "ab" * 16)))
    for mode in (2, 3):
        yield bytes([mode]) + encode_frame(FrameType.WELCOME, _pack(theirs.welcome()))
        yield bytes([mode]) + encode_frame(FrameType.REFUSED, _pack(Refused("sender", "because")))
    old = msgspec.structs.replace(theirs.hello(1, ""), protocol=1)
    yield b"\x01" + encode_frame(FrameType.HELLO, _pack(old))
    yield b"\x01" + encode_frame(
        FrameType.HELLO, msgspec.msgpack.encode(msgspec.to_builtins(Hello("", 2, 1, 1, "")))
    )


# --- messages -------------------------------------------------------------------------------------------


def message(data: bytes) -> None:
    """The payload of a MESSAGE frame: what decodes encodes to something that decodes to the same."""
    decoded = _codec.decode(data)
    frame = MessageCodec().encode(decoded)
    ((_, payload),) = FrameDecoder().feed(frame)
    check(_codec.decode(payload) == decoded, f"{decoded} comes back changed")


def _payload(each: PeerMessage) -> bytes:
    return MessageCodec().encode(each)[HEADER_BYTES:]


def _message_seeds() -> Iterator[bytes]:
    return map(_payload, samples.messages())


def configuration(data: bytes) -> None:
    """A configuration: what is accepted makes a cluster that can be led and changed."""
    decoded = decode_configuration(data)
    check(decode_configuration(encode_configuration(decoded)) == decoded, "comes back changed")
    check(1 <= decoded.quorum() <= len(decoded.voters), "no quorum")
    for learner in decoded.promote:
        decode_configuration(encode_configuration(decoded.with_voter(learner)))


# --- the core -------------------------------------------------------------------------------------------


class MemoryLog:
    """A log in memory that refuses what the disk's format cannot take."""

    def __init__(self, stored: tuple[Entry, ...] = (), base: int = 0, base_term: int = 0) -> None:
        self.stored = list(stored)
        self.base, self.base_term = base, base_term

    @property
    def first_index(self) -> int:
        return self.base + 1

    @property
    def last_index(self) -> int:
        return self.base + len(self.stored)

    def term(self, index: int) -> int:
        if index == self.base:
            return self.base_term
        if not self.base < index <= self.last_index:
            raise IndexError(index)
        return self.stored[index - self.base - 1].term

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]:
        return tuple(self.stored[lo - self.base - 1 : hi - self.base - 1])

    def write(self, effects: Effects) -> None:
        for operation in effects.log:
            if isinstance(operation, AppendLog):
                pieces, _, _ = encode_records(operation.entries, 0, 32)
                first = operation.entries[0].index
                scan = scan_segment(encode_header(first, 0) + b"".join(pieces), first, 0)
                check(
                    scan.fault is None and len(scan.offsets) == len(operation.entries), "not readable again"
                )
                self.stored += operation.entries
            elif isinstance(operation, TruncateLog):
                del self.stored[operation.from_index - self.base - 1 :]
            else:
                self.stored, self.base, self.base_term = [], operation.index, operation.term


class Node:
    """Node 1 of 3 in one of several situations, with term 3; what it wants done is done in memory."""

    SITUATIONS = 6

    def __init__(self, situation: int) -> None:
        snapshot = situation in (1, 4)
        stored = samples.entries(6, 2, 2, 3) if snapshot else samples.entries(1, 1, 1, 1, 2, 2, 2, 2, 3)
        self.log = MemoryLog(stored, 5, 2) if snapshot else MemoryLog(stored)
        self.now = 1000.0
        self.core = RaftCore(
            *(1, samples.CONFIGURATION, self.log),
            hard_state=HardState(3, None),
            options=CoreOptions(lease_reads=situation == 5),
            rng=random.Random(1),
            now=self.now,
            identity="ab" * 16,
            snapshot_index=5 if snapshot else 0,
        )
        self.settle()
        if situation in (2, 4, 5):
            self._lead()
        elif situation == 3:
            self.now += 2000
            self.core.tick(self.now)
        else:
            self.receive(2, AppendEntries(3, 2, 8, 3, (), 6, 1))
            self.core.read(99, self.now)
        self.settle()

    def _lead(self) -> None:
        self.now += 2000
        self.core.tick(self.now)
        self.receive(2, RequestVoteResponse(4, True, True))
        self.receive(2, RequestVoteResponse(4, True))
        check(self.core.state.role is Role.LEADER, "not elected")
        self.core.propose([b"\x92\x00\x90"], self.now)

    def receive(self, sender: int, each: Message) -> None:
        self.core.receive(sender, each, self.now)
        self.settle()

    def settle(self) -> None:
        """Carry out the effects; everything must fit its format on disk and on the wire."""
        for _ in range(20):
            effects = self.core.take_effects()
            if effects.hard_state is not None:
                encode_hard_state(effects.hard_state)
            for _, each in (*effects.early_messages, *effects.messages):
                _codec.decode(_codec.encode(each)[HEADER_BYTES:])
            if not effects.log:
                return
            self.log.write(effects)
            last = self.log.last_index
            check(last < 2**63, f"the log ends at {last}")
            self.core.disk_done(last, self.log.term(last), self.now)
        check(False, "the core does not come to rest")

    def picture(self) -> str:
        """All of the state that a refused message must leave as it was."""
        state = self.core.state
        parts = {name: value for name, value in vars(state).items() if name not in ("now", "log", "rng")}
        log = {name: value for name, value in vars(state.log).items() if name != "reader"}
        return repr((parts, vars(state.effects) if hasattr(state.effects, "__dict__") else "", log))


def core(data: bytes) -> None:
    """Messages to a core: refused with nothing changed, or taken; then the node can still be led or lead."""
    feed = Feed(data)
    node = Node(feed.byte() % Node.SITUATIONS)
    for _ in range(8):
        if not feed.more:
            break
        sender = 2 + feed.byte() % 3
        try:
            decoded = _codec.decode(feed.piece())
        except MessageError:
            continue
        _receive(node, sender, decoded)
        node.now += feed.byte()
        node.core.tick(node.now)
        node.settle()
    _go_on(node)


def _receive(node: Node, sender: int, decoded: PeerMessage) -> None:
    named = getattr(decoded, "leader_id", getattr(decoded, "candidate_id", sender))
    if not isinstance(decoded, Message) or (
        isinstance(decoded, AppendEntries | RequestVote) and named != sender
    ):
        return  # raft/node.py drops it
    before = node.picture()
    try:
        node.core.receive(sender, decoded, node.now)
    except ProtocolViolation:
        check(node.picture() == before, f"{decoded} was refused, but it changed the state")
    node.settle()


def _go_on(node: Node) -> None:
    """A correct leader of the next term is followed, and what it sends is committed."""
    state = node.core.state
    node.now += 5000
    node.core.tick(node.now)
    node.settle()
    term, last = state.term + 1, state.log.last_index
    node.receive(
        3, AppendEntries(term, 3, last, state.log.term(last), samples.entries(last + 1, term), last + 1)
    )
    check(
        state.leader_id == 3 and state.commit_index == last + 1, "a correct leader is not followed any more"
    )


def _core_seeds() -> Iterator[bytes]:
    payloads = [_payload(each) for each in samples.messages() if isinstance(each, Message)]
    for situation in range(Node.SITUATIONS):
        for at, each in enumerate(payloads):
            yield bytes([situation, 0]) + piece(each)
            if at % 4 == 0:
                more = b"".join(b"\x00" + piece(other) + b"\x10" for other in payloads[at : at + 4])
                yield bytes([situation]) + more


def core_packed(data: bytes) -> None:
    """The same with one message, so that its fields are what changes: situation, sender, message."""
    feed = Feed(data)
    situation, sender = feed.byte(), feed.byte()
    core(bytes([situation, sender]) + piece(feed.rest()))


def _core_packed_seeds() -> Iterator[bytes]:
    for situation in range(Node.SITUATIONS):
        for each in samples.messages():
            if isinstance(each, Message):
                yield bytes([situation, 0]) + _payload(each)


# --- what a peer passes on ------------------------------------------------------------------------------


def forwarded(data: bytes) -> None:
    """What the leader accepts never raises in the machine, and its replies can be answered."""
    decoded = _codec.decode(data)
    if not isinstance(decoded, Forward) or not acceptable(decoded) or not decoded.lane:
        return
    machine = Machine("test")
    machine.apply_commands(1, 1, samples.START_MS, [samples.SYSTEM[0]])
    machine.apply_commands(2, 1, samples.START_MS, [samples.COMMAND_LINES[36], [b"SET", b"a", b"1"]])
    answers = []
    passed = Passed(decoded, 1, answers.append)
    words = [args for _, args in passed.operations]
    for index in (3, 4):
        (reply,) = machine.apply(Entry(index, 1, EntryKind.COMMANDS, encode_batch(samples.START_MS, words)))
    check(isinstance(reply, list | Error), f"answers {reply!r}")
    passed.answer(0, reply)
    (answer,) = answers
    check(answer.error is not None or len(answer.replies) == len(decoded.commands), "wrong number of replies")
    _payload(answer)


def _forward_seeds() -> Iterator[bytes]:
    for words in samples.COMMAND_LINES:
        yield _payload(samples.forward([words]))
    yield _payload(samples.forward([list(words) for words in samples.COMMAND_LINES]))
    yield _payload(samples.forward([[b"~EXEC", samples.TRANSACTION]]))
    yield _payload(samples.forward([[b"SET", b"a", b"1"]], number=2**63 - 1))


_LOG = __import__("logging").getLogger("fuzz.silent")
_LOG.disabled = True

TARGETS = (
    Target("frames", frames, (), _frame_seeds, max_bytes=1024),
    Target("handshake", handshake, (HandshakeError,), _handshake_seeds, max_bytes=2048),
    Target("message", message, (MessageError,), _message_seeds, packed=True),
    Target(
        "configuration",
        configuration,
        (ConfigurationFormatError,),
        lambda: map(encode_configuration, samples.CONFIGURATIONS),
        packed=True,
        max_bytes=1024,
    ),
    Target("core", core, (), _core_seeds, max_bytes=2048, bytes_per_byte=1000),
    Target(
        "core-fields",
        core_packed,
        (),
        _core_packed_seeds,
        packed=True,
        packed_from=2,
        max_bytes=2048,
        bytes_per_byte=1000,
    ),
    Target("forward", forwarded, (MessageError,), _forward_seeds, packed=True, bytes_per_byte=1000),
)
