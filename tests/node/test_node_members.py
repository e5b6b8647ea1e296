"""Members come and go under load: a cluster outlives all of its machines (thesis chapter 4)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cluster import Cluster, eventually, running
from node_support import Load

# What the nodes say of a member that comes without being one any more, or with another disk.
EXPECTED = (r"not a member", r"refuses this node", r"identity", r"data directory")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path, allowed=EXPECTED) as started:
        started.leader()
        yield started


def any_node(cluster: Cluster) -> int:
    return cluster.alive()[0]


def add(cluster: Cluster, node: int, *, auto: bool = True) -> None:
    """A new machine joins; with auto, wait until it votes."""
    words = cluster.prepare(node)
    cluster.start(node)
    cluster.ready(node)
    assert cluster.execute(any_node(cluster), *words, *(["AUTO"] if auto else []), idempotent=True)
    if auto:
        wait_for_voter(cluster, node)


def wait_for_voter(cluster: Cluster, node: int) -> None:
    eventually(lambda: str(node) in voters(cluster, cluster.leader()), 30, f"node {node} votes")


def voters(cluster: Cluster, node: int) -> list[str]:
    return cluster.info(node)["voters"].split(",")


def remove(cluster: Cluster, node: int, through: int | None = None) -> None:
    """A member leaves, and its machine is switched off."""
    through = through or next(n for n in cluster.alive() if n != node)
    assert cluster.execute(through, "RAFT", "REMOVE", node, idempotent=True)
    if node in cluster.alive():
        cluster.client_ports.pop(node)
        cluster.kill(node)
    cluster.ids.remove(node)
    del cluster.processes[node]


def test_three_grow_to_five_and_shrink_back_under_load(cluster: Cluster) -> None:
    with Load(cluster) as load:
        load.progress(20)
        for node in (4, 5):
            add(cluster, node)
            load.progress(20)
        assert voters(cluster, cluster.leader()) == ["1", "2", "3", "4", "5"]
        cluster.kill(cluster.leader())  # four of five go on
        cluster.start(*[n for n in cluster.ids if n not in cluster.alive()])
        cluster.ready()
        load.progress(20)
        for node in (1, 2):
            remove(cluster, node)
            load.progress(20)
        assert eventually(lambda: voters(cluster, cluster.leader()) == ["3", "4", "5"], 15)
    load.check(cluster)
    cluster.agree()


def test_every_machine_is_replaced_one_by_one_under_load(cluster: Cluster) -> None:
    with Load(cluster) as load:
        for old in (1, 2, 3):
            add(cluster, old + 3)
            load.progress(20)
            remove(cluster, old)
            load.progress(20)
        assert eventually(lambda: voters(cluster, cluster.leader()) == ["4", "5", "6"], 15)
    load.check(cluster)
    cluster.agree()
    members = cluster.client(4).execute_command("RAFT", "MEMBERS")
    assert len(members) == 3
    # The new machines alone carry the cluster through a full restart: the log, not config.yaml, decides.
    cluster.kill(4, 5, 6)
    cluster.start(4, 5, 6)
    cluster.ready(4, 5, 6)
    load.check(cluster)


def test_a_learner_gets_the_log_and_no_vote_until_it_is_promoted(cluster: Cluster) -> None:
    cluster.execute(1, "SET", "k", "v")
    add(cluster, 4, auto=False)
    assert cluster.execute(4, "GET", "k") == "v"

    def shown() -> tuple[str, str, str]:
        info = cluster.info(4)
        return info["learners"], info["voters"], info["role"]

    eventually(lambda: shown() == ("4", "1,2,3", "learner"), 5, "what INFO shows")
    cluster.kill(*[n for n in (1, 2, 3) if n != cluster.leader()])
    with pytest.raises(redis.RedisError):  # a leader and a learner are no quorum of three
        cluster.client(cluster.alive()[0]).set("k", "w")
    cluster.start(*[n for n in (1, 2, 3) if n not in cluster.alive()])
    cluster.ready()
    eventually(lambda: cluster.execute(4, "RAFT", "PROMOTE", 4) == "OK", 30, "promotion")
    assert voters(cluster, cluster.leader()) == ["1", "2", "3", "4"]
    assert cluster.client(1).execute_command("RAFT", "PROMOTE", 4) == "OK"


def test_a_removed_server_disturbs_nobody_and_may_come_back(cluster: Cluster) -> None:
    removed = cluster.followers()[0]
    leader = cluster.leader()
    assert cluster.execute(removed, "RAFT", "REMOVE", removed) == "OK"
    eventually(lambda: "does not belong to the cluster any more" in cluster.log_of(removed), 10, "it says so")
    term = cluster.info(leader)["term"]
    with Load(cluster, threads=2) as load:
        cluster.client_ports.pop(removed)
        load.progress(100)
        cluster.kill(removed)
        cluster.start(removed)
        load.progress(100)
    assert cluster.info(leader)["term"] == term
    assert "not a member" in cluster.log_of(removed)
    node = cluster.addresses[removed]
    cluster.client_ports[removed] = node["client_port"]
    words = [node[key] for key in ("id", "host", "raft_port", "client_port", "http_port")]
    assert cluster.execute(leader, "RAFT", "ADD", *words, "AUTO") == "OK"
    wait_for_voter(cluster, removed)
    load.check(cluster)
    cluster.agree()


def test_a_leader_removes_itself_and_another_goes_on(cluster: Cluster) -> None:
    leader = cluster.leader()
    with Load(cluster) as load:
        load.progress(20)
        assert cluster.execute(leader, "RAFT", "REMOVE", leader) == "OK"
        eventually(lambda: cluster.leader() != leader, 10, "another leader")
        cluster.client_ports.pop(leader)
        cluster.kill(leader)
        cluster.ids.remove(leader)
        del cluster.processes[leader]
        load.progress(20)
    load.check(cluster)


def test_a_node_with_an_emptied_directory_neither_votes_nor_answers_until_it_is_added_again(
    cluster: Cluster,
) -> None:
    leader = cluster.leader()
    wiped = cluster.followers()[0]
    other = next(n for n in cluster.ids if n not in (leader, wiped))
    cluster.execute(leader, "SET", "k", "v")
    cluster.agree()
    cluster.kill(wiped)
    shutil.rmtree(cluster.data(wiped))
    cluster.start(wiped)
    cluster.ready(wiped)
    eventually(lambda: f"RAFT REMOVE {wiped}" in cluster.log_of(wiped), 15, "the next step in its log")
    cluster.kill(other)  # with its vote and its acknowledgement there would be a quorum
    with pytest.raises(redis.RedisError):
        cluster.client(leader).set("k", "w")
    cluster.start(other)
    cluster.ready(other)
    assert cluster.execute(other, "RAFT", "REMOVE", wiped, idempotent=True)
    node = cluster.addresses[wiped]
    words = [node[key] for key in ("id", "host", "raft_port", "client_port", "http_port")]
    assert cluster.execute(other, "RAFT", "ADD", *words, "AUTO") == "OK"
    wait_for_voter(cluster, wiped)
    assert cluster.execute(wiped, "GET", "k") in ("v", "w")  # nobody could tell what became of the second
    cluster.agree()


def test_a_node_that_was_away_finds_its_way_though_all_it_knew_have_gone(cluster: Cluster) -> None:
    leader = cluster.leader()
    away = next(n for n in cluster.ids if n != leader)
    for node in (4, 5):
        add(cluster, node)
    cluster.kill(away)
    for node in [n for n in (1, 2, 3) if n != away]:
        remove(cluster, node)
    cluster.execute(4, "SET", "k", "v")
    cluster.start(away)
    cluster.ready(away)
    assert eventually(lambda: cluster.execute(away, "GET", "k") == "v", 30)
    cluster.agree()


def test_changes_of_config_yaml_are_reported_and_the_log_decides(cluster: Cluster) -> None:
    add(cluster, 4)
    cluster.kill(1)
    cluster.start(1)
    cluster.ready(1)
    eventually(lambda: "the log decides" in cluster.log_of(1), 10, "the difference is told")
    assert cluster.info(1)["voters"] == "1,2,3,4"


def test_nonsense_about_members_is_refused_on_every_node(cluster: Cluster) -> None:
    for node in cluster.ids:
        for words in (["ADD", "1", "127.0.0.1", "1", "2", "3"], ["REMOVE", "9"], ["PROMOTE", "9"]):
            with pytest.raises(redis.ResponseError, match="member"):
                cluster.client(node).execute_command("RAFT", *words)
    assert cluster.info(cluster.leader())["voters"] == "1,2,3"
