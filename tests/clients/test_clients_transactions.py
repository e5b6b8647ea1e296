"""MULTI, EXEC, DISCARD, WATCH, UNWATCH and ONCE on a connection, with the real state machine behind it."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hiredis
import pytest
import redis
from clients_support import DEADLINE_S, Harness, Wire, eventually, resp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_backend import MachineBackend

from raft.clients import transactions
from raft.replies import Error

ABORTED = b"-EXECABORT Transaction discarded because of previous errors.\r\n"


@pytest.fixture
def backend() -> MachineBackend:
    return MachineBackend()


@pytest.fixture
def harness(backend: MachineBackend) -> Iterator[Harness]:
    made = Harness(backend)
    yield made
    made.close()


def talk(wire: Wire, *exchanges: tuple[str, bytes]) -> None:
    """Sends inline commands one by one; each must be answered to the byte."""
    for said, answer in exchanges:
        wire.send(said.encode() + b"\r\n")
        wire.expect(answer)


OK, QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


def test_a_transaction_is_one_command_of_the_log(backend: MachineBackend, wire: Wire) -> None:
    wire.send(
        resp(b"MULTI") + resp(b"SET", b"a", b"1") + resp(b"incr", b"a") + resp(b"GET", b"a") + resp(b"EXEC")
    )
    wire.expect(OK + QUEUED * 3 + b"*3\r\n+OK\r\n:2\r\n$1\r\n2\r\n")
    assert [words[0] for words in backend.logged] == [b"~EXEC"]


def test_transactions_and_commands_share_a_pipeline(backend: MachineBackend, wire: Wire) -> None:
    once = resp(b"MULTI") + resp(b"INCR", b"a") + resp(b"EXEC") + resp(b"INCR", b"a") + resp(b"PING")
    wire.send(once * 3)
    for number in (1, 3, 5):
        wire.expect(OK + QUEUED + b"*1\r\n:%d\r\n:%d\r\n+PONG\r\n" % (number, number + 1))


def test_an_error_of_one_command_stands_in_the_array(wire: Wire) -> None:
    talk(
        wire,
        ("MULTI", OK),
        ("SET a x", QUEUED),
        ("INCR a", QUEUED),
        ("MSET a", b"-ERR wrong number of arguments for 'mset' command\r\n"),
        ("EXEC", ABORTED),
        ("GET a", b"$-1\r\n"),
        ("MULTI", OK),
        ("SET a x", QUEUED),
        ("INCR a", QUEUED),
        ("GET a", QUEUED),
        ("EXEC", b"*3\r\n+OK\r\n-ERR value is not an integer or out of range\r\n$1\r\nx\r\n"),
    )


@pytest.mark.parametrize(
    "said",
    [
        "SUBSCRIBE a", "HELLO 3", "AUTH x", "INFO", "CLIENT ID", "COMMAND COUNT", "CONFIG GET save",
        "RAFT INFO", "RAFT DIGEST", "RAFT SNAPSHOT", "CLUSTER SLOTS", "FOLLOWER HELP", "ONCE s 1 SET a b",
    ],
)  # fmt: skip
def test_what_is_about_a_node_or_a_connection_is_refused_inside(wire: Wire, said: str) -> None:
    talk(
        wire,
        ("MULTI", OK),
        (said, b"-ERR Command not allowed inside a transaction\r\n"),
        ("SET a 1", QUEUED),
        ("EXEC", ABORTED),
        ("GET a", b"$-1\r\n"),
    )


def test_commands_of_the_connection_without_effect(backend: MachineBackend, wire: Wire) -> None:
    said = ["PING", "ping x", "ECHO y", "SELECT 0", "SELECT 1", "SELECT x", "UNWATCH", "READONLY", "TIME"]
    talk(wire, ("MULTI", OK), *((each, QUEUED) for each in said))
    talk(wire, ("FOLLOWER JOIN", b"-ERR wrong number of arguments for 'follower|join' command\r\n"))
    talk(wire, ("DISCARD", OK), ("MULTI", OK), *((each, QUEUED) for each in said))
    answers = b"+PONG\r\n$1\r\nx\r\n$1\r\ny\r\n+OK\r\n-ERR DB index is out of range\r\n"
    answers += b"-ERR value is not an integer or out of range\r\n+OK\r\n+OK\r\n"
    talk(wire, ("EXEC", b"*9\r\n" + answers + b"*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n"))


@pytest.mark.parametrize("protocol", [2, 3])
def test_maps_and_nulls_inside_follow_the_protocol(harness: Harness, wire: Wire, protocol: int) -> None:
    if protocol == 3:
        wire.send(b"HELLO 3\r\n")
        eventually(lambda: b"modules" in wire.sock.recv(65536, socket.MSG_PEEK))
        wire.sock.recv(65536)
    null = b"_\r\n" if protocol == 3 else b"$-1\r\n"
    talk(wire, ("MULTI", OK), ("GET a", QUEUED), ("EXEC", b"*1\r\n" + null))
    other = harness.connect()
    talk(wire, ("WATCH a", OK))
    talk(other, ("SET a 1", OK))
    talk(wire, ("MULTI", OK), ("GET a", QUEUED), ("EXEC", b"_\r\n" if protocol == 3 else b"*-1\r\n"))


# --- WATCH ---


@pytest.mark.parametrize(
    ("watched", "changes", "fails"),
    [
        ("a", "SET a 0", True),
        ("a b", "SET b 0", True),
        ("a", "SET b 0", False),
        ("a", "GET a", False),
        ("a", "DEL a", True),
        ("none", "DEL none", False),
        ("a", "SET a 1 NX", False),
        ("none", "INCR none", True),
        ("a", "EXPIRE a 100", True),
        ("a", "PERSIST a", False),
        ("timed", "PERSIST timed", True),
        ("timed", "GETEX timed PERSIST", True),
        ("timed", "GETEX timed", False),
        ("a", "GETEX a EX 5", True),
        ("a", "GETDEL a", True),
        ("none", "GETDEL none", False),
        ("a", "EXPIRE a -1", True),
        ("a", "APPEND a x", True),
        ("a", "MSET b 1 a 2", True),
        ("none", "MSETNX a 1 none 2", False),
        ("a", "INCRBY a x", False),
        ("a", "FLUSHALL", True),
        ("none", "FLUSHALL", False),
        ("a", "ONCE s 1 SET a 2", True),
    ],
)
def test_exec_fails_when_a_watched_key_changed(
    harness: Harness, wire: Wire, watched: str, changes: str, fails: bool
) -> None:
    other = redis.Redis(port=harness.server.port, socket_timeout=DEADLINE_S)
    other.mset({"a": "1"})
    other.set("timed", "1", ex=1000)
    talk(wire, (f"WATCH {watched}", OK))
    with contextlib.suppress(redis.ResponseError):
        other.execute_command(*changes.split())
    other.close()
    talk(wire, ("MULTI", OK), ("SET done 1", QUEUED), ("EXEC", b"*-1\r\n" if fails else b"*1\r\n+OK\r\n"))
    talk(wire, ("EXISTS done", b":0\r\n" if fails else b":1\r\n"))
    talk(wire, ("MULTI", OK), ("PING", QUEUED), ("EXEC", b"*1\r\n+PONG\r\n"))  # nothing is watched any more


def test_a_key_that_expires_counts_as_changed(backend: MachineBackend, wire: Wire) -> None:
    talk(wire, ("SET a 1 EX 10", OK), ("WATCH a", OK))
    backend.now_ms += 20_000
    talk(wire, ("MULTI", OK), ("PING", QUEUED), ("EXEC", b"*-1\r\n"))
    talk(wire, ("WATCH a", OK))
    backend.now_ms += 20_000
    talk(wire, ("MULTI", OK), ("PING", QUEUED), ("EXEC", b"*1\r\n+PONG\r\n"))


@pytest.mark.parametrize("forgets", ["UNWATCH", "DISCARD", "RESET", "EXEC"])
def test_watched_keys_are_forgotten(wire: Wire, forgets: str) -> None:
    talk(wire, ("WATCH a", OK), ("SET a 2", OK))
    if forgets == "UNWATCH":
        talk(wire, ("UNWATCH", OK))
    else:
        answers = {"DISCARD": OK, "RESET": b"+RESET\r\n", "EXEC": b"*-1\r\n"}
        talk(wire, ("MULTI", OK), (forgets, answers[forgets]))
    talk(wire, ("MULTI", OK), ("GET a", QUEUED), ("EXEC", b"*1\r\n$1\r\n2\r\n"))


def test_of_two_watches_the_earlier_counts(wire: Wire) -> None:
    talk(wire, ("WATCH a", OK), ("SET a 2", OK), ("WATCH a b", OK))
    talk(wire, ("MULTI", OK), ("EXEC", b"*-1\r\n"))


def test_watch_in_a_pipeline_sees_what_stands_before_it(wire: Wire) -> None:
    change = resp(b"SET", b"a", b"1")
    rest = resp(b"MULTI") + resp(b"GET", b"a") + resp(b"EXEC")
    wire.send(change + resp(b"WATCH", b"a") + rest)
    wire.expect(OK + OK + OK + QUEUED + b"*1\r\n$1\r\n1\r\n")
    wire.send(resp(b"WATCH", b"a") + change + rest)
    wire.expect(OK + OK + OK + QUEUED + b"*-1\r\n")


def test_a_watch_that_could_not_be_answered_watches_nothing(backend: MachineBackend, wire: Wire) -> None:
    backend.fail = Error("CLUSTERDOWN no leader")
    talk(wire, ("WATCH a", b"-CLUSTERDOWN no leader\r\n"), ("SET a 1", OK))
    talk(wire, ("MULTI", OK), ("EXEC", b"*0\r\n"))


def test_a_transaction_ends_with_an_exec_that_failed(backend: MachineBackend, wire: Wire) -> None:
    talk(wire, ("MULTI", OK), ("SET a 1", QUEUED))
    backend.fail = Error("CLUSTERDOWN no leader")
    talk(wire, ("EXEC", b"-CLUSTERDOWN no leader\r\n"), ("EXEC", b"-ERR EXEC without MULTI\r\n"))
    talk(wire, ("MULTI", OK), ("SET a 1", QUEUED))
    backend.full = True
    wire.send(b"EXEC\r\n")
    assert wire.line().startswith(b"-BUSY")
    backend.full = False
    talk(wire, ("DISCARD", b"-ERR DISCARD without MULTI\r\n"), ("EXISTS a", b":0\r\n"))


# --- bounds ---


def test_too_many_commands_abort(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "MAX_COMMANDS", 3)
    refused = b"-ERR a transaction may have at most 16384 commands and 4194304 bytes\r\n"
    talk(wire, ("MULTI", OK), *[("INCR a", QUEUED)] * 3, ("INCR a", refused), ("PING", QUEUED))
    talk(wire, ("EXEC", ABORTED), ("EXISTS a", b":0\r\n"))
    talk(wire, ("MULTI", OK), *[("INCR a", QUEUED)] * 3, ("EXEC", b"*3\r\n:1\r\n:2\r\n:3\r\n"))


def test_too_many_bytes_abort_watched_keys_included(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "MAX_BYTES", 100)
    talk(wire, ("WATCH " + "k" * 80, OK))
    wire.send(b"WATCH " + b"l" * 16 + b"\r\n")
    assert wire.line() == b"-ERR the watched keys may have at most 4194304 bytes\r\n"
    talk(wire, ("MULTI", OK))
    wire.send(b"GET aa\r\n")
    assert wire.line().startswith(b"-ERR a transaction may have at most")
    talk(wire, ("EXEC", ABORTED), ("MULTI", OK), ("GET a", QUEUED), ("EXEC", b"*1\r\n$-1\r\n"))


def test_a_closed_connection_takes_its_transaction_with_it(harness: Harness, wire: Wire) -> None:
    other = harness.connect()
    talk(other, ("MULTI", OK), ("SET a 1", QUEUED))
    other.sock.close()
    eventually(lambda: harness.server.connected == 1)
    talk(wire, ("EXISTS a", b":0\r\n"))


def test_client_info_shows_the_transaction(wire: Wire) -> None:
    talk(wire, ("MULTI", OK), ("GET a", QUEUED), ("GET a", QUEUED), ("DISCARD", OK))
    wire.send(b"CLIENT INFO\r\n")
    size = int(wire.line()[1:])
    assert b" multi=-1 " in wire.sock.recv(size + 2)


def test_others_see_the_transaction_of_a_client(harness: Harness, wire: Wire) -> None:
    talk(wire, ("MULTI", OK), ("GET a", QUEUED), ("GET a", QUEUED))
    with redis.Redis(port=harness.server.port, socket_timeout=DEADLINE_S) as other:
        assert [(row["multi"], row["flags"]) for row in other.client_list()] == [("2", "x"), ("-1", "N")]


# --- ONCE ---

OF_WHAT = ": it takes a read or a write of the data"


def test_once_answers_the_same_again_from_any_connection(
    backend: MachineBackend, harness: Harness, wire: Wire
) -> None:
    other = harness.connect()
    for each in (wire, other, wire):
        talk(each, ("ONCE s 1 INCR n", b":1\r\n"), ("once s 2 incrby n 5", b":6\r\n"))
        talk(each, ("ONCE s 3 SET n x GET", b"$1\r\n6\r\n"), ("ONCE s 4 GET none", b"$-1\r\n"))
        talk(each, ("ONCE s 5 INCR n", b"-ERR value is not an integer or out of range\r\n"))
    talk(wire, ("SET none 1", OK), ("ONCE s 4 GET none", b"$-1\r\n"))
    refused = b"-ERR this sequence number of the session was used for another command\r\n"
    talk(wire, ("ONCE s 1 INCR m", refused), ("ONCE s 1 incr n", b":1\r\n"))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("ONCE s 1", "ERR wrong number of arguments for 'once' command"),
        ("ONCE s 0 GET a", "ERR a sequence number must be an integer from 1 on"),
        ("ONCE s -1 GET a", "ERR a sequence number must be an integer from 1 on"),
        ("ONCE s 01 GET a", "ERR a sequence number must be an integer from 1 on"),
        ("ONCE s x GET a", "ERR a sequence number must be an integer from 1 on"),
        (f"ONCE s {2**63} GET a", "ERR a sequence number must be an integer from 1 on"),
        ("ONCE '' 1 GET a", "ERR a session's name must have 1 to 128 bytes"),
        (f"ONCE {'s' * 129} 1 GET a", "ERR a session's name must have 1 to 128 bytes"),
        ("ONCE s 1 FOO", "ERR unknown command 'FOO', with args beginning with: "),
        ("ONCE s 1 GET", "ERR wrong number of arguments for 'get' command"),
        ("ONCE s 1 ~EXPIRE", "ERR unknown command '~EXPIRE', with args beginning with: "),
        *(
            (f"ONCE s 1 {inner}", f"ERR '{name}' cannot stand in ONCE{OF_WHAT}")
            for inner, name in [
                ("ONCE s 2 GET a", "once"), ("MULTI", "multi"), ("EXEC", "exec"), ("WATCH a", "watch"),
                ("PING", "ping"), ("SUBSCRIBE a", "subscribe"), ("RAFT DIGEST", "raft|digest"),
                ("INFO", "info"), ("RAFT SNAPSHOT", "raft|snapshot"), ("CLIENT ID", "client|id"),
                ("QUIT", "quit"),
            ]
        ),
    ],
)  # fmt: skip
def test_once_refuses_what_it_cannot_promise(
    backend: MachineBackend, wire: Wire, said: str, answer: str
) -> None:
    talk(wire, (said, f"-{answer}\r\n".encode()))
    assert backend.logged == []


def test_once_with_followers_and_rewards(wire: Wire) -> None:
    wire.send(b"ONCE s 1 FOLLOWER LEAVE nobody\r\n" * 2)
    first = wire.line()
    assert first.startswith(b"-NOFOLLOWER")
    assert wire.line() == first


# --- real clients, and Redis itself ---


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_transactions(harness: Harness, protocol: int) -> None:
    with redis.Redis(
        port=harness.server.port, protocol=protocol, decode_responses=True, socket_timeout=DEADLINE_S
    ) as client:
        pipeline = client.pipeline(transaction=True)
        for number in range(5000):
            pipeline.set(f"k{number}", "v")
        assert pipeline.execute() == [True] * 5000

        def add(pipe: redis.client.Pipeline) -> None:
            value = int(pipe.get("n") or 0)  # type: ignore[arg-type]
            if value == 0:
                client.set("n", "5")  # somebody comes between
            pipe.multi()
            pipe.set("n", str(value + 1))

        client.set("n", "0")
        client.transaction(add, "n")
        assert client.get("n") == "6"
        pipe = client.pipeline()
        pipe.watch("n")
        client.incr("n")
        pipe.multi()
        pipe.get("n")
        with pytest.raises(redis.WatchError):
            pipe.execute()


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], str]) -> Iterator[int]:
    program = require_tool("redis-server")
    directory: Path = tmp_path_factory.mktemp("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    arguments = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait(10)


class Exact:
    """One client: sends a command, gives back the bytes of the answer."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)

    def __call__(self, *words: str) -> bytes:
        self.sock.sendall(resp(*(word.encode() for word in words)))
        reader, data = hiredis.Reader(), b""
        while True:
            piece = self.sock.recv(65536)
            assert piece, "closed"
            data += piece
            reader.feed(piece)
            if reader.gets() is not False:
                return data

    def close(self) -> None:
        self.sock.close()


TIME = re.compile(rb"\*2\r\n\$10\r\n\d+\r\n\$\d+\r\n\d+\r\n")
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["1", "x"])
SAID = st.one_of(
    st.sampled_from(["MULTI", "MULTI", "EXEC", "EXEC", "DISCARD", "UNWATCH", "RESET"]).map(str.split),
    st.lists(KEYS, min_size=1, max_size=2).map(lambda keys: ["WATCH", *keys]),
    st.tuples(st.just("SET"), KEYS, VALUES).map(list),
    st.tuples(st.sampled_from(["GET", "INCR", "DEL", "GETDEL", "PERSIST", "GETEX"]), KEYS).map(list),
    st.tuples(st.just("APPEND"), KEYS, VALUES).map(list),
    st.tuples(st.just("EXPIRE"), KEYS, st.sampled_from(["1000", "-1", "x"])).map(list),
    st.tuples(st.just("SET"), KEYS, VALUES, st.sampled_from(["NX", "XX", "GET", "FOO"])).map(list),
    st.tuples(st.just("MSETNX"), KEYS, VALUES).map(list),
    st.sampled_from(
        ["FLUSHALL", "PING", "PING x", "ECHO x", "TIME", "SELECT 0", "SELECT x", "NOSUCH", "EXEC x",
         "DISCARD x", "MULTI x", "APPEND a", "WATCH", "PING x y", "ECHO"]
    ).map(str.split),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["2", "3"]), st.lists(st.tuples(st.sampled_from([0, 0, 0, 1]), SAID), max_size=40))
def test_transactions_are_those_of_redis(
    harness: Harness, redis_port: int, protocol: str, script: list[tuple[int, list[str]]]
) -> None:
    """Two clients talk in turns; each answer is the same to the byte."""
    ours = [Exact(harness.server.port) for _ in range(2)]
    theirs = [Exact(redis_port) for _ in range(2)]
    sent: list[tuple[int, list[str]]] = []
    try:
        for each in (ours, theirs):
            each[0]("FLUSHALL")
            each[0]("HELLO", protocol)
        for who, words in script:
            sent.append((who, words))
            our, their = ours[who](*words), theirs[who](*words)
            assert TIME.sub(b"time", our) == TIME.sub(b"time", their), sent
    finally:
        for client in (*ours, *theirs):
            client.close()


def test_with_watch_no_increment_is_lost(harness: Harness) -> None:
    def add(pipe: redis.client.Pipeline) -> None:
        value = int(pipe.get("n") or 0)  # type: ignore[arg-type]
        pipe.multi()
        pipe.set("n", value + 1)

    def count(client: redis.Redis) -> None:
        for _ in range(25):
            client.transaction(add, "n")

    clients = [redis.Redis(port=harness.server.port, socket_timeout=DEADLINE_S) for _ in range(4)]
    threads = [threading.Thread(target=count, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S * 2)
    assert clients[0].get("n") == b"100"
    for client in clients:
        client.close()
