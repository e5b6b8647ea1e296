"""Full load for ten minutes: does anybody call an election, does memory grow, how slow is one in a thousand.

redis-benchmark loads in slices, one right after the other; each slice has its own percentiles. All keys are
there before it begins, so that the data does not grow.
"""

from __future__ import annotations

import re
import subprocess
import time

from bench.cluster import Cluster, cluster, fill
from bench.context import OURS, Case, Context, Group, Options
from bench.processes import HOST
from bench.results import percentile

KEYS, CLIENTS = 100_000, 50
SLICE_S = 15.0
NAME = "endurance"
_PERCENTILE = re.compile(r"^\s*(\d+(?:\.\d+)?)% <= (\d+(?:\.\d+)?) milliseconds", re.MULTILINE)
_RATE = re.compile(r"throughput summary: (\d+(?:\.\d+)?) requests per second")


def parse(text: str) -> dict[str, float]:
    """Rate and percentiles of what redis-benchmark prints for people. Raises RuntimeError."""
    rate = _RATE.search(text)
    points = [(float(percent), float(ms)) for percent, ms in _PERCENTILE.findall(text)]
    # Two distributions follow one another: that by percentiles, then that by milliseconds.
    ends = [n for n, (percent, _) in enumerate(points) if percent == 100.0]
    points = points[: ends[0] + 1] if ends else []
    if rate is None or not points:
        raise RuntimeError(f"redis-benchmark said: {text[-500:]!r}")
    figures = {"rate": float(rate[1]), "max_ms": points[-1][1]}
    for name, wanted in (("p50_ms", 50.0), ("p99_ms", 99.0), ("p999_ms", 99.9)):
        figures[name] = next(ms for percent, ms in points if percent >= wanted)
    return figures


def load(port: int, requests: int) -> dict[str, float]:
    """One slice. Raises RuntimeError, also when an error is answered."""
    command = ["redis-benchmark", "-h", HOST, "-p", str(port), "-t", "set", "-c", str(CLIENTS)]
    command += ["-n", str(requests), "-r", str(KEYS), "-d", "64", "--precision", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode or "rror" in done.stderr:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    return parse(done.stdout)


def run(context: Context, _wanted: frozenset[str]) -> None:
    """See the top."""
    seconds = context.options.endurance_s
    slice_s = min(SLICE_S, seconds / 4)
    with cluster(context.directory) as nodes:
        port = nodes.server().port
        fill(port, KEYS)
        rate = load(port, 2000)["rate"]
        rate = load(port, int(max(2000, rate * min(2.0, slice_s))))["rate"]
        terms_before = term_of(nodes)
        began = time.monotonic()
        number, steps = 0, 0
        while (elapsed := time.monotonic() - began) < seconds:
            number += 1
            context.tell(f"{NAME}: {elapsed:.0f} of {seconds:.0f} s, {rate:,.0f}/s")
            requests = max(500, int(rate * min(slice_s, seconds - elapsed)))
            figures = load(port, requests)
            rate = figures["rate"]
            context.results.add(
                NAME, number, OURS, **figures,
                at_s=time.monotonic() - began, requests=requests,
                memory_mb=max(nodes.memory_mb(n) for n in nodes.ids),
                leader_mb=nodes.memory_mb(leader_of(nodes, port)),
                elections=term_of(nodes) - terms_before,
            )  # fmt: skip
            while steps < min(1.0, (time.monotonic() - began) / seconds) * 20:
                steps += 1
                context.step()


def term_of(nodes: Cluster) -> int:
    """The highest term that any node knows: each election takes a new one."""
    return max(int(nodes.info(n).get("term", 0)) for n in nodes.ids)


def leader_of(nodes: Cluster, port: int) -> int:
    """The id behind a client port."""
    return next(n for n, its in nodes.ports.items() if its == port)


def memory_growth(values: list[float]) -> float:
    """The last fifth over the second fifth (by then keys, sessions and the first snapshots are there)."""
    fifth = max(1, len(values) // 5)
    before = values[fifth : 2 * fifth] or values[:1]
    return percentile(values[-fifth:], 50) / percentile(before, 50)


def estimate(options: Options, _wanted: frozenset[str]) -> float:
    """Seconds."""
    return options.endurance_s + 12


GROUP = Group(
    "endurance",
    (Case(NAME, "Full load for 10 minutes, SET 50 clients"),),
    run,
    estimate,
    lambda _options, _wanted: 20,
    ("redis-benchmark",),
)
