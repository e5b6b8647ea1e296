"""How much a snapshot costs the clients: p99 of SET with and without one being taken.

    .venv/bin/python bench/snapshot_latency.py [--keys 1000000] [--rounds 15] [--requests 12000] [--json]

Starts three nodes on loopback, fills them with keys of 64 bytes and runs `redis-benchmark -c 50 -t set` in
rounds of three: usual; from the moment on when the leader begins a snapshot; the same with all nodes at once.
The rounds are short and interleaved, for a machine is never equally busy for long. The table gives medians
over the rounds; "x usual" is the median of what p99 was against the usual one of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
import yaml

ROOT = Path(__file__).resolve().parents[1]
VALUE_BYTES = 64
SCENARIOS = ("usual", "leader", "all nodes")


class Nodes:
    """Three node processes in a directory of their own."""

    def __init__(self, directory: Path, base_port: int) -> None:
        self.directory = directory
        self.ports = {n: base_port + 100 + n for n in (1, 2, 3)}
        nodes = [
            {
                "id": n,
                "host": "127.0.0.1",
                "raft_port": base_port + n,
                "client_port": port,
                "http_port": port + 100,
            }
            for n, port in self.ports.items()
        ]
        settings = {
            "cluster": {"name": "bench", "nodes": nodes},
            "storage": {"data_dir": str(directory / "data"), "snapshot_every_entries": 10**9},
            "database": {"uri": "mongodb://127.0.0.1:1/?directConnection=true"},
        }
        (directory / "config.yaml").write_text(yaml.safe_dump(settings))
        self._processes = []
        for n in self.ports:
            with (directory / f"node-{n}.log").open("wb") as out:
                command = [
                    sys.executable,
                    "super_node.py",
                    "--id",
                    str(n),
                    "--config",
                    str(directory / "config.yaml"),
                ]
                self._processes.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out))

    def client(self, node: int) -> Any:
        """A client of this node. RAFT SNAPSHOT of many keys takes its time."""
        return redis.Redis(port=self.ports[node], socket_timeout=600, decode_responses=True)

    def leader(self) -> int:
        """Wait for one."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for n in self.ports:
                with contextlib.suppress(redis.RedisError), self.client(n) as client:
                    found = client.execute_command("RAFT", "LEADER")
                    if found and client.ping():
                        return int(found[0])
            time.sleep(0.1)
        raise SystemExit(f"no leader in time: see {self.directory}")

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()


def fill(nodes: Nodes, keys: int) -> None:
    """The keys that redis-benchmark -r draws from, with values of 64 bytes."""
    with nodes.client(nodes.leader()) as client:
        for first in range(0, keys, 10_000):
            pipeline = client.pipeline(transaction=False)
            for start in range(first, min(first + 10_000, keys), 500):
                numbers = range(start, min(start + 500, keys))
                pipeline.mset({f"key:{number:012d}": "x" * VALUE_BYTES for number in numbers})
            pipeline.execute()
        assert client.dbsize() == keys


@contextlib.contextmanager
def snapshots(nodes: Nodes, on: list[int], seconds: list[float]) -> Iterator[None]:
    """These nodes take one after the other for as long as the block lasts; how long each took is noted."""
    over = threading.Event()

    def take(node: int) -> None:
        with nodes.client(node) as client:
            while not over.is_set():
                started = time.monotonic()
                client.execute_command("RAFT", "SNAPSHOT")
                seconds.append(time.monotonic() - started)

    threads = [threading.Thread(target=take, args=(node,)) for node in on]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def measure(port: int, requests: int, keys: int) -> dict[str, float]:
    """One run of redis-benchmark: requests per second and latencies in ms."""
    command = ["redis-benchmark", "-p", str(port), "-c", "50", "-n", str(requests), "-r", str(keys)]
    command += ["-d", str(VALUE_BYTES), "-t", "set", "--csv"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = next(csv.DictReader(out.splitlines()))
    return {
        "rps": float(row["rps"]),
        "p50": float(row["p50_latency_ms"]),
        "p99": float(row["p99_latency_ms"]),
        "max": float(row["max_latency_ms"]),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; the medians by scenario."""
    directory = Path(tempfile.mkdtemp(prefix="snapshot-latency-"))
    nodes = Nodes(directory, options.port)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SCENARIOS}
    try:
        fill(nodes, options.keys)
        for _ in range(options.rounds):
            for name in SCENARIOS:
                leader = nodes.leader()
                on = {"usual": [], "leader": [leader], "all nodes": list(nodes.ports)}[name]
                seconds: list[float] = []
                with snapshots(nodes, on, seconds):
                    figures = measure(nodes.ports[leader], options.requests, options.keys)
                figures["snapshots"] = len(seconds)
                figures["snapshot_s"] = statistics.median(seconds) if seconds else 0.0
                results[name].append(figures)
                print(name, figures, file=sys.stderr)
    finally:
        nodes.close()
        if not options.keep:
            shutil.rmtree(directory)
    for rounds in results.values():
        for figures, usual in zip(rounds, results["usual"], strict=True):
            figures["ratio"] = figures["p99"] / usual["p99"]
    fields = ("rps", "p50", "p99", "ratio", "max", "snapshots", "snapshot_s")
    return {
        name: {field: statistics.median(each[field] for each in rounds) for field in fields}
        for name, rounds in results.items()
    }


def main() -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=12_000, help="of one run of redis-benchmark")
    parser.add_argument("--port", type=int, default=17100, help="the first of the ports to use")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of the nodes")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    medians = run(options)
    if options.json:
        print(json.dumps({"keys": options.keys, "rounds": options.rounds, "scenarios": medians}))
        return 0
    shown = (("SET/s", "rps", 0), ("p50 ms", "p50", 2), ("p99 ms", "p99", 2), ("x usual", "ratio", 2),
             ("max ms", "max", 1), ("took s", "snapshot_s", 1))  # fmt: skip
    print(f"{'snapshots on':<14}" + "".join(f"{title:>9}" for title, _, _ in shown))
    for name, each in medians.items():
        title = "no node" if name == "usual" else name
        print(f"{title:<14}" + "".join(f"{each[field]:>9.{digits}f}" for _, field, digits in shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
