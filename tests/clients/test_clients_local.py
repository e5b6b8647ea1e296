"""Commands that the handler answers itself, as redis-py and plain sockets see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from clients_support import DEADLINE_S, Harness, Wire, eventually, make_status, resp

from raft.clients.dispatch import _HERE, HOT
from raft.clients.local_commands import key_slot
from raft.machine.commands import COMMANDS, CONTAINERS, CommandSpec, Kind, lookup


@pytest.fixture(params=[2, 3])
def client(request: pytest.FixtureRequest, harness: Harness) -> Iterator[redis.Redis]:
    with redis.Redis(port=harness.server.port, protocol=request.param, socket_timeout=DEADLINE_S) as made:
        yield made


def test_every_local_and_status_command_of_the_table_is_answered_here() -> None:
    for name, spec in COMMANDS.items():
        if spec.kind in (Kind.LOCAL, Kind.STATUS):
            assert name in _HERE or name.endswith(b" HELP"), name
        else:
            assert name not in _HERE, name


def test_the_hot_rows_say_what_lookup_says() -> None:
    assert b"SET" in HOT
    assert b"get" in HOT
    for name, (fewest, most, writes) in HOT.items():
        for count in range(1, 8):
            found = lookup([name] + [b"x"] * (count - 1))
            if fewest <= count <= most:
                assert isinstance(found, CommandSpec)
                assert found.kind is (Kind.WRITE if writes else Kind.READ)
            else:
                assert str(found).startswith("ERR wrong number of arguments")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([b"PING"], b"+PONG\r\n"),
        ([b"ping", b"a b"], b"$3\r\na b\r\n"),
        ([b"PING", b"a", b"b"], b"-ERR wrong number of arguments for 'ping' command\r\n"),
        ([b"ECHO", b""], b"$0\r\n\r\n"),
        ([b"SELECT", b"0"], b"+OK\r\n"),
        ([b"SELECT", b"1"], b"-ERR DB index is out of range\r\n"),
        ([b"SELECT", b"x"], b"-ERR value is not an integer or out of range\r\n"),
        (
            [b"AUTH", b"x"],
            b"-ERR AUTH <password> called without any password configured for the default user. "
            b"Are you sure your configuration is correct?\r\n",
        ),
        ([b"AUTH", b"default", b"x"], b"+OK\r\n"),
        ([b"AUTH", b"bob", b"x"], b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
        ([b"AUTH", b"a", b"b", b"c"], b"-ERR syntax error\r\n"),
        ([b"HELLO", b"4"], b"-NOPROTO unsupported protocol version\r\n"),
        ([b"HELLO", b"1"], b"-NOPROTO unsupported protocol version\r\n"),
        ([b"HELLO", b"x"], b"-ERR Protocol version is not an integer or out of range\r\n"),
        ([b"HELLO", b"3", b"WHAT"], b"-ERR Syntax error in HELLO option 'WHAT'\r\n"),
        ([b"HELLO", b"3", b"AUTH", b"x"], b"-ERR Syntax error in HELLO option 'AUTH'\r\n"),
        ([b"HELLO", b"3", b"SETNAME"], b"-ERR Syntax error in HELLO option 'SETNAME'\r\n"),
        (
            [b"HELLO", b"3", b"AUTH", b"bob", b"x"],
            b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        ),
        (
            [b"HELLO", b"3", b"SETNAME", b"a b"],
            b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
        ),
        (
            [b"CLIENT", b"SETNAME", b"a\nb"],
            b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
        ),
        (
            [b"CLIENT", b"SETINFO", b"LIB-NAME", b"a b"],
            b"-ERR lib-name cannot contain spaces, newlines or special characters.\r\n",
        ),
        ([b"CLIENT", b"SETINFO", b"x\r\ny", b"z"], b"-ERR Unrecognized option 'x  y'\r\n"),
        ([b"CLIENT", b"LIST", b"TYPE", b"x"], b"-ERR Unknown client type 'x'\r\n"),
        ([b"CLIENT", b"LIST", b"ID", b"x"], b"-ERR Invalid client ID\r\n"),
        ([b"CLIENT", b"LIST", b"ID", b"999"], b"$0\r\n\r\n"),
        ([b"CLIENT", b"LIST", b"TYPE", b"replica"], b"$0\r\n\r\n"),
        ([b"CLIENT", b"LIST", b"WHAT"], b"-ERR syntax error\r\n"),
        ([b"CLIENT", b"NOSUCH"], b"-ERR unknown subcommand 'NOSUCH'. Try CLIENT HELP.\r\n"),
        ([b"CONFIG", b"GET", b"save"], b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ([b"CONFIG", b"GET", b"S[A-C]V?", b"x"], b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ([b"CONFIG", b"GET", b"nosuch"], b"*0\r\n"),
        ([b"CONFIG", b"GET", b"x" * 5000], b"-ERR pattern is longer than 4096 bytes\r\n"),
        ([b"COMMAND", b"LIST", b"FILTERBY"], b"-ERR syntax error\r\n"),
        ([b"READONLY"], b"+OK\r\n"),
        ([b"READWRITE"], b"+OK\r\n"),
        ([b"ASKING"], b"+OK\r\n"),
        (
            [b"~TERM", b"1", b"{}", b"[]"],
            b"-ERR unknown command '~TERM', with args beginning with: '1' '{}' '[]' \r\n",
        ),
        ([b""], b"-ERR unknown command '', with args beginning with: \r\n"),
    ],
)
def test_answers_to_the_byte(wire: Wire, words: list[bytes], answer: bytes) -> None:
    wire.send(resp(*words))
    wire.expect(answer)
    wire.send(resp(b"CLIENT", b"GETNAME"))
    wire.expect(b"$-1\r\n")  # still RESP2, still nameless


def test_hello(client: redis.Redis, harness: Harness) -> None:
    client.set("warm", "up")
    protocol = client.get_connection_kwargs()["protocol"]
    answer = client.execute_command("HELLO", protocol, "AUTH", "default", "x", "SETNAME", "me")
    if isinstance(answer, list):
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    assert answer[b"proto"] == protocol
    assert answer[b"mode"] == b"cluster"
    assert answer[b"role"] == b"master"
    assert answer[b"modules"] == []
    assert client.client_getname() in ("me", b"me")
    harness.backend.current = make_status(role="follower", leader_id=2)
    assert b"replica" in resp_values(client.execute_command("HELLO"))


def resp_values(answer: Any) -> list[Any]:
    return list(answer.values()) if isinstance(answer, dict) else answer[1::2]


def test_client_list_and_info(client: redis.Redis, harness: Harness, wire: Wire) -> None:
    wire.send(
        resp(b"CLIENT", b"SETNAME", b"wire") + resp(b"SUBSCRIBE", b"a", b"b") + resp(b"PSUBSCRIBE", b"c")
    )
    eventually(lambda: any(row["psub"] == "1" for row in client.client_list()))
    rows = {row["name"]: row for row in client.client_list()}
    assert len(rows) == 2
    assert (rows["wire"]["sub"], rows["wire"]["flags"], rows["wire"]["resp"]) == ("2", "P", "2")
    assert rows["wire"]["cmd"] == "psubscribe"
    own = client.client_info()
    assert own["lib-name"].startswith("redis-py")
    assert own["addr"].startswith("127.0.0.1:")
    assert own["laddr"] == f"127.0.0.1:{harness.server.port}"
    assert int(own["id"]) == client.client_id()
    assert [row["name"] for row in client.client_list(_type="pubsub")] == ["wire"]
    assert [row["name"] for row in client.client_list(client_id=[rows["wire"]["id"]])] == ["wire"]


def test_command_and_its_subcommands(client: redis.Redis) -> None:
    commands = client.command()
    assert client.command_count() == len(commands) == len(client.command_list())
    assert commands["set"]["arity"] == -3
    assert commands["set"]["first_key_pos"] == 1
    assert commands["mset"]["step_count"] == 2
    assert "write" in commands["set"]["flags"]
    assert "readonly" in commands["get"]["flags"]
    assert "pubsub" in commands["subscribe"]["flags"]
    subcommands = {bytes(sub[0]) for sub in commands["follower"]["subcommands"]}
    assert b"follower|join" in subcommands
    assert set(commands) == {(spec.container or name).decode().lower() for name, spec in COMMANDS.items()}
    answer = client.execute_command("COMMAND INFO", "get", "nosuch")
    assert answer.keys() == {"get"} if isinstance(answer, dict) else len(answer) == 2


def test_command_info_has_null_for_what_does_not_exist(wire: Wire) -> None:
    wire.send(resp(b"COMMAND", b"INFO", b"nosuch"))
    wire.expect(b"*1\r\n$-1\r\n")


def test_command_docs(wire: Wire) -> None:
    wire.send(resp(b"COMMAND", b"DOCS", b"get", b"nosuch"))
    wire.expect(b"*2\r\n$3\r\nget\r\n*6\r\n$7\r\nsummary\r\n")


@pytest.mark.parametrize("container", sorted(CONTAINERS))
def test_help_of_every_container(wire: Wire, container: bytes) -> None:
    wire.send(resp(container, b"HELP"))
    assert wire.line().startswith(b"*")
    assert wire.line() == b"+%b <subcommand> [<arg> ...]. Subcommands are:\r\n" % container


def test_config_get(client: redis.Redis, harness: Harness) -> None:
    assert client.config_get("MaxClients", "append*") == {
        "maxclients": "10000",
        "appendonly": "yes",
        "appendfsync": "always",
    }
    assert client.config_get("port") == {"port": str(harness.server.port)}


def test_time(client: redis.Redis) -> None:
    seconds, microseconds = client.time()
    assert abs(seconds - time.time()) < 60
    assert 0 <= microseconds < 1_000_000


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"", 0),
        (b"123456789", 0x31C3),
        (b"foo", 12182),
        (b"{foo}bar", 12182),
        (b"a{foo}{bar}", 12182),
        (b"foo{}", 5542),
        (b"{}", 15257),
        (b"a{b", 13340),
    ],
)
def test_key_slots_are_those_of_redis_py(key: bytes, slot: int) -> None:
    from redis.crc import key_slot as reference

    assert key_slot(key) == reference(key)
    if key in (b"", b"123456789", b"foo", b"{foo}bar", b"a{foo}{bar}"):
        assert key_slot(key) == slot % 16384


def test_reset_forgets_the_name(wire: Wire) -> None:
    wire.send(resp(b"CLIENT", b"SETNAME", b"me") + resp(b"RESET") + resp(b"CLIENT", b"GETNAME"))
    wire.expect(b"+OK\r\n+RESET\r\n$-1\r\n")
