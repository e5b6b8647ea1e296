"""All nodes are restarted, one after the other or at once: nothing is lost, doubled or begun anew."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import redis
from cluster import Cluster, eventually, running
from install_process import LARGE, start_of_log
from node_support import Load, check_rule_8, follower_info, interval

pytestmark = pytest.mark.process
SMALL = {"snapshot_every_entries": 100, "segment_bytes": 65536}


def test_a_rolling_restart_by_sigterm_under_load(tmp_path: Path) -> None:
    """How long clients wait is measured by bench/rolling_restart.py."""
    with running(tmp_path, storage=SMALL, rewards={"interval_ms": 250, "ban_threshold": 1000}) as cluster:
        leader = cluster.leader()
        with Load(cluster) as load:
            for node in sorted(cluster.ids, key=lambda n: n == leader):
                load.progress(20)
                last = cluster.leader()
                cluster.kill(node, sig=signal.SIGTERM)
                assert cluster.exit_code(node) == 0
                load.progress(10)
                if node == last:
                    new = cluster.leader()
                    assert f"leader {node} hands over" in cluster.log_of(new), "no election, but a transfer"
                cluster.start(node)
                cluster.ready(node)
            load.progress(20)
        load.check(cluster)
        check_rule_8(cluster)
        cluster.agree()


def what_is_known(cluster: Cluster, node: int) -> dict[str, Any]:
    """What must be the same after a restart: all that no passing interval changes."""
    execute = cluster.execute
    return {
        "balances": [execute(node, "REWARD", "BALANCE", name) for name in ("worker", "claimer", "spammer")],
        "worker": follower_info(cluster, node, "worker"),
        "spammer": follower_info(cluster, node, "spammer"),
        "history": execute(node, "REWARD", "HISTORY", "worker", "COUNT", 50),
        "claim": execute(node, "REWARD", "CLAIM", "claimer", 3, "claim-1"),
        "once": execute(node, "ONCE", "session", 1, "INCR", "counted"),
        "once, later": execute(node, "ONCE", "session", 2, "INCRBY", "counted", 10),
        "transaction": execute(node, "MGET", "a", "b"),
        "counted": execute(node, "GET", "counted"),
        "kept": execute(node, "GET", "kept"),
        "for ever": execute(node, "PTTL", "kept"),
    }


def earn(cluster: Cluster, name: str) -> None:
    """The follower joins, answers one turn and leaves; wait until that turn is closed."""
    assert cluster.execute(1, "FOLLOWER", "JOIN", name, "1.0") == "OK"

    last = interval(cluster, 1)["interval"]

    def answered() -> bool:
        nonlocal last
        number = interval(cluster, 1)["interval"]
        if number == last:  # once in each: what is out of turn counts against it
            return False
        last = number
        try:
            return bool(cluster.execute(2, "FOLLOWER", "REPORT", name, number, "done") == "OK")
        except redis.ResponseError as error:
            assert str(error).startswith("NOTURN")  # too late already
            return False

    eventually(answered, 20, "a turn")
    eventually(lambda: int(follower_info(cluster, 1, name)["earned"]) >= 10, 20, "its reward")
    assert cluster.execute(3, "FOLLOWER", "LEAVE", name) == "OK"
    # A turn that was open when it left is judged yet.
    current = interval(cluster, 1)["interval"]
    eventually(lambda: interval(cluster, 1)["interval"] > current + 1, 20, "two more intervals")


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_a_full_restart_from_snapshots_and_log_forgets_nothing(tmp_path: Path, sig: signal.Signals) -> None:
    rewards = {"interval_ms": 300, "ban_threshold": 1000, "max_spam": 20}
    with running(tmp_path, storage=SMALL, rewards=rewards) as cluster:
        cluster.leader()
        for name in ("worker", "claimer"):
            earn(cluster, name)
        assert cluster.execute(1, "FOLLOWER", "JOIN", "spammer", "1.0") == "OK"
        assert cluster.execute(1, "ONCE", "session", 1, "INCR", "counted") == 1
        with cluster.client(2).pipeline(transaction=True) as pipe:
            pipe.set("a", 1).incr("a").set("b", "x")
            pipe.execute()
        cluster.execute(1, "SET", "kept", "yes")
        cluster.execute(1, "SET", "passing", "yes", "PX", 3_600_000)
        for number in range(30):
            cluster.execute(1, "SET", f"large:{number % 3}", LARGE)
        for node in cluster.ids:
            for _ in range(2):
                cluster.execute(1, "SET", "between", "snapshots")
                assert cluster.client(node).execute_command("RAFT", "SNAPSHOT") == "OK"
        # Behind the snapshots, so that the log has something to tell, too.
        assert cluster.execute(1, "REWARD", "CLAIM", "claimer", 3, "claim-1") is not None
        assert cluster.execute(1, "ONCE", "session", 2, "INCRBY", "counted", 10) == 11
        assert cluster.execute(1, "FOLLOWER", "LEAVE", "spammer") == "OK"
        current = interval(cluster, 1)["interval"]
        eventually(lambda: interval(cluster, 1)["interval"] > current + 1, 20, "its last turn being judged")
        eventually(lambda: all(start_of_log(cluster, node) > 1 for node in cluster.ids), 20, "shorter logs")
        before = what_is_known(cluster, cluster.leader())
        left_ms = cluster.execute(1, "PTTL", "passing")
        for node in cluster.ids:  # all before any is waited for
            cluster.processes[node].send_signal(sig)
        cluster.kill(*cluster.ids, sig=sig)
        cluster.start()
        cluster.ready()
        cluster.leader()
        for node in cluster.ids:
            assert "loaded the snapshot of entry" in cluster.log_of(node)
            assert what_is_known(cluster, node) == before, node
            assert 0 < cluster.execute(node, "PTTL", "passing") <= left_ms
        assert before["counted"] == "11" and before["transaction"] == ["2", "x"]
        check_rule_8(cluster)
        cluster.agree()
