"""Valid values of everything that has a decoder, for the corpora."""

from __future__ import annotations

import msgspec

from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server, encode_configuration
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
from raft.machine.batch import encode_batch, encode_commands
from raft.machine.commands import COMMANDS, Kind
from raft.machine.machine import Machine
from raft.machine.transactions import encode_transaction
from raft.transport.node_messages import DigestReport, Forward, ForwardReply, PeerMessage, Ping, Pong

START_MS = 1_700_000_000_000
POLICY = (
    b'{"interval_ms":2000,"reward":10,"penalty":5,"ban_threshold":2,"ban_cooldown_s":60,"max_spam":3,'
    b'"follower_version":"1.0","followers_per_interval":0}'
)
MEMBERS = b'[{"id":"node-1","address":"a:1"},{"id":"node-2","address":"a:2"}]'

# One or more valid uses of every command that may stand in the log.
USES: tuple[bytes, ...] = (
    b"SET a 1", b"SET a b NX GET", b"SET a b XX EX 10", b"SET a b IFEQ 1 PXAT 1800000000000",
    b"SET a 1 KEEPTTL", b"GET a", b"GETDEL a", b"GETEX a EX 10", b"GETEX a PERSIST", b"MGET a b",
    b"MSET a 1 b 2", b"MSETNX c 1 d 2", b"INCR n", b"DECR n", b"INCRBY n 5",
    b"DECRBY n -9223372036854775807", b"APPEND a xyz", b"STRLEN a", b"DEL a b", b"EXISTS a a", b"TYPE a",
    b"EXPIRE a 10", b"EXPIRE a 10 NX", b"EXPIRE a 5 GT", b"PEXPIRE a 1 XX LT", b"TTL a", b"PTTL a",
    b"PERSIST a", b"SCAN 0 MATCH a* COUNT 5 TYPE string", b"KEYS [a-c]?*", b"DBSIZE", b"FLUSHALL",
    b"FLUSHALL ASYNC", b"ONCE s 1 INCR n", b"ONCE s 2 GET a", b"once s 1 INCR n",
    b"FOLLOWER JOIN f1 1.0 here", b"FOLLOWER JOIN f2 1.0", b"FOLLOWER JOIN f3 2.0",
    b"FOLLOWER REPORT f1 1 data", b"FOLLOWER LEAVE f2", b"FOLLOWER INFO f1", b"FOLLOWER LIST",
    b"FOLLOWER LIST 0 COUNT 2 STATE active", b"FOLLOWER PARDON f1 because", b"REWARD BALANCE f1",
    b"REWARD CLAIM f1 3 c1", b"REWARD CLAIM f1 900 c2", b"REWARD TOP", b"REWARD TOP 3",
    b"REWARD HISTORY f1", b"REWARD HISTORY f1 COUNT 2", b"INTERVAL CURRENT", b"INTERVAL SHOW 1",
)  # fmt: skip
SYSTEM: tuple[list[bytes], ...] = (
    [b"~TERM", b"1", POLICY, MEMBERS],
    [b"~MEMBERS", MEMBERS],
    [b"~OPEN", b"1", b"1700000002000", b"1", POLICY],
    [b"~CLOSE", b"1", b"1", b"0", b"node-1"],
    [b"~OPEN", b"2", b"1700000004000", b"1", POLICY],
    [b"~PROJECTED", b"3"],
    [b"~EXPIRE"],
    [b"~DIGEST"],
)
COMMAND_LINES: tuple[list[bytes], ...] = tuple(use.split() for use in USES)
LOGGED = [spec for spec in COMMANDS.values() if spec.kind in (Kind.READ, Kind.WRITE)]

SERVERS = tuple(Server(n, "127.0.0.1", 7100 + n, 7200 + n, 7300 + n, "ab" * 16) for n in (1, 2, 3))
CONFIGURATION = Configuration((1, 2, 3), servers=SERVERS, cluster_id="cd" * 16)
CONFIGURATIONS = (
    Configuration((1,)),
    CONFIGURATION,
    CONFIGURATION.with_learner(Server(4, "host", 1, 2, 3), promote=True),
    CONFIGURATION.without(3),
)
TRANSACTION = encode_transaction(
    [(b"a", 3), (b"q", 99)], [[b"SET", b"a", b"1"], [b"TIME"], [b"PING"], [b"GET", b"a"]]
)


def entries(first: int, *terms: int, data: bytes = b"") -> tuple[Entry, ...]:
    """COMMANDS entries of these terms."""
    payload = data or encode_batch(START_MS, [[b"SET", b"k", b"v"]])
    return tuple(Entry(first + n, term, EntryKind.COMMANDS, payload) for n, term in enumerate(terms))


def forward(commands: list[list[bytes]], lane: bytes = b"~2.run.1", number: int = 1) -> Forward:
    """What a node passes on."""
    return Forward(7, 3, commands, lane, number)


def messages() -> list[PeerMessage]:
    """Every type of message, several of those that have many cases."""
    change = Entry(4, 3, EntryKind.CONFIGURATION, encode_configuration(CONFIGURATIONS[2]))
    return [
        RequestVote(4, 2, 9, 3), RequestVote(4, 2, 9, 3, True), RequestVote(3, 2, 9, 3, False, True),
        RequestVoteResponse(4, True), RequestVoteResponse(4, True, True), RequestVoteResponse(5, False),
        AppendEntries(3, 2, 3, 2, (), 3, 1), AppendEntries(3, 2, 3, 2, entries(4, 3, 3), 4, 2),
        AppendEntries(3, 2, 0, 0, entries(1, 1, 1, 2, 3), 4, 2), AppendEntries(3, 2, 3, 2, (change,), 4, 2),
        AppendEntries(4, 2, 9, 3, entries(10, 4), 0, 0),
        AppendEntriesResponse(3, True, 4, 1), AppendEntriesResponse(3, False, 0, 1, 3, 2, 1),
        ReadIndexRequest(3, 77), ReadIndexResponse(3, 77, 3, True), TimeoutNow(3),
        InstallSnapshot(3, 2, 9, 3, 0, 100, b"piece"), InstallSnapshotResponse(3, 9, 5),
        Ping(1, 2), Pong(1, 2), forward([[b"SET", b"a", b"1"], [b"GET", b"a"]]),
        Forward(8, 2, [[b"RAFT", b"TRANSFER"]]), ForwardReply(7, [b"+OK\r\n"]), ForwardReply(7, [], "BUSY"),
        DigestReport(5, "ab" * 32), DigestReport(5, "?", True),
    ]  # fmt: skip


def machine() -> Machine:
    """A machine with something in every part of it."""
    made = Machine("test")
    lines = [
        *SYSTEM[:1],
        *COMMAND_LINES,
        SYSTEM[2],
        [b"FOLLOWER", b"REPORT", b"f1", b"1", b"data"],
        *SYSTEM[3:],
    ]
    lines += [[b"SET", b"t", b"1", b"EX", b"100"], [b"ONCE", b"s9", b"1", b"MGET", b"a", b"t"]]
    lines.append([b"~ONCE", b"~1.run.1", b"1", encode_commands([[b"SET", b"z", b"1"], [b"GET", b"z"]])])
    for n, words in enumerate(lines, start=1):
        made.apply_commands(n, 1, START_MS + n, [words])
    return made


def msgpack(value: object) -> bytes:
    """A value as it travels."""
    return msgspec.msgpack.encode(value)
