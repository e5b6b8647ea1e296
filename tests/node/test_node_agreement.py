"""Members compare digests of what they hold: who differs ends with exit code 1, the others serve on."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually, running
from node_support import Load, word
from test_node_spec import Nodes, through

from raft import RaftNode
from raft.machine.machine import Machine
from raft.runtime import digesting

TIMES = {"election_timeout_ms": [600, 1200], "ping_interval_ms": 200, "digest_interval_s": 1}


@contextmanager
def nodes_of(directory: Path, count: int = 3) -> Iterator[Nodes]:
    made = Nodes(directory, count, raft=TIMES)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def agreed(node: RaftNode) -> int:
    return node.status().last_digest_index


def compared(nodes: list[RaftNode], times: int = 1) -> None:
    """Wait until all of these have been found to agree so many times more."""
    for _ in range(times):
        before = max(agreed(node) for node in nodes)
        eventually(lambda: all(agreed(node) > before for node in nodes), 30, "an agreement")  # noqa: B023


@contextmanager
def load_on(nodes: list[RaftNode]) -> Iterator[list[int]]:
    """Clients that write through all nodes meanwhile; how often each was answered."""
    stop, counts = threading.Event(), [0] * len(nodes)

    def write(place: int) -> None:
        rng = random.Random(place)
        while not stop.is_set():
            key = str(rng.randrange(500))
            commands = [("INCR", "n"), ("SET", key, key * 20), ("DEL", str(rng.randrange(500)))]
            try:
                replies = through(nodes[place], *commands * 5)
            except OSError:  # that node has ended
                return
            counts[place] += sum(word(reply) == "ok" for reply in replies)

    threads = [threading.Thread(target=write, args=(place,)) for place in range(len(nodes))]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


@pytest.mark.parametrize("forked", [False, True], ids=["on the spot", "forked"])
def test_healthy_nodes_agree_again_and_again_under_load(
    tmp_path: Path, forked: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forks = []
    if forked:
        monkeypatch.setattr(digesting, "INLINE_WEIGHT", -1)
        take = digesting.fork_result
        monkeypatch.setattr(
            digesting, "fork_result", lambda *args, **rest: forks.append(1) or take(*args, **rest)
        )
    with nodes_of(tmp_path) as made:
        made.leader()
        nodes = list(made.by_id.values())
        with load_on(nodes) as counts:
            compared(nodes, times=4)
        assert min(counts) > 50
        assert bool(forks) == forked
    assert [node.exit_code for node in nodes] == [0, 0, 0]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def alter_values(machine: Machine) -> None:
    machine.kv.values[b"kept"] = b"another"


def alter_ledger(machine: Machine) -> None:
    machine.ledger._state.followers.by_id["node-1"].joined_at += 1


def alter_sessions(machine: Machine) -> None:
    (session,) = machine.sessions._sessions.values()
    session.last_ms += 1


def alter(node: RaftNode, how: Callable[[Machine], None]) -> None:
    """The node's state changes behind its back, as a flipped bit would change it."""
    done = threading.Event()

    def change(_now: float) -> None:
        how(node._worker.machine)
        done.set()

    node._worker.post(change)
    assert done.wait(10)


def said(caplog: pytest.LogCaptureFixture, node: RaftNode) -> list[str]:
    """The CRITICAL lines that tell of that node's end."""
    text = f"the state of node {node.node_id} has diverged"
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.CRITICAL and text in record.getMessage()
    ]


@pytest.mark.parametrize("how", [alter_values, alter_ledger, alter_sessions])
@pytest.mark.parametrize("who", ["follower", "leader"])
def test_exactly_the_altered_node_ends_and_the_others_serve(
    tmp_path: Path, who: str, how: Callable[[Machine], None], caplog: pytest.LogCaptureFixture
) -> None:
    with nodes_of(tmp_path) as made:
        leader = made.leader()
        assert through(leader, ("SET", "kept", "safe"), ("ONCE", "s", "1", "SET", "x", "y"))[0] == b"OK"
        compared(list(made.by_id.values()))
        altered = leader if who == "leader" else made.others()[0]
        others = [node for node in made.by_id.values() if node is not altered]
        alter(altered, how)
        assert altered.wait(20), "it goes on serving"
        assert altered.exit_code == 1
        (line,) = said(caplog, altered)
        for part in ("fatal in thread raft-worker", "a majority", "RAFT REMOVE", "analysis"):
            assert part in line
        assert "at index" in line and all(str(node.node_id) in line for node in others)
        altered.stop()  # as the supervisor does
        for node in others:
            eventually(lambda node=node: through(node, ("GET", "kept")) == [b"safe"], 20, "an answer")  # type: ignore[misc]
            assert word(through(node, ("SET", "after", "1"))[0]) == "ok"
            assert not node.wait(0) and node.exit_code == 0
        compared(others)
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert any(f"node {altered.node_id} differs" in line for line in told)
    assert [node.exit_code for node in others] == [0, 0]


@pytest.mark.parametrize("who", ["follower", "leader"])
def test_of_two_nodes_the_one_that_does_not_lead_ends(
    tmp_path: Path, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    with nodes_of(tmp_path, 2) as made:
        leader = made.leader()
        follower = next(node for node in made.by_id.values() if node is not leader)
        compared([leader, follower])
        alter(leader if who == "leader" else follower, alter_values)
        assert follower.wait(20) and follower.exit_code == 1
        assert "the leader" in said(caplog, follower)[0]
        follower.stop()
        eventually(lambda: any("this node leads" in r.getMessage() for r in caplog.records), 10, "its word")
        assert not leader.wait(0.5) and leader.exit_code == 0


def test_with_one_node_away_who_differs_from_the_leader_ends(tmp_path: Path) -> None:
    with nodes_of(tmp_path) as made:
        leader = made.leader()
        altered, away = made.others()
        compared(list(made.by_id.values()))
        away.stop()
        alter(altered, alter_values)
        assert altered.wait(30) and altered.exit_code == 1
        assert not leader.wait(0) and leader.exit_code == 0


# --- real processes -----------------------------------------------------------------------------------

FLAWED = """
import sys
sys.path.insert(0, {root!r})
from raft.machine.keyvalue import KeyValue

honest = KeyValue.set

def flawed(self, words):
    return honest(self, [words[0], words[1], b"flipped", *words[3:]] if words[1] == b"poison" else words)

KeyValue.set = flawed
import super_node
sys.exit(super_node.main())
"""


@pytest.mark.process
@pytest.mark.parametrize("who", ["follower", "leader"])
def test_a_process_that_applies_something_else_ends_with_exit_code_1(tmp_path: Path, who: str) -> None:
    """The code of one node is wrong. Its clients are cut off; the others say who it was."""
    script = tmp_path / "flawed.py"
    script.write_text(FLAWED.format(root=str(Path(__file__).resolve().parents[2])))
    allowed = ("has diverged", r"node \d differs: at index", "Traceback", "by a fatal fault")
    with running(tmp_path, raft={"digest_interval_s": 1}, allowed=allowed) as cluster:
        flawed = cluster.leader() if who == "leader" else cluster.followers()[0]
        cluster.kill(flawed)
        cluster.start(flawed, program=(str(script),))
        cluster.ready()
        if who == "leader":
            lead(cluster, flawed)
        connection = cluster.client(flawed)
        assert connection.ping()
        cluster.execute(cluster.leader(), "SET", "poison", "true", idempotent=True)
        assert cluster.exit_code(flawed) == 1
        assert "CRITICAL" in cluster.log_of(flawed) and "has diverged" in cluster.log_of(flawed)
        others = [n for n in cluster.ids if n != flawed]
        for node in others:
            assert cluster.execute(node, "GET", "poison", idempotent=True) == "true"
        eventually(lambda: any(f"node {flawed} differs" in cluster.log_of(n) for n in others), 10, "its name")
        with pytest.raises(ConnectionError):
            raise_connection(connection)


def lead(cluster: Cluster, node: int) -> None:
    def leads() -> bool:
        if cluster.leader() != node:
            cluster.client(cluster.leader()).execute_command("RAFT", "TRANSFER", node)
        return cluster.leader() == node

    eventually(leads, 30, f"node {node} leading")


def raise_connection(client: Any) -> None:
    import redis

    try:
        client.ping()
    except redis.ConnectionError as error:
        raise ConnectionError(str(error)) from error


@pytest.mark.process
def test_processes_agree_while_large_states_are_hashed_in_children(tmp_path: Path) -> None:
    with running(tmp_path, raft={"digest_interval_s": 1}, rewards={"interval_ms": 200}) as cluster:
        leader = cluster.leader()
        for start in range(0, 20_000, 1000):
            pairs = [word for n in range(start, start + 1000) for word in (f"key:{n}", "v" * 50)]
            cluster.execute(leader, "MSET", *pairs, idempotent=True)
        with Load(cluster) as load:
            for _ in range(4):
                before = max(index_of(cluster, n) for n in cluster.ids)
                eventually(
                    lambda: all(index_of(cluster, n) > before for n in cluster.ids),  # noqa: B023
                    30, "an agreement",
                )  # fmt: skip
            load.progress()
        load.check(cluster)
        cluster.agree()


def index_of(cluster: Cluster, node: int) -> int:
    return int(cluster.info(node)["last_digest_index"])
