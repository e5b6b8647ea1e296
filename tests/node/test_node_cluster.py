"""Three processes are one cluster: any node takes any command, and all give the same answers."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis
from cluster import Cluster, eventually, running
from node_support import connect, pack, read_replies
from redis.cluster import RedisCluster

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that no test harms, with patience: a busy machine must not bring elections into its tests."""
    directory = tmp_path_factory.mktemp("calm")
    raft = {"election_timeout_ms": [2000, 4000], "ping_interval_ms": 2000}
    with running(directory, raft=raft, rewards={"interval_ms": 300}) as cluster:
        cluster.leader()
        yield cluster


@pytest.fixture
def leader_and_follower(calm: Cluster) -> tuple[int, int]:
    leader = calm.leader()
    return leader, next(n for n in calm.ids if n != leader)


def test_exactly_one_leader_whom_all_know(calm: Cluster) -> None:
    def agreed() -> bool:
        infos = [calm.info(n) for n in calm.ids]
        leaders = [info["node_id"] for info in infos if info["role"] == "leader"]
        assert [info["node_id"] for info in infos] == ["1", "2", "3"]
        return len(leaders) == 1 and {(i["term"], i["leader_id"]) for i in infos} == {
            (infos[0]["term"], leaders[0])
        }

    eventually(agreed, what="one leader and one term")


def test_a_write_on_one_node_is_read_on_every_node_at_once(calm: Cluster) -> None:
    for number in range(60):
        writer = calm.ids[number % 3]
        assert calm.execute(writer, "SET", "at-once", number)
        for reader in calm.ids:
            assert calm.execute(reader, "GET", "at-once") == str(number), (number, writer, reader)


def test_a_read_on_another_node_never_misses_a_write_that_was_answered_under_concurrency(
    calm: Cluster,
) -> None:
    """Writers increment through different nodes; a read that starts after an answer is at least as new."""
    failed: list[str] = []

    def client(number: int) -> None:
        key = f"concurrent:{number}"
        connections: list[Any] = [
            redis.Redis(port=port, decode_responses=True) for port in calm.client_ports.values()
        ]
        for step in range(1, 61):
            value = connections[(number + step) % 3].incr(key)
            seen = connections[(number + 2 * step + 1) % 3].get(key)
            if (value, seen) != (step, str(step)):
                failed.append(f"step {step} of {key}: INCR {value}, GET {seen}")
        for connection in connections:
            connection.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert failed == []


def model_of(rng: random.Random, prefix: str, count: int) -> tuple[list[tuple[str, ...]], list[Any]]:
    """A random pipeline over a few keys and the answers that program order demands."""
    state: dict[str, bytes] = {}
    commands: list[tuple[str, ...]] = []
    expected: list[Any] = []
    for number in range(count):
        key = f"{prefix}:{rng.randrange(4)}"
        name = rng.choice(["GET", "GET", "SET", "APPEND", "STRLEN", "DEL", "EXISTS", "GETDEL", "PING"])
        commands.append(
            {"SET": ("SET", key, f"v{number}"), "APPEND": ("APPEND", key, "x")}.get(name, (name, key))
        )
        if name == "GET":
            expected.append(state.get(key))
        elif name == "SET":
            state[key] = f"v{number}".encode()
            expected.append(b"OK")
        elif name == "APPEND":
            state[key] = state.get(key, b"") + b"x"
            expected.append(len(state[key]))
        elif name == "STRLEN":
            expected.append(len(state.get(key, b"")))
        elif name == "DEL":
            expected.append(int(state.pop(key, None) is not None))
        elif name == "EXISTS":
            expected.append(int(key in state))
        elif name == "GETDEL":
            expected.append(state.pop(key, None))
        else:
            expected.append(key.encode())
    return commands, expected


@pytest.mark.parametrize("where", [0, 1], ids=["leader", "follower"])
@pytest.mark.parametrize("count", [7, 400, 3000])
def test_a_pipeline_of_reads_and_writes_keeps_program_order(
    calm: Cluster, leader_and_follower: tuple[int, int], where: int, count: int
) -> None:
    commands, expected = model_of(random.Random(f"{where} {count}"), f"order:{where}:{count}", count)
    with connect(calm.client_ports[leader_and_follower[where]]) as sock:
        sock.sendall(pack(*commands))
        assert read_replies(sock, count, 30) == expected


def test_pipelines_cut_anywhere_keep_program_order(
    calm: Cluster, leader_and_follower: tuple[int, int]
) -> None:
    """Requests arrive in pieces that end in the middle of a command, on several connections at a time."""
    rng = random.Random(4)
    for node in (*leader_and_follower, leader_and_follower[1]):
        commands, expected = model_of(rng, f"cut:{node}:{rng.random()}", 200)
        data = pack(*commands)
        with connect(calm.client_ports[node]) as sock:
            while data:
                size = rng.randint(1, 700)
                sock.sendall(data[:size])
                data = data[size:]
            assert read_replies(sock, 200, 30) == expected


def test_an_error_in_a_pipeline_stays_in_its_place(calm: Cluster) -> None:
    for node in calm.ids:
        with connect(calm.client_ports[node]) as sock:
            sock.sendall(
                pack(("SET", "e", "text"), ("INCR", "e"), ("NOSUCH",), ("GET", "e"), ("GET",), ("PING",))
            )
            replies = read_replies(sock, 6)
        assert [replies[0], replies[3], replies[5]] == [b"OK", b"text", b"PONG"]
        for place, start in (
            (1, "ERR value is not an integer"),
            (2, "ERR unknown command"),
            (4, "ERR wrong number"),
        ):
            assert isinstance(replies[place], hiredis.ReplyError) and str(replies[place]).startswith(start)


def test_raft_info_has_what_the_contract_names(calm: Cluster) -> None:
    wanted = {"node_id", "role", "term", "leader_id", "voted_for", "commit_index", "applied_index"}
    wanted |= {"last_log_index", "first_log_index", "snapshot_index", "voters", "learners", "database_lag"}
    wanted |= {"uptime_s", "version"}
    for node in calm.ids:
        info = calm.info(node)
        assert wanted <= set(info), wanted - set(info)
        assert info["voters"] == "1,2,3" and info["node_id"] == str(node)
        assert int(info["applied_index"]) <= int(info["commit_index"]) <= int(info["last_log_index"])


def test_raft_leader_and_members_agree_on_every_node(calm: Cluster) -> None:
    leader = calm.leader()
    for node in calm.ids:
        assert calm.client(node).execute_command("RAFT", "LEADER") == [
            leader, "127.0.0.1", calm.client_ports[leader],
        ]  # fmt: skip
        members = [
            dict(zip(m[::2], m[1::2], strict=True))
            for m in calm.client(node).execute_command("RAFT", "MEMBERS")
        ]
        assert [m["id"] for m in members] == [1, 2, 3]
        assert [m["client_port"] for m in members] == list(calm.client_ports.values())
        assert [m["role"] for m in members] == ["leader" if n == leader else "follower" for n in calm.ids]


def test_digests_are_equal_at_equal_indexes(calm: Cluster) -> None:
    for number in range(30):
        calm.execute(calm.ids[number % 3], "SET", f"digest:{number}", "x" * number, "PX", 100_000 + number)
    calm.agree()


def test_a_cluster_client_finds_the_leader(calm: Cluster) -> None:
    leader = calm.leader()
    ((first, last, primary, *_),) = calm.client(calm.ids[0]).execute_command("CLUSTER", "SLOTS")
    assert (first, last, primary[:2]) == (0, 16383, ["127.0.0.1", calm.client_ports[leader]])
    for node in calm.ids:
        cluster: Any = RedisCluster(host="127.0.0.1", port=calm.client_ports[node], decode_responses=True)
        try:
            for number in range(20):
                assert cluster.set(f"rc:{number}", f"{node}")
                assert cluster.get(f"rc:{number}") == str(node)
            assert cluster.get_primaries()[0].port == calm.client_ports[leader]
            assert {n.port for n in cluster.get_nodes()} == set(calm.client_ports.values())
        finally:
            cluster.close()


@pytest.mark.parametrize("options", [[], ["-3"], ["-c"]], ids=["resp2", "resp3", "cluster"])
def test_redis_cli_works_on_every_node(
    calm: Cluster, require_tool: Callable[[str], str], options: list[str]
) -> None:
    cli = require_tool("redis-cli")

    def run(node: int, *words: str, given: str | None = None) -> str:
        command = [cli, "-p", str(calm.client_ports[node]), *options, *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    for node in calm.ids:
        assert run(node, "SET", "cli", f"from {node}") == "OK"
        assert run(node, "GET", "cli") == f"from {node}"
        assert run(node, "INCRBY", f"cli:{node}:{options}", "41") == "41"
        assert f"node_id:{node}" in run(node, "RAFT", "INFO")
        assert "node-1" in run(node, "REWARD", "TOP")
        assert run(node, given="SET a 1\nGET a\nNOSUCH\n").startswith("OK\n1\nERR unknown command")


def test_redis_cli_mass_insertion(calm: Cluster, require_tool: Callable[[str], str]) -> None:
    cli, follower = require_tool("redis-cli"), next(n for n in calm.ids if n != calm.leader())
    data = pack(*(("SET", f"mass:{n}", str(n)) for n in range(2000)))
    done = subprocess.run(
        [cli, "-p", str(calm.client_ports[follower]), "--pipe"], input=data, capture_output=True, timeout=60
    )
    assert b"errors: 0, replies: 2000" in done.stdout, done
    assert calm.execute(follower, "MGET", *(f"mass:{n}" for n in range(2000))) == [
        str(n) for n in range(2000)
    ]


def test_a_key_expires_on_all_nodes_at_once(calm: Cluster) -> None:
    for node in calm.ids:
        key = f"ttl:{node}"
        assert calm.execute(node, "SET", key, "v", "PX", 400)
        assert 0 < calm.execute(calm.ids[node % 3], "PTTL", key) <= 400
        eventually(lambda key=key: calm.execute(1, "EXISTS", key) == 0, 10, "expiry")  # type: ignore[misc]
        # Once one node has shown that it is gone, it is gone everywhere.
        assert [calm.execute(n, "GET", key) for n in calm.ids] == [None] * 3
        assert [calm.execute(n, "PTTL", key) for n in calm.ids] == [-2] * 3
    calm.agree()


def test_every_node_publishes_the_same_events(calm: Cluster) -> None:
    clients: list[Any] = [
        redis.Redis(port=port, decode_responses=True) for port in calm.client_ports.values()
    ]
    subscribers = []
    for client in clients:  # which are kept: one that is collected closes its connections
        subscriber = client.pubsub()
        subscriber.subscribe("turns", "rewards:heard", "rewards:node-1", "cluster")
        for _ in range(4):
            assert subscriber.get_message(timeout=10)["type"] == "subscribe"
        subscribers.append(subscriber)
    assert calm.execute(1, "FOLLOWER", "JOIN", "heard", "1.0") == "OK"
    heard: list[dict[str, list[str]]] = [{}, {}, {}]

    def complete() -> bool:
        for subscriber, said in zip(subscribers, heard, strict=True):
            while message := subscriber.get_message(timeout=0.01):
                said.setdefault(message["channel"], []).append(message["data"])
        return all(len(said.get("rewards:heard", [])) >= 3 for said in heard)

    eventually(complete, 20, "three outcomes heard on every node")
    for said in heard:
        assert "joined heard" in said["cluster"]
        outcomes = [line.split() for line in said["rewards:heard"]]
        assert [words[1:3] for words in outcomes[:3]] == [["missed", "-5"]] * 3
        assert [int(words[3]) for words in outcomes[:3]] == [-5, -10, -15]
        assert {line.split()[1] for line in said["rewards:node-1"]} <= {"hit", "missed"}
    for channel in ("turns", "rewards:heard", "rewards:node-1"):
        by_interval = [{line.split()[0]: line for line in said[channel]} for said in heard]
        common = set.intersection(*(set(lines) for lines in by_interval))
        assert len(common) >= 2, (channel, by_interval)
        for number in common:
            assert len({lines[number] for lines in by_interval}) == 1, (channel, by_interval)
    for subscriber in subscribers:
        subscriber.close()
    assert calm.execute(2, "FOLLOWER", "LEAVE", "heard") == "OK"


def test_clients_cannot_send_the_leaders_own_commands(calm: Cluster) -> None:
    for node in calm.ids:
        for words in (
            ("~CLOSE", "1", "1", "0"),
            ("~PROJECTED", "5"),
            ("~EXPIRE",),
            ("~DIGEST",),
            ("~MEMBERS", "[]"),
            ("~TERM", "1", "{}", "[]"),
        ):
            with pytest.raises(redis.ResponseError, match="unknown command"):
                calm.client(node).execute_command(*words)


def test_a_cluster_of_one_works_and_survives_restarts(tmp_path: Path) -> None:
    with running(tmp_path, count=1, rewards={"interval_ms": 300}) as cluster:
        cluster.leader()
        assert cluster.execute(1, "SET", "kept", "yes")
        assert cluster.execute(1, "FOLLOWER", "JOIN", "one", "1.0") == "OK"
        for restart in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            for number in range(50):
                cluster.execute(1, "SET", f"{restart}:{number}", number)
            counted = cluster.execute(1, "INCR", "restarts")
            cluster.kill(1, sig=restart)
            assert cluster.processes[1].returncode == (0 if restart == signal.SIGTERM else -9)
            cluster.start(1)
            cluster.ready()
            assert cluster.execute(1, "GET", "kept") == "yes"
            assert cluster.execute(1, "GET", "restarts") == str(counted)
            assert cluster.execute(1, "MGET", *(f"{restart}:{n}" for n in range(50))) == [
                str(n) for n in range(50)
            ]
        flat = cluster.execute(1, "FOLLOWER", "INFO", "one")
        assert flat[flat.index("state") + 1] == "active"
