"""kill -9 of the leader until the next acknowledged write, again and again, with two settings.

Two writers, one connected to each other node, begin right after the kill and try until one is told OK. The
killed node is started again and has caught up before the next kill, which comes at a random time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.cluster import Cluster, cluster
from bench.context import OURS, Case, Context, Group, Options
from bench.processes import HOST, until

QUICK_MS = [150, 300]
PATIENCE_S = 30.0
CASES = (
    Case("failover", "kill -9 of the leader, default settings"),
    Case("failover-150", "kill -9 of the leader, election_timeout_ms [150, 300]"),
)


class Writers:
    """A thread for each port; whoever is acknowledged first notes the time."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.acknowledged = threading.Event()
        self.at = 0.0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write, args=(port,), daemon=True) for port in ports]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _write(self, port: int) -> None:
        with redis.Redis(host=HOST, port=port, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)) as client:
            while not self._over.is_set():
                try:
                    client.set("failover", "x" * 64)
                except redis.RedisError:
                    self._over.wait(0.001)
                    continue
                now = time.monotonic()
                with self._lock:
                    if not self.acknowledged.is_set():
                        self.at = now
                        self.acknowledged.set()
                return


def kill_once(nodes: Cluster) -> float:
    """Seconds from the SIGKILL to the next acknowledged write. Raises RuntimeError."""
    leader = nodes.leader()
    others = [nodes.ports[n] for n in nodes.ids if n != leader]
    began = time.monotonic()
    nodes.kill(leader)
    writers = Writers(others)
    try:
        if not writers.acknowledged.wait(PATIENCE_S):
            raise RuntimeError(f"no write within {PATIENCE_S:.0f} s of the kill (see {nodes.path})")
    finally:
        writers.close()
    nodes.start(leader)
    return writers.at - began


def _caught_up(nodes: Cluster) -> bool:
    infos = [nodes.info(n) for n in nodes.ids]
    if any(not info.get("leader_id", "0").isdigit() or info.get("leader_id") == "0" for info in infos):
        return False
    applied = [int(info.get("applied_index", 0)) for info in infos]
    return min(applied) >= max(int(info.get("commit_index", 0)) for info in infos) - 5


def run(context: Context, wanted: frozenset[str]) -> None:
    """See the top."""
    rng = random.Random(7)
    for case in CASES:
        if case.name not in wanted:
            continue
        raft = {"election_timeout_ms": QUICK_MS} if case.name == "failover-150" else {}
        with cluster(context.directory / case.name, raft=raft) as nodes:
            for number in range(1, context.options.kills + 1):
                context.tell(f"{case.name}: kill {number}")
                until(lambda nodes=nodes: _caught_up(nodes), "all nodes are back", PATIENCE_S)  # type: ignore[misc]
                time.sleep(rng.uniform(0.3, 0.9))
                context.results.add(case.name, number, OURS, gap_ms=1000 * kill_once(nodes))
                context.step()


def estimate(options: Options, wanted: frozenset[str]) -> float:
    """Seconds: the gap, a start, the random wait."""
    return len(wanted) * (4.0 + options.kills * 3.5)


GROUP = Group("failover", CASES, run, estimate, lambda options, wanted: options.kills * len(wanted), needs=())
