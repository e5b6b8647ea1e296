"""Turns that go round (followers_per_interval): honest followers answer theirs and are never banned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from cli_fakes import FakeCluster, FakeError, FakeNode, eventually, fake_cluster

from cli.crew import Crew
from cli.follower import Behaviour, Follower, State
from cli.link import fields

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"worker-{number}" for number in range(1, 6)]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster(nodes=1) as made:
        made.per_interval = 2
        yield made


@pytest.fixture
def serve(cluster: FakeCluster) -> Iterator[Callable[..., None]]:
    """serve(followers…): a crew for them, joined and placed."""
    crews: list[Crew] = []

    def start(*followers: Follower) -> None:
        crew = Crew(followers, [cluster.nodes[0].address], timeout_s=1.0, patience_s=5.0)
        crews.append(crew)
        crew.start()
        eventually(lambda: all(f.first_turn is not None for f in followers), "all joined and placed")

    yield start
    for crew in crews:
        crew.stop()


def sent(cluster: FakeCluster, *words: str) -> int:
    return sum(received[: len(words)] == words for received in cluster.received)


def open_and_wait(cluster: FakeCluster) -> None:
    """One interval, until everyone who has a turn in it has answered."""
    number = cluster.open()
    eventually(
        lambda: {name for name, n in cluster.reports if n == number} == cluster.turns,
        f"the answers of {cluster.turns}",
    )


def test_one_answer_out_of_turn_is_enough_to_learn(cluster: FakeCluster, serve: Callable[..., None]) -> None:
    followers = [Follower(name) for name in NAMES]
    serve(*followers)
    for _ in range(20):
        open_and_wait(cluster)
    assert all(f.refused_out_of_turn <= 1 for f in followers)
    assert Counter(name for name, _ in cluster.reports) == dict.fromkeys(NAMES, 8)


def test_while_everyone_has_a_turn_nobody_asks_first(
    cluster: FakeCluster, serve: Callable[..., None]
) -> None:
    cluster.per_interval = 5
    serve(*[Follower(name) for name in NAMES])
    asked = sent(cluster, "FOLLOWER", "INFO")
    for _ in range(5):
        open_and_wait(cluster)
    assert sent(cluster, "FOLLOWER", "INFO") == asked
    assert sent(cluster, "FOLLOWER", "REPORT") == 25


def test_who_misses_its_turns_misses_only_those_it_has(
    cluster: FakeCluster, serve: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cli.follower")
    lazy = Follower(NAMES[0], behaviour=Behaviour(miss=1.0))
    lazy.asks_first = True
    others = [Follower(name) for name in NAMES[1:]]
    serve(lazy, *others)
    for _ in range(5):
        number = cluster.open()
        eventually(lambda number=number: lazy.settled == number, f"interval {number} settled")
    assert [message for message in caplog.messages if "on purpose" in message] == [
        f"{NAMES[0]}: interval {number}: misses its turn on purpose" for number in (1, 3)
    ]


def test_an_answer_whose_outcome_is_unknown_is_asked_about_first(
    cluster: FakeCluster, serve: Callable[..., None]
) -> None:
    """It was taken, its OK lost: back again, the follower hears that no turn waits, and leaves it at that."""
    follower = Follower("a")
    follower.asks_first = True
    cluster.per_interval = 1
    serve(follower)

    def script(node: FakeNode, words: tuple[str, ...]) -> Any:
        if words[1] == "REPORT":
            cluster.script = lambda node, words: ...
            cluster.reports.append(("a", 1))
            return FakeError("INDETERMINATE the leader was lost")
        return ...

    cluster.script = script
    cluster.open()
    eventually(lambda: follower.settled == 1, "the turn settled")
    assert cluster.reports == [("a", 1)]
    assert follower.refused_out_of_turn == 0


@pytest.fixture
def node(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Iterator[int]:
    """A cluster of one real node in which 2 of 6 (5 workers, the member itself) have a turn; its port."""
    raft_port, client_port, http_port, nobody = free_ports(4)
    ports = {"raft_port": raft_port, "client_port": client_port, "http_port": http_port}
    config = tmp_path / "config.yaml"
    rules = {"interval_ms": 300, "followers_per_interval": 2, "max_spam": 5, "ban_threshold": 3}
    tree = {
        "cluster": {"name": "rotation", "nodes": [{"id": 1, "host": "127.0.0.1", **ports}]},
        "storage": {"data_dir": str(tmp_path / "data")},
        "database": {"uri": f"mongodb://127.0.0.1:{nobody}"},
        "rewards": rules,
    }
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with (tmp_path / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "super_node.py"), "--id", "1", "--config", str(config)],
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if not name.startswith("SUPER_NODE_")},
        )
    yield client_port
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(30) == 0, (tmp_path / "node.log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.process
def test_with_a_real_node_nobody_honest_is_banned(node: int) -> None:
    client = redis.Redis(port=node, socket_timeout=5, decode_responses=True)

    def led() -> bool:
        try:
            return client.execute_command("RAFT", "LEADER") is not None
        except redis.RedisError:
            return False

    eventually(led, "a leader", 30)
    followers = [Follower(name) for name in NAMES]
    loud = Follower("loud", behaviour=Behaviour(spam=1.0))
    crew = Crew([*followers, loud], [("127.0.0.1", node)])
    crew.start()
    try:
        eventually(lambda: all(len(f.acknowledged) >= 4 for f in followers), "four turns each", 30)
        eventually(lambda: loud.state is State.BANNED, "the spammer banned", 30)
    finally:
        crew.stop()
    described = {name: fields(client.execute_command("FOLLOWER", "INFO", name)) for name in [*NAMES, "loud"]}
    client.close()
    assert described.pop("loud")["state"] == "banned"
    assert {info["state"] for info in described.values()} == {"active"}
    # Once to learn that turns go round; once more when an answer came after the end of its interval.
    assert all(info["spam"] <= 3 for info in described.values()), described
    # The interval of the latest answer may still be open.
    assert all(info["earned"] >= 30 for info in described.values()), described
