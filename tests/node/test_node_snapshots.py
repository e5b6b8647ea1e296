"""Snapshots of real nodes: by entries, on request, the log shortened, restarts, children that die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cluster import ROOT, Cluster, code_of, eventually, running
from node_support import Load, check_rule_8, follower_info

pytestmark = pytest.mark.process
SMALL = {"snapshot_every_entries": 40, "segment_bytes": 65536}
KEYS = 100_000


def figures(cluster: Cluster, node: int) -> tuple[int, int]:
    """(snapshot_index, first_log_index)"""
    info = cluster.info(node)
    return int(info["snapshot_index"]), int(info["first_log_index"])


def files(cluster: Cluster, node: int, ending: str) -> list[str]:
    directory = cluster.directory / "data" / f"node-{node}"
    return sorted(path.name for path in directory.iterdir() if path.name.endswith(ending))


def fill(cluster: Cluster, node: int, keys: int) -> None:
    for first in range(0, keys, 1000):
        pairs = {f"key:{number}": f"{number:064}" for number in range(first, first + 1000)}
        cluster.client(node).mset(pairs)


def test_snapshots_by_entries_and_a_restart_of_all_from_them(tmp_path: Path) -> None:
    intervals = {"interval_ms": 200, "ban_threshold": 1000}
    with running(tmp_path, storage=SMALL, rewards=intervals) as cluster:
        leader = cluster.leader()
        assert cluster.execute(leader, "FOLLOWER", "JOIN", "one", "1.0") == "OK"
        assert cluster.execute(leader, "ONCE", "session", 1, "INCR", "counted") == 1
        cluster.execute(leader, "SET", "long", "yes", "PX", 3_600_000)
        fleeting_until = time.monotonic() + 15
        cluster.execute(leader, "SET", "fleeting", "yes", "PX", 15_000)
        large = "x" * 3000

        def compacted() -> bool:
            for number in range(20):
                cluster.execute(leader, "SET", f"large:{number}", large)
            return all(
                first > 1 and taken > first for taken, first in (figures(cluster, n) for n in cluster.ids)
            )

        eventually(compacted, 60, "a shorter log on all nodes")
        for node in cluster.ids:
            taken, _ = figures(cluster, node)
            assert len(files(cluster, node, ".snap")) == 2
            assert f"snapshot-{taken:016}.snap" in files(cluster, node, ".snap")
            assert "the log begins at entry" in cluster.log_of(node)
        cluster.agree()
        earned = follower_info(cluster, leader, "node-1")["earned"]
        cluster.kill(*cluster.ids)
        cluster.start()
        cluster.ready()
        leader = cluster.leader()
        for node in cluster.ids:
            assert "loaded the snapshot of entry" in cluster.log_of(node)
            taken, first = figures(cluster, node)
            assert taken >= first > 1
        assert cluster.execute(leader, "ONCE", "session", 1, "INCR", "counted") == 1, "not a second time"
        assert cluster.execute(leader, "GET", "counted") == "1"
        assert cluster.execute(leader, "GET", "large:19") == large
        assert 0 < cluster.execute(leader, "PTTL", "long") <= 3_600_000
        assert int(follower_info(cluster, leader, "node-1")["earned"]) >= int(earned) > 0
        check_rule_8(cluster)
        cluster.agree()
        eventually(lambda: cluster.execute(leader, "EXISTS", "fleeting") == 0, 30, "expiry")
        assert time.monotonic() >= fleeting_until, "it expired before its time"


def test_a_client_asks_any_node(tmp_path: Path) -> None:
    with running(tmp_path, storage={"segment_bytes": 65536}, rewards={"interval_ms": 60_000}) as cluster:
        leader = cluster.leader()
        for round_ in range(3):
            for number in range(50):
                cluster.execute(leader, "SET", f"{round_}:{number}", "x" * 2000)
            cluster.agree()
            for node in cluster.ids:
                before = cluster.info(node)
                assert cluster.client(node).execute_command("RAFT", "SNAPSHOT") == "OK"
                taken, _ = figures(cluster, node)
                assert taken >= int(before["applied_index"])
        for node in cluster.ids:
            eventually(lambda node=node: figures(cluster, node)[1] > 60, 20, "a shorter log")  # type: ignore[misc]
        digests = cluster.digests()
        assert len(set(map(tuple, digests.values()))) == 1
        for node in cluster.ids:
            cluster.kill(node)
            checked = subprocess.run(
                [sys.executable, "super_node.py", "verify", str(tmp_path / "data" / f"node-{node}")],
                cwd=ROOT, capture_output=True, text=True,
            )  # fmt: skip
            assert checked.returncode == 0, checked.stdout
            cluster.start(node)
            cluster.ready(node)
            eventually(lambda node=node: int(cluster.info(node)["applied_index"]) >= digests[node][0])  # type: ignore[misc]
        cluster.agree()


def test_snapshots_under_load_lose_nothing(tmp_path: Path) -> None:
    with running(tmp_path, storage=SMALL, rewards={"interval_ms": 200}) as cluster:
        cluster.leader()
        with Load(cluster, threads=3) as load:
            load.progress(50)
            for node in cluster.ids:
                assert cluster.client(node).execute_command("RAFT", "SNAPSHOT") == "OK"
                load.progress(20)
            load.stop()
        load.check(cluster)
        cluster.agree()
        assert all(figures(cluster, node)[0] > 0 for node in cluster.ids)


@contextlib.contextmanager
def asked(cluster: Cluster, node: int) -> Iterator[list[Any]]:
    """RAFT SNAPSHOT on a connection of its own; its answer comes into the list."""
    answers: list[Any] = []

    def ask() -> None:
        client = redis.Redis(port=cluster.client_ports[node], socket_timeout=60, retry=None)
        with contextlib.closing(client):
            try:
                answers.append(client.execute_command("RAFT", "SNAPSHOT"))
            except redis.RedisError as error:
                answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        thread.join(60)


def in_the_middle(cluster: Cluster, node: int) -> None:
    """Wait until a child has written a part of a snapshot."""
    directory = cluster.directory / "data" / f"node-{node}"

    def some() -> bool:
        return any(path.stat().st_size > 0 for path in directory.glob("*.taking.tmp"))

    eventually(some, 20, "half a snapshot")


def child_of(pid: int) -> int | None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for word in (task / "children").read_text().split():
            return int(word)
    return None


def test_kill_9_while_the_child_writes(tmp_path: Path) -> None:
    """BUGS 44: the half is removed at the next start, the snapshot before and the log hold it all."""
    with running(tmp_path, count=1, rewards={"interval_ms": 60_000}) as cluster:
        cluster.leader()
        fill(cluster, 1, KEYS)
        assert cluster.client(1).execute_command("RAFT", "SNAPSHOT") == "OK"
        good, _ = figures(cluster, 1)
        for number in range(20):
            cluster.execute(1, "SET", f"later:{number}", number)
        with asked(cluster, 1) as answers:
            in_the_middle(cluster, 1)
            child = child_of(cluster.processes[1].pid)
            assert child is not None
            cluster.kill(1)
        assert isinstance(answers[0], redis.ConnectionError)
        eventually(lambda: not Path(f"/proc/{child}").exists(), 10, "the child's end")
        assert len(files(cluster, 1, ".taking.tmp")) == 1
        cluster.start(1)
        cluster.ready()
        cluster.leader()
        assert files(cluster, 1, ".taking.tmp") == []
        assert figures(cluster, 1)[0] == good
        assert f"loaded the snapshot of entry {good}" in cluster.log_of(1)
        assert cluster.execute(1, "DBSIZE") == KEYS + 20
        assert cluster.execute(1, "GET", "later:19") == "19"
        assert cluster.client(1).execute_command("RAFT", "SNAPSHOT") == "OK"
        assert figures(cluster, 1)[0] > good


def test_the_child_alone_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, count=1, rewards={"interval_ms": 60_000}) as cluster:
        cluster.leader()
        fill(cluster, 1, KEYS)
        with asked(cluster, 1) as answers:
            in_the_middle(cluster, 1)
            child = child_of(cluster.processes[1].pid)
            assert child is not None
            os.kill(child, signal.SIGKILL)
        assert code_of(answers[0]) in ("no", "ERR") and "killed by signal 9" in str(answers[0])
        assert "memory" in cluster.log_of(1)
        assert files(cluster, 1, ".taking.tmp") == []
        assert cluster.execute(1, "SET", "a", "1")
        assert cluster.client(1).execute_command("RAFT", "SNAPSHOT") == "OK"
        assert figures(cluster, 1)[0] > 0


def test_sigterm_while_the_child_writes(tmp_path: Path) -> None:
    with running(tmp_path, count=1, rewards={"interval_ms": 60_000}) as cluster:
        cluster.leader()
        fill(cluster, 1, KEYS)
        with asked(cluster, 1):
            in_the_middle(cluster, 1)
            cluster.kill(1, sig=signal.SIGTERM)
        assert cluster.processes[1].returncode == 0
        assert files(cluster, 1, ".taking.tmp") == []
