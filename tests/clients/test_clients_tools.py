"""The clients people use: redis-py, redis-cli, redis-benchmark."""

from __future__ import annotations

import subprocess
import threading

import pytest
import redis
from clients_support import DEADLINE_S, Harness, eventually

needs_cli = pytest.mark.needs_tool("redis-cli")
needs_benchmark = pytest.mark.needs_tool("redis-benchmark")


def run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli(harness: Harness, *words: str, stdin: str | None = None) -> str:
    return run("redis-cli", "-p", str(harness.server.port), *words, stdin=stdin)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
def test_redis_py(harness: Harness, protocol: int, decode: bool) -> None:
    with redis.Redis(
        port=harness.server.port, protocol=protocol, decode_responses=decode, socket_timeout=DEADLINE_S
    ) as client:
        assert client.ping()
        assert client.set("a", "é")
        assert client.get("a") == ("é" if decode else "é".encode())
        assert client.get("none") is None
        assert client.incr("n") == 1
        assert client.mget(["n", "none"]) == [("1" if decode else b"1"), None]
        with client.pipeline(transaction=False) as pipeline:
            for number in range(3000):
                pipeline.set(f"k{number}", "v" * 100)
            assert pipeline.execute() == [True] * 3000
        with pytest.raises(redis.ResponseError, match="unknown command"):
            client.execute_command("NOSUCH")


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_pubsub(harness: Harness, protocol: int) -> None:
    with redis.Redis(port=harness.server.port, protocol=protocol, socket_timeout=DEADLINE_S) as client:
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        pubsub.subscribe("turns")
        pubsub.psubscribe("rewards:*")
        eventually(lambda: any(row["sub"] == row["psub"] == "1" for row in client.client_list()))
        assert pubsub.get_message() is None  # the confirmations
        assert pubsub.get_message() is None
        publisher = threading.Thread(
            target=lambda: (harness.server.publish("turns", "1 5"), harness.server.publish("rewards:x", "é"))
        )
        publisher.start()
        first, second = pubsub.get_message(timeout=DEADLINE_S), pubsub.get_message(timeout=DEADLINE_S)
        publisher.join()
        assert first is not None
        assert second is not None
        assert (first["type"], first["data"]) == ("message", b"1 5")
        assert (second["type"], second["channel"], second["data"]) == ("pmessage", b"rewards:x", "é".encode())
        pubsub.ping()
        pubsub.unsubscribe()
        pubsub.punsubscribe()
        pubsub.close()


@needs_cli
def test_redis_cli(harness: Harness) -> None:
    assert cli(harness, "PING") == "PONG\n"
    assert cli(harness, "SET", "a b", 'c"d') == "OK\n"
    assert cli(harness, "GET", "a b") == 'c"d\n'
    assert cli(harness, "-3", "GET", "none") == "\n"
    assert cli(harness, "--no-raw", "GET", "none") == "(nil)\n"
    assert cli(harness, "--no-raw", "-3", "FOLLOWER", "INFO", "x") == (
        '1# "id" => "x"\n2# "balance" => (integer) 5\n'
    )
    assert "role:leader\n" in cli(harness, "RAFT", "INFO").replace("\r", "")
    assert cli(harness, "NOSUCH").startswith("ERR unknown command 'NOSUCH'")
    assert cli(harness, stdin="SET x 1\nINCR x\n") == "OK\n2\n"


@needs_cli
def test_redis_cli_as_cluster_client_and_mass_insertion(harness: Harness) -> None:
    assert cli(harness, "-c", "SET", "a", "1") == "OK\n"
    out = cli(harness, "--pipe", stdin="".join(f"SET k{n} v\r\n" for n in range(2000)))
    assert "errors: 0, replies: 2000" in out
    assert len(harness.backend.values) == 2001


@needs_cli
def test_redis_cli_explains_commands(harness: Harness) -> None:
    """The interactive prompt reads COMMAND DOCS at its start; --no-auth-warning keeps it from a terminal."""
    out = cli(harness, "--no-raw", "COMMAND", "DOCS", "raft")
    assert "Describes this node's part in consensus" in out


@needs_benchmark
@pytest.mark.parametrize("extra", [(), ("-P", "16"), ("-3",)], ids=["plain", "pipelined", "RESP3"])
def test_redis_benchmark(harness: Harness, extra: tuple[str, ...]) -> None:
    out = run(
        *("redis-benchmark", "-p", str(harness.server.port), "-t", "set,get,incr,ping,mset"),
        *("-n", "2000", "-c", "20", "-r", "1000", "-d", "64", "--csv", *extra),
    )
    assert "WARNING" not in out
    tests = [line.split(",")[0] for line in out.splitlines()[1:]]
    assert tests == ['"PING_INLINE"', '"PING_MBULK"', '"SET"', '"GET"', '"INCR"', '"MSET (10 keys)"']
