"""The hot path against a bare Redis on the same machine, interleaved: ratios that noise bends little.

    .venv/bin/python bench/quick.py [--rounds 3] [--seconds 2] [--only "SET 50"] [--nodes 3] [--json]

Three nodes on loopback with their data on a real disk, fdatasync on, and redis-server with appendfsync
always. Each round loads one, then the other, for about the same time; the table shows the medians, those of
the ratio within each round, and the CPU microseconds per operation that each process took, which is what
counts where other programs want the cores too: the loaded node first, then the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.rig import BASE_PORT, Case, Measured, Nodes, Server, directory, median, nodes, redis_server, run  # noqa: E402

CASES = (
    Case("SET 1 client", "set", 1),
    Case("SET 50 clients", "set", 50),
    Case("SET 50 clients, pipeline 16", "set", 50, 16),
    Case("GET 50 clients, leader", "get", 50),
    Case("GET 50 clients, follower", "get", 50, follower=True),
)
GOALS = {  # issue 5; of one client it is the latency that counts: at most so many times Redis'
    "SET 1 client": 2.2,
    "SET 50 clients": 0.5,
    "SET 50 clients, pipeline 16": 0.4,
    "GET 50 clients, leader": 0.5,
    "GET 50 clients, follower": 0.25,
}
_FEWEST = 500  # requests of a run


def measure(cluster: Nodes, redis: Server, case: Case, rounds: int, seconds: float) -> list[dict[str, float]]:
    """One row a round; the first loads find out how many requests take so many seconds."""
    ours_n, redis_n = 1000, 5000
    rows: list[dict[str, float]] = []
    for number in range(rounds + 1):
        ours = run(cluster.at(follower=case.follower), case, ours_n)
        theirs = run(redis, case, redis_n)
        ours_n, redis_n = (max(_FEWEST, int(one.rate * seconds)) for one in (ours, theirs))
        if number:  # the first is the warm-up
            rows.append(_row(case, ours, theirs))
    return rows


def _row(case: Case, ours: Measured, theirs: Measured) -> dict[str, float]:
    ratio = ours.p50_ms / theirs.p50_ms if case.clients == 1 else ours.rate / theirs.rate
    cpu = {f"cpu{n}": used for n, used in enumerate(ours.cpu_us)}
    return {
        "ratio": ratio,
        "rate": ours.rate,
        "p50": ours.p50_ms,
        "p99": ours.p99_ms,
        "redis_rate": theirs.rate,
        "redis_p50": theirs.p50_ms,
        "redis_cpu": theirs.cpu_us[0],
        **cpu,
    }


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--dir", default=None, help="where the data goes, on a real disk")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with (
        directory(options.dir) as path,
        redis_server(path, BASE_PORT + 1) as redis,
        nodes(path, options.nodes, root=options.root.resolve()) as cluster,
    ):
        if not options.json:
            columns = f"{'ratio':>6} {'goal':>6} {'rate/s':>8} {'p50':>7} {'p99':>7}"
            print(f"{'':28} {columns}   redis: rate, p50    CPU µs/op")
        for case in CASES:
            if options.only in case.name:
                rows = measure(cluster, redis, case, options.rounds, options.seconds)
                results[case.name] = {name: median([row[name] for row in rows]) for name in rows[0]}
                if not options.json:
                    _show(case.name, results[case.name], [row["ratio"] for row in rows])
    if options.json:
        print(json.dumps(results, indent=1))
    return 0


def _show(name: str, result: dict[str, float], ratios: list[float]) -> None:
    cpu = "+".join(f"{result[key]:.0f}" for key in sorted(result) if key.startswith("cpu"))
    print(
        f"{name:28} {result['ratio']:6.2f} {GOALS[name]:6.2f} {result['rate']:8.0f} {result['p50']:7.3f} "
        f"{result['p99']:7.3f}   {result['redis_rate']:8.0f} {result['redis_p50']:7.3f}   {cpu} "
        f"(redis {result['redis_cpu']:.0f}; ratios {min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
