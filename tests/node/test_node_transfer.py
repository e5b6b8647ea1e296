"""Leadership handed over on request and on SIGTERM; transactions and exactly-once through it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cluster import Cluster, eventually, running
from node_support import Load


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path) as started:
        started.leader()
        # A node makes its first log file with its first entry; on a busy disk that takes longer than a
        # transfer may, so whoever is asked to take over in the meantime does not.
        started.agree()
        yield started


def test_leadership_goes_where_it_is_sent_through_any_node(cluster: Cluster) -> None:
    for target in (1, 2, 3):
        if cluster.leader() == target:
            continue
        through = next(n for n in cluster.ids if n != target)
        assert cluster.client(through).execute_command("RAFT", "TRANSFER", str(target)) in ("OK", b"OK", True)
        assert cluster.leader() == target


def test_a_transfer_that_cannot_be_is_refused_and_changes_nothing(cluster: Cluster) -> None:
    leader = cluster.leader()
    for node in cluster.ids:
        for wrong in (str(leader), "9", "x"):
            with pytest.raises(redis.ResponseError):
                cluster.client(node).execute_command("RAFT", "TRANSFER", wrong)
    assert cluster.leader() == leader


def test_a_transfer_to_a_silent_node_is_given_up_and_the_leader_goes_on(cluster: Cluster) -> None:
    leader = cluster.leader()
    silent = next(n for n in cluster.ids if n != leader)
    cluster.pause(silent)
    with pytest.raises(redis.ResponseError, match="did not take over"):
        cluster.client(leader).execute_command("RAFT", "TRANSFER", str(silent))
    assert cluster.execute(leader, "SET", "k", "v")
    cluster.resume(silent)


def test_a_leader_that_is_stopped_hands_over_first(cluster: Cluster) -> None:
    leader = cluster.leader()
    with Load(cluster) as load:
        load.progress()
        cluster.kill(leader, sig=signal.SIGTERM)
        assert cluster.exit_code(leader) == 0
        load.progress()
        cluster.start(leader)
        cluster.ready(leader)
        load.progress()
    successor = next(n for n in cluster.ids if f"leader {leader} hands over" in cluster.log_of(n))
    first_news = [line for line in cluster.log_of(successor).splitlines() if "asking for" in line]
    assert "candidate" in first_news[-1], "elected at once, without a timeout or a pre-vote"
    load.check(cluster)
    cluster.agree()


def test_a_transaction_is_all_or_nothing_and_watch_sees_other_nodes(cluster: Cluster) -> None:
    one, two = (cluster.client(n) for n in cluster.ids[:2])
    with one.pipeline(transaction=True) as pipe:
        pipe.set("a", 1)
        pipe.incr("a")
        pipe.get("a")
        assert pipe.execute()[1:] == [2, "2"]
    with one.pipeline(transaction=True) as pipe:
        pipe.watch("a")
        two.set("a", "changed")
        pipe.multi()
        pipe.set("a", "mine")
        with pytest.raises(redis.WatchError):
            pipe.execute()
    assert one.get("a") == "changed"


def test_once_gives_the_first_answer_again_after_the_leader_died(cluster: Cluster) -> None:
    leader = cluster.leader()
    others = [n for n in cluster.ids if n != leader]
    assert cluster.client(leader).execute_command("ONCE", "s", "7", "INCRBY", "n", "5") == 5
    cluster.kill(leader)

    def again() -> bool:
        return cluster.client(others[0]).execute_command("ONCE", "s", "7", "INCRBY", "n", "5") == 5

    eventually(again, what="the first answer again")
    with pytest.raises(redis.ResponseError):
        cluster.client(others[1]).execute_command("ONCE", "s", "7", "INCRBY", "n", "6")
    assert cluster.client(others[1]).get("n") == "5"
    cluster.start(leader)
    cluster.agree()
