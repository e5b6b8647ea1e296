"""RAFT and CLUSTER commands and INFO from a NodeStatus; cluster-aware clients find the leader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from clients_support import DEADLINE_S, Harness, Wire, make_status, resp
from redis.cluster import LoadBalancingStrategy, RedisCluster

from raft.clients.status_commands import cluster_id
from raft.config import Member

REQUIRED = {
    *("node_id", "role", "term", "leader_id", "voted_for", "commit_index", "applied_index", "last_log_index"),
    *("first_log_index", "snapshot_index", "voters", "learners", "database_lag", "uptime_s", "version"),
}


@pytest.fixture(params=[2, 3])
def client(request: pytest.FixtureRequest, harness: Harness) -> Iterator[redis.Redis]:
    with redis.Redis(
        port=harness.server.port, protocol=request.param, socket_timeout=DEADLINE_S, decode_responses=True
    ) as made:
        yield made


def fields(text: Any) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.split("\r\n") if line)


def test_raft_info(client: redis.Redis, harness: Harness) -> None:
    harness.backend.current = make_status(learners=(4,), silent=(3,), database_lag=9, snapshot_index=5)
    info = fields(client.execute_command("RAFT INFO"))
    assert set(info) >= REQUIRED
    assert (info["node_id"], info["role"], info["term"], info["leader_id"]) == ("1", "leader", "7", "1")
    assert (info["commit_index"], info["applied_index"], info["last_log_index"]) == ("41", "40", "42")
    assert (info["voters"], info["learners"], info["silent"]) == ("1,2,3", "4", "3")
    assert (info["match_2"], info["match_3"]) == ("41", "40")
    assert (info["database_lag"], info["snapshot_index"]) == ("9", "5")
    assert (info["recovering"], info["recovering_from"]) == ("0", "0")
    harness.backend.current = make_status(recovering_from=12)
    info = fields(client.execute_command("RAFT INFO"))
    assert (info["recovering"], info["recovering_from"]) == ("1", "12")


def test_raft_info_names_the_threads_that_live(client: redis.Redis) -> None:
    def named() -> list[str]:
        return fields(client.execute_command("RAFT INFO"))["threads"].split(",")

    assert {"MainThread", "clients-acceptor"} <= set(named())
    done = threading.Event()
    more = threading.Thread(target=done.wait, name="one-more")
    more.start()
    assert "one-more" in named()
    done.set()
    more.join()
    assert "one-more" not in named()


def test_raft_info_without_a_leader(client: redis.Redis, harness: Harness) -> None:
    harness.backend.current = make_status(role="follower", leader_id=None, voted_for=None, match=())
    info = fields(client.execute_command("RAFT INFO"))
    assert (info["role"], info["leader_id"], info["voted_for"], info["learners"]) == (
        "follower",
        "0",
        "0",
        "",
    )
    assert not [key for key in info if key.startswith("match_")]


def test_raft_leader(client: redis.Redis, harness: Harness) -> None:
    assert client.execute_command("RAFT LEADER") == [1, "127.0.0.1", 7201]
    harness.backend.current = make_status(role="follower", leader_id=None)
    assert client.execute_command("RAFT LEADER") is None
    harness.backend.current = make_status(role="follower", leader_id=9)  # not a member that is known here
    assert client.execute_command("RAFT LEADER") is None


def test_raft_members(client: redis.Redis, harness: Harness) -> None:
    harness.backend.current = make_status(voters=(1, 2), learners=(3,), silent=(2,))
    rows = [
        row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))
        for row in client.execute_command("RAFT MEMBERS")
    ]
    assert rows[0] == {
        "id": 1,
        "host": "127.0.0.1",
        "raft_port": 7101,
        "client_port": 7201,
        "http_port": 7301,
        "role": "leader",
        "voter": 1,
    }
    assert [(row["role"], row["voter"]) for row in rows] == [("leader", 1), ("unknown", 1), ("follower", 0)]


def test_cluster_slots_and_shards(client: redis.Redis, harness: Harness) -> None:
    ids = [cluster_id("test", n) for n in (1, 2, 3)]
    assert len(set(ids)) == 3
    assert all(len(one) == 40 and int(one, 16) for one in ids)
    harness.backend.current = make_status(role="follower", leader_id=2, silent=(3,))
    assert client.execute_command("CLUSTER MYID") == ids[0]
    answer = client.connection_pool.get_connection()
    answer.send_command("CLUSTER", "SLOTS")
    assert answer.read_response() == [
        [
            0,
            16383,
            ["127.0.0.1", 7202, ids[1], []],
            ["127.0.0.1", 7201, ids[0], []],
            ["127.0.0.1", 7203, ids[2], []],
        ]
    ]
    client.connection_pool.release(answer)
    (shard,) = client.execute_command("CLUSTER SHARDS")
    shard = shard if isinstance(shard, dict) else dict(zip(shard[::2], shard[1::2], strict=True))
    assert shard["slots"] in ([0, 16383], [(0, 16383)])
    nodes = [
        node if isinstance(node, dict) else dict(zip(node[::2], node[1::2], strict=True))
        for node in shard["nodes"]
    ]
    assert [(node["role"], node["port"], node["health"]) for node in nodes] == [
        ("master", 7202, "online"),
        ("replica", 7201, "online"),
        ("replica", 7203, "fail"),
    ]


def test_cluster_nodes(client: redis.Redis, harness: Harness) -> None:
    third = Member(id=3, host="third.example", raft_port=7103, client_port=7203, http_port=7303)
    members = (*make_status().members[:2], third)
    harness.backend.current = make_status(members=members, silent=(3,))
    connection = client.connection_pool.get_connection()
    connection.send_command("CLUSTER", "NODES")
    ids = [cluster_id("test", n) for n in (1, 2, 3)]
    assert connection.read_response().splitlines() == [
        f"{ids[0]} 127.0.0.1:7201@7101 myself,master - 0 0 7 connected 0-16383",
        f"{ids[1]} 127.0.0.1:7202@7102 slave {ids[0]} 0 0 7 connected",
        f"{ids[2]} third.example:7203@7103,third.example slave,fail? {ids[0]} 0 0 7 disconnected",
    ]
    client.connection_pool.release(connection)


@pytest.mark.parametrize(
    ("changes", "state", "slots"),
    [
        ({}, "ok", "16384"),
        ({"role": "follower", "leader_id": 3}, "ok", "16384"),
        ({"role": "candidate", "leader_id": None}, "fail", "0"),
        ({"has_quorum": False}, "fail", "16384"),
    ],
)
def test_cluster_info(
    client: redis.Redis, harness: Harness, changes: dict[str, object], state: str, slots: str
) -> None:
    harness.backend.current = make_status(**changes)
    info = client.cluster("INFO")
    assert (info["cluster_state"], info["cluster_slots_assigned"]) == (state, slots)
    assert (info["cluster_known_nodes"], info["cluster_current_epoch"]) == ("3", "7")


def test_without_a_leader_nobody_has_slots(wire: Wire, harness: Harness) -> None:
    harness.backend.current = make_status(role="candidate", leader_id=None)
    wire.send(resp(b"CLUSTER", b"SLOTS") + resp(b"CLUSTER", b"NODES"))
    wire.expect(b"*0\r\n")
    assert b"16383" not in wire.sock.recv(65536)


def test_info(client: redis.Redis, harness: Harness) -> None:
    harness.backend.current = make_status(keys=3, keys_with_expiry=1, silent=(2,))
    info: Any = client.info()
    assert info["tcp_port"] == harness.server.port
    assert (info["role"], info["connected_slaves"], info["cluster_enabled"]) == ("master", 1, 1)
    assert (info["raft_term"], info["raft_commit_index"]) == (7, 41)
    assert info["connected_clients"] == 1
    assert info["total_commands_processed"] > 0
    assert info["db0"] == {"keys": 3, "expires": 1, "avg_ttl": 0}
    assert info["slave0"]["state"] == "down"
    assert info["slave1"] == {"ip": "127.0.0.1", "port": 7203, "state": "online", "offset": 40, "lag": 2}


def test_info_of_a_follower_and_by_section(client: redis.Redis, harness: Harness) -> None:
    harness.backend.current = make_status(role="follower", leader_id=2)
    info: Any = client.info("replication")
    assert (info["role"], info["master_port"], info["master_link_status"]) == ("slave", 7202, "up")
    assert "tcp_port" not in info
    harness.backend.current = make_status(role="follower", leader_id=None)
    assert client.info("REPLICATION", "keyspace")["master_link_status"] == "down"
    assert client.info("nosuch") == {}
    assert "raft_term" in client.info("everything")


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_cluster_client_finds_the_leader(make_harness: Callable[..., Harness], protocol: int) -> None:
    follower, leader = make_harness(), make_harness()
    members = tuple(
        Member(id=n, host="127.0.0.1", raft_port=1, client_port=harness.server.port, http_port=1)
        for n, harness in enumerate((follower, leader), start=1)
    )
    follower.backend.current = make_status(node_id=1, role="follower", leader_id=2, members=members)
    leader.backend.current = make_status(node_id=2, role="leader", leader_id=2, members=members)
    with RedisCluster(
        host="127.0.0.1", port=follower.server.port, protocol=protocol, socket_timeout=DEADLINE_S
    ) as cluster:
        for number in range(20):
            assert cluster.set(f"key{number}", number)
            assert cluster.get(f"key{number}") == b"%d" % number
        assert cluster.mset({"{t}a": 1, "{t}b": 2})
        assert cluster.mget("{t}a", "{t}b") == [b"1", b"2"]
        assert cluster.get_primaries()[0].port == leader.server.port
        with cluster.pipeline() as pipeline:
            for number in range(10):
                pipeline.set(f"p{number}", number)
            assert pipeline.execute() == [True] * 10
    assert len(leader.backend.values) == 32
    assert follower.backend.values == {}


def test_redis_cluster_client_reads_from_replicas(make_harness: Callable[..., Harness]) -> None:
    """Such a client sends READONLY to replicas; here any node answers."""
    first, second = make_harness(), make_harness()
    members = tuple(
        Member(id=n, host="127.0.0.1", raft_port=1, client_port=harness.server.port, http_port=1)
        for n, harness in enumerate((first, second), start=1)
    )
    for node_id, harness in enumerate((first, second), start=1):
        harness.backend.current = make_status(node_id=node_id, leader_id=1, members=members)
        harness.backend.values[b"a"] = b"1"
    with RedisCluster(
        host="127.0.0.1",
        port=first.server.port,
        load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN,
        socket_timeout=DEADLINE_S,
    ) as cluster:
        assert [cluster.get("a") for _ in range(6)] == [b"1"] * 6
    assert second.backend.batches


def test_uptime_and_member() -> None:
    status = make_status(started_monotonic_s=100.0)
    assert status.uptime_s(161.9) == 61
    assert status.uptime_s(99.0) == 0
    member = status.member(2)
    assert member is not None
    assert member.client_port == 7202
    assert status.member(None) is None
    assert status.member(9) is None
