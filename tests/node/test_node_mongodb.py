"""MongoDB shows exactly what the ledger says, whatever was away: the judge is the replicated log itself."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from cluster import Cluster, eventually, free_ports, running
from node_support import Load, check_rule_8, interval, replay

from database.client import new_client
from database.documents import claim_document, interval_document, reward_document
from database.embedded import EmbeddedServer

pytestmark = pytest.mark.process

REWARDS = {"interval_ms": 250, "ban_threshold": 1000, "max_spam": 100_000}
MONGO_NOISE = ["MongoDB"]


class Address:
    """What new_client wants of settings.database."""

    def __init__(self, uri: str) -> None:
        self.uri = uri


@pytest.fixture
def mongo(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server, not yet started, that the test may kill."""
    server = EmbeddedServer(tmp_path / "mongo", port=free_ports(1)[0])
    yield server
    server.kill()


@contextmanager
def projected(tmp_path: Path, mongo: EmbeddedServer) -> Iterator[Cluster]:
    """A cluster that writes to this server."""
    database = {"uri": mongo.uri, "name": "tested"}
    with running(tmp_path, rewards=REWARDS, database=database, allowed=MONGO_NOISE) as cluster:
        cluster.leader()
        yield cluster


@contextmanager
def followers_at_work(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Two followers that join, answer and claim through any node, on and on; the claims that were paid."""
    stop = threading.Event()
    claims: dict[str, Any] = {}

    def work() -> None:
        number = 0
        clients = Cluster.__new__(Cluster)  # the same cluster, with connections of this thread's own
        clients.__dict__.update(cluster.__dict__, _clients={})

        def tell(*words: str | int) -> Any:
            """The answer, or None: a node that is down, no leader, NOTURN, OVERCLAIM; the log will tell."""
            with contextlib.suppress(redis.RedisError):
                return clients.execute(cluster.ids[number % 3], *words, timeout_s=0)

        while not stop.wait(0.02):
            number += 1
            name = f"w{number % 2}"
            tell("FOLLOWER", "JOIN", name, "1.0")
            if now := tell("INTERVAL", "CURRENT"):
                tell("FOLLOWER", "REPORT", name, now[1], f"data {now[1]}")
            if number % 7:  # not so often that over-claims eat up what is earned
                continue
            if (balance := tell("REWARD", "CLAIM", name, 1, f"claim-{number}")) is not None:
                claims[f"claim-{number}"] = balance

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield claims
    finally:
        stop.set()
        thread.join(20)


def intervals_pass(cluster: Cluster, node: int, count: int = 4) -> None:
    """Wait until that many more intervals are closed: consensus and ledger go on."""
    goal = interval(cluster, node)["interval"] + count
    eventually(lambda: interval(cluster, node)["interval"] >= goal, 20, f"{count} intervals")


def lag(cluster: Cluster) -> int:
    """database_lag of the leader."""
    return int(cluster.info(cluster.leader())["database_lag"])


def caught_up(cluster: Cluster, timeout_s: float = 40.0) -> None:
    """Wait until nothing waits for MongoDB, on every node. Of what is applied by now: RAFT INFO may be some
    milliseconds old, RAFT DIGEST is not."""
    for node in cluster.alive():
        applied = cluster.execute(node, "RAFT", "DIGEST", idempotent=True)[0]

        def written(node: int = node, applied: int = applied) -> bool:
            info = cluster.info(node)
            return int(info["applied_index"]) >= applied and info["database_lag"] == "0"

        eventually(written, timeout_s, f"database_lag 0 on node {node}")


def documents(mongo: EmbeddedServer, collection: str) -> dict[Any, dict[str, Any]]:
    """Everything in a collection by _id, each _id once."""
    with new_client(Address(mongo.uri)) as client:
        found = list(client["tested"][collection].find())
    by_id = {str(document["_id"]): document for document in found}
    assert len(by_id) == len(found), f"an _id twice in {collection}"
    return by_id


def check_equal(cluster: Cluster, mongo: EmbeddedServer, scratch: Path) -> None:
    """Stops the nodes; then what their logs say and what MongoDB has must be one."""
    check_rule_8(cluster)
    caught_up(cluster)
    cluster.agree()
    cluster.kill(*cluster.alive(), sig=signal.SIGTERM)
    said = max((replay(cluster, node, scratch) for node in cluster.ids), key=lambda each: len(each.entries))
    checkpoint = documents(mongo, "projection")["test-cluster"]["applied_index"]
    assert 0 < checkpoint <= len(said.entries)
    outcomes = {str(d["_id"]): d for d in map(interval_document, said.outcomes.values())}
    claims = {d["_id"]: d for d in map(claim_document, said.claims.values())}
    for name, told in (("intervals", outcomes), ("claims", claims)):
        stored = documents(mongo, name)
        missing = {key for key, d in told.items() if d["applied_index"] <= checkpoint} - set(stored)
        assert not missing, f"{len(missing)} of {len(told)} are missing in {name}: {sorted(missing)[:5]}"
        assert not set(stored) - set(told), f"{name} holds what the ledger never said"
        for key, document in stored.items():
            assert document == told[key], name
    everyone = said.machine.ledger.pull(1, full=True)
    assert everyone is not None
    told = {row.node: reward_document(row) for row in everyone.rewards}
    stored = documents(mongo, "rewards")
    assert set(stored) == set(told)
    for name, document in stored.items():
        if told[name]["applied_index"] <= checkpoint:
            assert document == told[name]
    # What a follower's document says is the sum of its outcomes and claims up to that log index.
    every = [*documents(mongo, "intervals").values(), *documents(mongo, "claims").values()]
    for name, document in stored.items():
        rows = [d for d in every if d["node"] == name and d["applied_index"] <= document["applied_index"]]
        assert document["earned"] == sum(d["delta"] for d in rows if d.get("outcome") == "hit")
        assert document["claimed"] == sum(d["amount"] for d in rows if d.get("accepted"))
        assert document["amount"] == document["earned"] - document["penalties"] - document["claimed"]


def test_mongodb_is_away_at_the_start_and_is_filled_when_it_comes(
    tmp_path: Path, mongo: EmbeddedServer
) -> None:
    with projected(tmp_path, mongo) as cluster, Load(cluster, threads=2) as load:
        with followers_at_work(cluster) as claims:
            intervals_pass(cluster, 1)
            load.progress(20)  # nobody waits for MongoDB
            assert lag(cluster) > 0
            before = lag(cluster)
            eventually(lambda: lag(cluster) > before, 10, "the lag rising")
            mongo.start()
            intervals_pass(cluster, 2)
        load.stop()
        assert claims, "no claim went through"
        for claim, balance in list(claims.items())[:3]:
            name = f"w{int(claim.split('-')[1]) % 2}"
            assert cluster.execute(1, "REWARD", "CLAIM", name, 1, claim) == balance, "another answer"
        load.check(cluster)
        check_equal(cluster, mongo, tmp_path / "replay")


def test_mongodb_is_killed_and_comes_back_under_load(tmp_path: Path, mongo: EmbeddedServer) -> None:
    mongo.start()
    with projected(tmp_path, mongo) as cluster, Load(cluster, threads=2) as load:
        with followers_at_work(cluster):
            for _ in range(2):
                intervals_pass(cluster, 1, 2)
                mongo.kill()
                intervals_pass(cluster, 2)
                load.progress(10)
                eventually(lambda: lag(cluster) > 0, 10, "a lag")
                mongo.start()
        load.stop()
        load.check(cluster)
        check_equal(cluster, mongo, tmp_path / "replay")


def test_leaders_are_killed_while_they_write_and_the_checkpoint_never_goes_back(
    tmp_path: Path, mongo: EmbeddedServer
) -> None:
    mongo.start()
    seen: list[int] = []
    stop = threading.Event()

    def look() -> None:
        with new_client(Address(mongo.uri)) as client:
            while not stop.wait(0.02):
                if (found := client["tested"]["projection"].find_one()) is not None:
                    seen.append(found["applied_index"])

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with projected(tmp_path, mongo) as cluster:
            with followers_at_work(cluster):
                for number in range(4):
                    intervals_pass(cluster, 1, 2)
                    leader = cluster.leader()
                    if number == 3:  # deposed without knowing it: it must not write over its successor
                        cluster.pause(leader)
                        others = [n for n in cluster.ids if n != leader]
                        eventually(
                            lambda others=others: any(cluster.info(n)["role"] == "leader" for n in others),  # type: ignore[misc]
                            what="a leader",
                        )
                        intervals_pass(cluster, others[0], 3)
                        cluster.resume(leader)
                        continue
                    cluster.kill(leader)
                    cluster.leader()
                    cluster.start(leader)
                    cluster.ready(leader)
            check_equal(cluster, mongo, tmp_path / "replay")
    finally:
        stop.set()
        watcher.join()
    assert seen == sorted(seen) and seen, "the checkpoint went back"


def test_all_nodes_are_restarted_with_outcomes_waiting(tmp_path: Path, mongo: EmbeddedServer) -> None:
    mongo.start()
    with projected(tmp_path, mongo) as cluster:
        with followers_at_work(cluster):
            intervals_pass(cluster, 1, 3)
            mongo.kill()
            intervals_pass(cluster, 1, 3)
        assert lag(cluster) > 0
        for node in cluster.ids:
            cluster.processes[node].send_signal(signal.SIGKILL)
        cluster.kill(*cluster.ids)
        cluster.start()
        cluster.ready()
        eventually(lambda: lag(cluster) > 0, 10, "what waited for MongoDB before the restart")
        intervals_pass(cluster, 1, 2)
        mongo.start()
        check_equal(cluster, mongo, tmp_path / "replay")
