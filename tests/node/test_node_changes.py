"""Changes of the members when something is wrong: a member that is down, one that never comes, a leader that
dies in the middle of the change (thesis chapter 4)."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cluster import Cluster, eventually, running
from install_process import add_words, voters
from node_support import Load, connect, pack, read_replies, word

pytestmark = pytest.mark.process
EXPECTED = (r"not a member", r"refuses this node")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path, allowed=EXPECTED, rewards={"interval_ms": 60_000}) as started:
        started.leader()
        yield started


def test_a_member_that_is_down_is_removed_and_finds_out_when_it_is_back(cluster: Cluster) -> None:
    leader, down = cluster.leader(), cluster.followers()[0]
    cluster.kill(down)
    through = next(n for n in cluster.alive() if n != leader)
    assert cluster.execute(through, "RAFT", "REMOVE", down) == "OK"
    assert cluster.execute(through, "SET", "k", "v")
    for node in cluster.alive():
        eventually(lambda node=node: str(down) not in voters(cluster, node), 10, "it is gone")  # type: ignore[misc]
    # Two of two: another one may not go while it would leave no quorum of those that answer.
    term = cluster.info(leader)["term"]
    cluster.start(down)
    cluster.ready(down)
    with pytest.raises(redis.RedisError):
        cluster.client(down).set("k", "w")
    assert cluster.execute(leader, *add_words(cluster, down), "AUTO") == "OK"
    eventually(lambda: str(down) in voters(cluster, leader), 30, "it votes again")
    assert cluster.info(leader)["term"] == term, "it has disturbed nobody"
    assert cluster.execute(down, "GET", "k") == "v"
    cluster.agree()


def test_the_removal_of_the_last_that_answer_is_refused(cluster: Cluster) -> None:
    leader, (down, other) = cluster.leader(), cluster.followers()
    cluster.kill(down)

    died = time.monotonic()
    # Its silence counts after the longest election timeout: 600 ms.
    eventually(lambda: time.monotonic() > died + 0.7, 5)
    with pytest.raises(redis.ResponseError, match="no quorum"):
        cluster.client(leader).execute_command("RAFT", "REMOVE", other)
    assert cluster.execute(leader, "SET", "k", "v")
    assert voters(cluster, leader) == ["1", "2", "3"]


def test_a_member_that_never_comes_is_removed_again(cluster: Cluster) -> None:
    words = cluster.prepare(4)
    cluster.client_ports.pop(4)
    cluster.ids.remove(4)
    leader = cluster.leader()
    with Load(cluster, threads=2) as load:
        load.progress(10)
        assert cluster.execute(1, *words, "AUTO") == "OK"
        load.progress(30)
        with pytest.raises(redis.ResponseError, match="caught up"):
            cluster.client(leader).execute_command("RAFT", "PROMOTE", 4)
        # It counts for nothing: with one of the three down there is still a quorum.
        down = cluster.followers()[0]
        cluster.kill(down)
        load.progress(30)
        assert voters(cluster, leader) == ["1", "2", "3"]
        cluster.start(down)
        cluster.ready(down)
        assert cluster.execute(2, "RAFT", "REMOVE", 4, idempotent=True) == "OK"
        load.progress(10)
    for node in cluster.ids:
        eventually(lambda node=node: cluster.info(node)["learners"] == "", 10, "no learner")  # type: ignore[misc]
    load.check(cluster)
    cluster.agree()


def asked_in_the_background(cluster: Cluster, node: int, *words: Any) -> tuple[threading.Thread, list[Any]]:
    """A command on a connection of its own. Its reply, or the error, comes into the list."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            with connect(cluster.client_ports[node]) as sock:
                sock.sendall(pack(words))
                answers.extend(read_replies(sock, 1))
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, answers


def one_mind(cluster: Cluster, nodes: list[int], committed: int) -> str | None:
    """The voters, the learners as all these nodes see them once they have applied that much; None before."""
    infos = [cluster.info(n) for n in nodes]
    if any(int(info["applied_index"]) < committed for info in infos):
        return None
    seen = {f"{info['voters']} {info['learners']}" for info in infos}
    return seen.pop() if len(seen) == 1 else None


def test_a_change_whose_leader_dies_happens_everywhere_or_nowhere(tmp_path: Path) -> None:
    rng = random.Random(str(tmp_path))
    with running(tmp_path, count=4, allowed=EXPECTED, rewards={"interval_ms": 60_000}) as cluster:
        cluster.leader()
        subject = cluster.followers()[0]  # comes and goes; the others die, one at a time
        # From its first moments on: a founder that no record of identities names has no say in an election.
        for node in cluster.ids:
            eventually(lambda node=node: "configuration of entry" in cluster.log_of(node), 10, "identities")  # type: ignore[misc]
        port = cluster.client_ports.pop(subject)
        with Load(cluster, threads=2) as load:
            cluster.client_ports[subject] = port
            others = [n for n in cluster.ids if n != subject]
            for _ in range(5):
                leader = lead_without(cluster, subject, others)
                member = is_member(cluster, leader, subject)
                words = ["RAFT", "REMOVE", subject] if member else [*add_words(cluster, subject), "AUTO"]
                through = rng.choice(others)
                thread, answers = asked_in_the_background(cluster, through, *words)
                thread.join(rng.choice((0.0, 0.005, 0.02, 0.1)) * rng.random())
                cluster.kill(leader)
                thread.join(20)
                assert answers, "it hangs"
                load.progress(5)
                cluster.start(leader)
                cluster.ready(leader)
                committed = int(cluster.info(lead_without(cluster, subject, others))["commit_index"])
                eventually(lambda committed=committed: one_mind(cluster, others, committed), 30, "one mind")  # type: ignore[misc]
                happened = is_member(cluster, others[0], subject) is not member
                if word(answers[0]) == "CLUSTERDOWN":
                    assert not happened, "refused, and yet done"
                elif not isinstance(answers[0], OSError) and word(answers[0]) == "ok":
                    assert happened, "OK, and yet not so"
        if not is_member(cluster, others[0], subject):
            cluster.execute(others[0], *add_words(cluster, subject), "AUTO", idempotent=True)
        eventually(lambda: one_mind(cluster, cluster.ids, 0) == "1,2,3,4 ", 30, "all four vote, and all know")
        load.check(cluster)
        cluster.agree()


def is_member(cluster: Cluster, node: int, subject: int) -> bool:
    info = cluster.info(node)
    return str(subject) in [*info["voters"].split(","), *info["learners"].split(",")]


def lead_without(cluster: Cluster, subject: int, others: list[int]) -> int:
    """The leader, which is one of the others: the subject hands over if it was elected."""
    leader = cluster.leader()
    while leader == subject:
        with contextlib.suppress(redis.RedisError):
            cluster.client(subject).execute_command("RAFT", "TRANSFER", others[0])
        leader = cluster.leader()
    return leader
