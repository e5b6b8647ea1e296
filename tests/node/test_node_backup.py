"""Backup and restore with real nodes: a consistent copy of a cluster under load, a new cluster from it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cluster import ROOT, Cluster, eventually, running
from node_support import check_rule_8

from raft.machine.machine import Machine
from raft.storage.disk import Disk
from raft.storage.snapshot_reading import SnapshotFile

QUICK = {"rewards": {"interval_ms": 100}}


def program(*arguments: str | Path, code: int = 0) -> Any:
    """What super_node.py … --json says."""
    done = subprocess.run(
        [sys.executable, "super_node.py", *arguments, "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


class Mirrors:
    """Clients of several nodes that count in two places at once, in one transaction: never apart."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self.acked = dict.fromkeys(cluster.ids, 0)
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in cluster.ids]

    def __enter__(self) -> Mirrors:
        for thread in self._threads:
            thread.start()
        eventually(lambda: min(self.acked.values()) > 20, 20, "some load")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _run(self, node: int) -> None:
        client = redis.Redis(port=self._cluster.client_ports[node], socket_timeout=10)
        while not self._stop.is_set():
            with contextlib.suppress(redis.RedisError), client.pipeline(transaction=True) as pipe:
                pipe.incr(f"counter:{node}")
                pipe.set(f"filler:{node}:{self.acked[node]}", "x" * 500)
                pipe.incr(f"mirror:{node}")
                pipe.execute()
                self.acked[node] += 1


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "old").mkdir()
    with running(tmp_path / "old", **QUICK) as started:
        started.leader()
        for name in ("good", "bad"):
            started.execute(1, "FOLLOWER", "JOIN", name, "1.0")
        yield started


def restored(tmp_path: Path, file: Path, count: int = 3) -> Cluster:
    """A new cluster, not started, from a backup."""
    (tmp_path / "new").mkdir()
    cluster = Cluster(tmp_path / "new", count, **QUICK)
    told = program("restore", file, "--config", cluster.config)
    assert [node["id"] for node in told["nodes"]] == cluster.ids
    return cluster


def counters(cluster: Cluster, node: int) -> dict[str, int]:
    names = [f"{what}:{n}" for n in (1, 2, 3) for what in ("counter", "mirror")]
    return dict(zip(names, map(int, cluster.execute(node, "MGET", *names)), strict=True))


@pytest.mark.parametrize("through", ["config", "leader", "follower"])
def test_a_backup_under_load_is_a_consistent_prefix(old: Cluster, tmp_path: Path, through: str) -> None:
    file = tmp_path / "today.backup"
    where = ["--config", str(old.config)]
    if through != "config":
        node = old.leader() if through == "leader" else old.followers()[0]
        where = ["--connect", f"127.0.0.1:{old.client_ports[node]}"]
    with Mirrors(old) as load:
        before = dict(load.acked)
        told = program("backup", file, *where)
        after = dict(load.acked)
        eventually(lambda: min(load.acked[n] - after[n] for n in old.ids) > 5, 20, "the load goes on")
    assert told["bytes"] == file.stat().st_size
    machine = Machine.load("test-cluster", SnapshotFile(Disk(), file).chunks())
    assert machine.applied_index == told["index"]
    for node in old.ids:
        counter = int(machine.kv.values[b"counter:%d" % node])
        assert machine.kv.values[b"mirror:%d" % node] == b"%d" % counter
        assert counter >= before[node], "acknowledged before the backup began"
        fillers = sum(key.startswith(b"filler:%d:" % node) for key in machine.kv.values)
        assert fillers == counter
    machine.ledger.check()  # rule 8
    assert sum(machine.ledger.counts().values()) == 5


@pytest.mark.parametrize("count", [3, 1, 5])
def test_a_restored_cluster_goes_on(old: Cluster, tmp_path: Path, count: int) -> None:
    """The old cluster goes on beside it: neither hears of the other."""
    file = tmp_path / "today.backup"
    with Mirrors(old):
        program("backup", file, "--config", old.config)
    kept = Machine.load("test-cluster", SnapshotFile(Disk(), file).chunks())
    wanted = {name: int(kept.kv.values[name.encode()]) for name in counters(old, 1)}
    new = restored(tmp_path, file, count)
    try:
        new.start()
        new.ready()
        for node in new.ids:
            assert counters(new, node) == wanted
            assert new.execute(node, "INCR", "written after") == node
        assert int(new.info(new.leader())["term"]) > kept.applied_term
        assert new.execute(1, "FOLLOWER", "INFO", "good")[:2] == ["node", "good"]
        check_rule_8(new)
        new.agree()
        new.kill(*new.ids)
        new.start()
        new.ready()
        assert new.execute(new.ids[-1], "INCR", "written after") == count + 1
        new.agree()
        assert new.troubles() == []
        assert old.execute(1, "EXISTS", "written after") == 0
    finally:
        for node in new.ids:
            print(f"--- new node {node}\n{new.log_of(node)[-3000:] if node in new.processes else ''}")
        new.stop()


def test_a_node_that_is_away_is_named_and_the_others_are_asked(old: Cluster, tmp_path: Path) -> None:
    node = old.followers()[0]
    old.kill(node)
    where = f"127.0.0.1:{old.client_ports[node]}"
    said = program("backup", tmp_path / "x.backup", "--connect", where, code=1)
    assert where in said
    assert not list(tmp_path.glob("x.backup*"))
    assert program("backup", tmp_path / "x.backup", "--config", old.config)["node"] != str(node)


def test_a_survivors_snapshot_restores_a_cluster_that_lost_its_majority(old: Cluster, tmp_path: Path) -> None:
    """No leader, so no backup: but the newest snapshot file of any node is one."""
    old.execute(1, "SET", "k", "v")
    survivor = old.followers()[0]
    eventually(lambda: old.execute(survivor, "GET", "k") == "v", 10, "the survivor has it")
    old.client(survivor).execute_command("RAFT", "SNAPSHOT")
    old.kill(*old.ids)
    newest = max((old.directory / "data" / f"node-{survivor}").glob("snapshot-*.snap"))
    new = restored(tmp_path, newest)
    try:
        new.start()
        new.ready()
        assert new.execute(2, "GET", "k") == "v"
    finally:
        new.stop()


def test_an_old_member_cannot_mix_in(old: Cluster, tmp_path: Path) -> None:
    """Bug: a node with the old data directory, at the right address and with the right name and id."""
    file = tmp_path / "today.backup"
    old.execute(1, "SET", "k", "v")
    program("backup", file, "--config", old.config)
    old.execute(1, "SET", "k", "later than the backup")
    old.kill(*old.ids)
    new = restored(tmp_path, file)
    data = new.directory / "data"
    shutil.rmtree(data / "node-3")
    shutil.copytree(old.directory / "data" / "node-3", data / "node-3")
    try:
        new.start()
        new.ready()
        leader = new.leader()
        assert leader in (1, 2)
        assert new.execute(leader, "GET", "k") == "v"
        # After a start an old node does not know yet what of its log is committed, so not its cluster's id
        # either: then it is its directory's identity that gives it away.
        eventually(lambda: "from before a restore" in new.log_of(leader), 15, "it is refused")
        eventually(lambda: "from before a restore" in new.log_of(3), 15, "it hears why")
        assert new.info(3)["leader_id"] == "0"
        assert new.execute(leader, "SET", "k", "new")
    finally:
        new.stop()
