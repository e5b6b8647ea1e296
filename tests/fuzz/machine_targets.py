"""Targets: what the log's entries and a snapshot's content do to the machine."""

from __future__ import annotations

from collections.abc import Iterator

import hiredis
import msgspec

from ledger import snapshot as ledger_snapshot
from ledger.policy import Policy
from ledger.snapshot import LedgerFormatError
from raft.clients.dispatch import once_error
from raft.clients.resp import encode_reply
from raft.machine.batch import BatchFormatError, decode_batch, decode_commands, encode_batch, encode_commands
from raft.machine.commands import CommandSpec, lookup
from raft.machine.machine import Machine
from raft.machine.sessions import pack, unpack
from raft.machine.snapshot import SnapshotFormatError
from raft.machine.transactions import decode_transaction, encode_transaction
from raft.replies import Reply
from tests.fuzz import samples
from tests.fuzz.mutation import WORDS
from tests.fuzz.target import Feed, FuzzFailure, Target, check, piece

_FRAME = b"".join
_decode = msgspec.msgpack.decode


def batch(data: bytes) -> None:
    """The data of a COMMANDS entry."""
    decoded = decode_batch(data)
    check(decode_batch(encode_batch(decoded.at_ms, decoded.commands)) == decoded, "comes back changed")


def commands_of_a_lane(data: bytes) -> None:
    """The commands inside a ~ONCE."""
    decoded = decode_commands(data)
    check(decode_commands(encode_commands(decoded)) == decoded, "comes back changed")


def transaction(data: bytes) -> None:
    """The data of an ~EXEC."""
    decoded = decode_transaction(data)
    again = decode_transaction(encode_transaction(decoded.watched, decoded.commands))
    check(again == decoded, "comes back changed")


def policy(data: bytes) -> None:
    """A policy inside ~TERM and ~OPEN."""
    decoded = Policy.decode(data)
    check(Policy.decode(decoded.encode()) == decoded, "comes back changed")


# --- commands -------------------------------------------------------------------------------------------

VOCABULARY = (
    *WORDS,
    *(
        b"b",
        b"n",
        b"f2",
        b"c1",
        b"s",
        b"2",
        b"10",
        b"~1.run.1",
        b"XX",
        b"GT",
        b"LT",
        b"PX",
        b"EXAT",
        b"PXAT",
        b"GET",
    ),
    *(b"KEEPTTL", b"PERSIST", b"IFEQ", b"TYPE", b"STATE", b"active", b"ASYNC", b"ALWAYS", b"1700000000005"),
    *(samples.POLICY, samples.MEMBERS, b"1700000002000", b"100", b"node-2"),
)
_NAMES: tuple[list[bytes], ...] = tuple(spec.name.split() for spec in samples.LOGGED)
_SYSTEM = [words[:1] for words in samples.SYSTEM]


def _words(feed: Feed) -> list[bytes]:
    """One command: a valid use, or a name with words from the vocabulary or of any bytes."""
    first = feed.byte()
    if first < 100:
        words = list((*samples.COMMAND_LINES, *samples.SYSTEM)[first % (len(samples.COMMAND_LINES) + 8)])
    else:
        names = (*_NAMES, *_SYSTEM)
        words = list(names[first % len(names)])
        if first % 7 == 0:
            words = [word.swapcase() for word in words]
    changes = feed.byte()
    for _ in range(changes & 7):
        choice = feed.byte()
        word = feed.bytes(choice & 15) if choice >= 240 else VOCABULARY[choice % len(VOCABULARY)]
        if changes & 8 and len(words) > 2:
            words[2 + choice % (len(words) - 2)] = word
        else:
            words.append(word)
    return words


def _may_be_logged(words: list[bytes]) -> bool:
    """As the handler and the leader see to it."""
    if words[0].startswith(b"~"):
        return True
    spec = lookup(words)
    return isinstance(spec, CommandSpec) and (spec.name != b"ONCE" or once_error(words) is None)


def commands(data: bytes) -> None:
    """Entries of any commands on three machines: one live, one that wants no replies, one that is restored
    half-way. Never an exception; the same replies, the same digest."""
    feed = Feed(data)
    live, silent, restored = Machine("test"), Machine("test"), Machine("test")
    at_ms, index = samples.START_MS, 0
    while feed.more and index < 40:
        index += 1
        control = feed.byte()
        at_ms += (control & 0x1F) ** 3
        entry = [
            words for words in (_words(feed) for _ in range(1 + (control >> 6))) if _may_be_logged(words)
        ]
        replies = live.apply_commands(index, 1, at_ms, entry)
        check(len(replies) == len(entry), "a command without a reply")
        again = decode_batch(encode_batch(at_ms, entry))
        check(
            silent.apply_commands(index, 1, again.at_ms, again.commands, want_replies=False) == [], "replies"
        )
        check(restored.apply_commands(index, 1, again.at_ms, again.commands) == replies, "other replies")
        for reply in replies:
            _answerable(reply)
        if control & 0x20:
            restored = Machine.load("test", list(restored.dump()))
    digest = live.digest()
    check(digest == silent.digest(), "another digest where no replies are wanted")
    check(digest == restored.digest(), "another digest after a snapshot")
    live.ledger.pull(1000)
    live.take_events()


def _answerable(reply: Reply) -> None:
    for protocol in (2, 3):
        reader = hiredis.Reader(protocolError=FuzzFailure)
        reader.feed(encode_reply(reply, protocol))
        check(reader.gets() is not False, f"{reply!r} is no whole answer")
        check(reader.gets() is False, f"{reply!r} is more than one answer")
    check(pack(unpack(pack(reply))) == pack(reply), f"{reply!r} is kept as something else")


def _command_seeds() -> Iterator[bytes]:
    term, opening, closing = (
        len(samples.COMMAND_LINES),
        len(samples.COMMAND_LINES) + 2,
        len(samples.COMMAND_LINES) + 3,
    )
    head = bytes([1, term, 0])
    for start in range(0, len(samples.COMMAND_LINES), 5):
        lines = range(start, min(start + 5, len(samples.COMMAND_LINES)))
        yield head + b"".join(bytes([0x03 + (n % 2 << 5), n, 0]) for n in lines)
        yield head + b"".join(bytes([0xC1, n, 9, 3, n, 1, 200, n, 2, 245, 7, n, 0]) for n in lines)
    joins = b"".join(bytes([1, n, 0]) for n in range(33, 37))
    yield (
        head
        + joins
        + bytes([1, opening, 0, 0x21, 36, 0, 0x1F, closing, 0])
        + bytes([1, 47, 0, 1, 48, 0, 1, 51, 0])
    )
    yield head + b"".join(
        bytes([0x81, 100 + n, n % 5, n, n * 3 % 256, n * 7 % 256, 255, 65]) for n in range(30)
    )


# --- snapshots' content ---------------------------------------------------------------------------------


def _frames(stream: bytes) -> list[tuple[int, bytes]]:
    """(section, content) of a machine's stream."""
    found, at = [], 0
    while at < len(stream):
        length = int.from_bytes(stream[at : at + 4], "little")
        found.append((stream[at + 4], stream[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def machine_load(data: bytes) -> None:
    """The stream of a machine: refused, or a machine that has a digest and can be dumped again."""
    loaded = Machine.load("test", [data[: len(data) // 2], data[len(data) // 2 :]])
    _is_sound(loaded)


def machine_frame(data: bytes) -> None:
    """The same with one frame's content replaced: which one, then the content."""
    feed = Feed(data)
    number, content = feed.byte(), feed.rest()
    changed = list(FRAMES)
    changed[number % len(changed)] = (changed[number % len(changed)][0], content)
    _is_sound(Machine.load("test", [b"".join(_frame(*each) for each in changed)]))


def _frame(section: int, content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + bytes([section]) + content


def _is_sound(loaded: Machine) -> None:
    digest = loaded.digest()
    again = Machine.load("test", loaded.dump())
    check(again.digest() == digest, "another digest after a second snapshot")
    index = loaded.applied_index
    for entry in ([samples.SYSTEM[0]], [list(words) for words in samples.COMMAND_LINES]):
        index += 1
        replies = loaded.apply_commands(index, loaded.applied_term, loaded.at_ms + 1, entry)
        check(
            again.apply_commands(index, again.applied_term, again.at_ms + 1, entry) == replies,
            "other replies",
        )
    check(loaded.digest() == again.digest(), "another digest later")


STREAM = b"".join(samples.machine().dump())
FRAMES = _frames(STREAM)


def ledger(data: bytes) -> None:
    """The ledger's pieces: refused, or a ledger that can be hashed and exported again."""
    feed = Feed(data)
    pieces = []
    while feed.more:
        pieces.append(feed.piece())
    state = ledger_snapshot.restore(pieces)
    hashed = list(state.parts())
    state.check()
    again = ledger_snapshot.restore([content for _, content in ledger_snapshot.export(state)])
    check(list(again.parts()) == hashed, "comes back changed")


def ledger_piece(data: bytes) -> None:
    """The same with one piece replaced: which one, then the piece."""
    feed = Feed(data)
    number, content = feed.byte(), feed.rest()
    changed = list(PIECES)
    changed[number % len(changed)] = content
    ledger(b"".join(map(piece, changed)))


PIECES = [content for section, content in FRAMES if section == 6]

TARGETS = (
    Target(
        "batch",
        batch,
        (BatchFormatError,),
        lambda: [
            encode_batch(samples.START_MS, [list(words) for words in samples.COMMAND_LINES[:9]]),
            encode_batch(0, []),
            encode_batch(2**53, [[b"PING"]]),
        ],
        packed=True,
    ),
    Target(
        "lane",
        commands_of_a_lane,
        (BatchFormatError,),
        lambda: [encode_commands([list(words) for words in samples.COMMAND_LINES[:9]]), encode_commands([])],
        packed=True,
    ),
    Target("transaction", transaction, (BatchFormatError,), lambda: [samples.TRANSACTION], packed=True),
    Target("policy", policy, (ValueError,), lambda: [samples.POLICY]),
    Target("commands", commands, (), _command_seeds, max_bytes=512, bytes_per_byte=5000),
    Target(
        "machine-load",
        machine_load,
        (SnapshotFormatError,),
        lambda: [STREAM, b"".join(Machine("test").dump())],
        max_bytes=len(STREAM) + 256,
        bytes_per_byte=500,
    ),
    Target(
        "machine-frame",
        machine_frame,
        (SnapshotFormatError,),
        lambda: [bytes([n]) + content for n, (_, content) in enumerate(FRAMES)],
        packed=True,
        packed_from=1,
        bytes_per_byte=2000,
    ),
    Target(
        "ledger-piece",
        ledger_piece,
        (LedgerFormatError,),
        lambda: [bytes([n]) + content for n, content in enumerate(PIECES)],
        packed=True,
        packed_from=1,
        bytes_per_byte=2000,
    ),
    Target("ledger", ledger, (LedgerFormatError,), lambda: [b"".join(map(piece, PIECES))], max_bytes=8192),
)
