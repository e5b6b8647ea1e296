"""What a client hears when the cluster cannot work, and what a node does that cannot: never silence."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, eventually, running
from node_support import LIMIT_S, REFUSED, Load, ask_all, connect, pack, read_replies, word

from raft.machine.commands import COMMANDS, Kind

pytestmark = pytest.mark.process

ARGUMENTS: dict[str, list[str | int]] = {
    "FOLLOWER JOIN": ["w", "1.0"], "FOLLOWER REPORT": ["w", 1, "data"], "FOLLOWER LIST": [],
    "REWARD CLAIM": ["w", 5, "c"], "REWARD TOP": [], "REWARD HISTORY": ["w"], "INTERVAL SHOW": [1],
    "FOLLOWER PARDON": ["w", "why"], "SET": ["k", "v"], "GETEX": ["k"], "MSET": ["k", "v"],
    "MSETNX": ["k", "v"], "EXPIRE": ["k", 9], "PEXPIRE": ["k", 9], "SCAN": [0], "KEYS": ["*"],
    "INCRBY": ["n", 1], "DECRBY": ["n", 1], "INCR": ["n"], "DECR": ["n"], "APPEND": ["k", "v"],
    "ONCE": ["session", 1, "INCR", "n"],
}  # fmt: skip


def every_command() -> list[list[str | int]]:
    """One valid example of each command that reads or writes replicated state."""
    examples: list[list[str | int]] = []
    for spec in COMMANDS.values():
        if spec.kind in (Kind.READ, Kind.WRITE):
            name = spec.name.decode()
            given: list[str | int] = ARGUMENTS.get(name, ["k"] * (abs(spec.arity) - len(name.split())))
            examples.append([*name.split(), *given])
    return examples


def test_the_examples_are_valid(tmp_path: Path) -> None:
    """Else the test below would be content with a syntax error's absence of meaning."""
    with running(tmp_path, count=1) as cluster:
        cluster.leader()
        cluster.execute(1, "FOLLOWER", "JOIN", "w", "1.0")
        replies = ask_all([(cluster.client_ports[1], words) for words in every_command()], 20)
        wrong = [
            (words, reply)
            for words, (reply, _) in zip(every_command(), replies, strict=True)
            if "syntax" in str(reply) or "wrong number" in str(reply) or "unknown" in str(reply)
        ]
        assert wrong == []
        assert len(replies) > 35


@contextmanager
def without_quorum(cluster: Cluster, how: str, survivor: str) -> Iterator[int]:
    """The node that is left when the two others are killed or stopped."""
    leader = cluster.leader()
    left = leader if survivor == "leader" else cluster.followers()[0]
    others = [n for n in cluster.ids if n != left]
    if how == "killed":
        for node in others:
            cluster.processes[node].send_signal(signal.SIGKILL)
    else:
        cluster.pause(*others)
    yield left


@pytest.mark.parametrize(
    ("survivor", "how"), [("leader", "killed"), ("leader", "stopped"), ("follower", "killed")]
)
def test_without_a_quorum_every_command_is_refused_in_time(tmp_path: Path, how: str, survivor: str) -> None:
    with running(tmp_path) as cluster:
        cluster.leader()
        cluster.execute(1, "SET", "k", "v")
        commands = every_command()
        with without_quorum(cluster, how, survivor) as left:
            port = cluster.client_ports[left]
            # At once, while the node may still believe in its leader; and again when it knows better.
            for attempt in range(2):
                answers = ask_all([(port, words) for words in commands], LIMIT_S)
                codes = {word(reply) for reply, _ in answers}
                assert codes <= REFUSED, (attempt, codes)
                if attempt:
                    assert codes == {"CLUSTERDOWN"}
            slowest = max(seconds for _, seconds in answers)
            assert slowest < LIMIT_S
            # A pipeline is refused as a whole just as fast, and what needs no quorum still works.
            with connect(port) as sock:
                sock.sendall(
                    pack(*(("SET" if n % 2 else "GET", *(["p"] + ["v"] * (n % 2))) for n in range(100)))
                )
                assert {word(reply) for reply in read_replies(sock, 100, LIMIT_S)} == {"CLUSTERDOWN"}
            assert cluster.client(left).ping()
            assert cluster.info(left)["role"] != "leader"
            assert cluster.client(left).execute_command("RAFT", "LEADER") is None
            assert "cluster_state:fail" in str(cluster.client(left).execute_command("CLUSTER", "INFO"))
            others = [n for n in cluster.ids if n != left]
            eventually(
                lambda: cluster.info(left)["silent"] == ",".join(map(str, others)),
                10,
                "silent peers in RAFT INFO",
            )
        if how == "killed":
            for node in others:
                cluster.processes[node].wait(10)
            cluster.start(*others)
            cluster.ready(*others)
        else:
            cluster.resume(*others)
        assert cluster.execute(left, "SET", "k", "again", idempotent=True)
        assert cluster.execute(left, "GET", "k") == "again"


def test_certainly_not_executed_means_just_that(tmp_path: Path) -> None:
    """CLUSTERDOWN from a leader that has lost its quorum: the command never appears, whoever leads later."""
    with running(tmp_path) as cluster:
        leader = cluster.leader()
        others = cluster.followers()
        cluster.pause(*others)
        refused: list[str] = []
        number = 0
        while len(refused) < 50:
            keys = [f"no:{number + n}" for n in range(25)]
            number += 25
            answers = ask_all([(cluster.client_ports[leader], ("SET", key, "v")) for key in keys], LIMIT_S)
            assert {word(reply) for reply, _ in answers} <= REFUSED
            refused += [k for k, (r, _) in zip(keys, answers, strict=True) if word(r) == "CLUSTERDOWN"]
        cluster.resume(*others)
        cluster.leader()
        for node in cluster.ids:
            assert set(cluster.execute(node, "MGET", *refused)) == {None}


def test_a_follower_whose_leader_is_stopped_answers_in_time(tmp_path: Path) -> None:
    """The leader's sockets stay open and silent: forwarded commands still get an answer."""
    with running(tmp_path) as cluster:
        leader = cluster.leader()
        followers = cluster.followers()
        cluster.pause(leader)
        ports = [cluster.client_ports[n] for n in followers]
        asked = [(port, words) for port in ports for words in (("SET", "a", 1), ("GET", "a"), ("INCR", "b"))]
        for reply, seconds in ask_all(asked, 10):
            assert seconds < LIMIT_S
            assert word(reply) in {"ok", *REFUSED}, reply
        cluster.resume(leader)
        assert cluster.execute(leader, "SET", "a", "2", idempotent=True)


# --- limits -----------------------------------------------------------------------------------------------


def test_busy_when_too_many_requests_are_pending(tmp_path: Path) -> None:
    """Refused before it was taken: nothing of it is done; and the counter comes back to 0 (BUGS 56)."""
    with running(tmp_path, limits={"max_pending_requests": 20}) as cluster:
        leader = cluster.leader()
        follower = cluster.followers()[0]
        for node in (leader, follower):
            others = [n for n in cluster.ids if n != node]
            cluster.execute(node, "SET", "warm", 1)
            cluster.pause(*others)
            keys = [f"busy:{node}:{n}" for n in range(60)]
            answers = ask_all([(cluster.client_ports[node], ("SET", key, "v")) for key in keys], LIMIT_S)
            codes = [word(reply) for reply, _ in answers]
            assert codes.count("BUSY") >= 30 and set(codes) <= {"BUSY", *REFUSED}, codes
            cluster.resume(*others)
            cluster.leader()
            eventually(lambda node=node: cluster.info(node)["pending_requests"] == "0", 10, "no pending")  # type: ignore[misc]
            busy = [key for key, code in zip(keys, codes, strict=True) if code == "BUSY"]
            assert set(cluster.execute(node, "MGET", *busy)) == {None}
        # A pipeline that is longer than the limit works when nothing else is pending.
        with connect(cluster.client_ports[leader]) as sock:
            sock.sendall(pack(*(("INCR", "long") for _ in range(200))))
            replies = read_replies(sock, 200, 20)
        good = [reply for reply in replies if word(reply) == "ok"]
        assert {word(reply) for reply in replies} <= {"ok", "BUSY"}
        assert good == list(range(1, len(good) + 1)) and good


def test_max_clients(tmp_path: Path) -> None:
    with running(tmp_path, count=1, limits={"max_clients": 5}) as cluster:
        cluster.client(1).close()
        socks: list[socket.socket] = []
        try:

            def full() -> bool:
                socks.append(connect(cluster.client_ports[1]))
                socks[-1].sendall(pack(("PING",)))
                reply = read_replies(socks[-1], 1)[0]
                if word(reply) == "ok":
                    return False
                assert str(reply).startswith("ERR max number of clients reached"), reply
                return True

            eventually(full, 10, "a client refused")
            assert len(socks) in (5, 6)
            for sock in socks[:4]:  # those that were in are served on
                sock.sendall(pack(("PING",)))
                assert read_replies(sock, 1) == [b"PONG"]
        finally:
            for sock in socks:
                sock.close()
        cluster.ready()


# --- starting ---------------------------------------------------------------------------------------------


def refuses(cluster: Cluster, node: int, *words: str) -> None:
    """The node ends at once with exit 1 and one clear line that holds these words."""
    before = len(cluster.log_of(node)) if (cluster.directory / f"node-{node}.log").exists() else 0
    cluster.start(node)
    assert cluster.exit_code(node) == 1
    said = cluster.log_of(node)[before:]
    assert "Traceback" not in said, said
    assert any(all(w in line for w in words) for line in said.splitlines()), said


def test_a_data_directory_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, allowed=["cannot start"]) as cluster:
        cluster.leader()
        cluster.kill(*cluster.ids, sig=signal.SIGTERM)
        data = tmp_path / "data"
        data.joinpath("node-2").rename(data / "real")
        shutil.copytree(data / "node-1", data / "node-2")
        refuses(cluster, 2, "node-2", "belongs to node 1", "wanted node 2")
        shutil.rmtree(data / "node-2")
        data.joinpath("real").rename(data / "node-2")
        settings = yaml.safe_load(cluster.config.read_text())
        settings["cluster"]["name"] = "another"
        cluster.config.write_text(yaml.safe_dump(settings))
        refuses(cluster, 2, "node-2", "'test-cluster'", "wanted node 2 of cluster 'another'")
        settings["cluster"]["name"] = "test-cluster"
        cluster.config.write_text(yaml.safe_dump(settings))
        cluster.start()  # nothing was harmed
        cluster.ready()
        cluster.agree()


def test_a_second_process_on_the_same_data_directory_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, count=1, allowed=["cannot start"]) as cluster:
        cluster.leader()
        first = cluster.processes[1]
        refuses(cluster, 1, "another process is using this data directory")
        cluster.processes[1] = first
        assert cluster.execute(1, "SET", "a", "b")


@pytest.mark.parametrize("key", ["client_port", "raft_port"])
def test_a_taken_port_is_refused(tmp_path: Path, key: str) -> None:
    cluster = Cluster(tmp_path, 3)
    port = yaml.safe_load(cluster.config.read_text())["cluster"]["nodes"][1][key]
    with socket.create_server(("127.0.0.1", port)):
        try:
            refuses(cluster, 2, "cannot start", f"127.0.0.1:{port}", "in use")
        finally:
            cluster.stop()


def test_a_signal_ends_every_node_with_exit_0_under_load(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        cluster.leader()
        with Load(cluster, threads=3) as load:
            load.progress(20)
            for node in cluster.ids:
                cluster.processes[node].send_signal(signal.SIGTERM)
            assert [cluster.exit_code(node) for node in cluster.ids] == [0, 0, 0]
            load.stop()
        cluster.start()
        cluster.ready()
        load.check(cluster)
        cluster.kill(*cluster.ids[1:])  # without a quorum it stops as well
        cluster.processes[1].send_signal(signal.SIGINT)
        assert cluster.exit_code(1) == 0
