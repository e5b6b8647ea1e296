"""The goals of issue 5 and how each is computed. Ratios: ours over the other's, medians over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.cases.endurance import memory_growth
from bench.cases.scale import KEYS
from bench.cases.speed import CHECK_PERF, ETCD, PYSYNCOBJ, REDIS
from bench.results import OURS, Results

Value = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """case: what has to be measured for it. at_least, at_most: neither means that it is only reported.
    digits: so many are shown, and so many are compared."""

    case: str
    what: str
    value: Value
    at_least: float | None = None
    at_most: float | None = None
    digits: int = 2
    unit: str = "×"

    def reached(self, value: float) -> bool | None:
        """Whether this value reaches it; None: there is no goal."""
        shown = round(value, self.digits)
        if self.at_least is not None:
            return shown >= self.at_least
        return shown <= self.at_most if self.at_most is not None else None

    @property
    def wanted(self) -> str:
        """The goal in a few characters."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g} {self.unit}".strip()
        return f"≤ {self.at_most:g} {self.unit}".strip() if self.at_most is not None else "–"

    def show(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:,.{self.digits}f} {self.unit}".strip()


def ratio(case: str, figure: str, other: str, other_case: str | None = None) -> Value:
    """The median of the rounds' ratios."""

    def value(results: Results) -> float | None:
        ratios = results.ratios(case, figure, other, other_case)
        return statistics.median(ratios) if ratios else None

    return value


def same(case: str, base: str, figure: str = "rate") -> Value:
    """Ours in one case over ours in another, round by round."""
    return ratio(case, figure, OURS, base)


def of_check_perf(results: Results) -> float | None:
    """Over the best load of etcd's own tool, which has 500 or 1,000 clients."""
    ours = results.median("set-50", OURS, "rate")
    rates = [results.median("set-50", f"etcd check perf {load}", "rate") for load in CHECK_PERF]
    best = max((rate for rate in rates if rate is not None), default=None)
    return ours / best if ours is not None and best else None


def flatness(results: Results) -> float | None:
    """The lowest of the rates with more keys over that with the fewest."""
    rates = [results.median(f"keys-{count}", OURS, "rate") for count in KEYS]
    if rates[0] is None:
        return None
    others = [rate / rates[0] for rate in rates[1:] if rate is not None]
    return min(others) if others else None


def megabytes(size: int) -> Value:
    """MB/s of values."""

    def value(results: Results) -> float | None:
        rate = results.median(f"values-{size}", OURS, "rate")
        return None if rate is None else rate * size / 1e6

    return value


def over(case: str, figure: str, of: Callable[[list[float]], float]) -> Value:
    """One number out of a series."""

    def value(results: Results) -> float | None:
        series = results.series(case, figure)
        return of(series) if series else None

    return value


def ratio_of_medians(case: str, figure: str, other: str) -> Value:
    """Of what is not measured in rounds."""

    def value(results: Results) -> float | None:
        ours, theirs = results.median(case, OURS, figure), results.median(case, other, figure)
        return ours / theirs if ours is not None and theirs else None

    return value


SET_50 = (
    Goal("set-50", "SET, 50 clients: of a bare Redis", ratio("set-50", "rate", REDIS), at_least=0.5),
    Goal("set-50", "SET, 50 clients: of etcd's best check perf", of_check_perf, at_least=6),
    Goal("set-50", "SET, 50 clients: of etcd with 50 clients", ratio("set-50", "rate", ETCD)),
    Goal(
        "set-50",
        "SET, 50 clients: of PySyncObj without fsync",
        ratio("set-50", "rate", PYSYNCOBJ),
        at_least=5,
    ),
)
FIRST_FOUR = (
    *SET_50,
    Goal(
        "set-50-p16", "SET, 50 clients, pipeline 16: of Redis",
        ratio("set-50-p16", "rate", REDIS), at_least=0.4,
    ),
    Goal("set-1", "SET, 1 client, p50: of Redis", ratio("set-1", "p50_ms", REDIS), at_most=2.2),
    Goal("set-1", "SET, 1 client, p50: of etcd", ratio("set-1", "p50_ms", ETCD), at_most=0.4),
    Goal(
        "get-50-leader", "GET linearizable, leader: of Redis", ratio("get-50-leader", "rate", REDIS),
        at_least=0.5,
    ),
    Goal(
        "get-50-follower", "GET linearizable, follower: of Redis", ratio("get-50-follower", "rate", REDIS),
        at_least=0.25,
    ),
)  # fmt: skip
GOALS = (
    *FIRST_FOUR,
    # Ours, set after profiling: what these take beside a SET or a GET, and a fifth less of it than now.
    Goal("mixed-90-10", "GET 90 %, SET 10 %: of Redis", ratio("mixed-90-10", "rate", REDIS), at_least=0.4),
    Goal("once-incr", "ONCE INCR: of Redis' plain INCR", ratio("once-incr", "rate", REDIS), at_least=0.25),
    Goal("multi-5", "MULTI of 5 SETs: of Redis", ratio("multi-5", "rate", REDIS), at_least=0.3),
    Goal("set-200", "200 clients: of our 50", same("set-200", "set-50"), at_least=1),
    Goal("set-200", "200 clients: p99", over("set-200", "p99_ms", statistics.median), digits=1, unit="ms"),
    Goal("set-1000", "1,000 clients: of our 50", same("set-1000", "set-50"), at_least=1),
    Goal(
        "set-1000", "1,000 clients: p99", over("set-1000", "p99_ms", statistics.median), digits=1, unit="ms"
    ),
    Goal("nodes-5", "5 nodes: of 3 nodes", same("nodes-5", "nodes-3"), at_least=0.7),
    Goal("nodes-7", "7 nodes: of 3 nodes", same("nodes-7", "nodes-3"), at_least=0.55),
    Goal("keys-1000000", "up to 1 M keys: the lowest of 1 k keys", flatness, at_least=0.9),
    Goal("values-16384", "values of 16 KiB", megabytes(16384), digits=0, unit="MB/s"),
    Goal(
        "failover", "kill -9 → next write: median", over("failover", "gap_ms", statistics.median),
        at_most=900, digits=0, unit="ms",
    ),
    Goal(
        "failover", "kill -9 → next write: worst", over("failover", "gap_ms", max),
        at_most=1500, digits=0, unit="ms",
    ),
    Goal(
        "failover-150", "the same with [150, 300]: median", over("failover-150", "gap_ms", statistics.median),
        at_most=450, digits=0, unit="ms",
    ),
    Goal(
        "endurance", "10 minutes of full load: elections", over("endurance", "elections", max),
        at_most=0, digits=0, unit="",
    ),
    Goal(
        "endurance", "10 minutes: memory, end over beginning", over("endurance", "memory_mb", memory_growth),
        at_most=1.1,
    ),
    Goal(
        "endurance", "10 minutes: p99.9, median of the slices",
        over("endurance", "p999_ms", statistics.median), digits=1, unit="ms",
    ),
    Goal(
        "endurance", "10 minutes: p99.9, worst slice", over("endurance", "p999_ms", max), digits=1, unit="ms"
    ),
    Goal(
        "followers", "10,000 followers: acknowledged turns lost", over("followers", "lost", max),
        at_most=0, digits=0, unit="",
    ),
    Goal(
        "followers", "followers whose sum in MongoDB differs", over("followers", "wrong_in_mongodb", max),
        at_most=0, digits=0, unit="",
    ),
    Goal(
        "followers", "close of an interval, owner thread, worst", over("followers", "close_ms", max),
        at_most=100, digits=0, unit="ms",
    ),
    Goal(
        "followers", "MongoDB lag", over("followers", "lag_intervals", max), at_most=0.99, unit="intervals"
    ),
    Goal(
        "followers", "leader's CPU", over("followers", "leader_cpu", max), at_most=0.6, unit="of a core"
    ),
    Goal(
        "memory", "1 M values of 64 bytes: of Redis", ratio_of_medians("memory", "memory_mb", REDIS),
        at_most=2.5,
    ),
)  # fmt: skip
