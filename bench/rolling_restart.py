"""How long clients wait while nodes are restarted on purpose, and while every machine is replaced by another.

    .venv/bin/python bench/rolling_restart.py [--rounds 10] [--settle 1.5] [--no-replace] [--json]

Starts three nodes on loopback. Writers, one connected to each node, SET one key after the other for as long
as it lasts; whoever loses its node, or is told CLUSTERDOWN, goes on with the next one. A gap is the longest
time in which not one write of all of them was acknowledged. Measured: the same seconds without any trouble
(what this machine itself costs), SIGTERM of a follower and of the leader until `settle` seconds after, and
three machines replaced one after the other: RAFT ADD … AUTO, wait until it votes, RAFT REMOVE, SIGTERM. The
goal for the leader's SIGTERM: 100 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "node"))

import redis  # noqa: E402
from cluster import Cluster, code_of, eventually  # noqa: E402

NAMES = {
    "usual": "no trouble",
    "follower": "SIGTERM of a follower",
    "leader": "SIGTERM of the leader",
    "replace": "a machine replaced",
}


class Writers:
    """One client thread per node. What was acknowledged when, by all of them (monotonic seconds)."""

    def __init__(self, cluster: Cluster) -> None:
        self._ports = cluster.client_ports
        self._over = threading.Event()
        self._spread = 0
        self._lock = threading.Lock()
        self.acknowledged: list[float] = []
        self.errors: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(3)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def spread(self) -> None:
        """Everyone goes back to a node of its own: those whose node was stopped have gone to another's."""
        self._spread += 1

    def longest_gap_ms(self, began: float, ended: float) -> float:
        """The longest time without an acknowledgement in between."""
        with self._lock:
            at = sorted(self.acknowledged)
        at = [began, *at[bisect_left(at, began) : bisect_right(at, ended)], ended]
        return 1000 * max(later - earlier for earlier, later in itertools.pairwise(at))

    def _run(self, home: int) -> None:
        number, place, spread = 0, home, 0
        while not self._over.is_set():
            if spread != self._spread:
                place, spread = home, self._spread
            ports = list(self._ports.values())
            client = redis.Redis(
                port=ports[place % len(ports)], socket_timeout=5,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            )  # fmt: skip
            try:
                while not self._over.is_set() and spread == self._spread:
                    number += 1
                    client.set(f"writer:{home}:{number % 1000}", number)
                    with self._lock:
                        self.acknowledged.append(time.monotonic())
            except redis.RedisError as error:
                self.errors[code_of(error)] += 1
                place += 1
                self._over.wait(0.001)
            finally:
                client.close()


class Bench:
    """Rounds of trouble for a cluster, and the gaps that its writers met."""

    def __init__(self, cluster: Cluster, writers: Writers, settle_s: float) -> None:
        self.cluster = cluster
        self.writers = writers
        self.settle_s = settle_s
        self.gaps: dict[str, list[float]] = {name: [] for name in NAMES}

    @contextlib.contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Note the longest gap from now until settle_s after the block."""
        self.writers.spread()
        began = time.monotonic()
        yield
        time.sleep(self.settle_s)
        gap = self.writers.longest_gap_ms(began, time.monotonic())
        self.gaps[name].append(gap)
        print(f"{NAMES[name]}: {gap:.0f} ms", file=sys.stderr)

    def restart_all(self) -> None:
        """A rolling restart: every node in turn, the leader last."""
        leader = self.cluster.leader()
        with self.measured("usual"):
            time.sleep(0.3)
        for node in sorted(self.cluster.ids, key=lambda n: n == leader):
            with self.measured("leader" if node == self.cluster.leader() else "follower"):
                self.cluster.kill(node, sig=signal.SIGTERM)
            self.cluster.start(node)
            self.settle(node)

    def replace(self) -> None:
        """Another machine for each of the three."""
        cluster = self.cluster
        for old in list(cluster.ids):
            new = max(cluster.ids) + 1
            with self.measured("replace"):
                words = cluster.prepare(new)
                cluster.start(new)
                cluster.ready(new)
                cluster.execute(self.other_than(old), *words, "AUTO", idempotent=True)
                eventually(lambda new=new: str(new) in self.voters(), 60, f"node {new} votes")  # type: ignore[misc]
                cluster.execute(self.other_than(old), "RAFT", "REMOVE", old, idempotent=True)
                cluster.client_ports.pop(old)
                cluster.kill(old, sig=signal.SIGTERM)
                cluster.ids.remove(old)
                del cluster.processes[old]

    def voters(self) -> list[str]:
        """As the leader sees them."""
        return self.cluster.info(self.cluster.leader())["voters"].split(",")

    def other_than(self, node: int) -> int:
        """A node to ask."""
        return next(n for n in self.cluster.alive() if n != node)

    def settle(self, node: int) -> None:
        """Wait until a node that was started again keeps pace."""
        cluster = self.cluster
        cluster.ready(node)

        def level() -> bool:
            leader = int(cluster.info(cluster.leader())["commit_index"])
            return int(cluster.info(node)["applied_index"]) >= leader - 50

        eventually(level, 60, f"node {node} keeping pace")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds. By kind of trouble: rounds, median and worst gap in ms."""
    with tempfile.TemporaryDirectory(prefix="rolling-restart-") as directory:
        cluster = Cluster(Path(directory))
        try:
            cluster.start()
            cluster.ready()
            cluster.leader()
            with Writers(cluster) as writers:
                bench = Bench(cluster, writers, options.settle)
                began = time.monotonic()
                for _ in range(options.rounds):
                    bench.restart_all()
                if options.replace:
                    bench.replace()
                seconds = time.monotonic() - began
            if options.logs:
                for node in cluster.ids:
                    (options.logs / f"node-{node}.log").write_text(cluster.log_of(node))
        finally:
            cluster.stop()
    return {
        "writes_per_s": len(writers.acknowledged) / seconds,
        "errors": dict(writers.errors),
        "gaps_ms": {
            name: {"rounds": len(gaps), "median": statistics.median(gaps), "worst": max(gaps)}
            for name, gaps in bench.gaps.items()
            if gaps
        },
    }


def main() -> int:
    """Print the table; exit code 0, also when the goal is missed: it is for people to judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="rolling restarts of all nodes")
    parser.add_argument("--settle", type=float, default=1.5, help="seconds to go on measuring after each")
    parser.add_argument("--no-replace", dest="replace", action="store_false", help="only restarts")
    parser.add_argument("--logs", type=Path, help="an existing directory to copy the nodes' logs to")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    result = run(options)
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{result['writes_per_s']:.0f} writes/s; refused or lost: {result['errors'] or 'none'}")
    print(f"{'longest gap between writes':<28}{'rounds':>7}{'median ms':>11}{'worst ms':>10}")
    for name, each in result["gaps_ms"].items():
        print(f"{NAMES[name]:<28}{each['rounds']:>7}{each['median']:>11.0f}{each['worst']:>10.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
