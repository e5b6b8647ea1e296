"""The short way against the long one: the same bytes, cut alike, give the same answers and the same state."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import deque

import pytest
from clients_support import make_status, resp

from raft.clients.batch import Batch
from raft.clients.connection import Connection
from raft.clients.handler import Handler
from raft.clients.shared import ServerState
from raft.config import LimitSettings, Settings
from raft.machine.machine import Machine
from raft.replies import Error
from raft.status import NodeStatus

LIMIT = 1024
NOW_MS = 1_700_000_000_000
SHORT = "short"
LONG = "long"


class Held:
    """A backend with the real machine, which answers when it is told to."""

    def __init__(self) -> None:
        self.machine = Machine("test")
        self.logged: list[list[bytes]] = []
        self.full = False
        self.waiting: deque[Batch] = deque()

    def submit(self, batch: Batch) -> bool:
        if not self.full:
            self.waiting.append(batch)
        return not self.full

    def status(self) -> NodeStatus:
        return make_status(run_id="ab" * 20, started_monotonic_s=0.0)

    def answer(self, failure: str | None) -> None:
        while self.waiting:
            batch = self.waiting.popleft()
            commands = [args for _, args in batch.operations]
            if failure is not None:
                batch.fail(Error(failure))
            elif batch.writes:
                self.logged += commands
                index = self.machine.applied_index + 1
                batch.answer_run(0, len(commands), self.machine.apply_commands(index, 1, NOW_MS, commands), 0)
            else:
                for slot, args in batch.operations:
                    batch.answer(slot, self.machine.read(args, NOW_MS))


class Side:
    """A handler, turned by hand, one client of it, and what that client has heard."""

    def __init__(self, way: str) -> None:
        self.backend = Held()
        self.server = ServerState(self.backend, Settings(limits=LimitSettings(max_request_bytes=LIMIT)))
        self.errors: list[BaseException] = []
        self.handler = Handler(way, self.server, lambda _name, error: self.errors.append(error))
        self.handler._stop_at = 0.0  # a turn does not wait for events
        if way == LONG:
            self.handler._serve_single = self.handler._process  # type: ignore[method-assign]
        self.client, theirs = socket.socketpair()
        self.client.setblocking(False)
        self.handler.adopt(theirs, "client", 1)
        self.connection: Connection = self.server.connections[1]
        self.heard = b""
        self.turns()

    def turns(self) -> None:
        """Turn until there is nothing more to do, then hear what was answered."""
        self.handler._turn()
        while self.handler._inbox or self.handler._signalled:
            self.handler._turn()
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while piece := self.client.recv(65536):
                self.heard += piece

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.client.sendall(data)
        self.turns()

    def answer(self, failure: str | None = None) -> None:
        while self.backend.waiting:
            self.backend.answer(failure)
            self.turns()

    def seen(self) -> tuple[object, ...]:
        """All that may not depend on the way."""
        connection = self.connection
        session = (
            *(connection.closed, connection.closing, connection.busy, connection.protocol, connection.name),
            *(connection.channels, connection.patterns, connection.watched, connection.queue is None),
            *(connection.last_command, connection.parser.buffered, str(connection.parser.error)),
            *(connection.batch_limit, connection.answered_bytes, connection.backlog),
        )
        return self.heard, session, self.backend.logged, self.server.commands

    def close(self) -> None:
        self.handler._close(self.connection)
        self.handler._epoll.close()
        self.client.close()


WORDS = (
    *(b"a", b"b", b"k", b"", b"\r\n", b"1", b"-1", b"x" * 40, b"\x00\xff", b"$1\r\na", b"*2", b"PX", b"NX"),
)
NAMES = (
    *(
        b"GET",
        b"get",
        b"Get",
        b"SET",
        b"set",
        b"SeT",
        b"INCR",
        b"DEL",
        b"EXISTS",
        b"MGET",
        b"MSET",
        b"APPEND",
    ),
    *(b"KEYS", b"SCAN", b"DBSIZE", b"ONCE", b"PING", b"ECHO", b"NOSUCH", b"", b"COMMAND", b"~TERM", b"RAFT"),
    *(b"TTL", b"APPEND", b"STRLEN", b"FOLLOWER", b"SELECT", b"GETEX", b"INCRBY", b"FLUSHALL"),
)
PLAIN = ((b"GET", b"a"), (b"set", b"a", b"1"), (b"INCR", b"a"), (b"APPEND", b"k", b"x"), (b"MGET", b"k"))
STATEFUL = (
    *((b"MULTI",), (b"EXEC",), (b"DISCARD",), (b"WATCH", b"a"), (b"UNWATCH",), (b"HELLO", b"3")),
    *((b"HELLO", b"2"), (b"RESET",), (b"SUBSCRIBE", b"turns"), (b"UNSUBSCRIBE",), (b"PSUBSCRIBE", b"*")),
    *((b"PUNSUBSCRIBE",), (b"CLIENT", b"ID"), (b"CLIENT", b"SETNAME", b"me"), (b"QUIT",), (b"AUTH", b"x")),
)


def a_request(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.07:
        return resp(*rng.choice(STATEFUL if rng.random() < 0.2 else STATEFUL[:-2]))
    if kind < 0.12:
        return resp(b"RESET")  # else most of a client's life would be spent subscribed
    if kind > 0.5 and kind < 0.9:
        return resp(*rng.choice(PLAIN))
    words = [rng.choice(NAMES), *(rng.choice(WORDS) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 4))))]
    if kind < 0.16:
        return b" ".join(words) + rng.choice((b"\r\n", b"\n"))
    if kind < 0.18:
        words[-1] = b"v" * rng.randint(LIMIT - 40, LIMIT + 1)
    data = resp(*words)
    if kind > 0.97:  # not as a library writes it
        at = rng.randrange(len(data))
        data = data[:at] + rng.choice((b"", b"0", b"\r", b"*", b"$", b"-")) + data[at + rng.randint(0, 1) :]
    return data


def pieces(rng: random.Random, most: int) -> list[bytes]:
    """What one client sends: mostly one request at a time, some together, some in parts."""
    made = []
    for _ in range(rng.randint(1, most)):
        data = b"".join(a_request(rng) for _ in range(rng.choice((1, 1, 1, 1, 2, 5))))
        if rng.random() < 0.15 and len(data) > 1:
            at = rng.randrange(1, len(data))
            made += [data[:at], data[at:]]
        else:
            made.append(data)
    return made


def run(seed: int, most: int = 12) -> int:
    """One client's life, both ways: `most` things to say at most. Returns how many pieces it sent."""
    rng = random.Random(seed)
    short, long = Side(SHORT), Side(LONG)
    sent = pieces(rng, most)
    try:
        for data in sent:
            event, failure = rng.random(), None
            full = event < 0.05
            if 0.05 < event < 0.1:
                failure = "CLUSTERDOWN no leader"
            later, news = rng.random() < 0.15, rng.random() < 0.1
            for side in (short, long):
                side.backend.full = full
                side.send(data)
                if news:
                    side.handler.publish(b"turns", b"7 8")
                    side.turns()
                if not later:
                    side.answer(failure)
            assert short.seen() == long.seen(), (seed, data)
        for side in (short, long):
            side.client.shutdown(socket.SHUT_WR)
            side.turns()
            side.answer()
        assert short.seen() == long.seen(), seed
        assert short.connection.closed
        assert short.backend.machine.digest() == long.backend.machine.digest()
    finally:
        short.close()
        long.close()
    assert not short.errors and not long.errors
    return len(sent)


@pytest.mark.parametrize("block", range(5))
def test_both_ways_answer_alike(block: int, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(block * 60, block * 60 + 60):
        run(seed)
    assert "closed after an error" not in caplog.text
