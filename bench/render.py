"""docs/benchmarks.md and its plots from raw results; measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from bench import svg, texts
from bench.cases import scale, speed
from bench.context import Options
from bench.goals import GOALS, Goal
from bench.results import OURS, Results, percentile

REDIS = speed.REDIS
Judged = tuple[Goal, float | None]


def judge(results: Results, goals: Sequence[Goal] = GOALS) -> list[Judged]:
    """Each goal with its value; None: not measured."""
    return [(goal, goal.value(results)) for goal in goals]


def verdict(goal: Goal, value: float | None) -> str:
    """In a word or two."""
    if value is None:
        return "not measured"
    return {True: "reached", False: "**missed**", None: "reported"}[goal.reached(value)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def render(results: Results, page: Path, plots: Path) -> None:
    """Write the page and the plots. Plots that there is nothing for are removed."""
    plots.mkdir(parents=True, exist_ok=True)
    shown: list[str] = []
    for name, make in PLOTS.items():
        picture = make(results)
        file = plots / f"{name}.svg"
        if picture is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(picture)
            shown.append(name)
    relative = plots.relative_to(page.parent) if plots.is_relative_to(page.parent) else plots

    def picture_of(name: str, text: str) -> str:
        return f"![{text}]({relative}/{name}.svg)\n" if name in shown else ""

    page.write_text(_page(results, picture_of))


def _page(results: Results, picture: Callable[[str, str], str]) -> str:
    parts = [
        texts.HEAD,
        _machine(results),
        "## Goals\n",
        _goals(results),
        "## One cluster beside the others\n",
        texts.SPEED,
        picture("throughput", "throughput by case and system"),
        picture("latency", "p50 by case and system"),
        _speed(results),
        "## Nodes, keys and values\n",
        texts.SCALE,
        picture("nodes", "throughput by number of nodes"),
        picture("keys", "throughput by number of keys"),
        picture("values", "megabytes per second by size of a value"),
        _scale(results),
        "## kill -9 of the leader\n",
        texts.FAILOVER,
        picture("failover", "time until the next acknowledged write, sorted"),
        _failover(results),
        "## Ten minutes of full load\n",
        picture("endurance-rate", "throughput over time"),
        picture("endurance-memory", "memory over time"),
        _endurance(results),
        "## 10,000 followers\n",
        texts.FOLLOWERS,
        _followers(results),
        "## Memory\n",
        _memory(results),
        "## Run it again\n",
        texts.AGAIN,
    ]
    return "\n".join(part for part in parts if part)


def _machine(results: Results) -> str:
    meta = results.meta
    if not meta:
        return ""
    took = sum(results.done.values()) / 60
    given = meta.get("options", {})
    default = {field.name: field.default for field in fields(Options)}
    changed = ", ".join(f"{name} {value}" for name, value in given.items() if value != default.get(name))
    how = "compiled (`make compile`)" if meta.get("compiled") else "interpreted"
    shorter = f" **Not with the usual parameters: {changed}.**" if changed else ""
    return (
        f"Measured {meta.get('started')} at commit {meta.get('commit')}: {meta.get('cores')} cores "
        f"({meta.get('cpu')}), {meta.get('memory_gib')} GiB, Linux {meta.get('kernel')}, Python "
        f"{meta.get('python')}, {how}; {meta.get('redis')}; {meta.get('etcd')}. It took {took:.0f} minutes; "
        f"the load average before was {(meta.get('load_before') or ['?'])[0]}.{shorter}\n"
    )


def _goals(results: Results) -> str:
    rows = [
        [goal.what, goal.wanted, "–" if value is None else goal.show(value), verdict(goal, value)]
        for goal, value in judge(results)
    ]
    return table(("case", "goal", "measured", ""), rows) + "\n"


def _spread(values: Sequence[float], digits: int = 0) -> str:
    if not values:
        return "–"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def _speed(results: Results) -> str:
    rows = []
    for case in speed.CASES:
        for system in _systems(results, case.name):
            rates, p50, p99 = (results.series(case.name, f, system) for f in ("rate", "p50_ms", "p99_ms"))
            cpu = [results.median(case.name, system, f"cpu_us_{n}") for n in range(3)]
            used = " + ".join(f"{one:.0f}" for one in cpu if one is not None) or "–"
            rows.append([case.title, system, _spread(rates), _spread(p50, 3), _spread(p99, 3), used])
    return table(("case", "system", "per second", "p50 ms", "p99 ms", "CPU µs/op"), rows) + "\n"


def _systems(results: Results, case: str) -> list[str]:
    """Who was measured: ours first, the others in an order that does not change."""
    found = {each["system"] for each in results.records if each["case"] == case}
    return sorted(found, key=lambda system: (system != OURS, system != REDIS, system))


def _scale(results: Results) -> str:
    rows = []
    sizes = {f"values-{size}": size for size in scale.SIZES}
    for group in (scale.NODES_GROUP, scale.KEYS_GROUP, scale.VALUES_GROUP):
        for case in group.cases:
            for system in _systems(results, case.name):
                rates = results.series(case.name, "rate", system)
                size = sizes.get(case.name)
                speed_mb = f"{statistics.median(rates) * size / 1e6:,.1f}" if size else "–"
                p99 = results.series(case.name, "p99_ms", system)
                rows.append([case.title, system, _spread(rates), speed_mb, _spread(p99, 2)])
    return table(("case", "system", "per second", "MB/s", "p99 ms"), rows) + "\n"


def _failover(results: Results) -> str:
    rows = []
    for name, title in (("failover", "default, [300, 600]"), ("failover-150", "[150, 300]")):
        gaps = results.series(name, "gap_ms")
        if gaps:
            figures = [percentile(gaps, percent) for percent in (0, 50, 90, 100)]
            rows.append([title, str(len(gaps)), *(f"{figure:.0f}" for figure in figures)])
    return table(("election_timeout_ms", "kills", "best ms", "median ms", "p90 ms", "worst ms"), rows) + "\n"


def _endurance(results: Results) -> str:
    names = (("rate", "per second", 0), ("p50_ms", "p50 ms", 2), ("p99_ms", "p99 ms", 2),
             ("p999_ms", "p99.9 ms", 2), ("max_ms", "max ms", 1), ("memory_mb", "largest node, MiB", 0),
             ("elections", "elections", 0))  # fmt: skip
    rows = []
    for figure, title, digits in names:
        series = results.series("endurance", figure)
        if series:
            rows.append(
                [title, *(f"{v:,.{digits}f}" for v in (statistics.median(series), min(series), max(series)))]
            )
    return table(("slices of 15 s", "median", "lowest", "highest"), rows) + "\n"


def _followers(results: Results) -> str:
    names = (
        ("followers", "followers, a connection each", 0), ("intervals", "intervals measured", 0),
        ("acknowledged", "acknowledged turns", 0), ("lost", "of these lost", 0),
        ("more_than_acknowledged", "counted, but the answer did not arrive", 0),
        ("wrong_in_mongodb", "followers with another sum in MongoDB", 0),
        ("errors", "errors", 0), ("close_ms", "close of an interval, owner thread, ms", 1),
        ("close_cpu_ms", "of it CPU, ms", 1), ("judge_ms", "of it judging the turns, ms", 1),
        ("lag_intervals", "longest MongoDB lag, intervals", 2), ("lag_rows", "most rows not in MongoDB", 0),
        ("led_throughout", "one leader throughout (1: yes)", 0),
        ("leader_cpu", "leader's CPU, of a core", 2), ("report_p50_ms", "REPORT p50 ms", 2),
        ("report_p99_ms", "REPORT p99 ms", 2),
    )  # fmt: skip
    rows = [
        [title, _spread(series, digits) if len(series) > 1 else f"{series[0]:,.{digits}f}"]
        for figure, title, digits in names
        if (series := results.series("followers", figure))
    ]
    return table(("", "measured"), rows) + "\n"


def _memory(results: Results) -> str:
    rows = []
    for system in _systems(results, "memory"):
        figures = [results.median("memory", system, name) for name in ("keys", "empty_mb", "memory_mb")]
        rows.append([system, *("–" if figure is None else f"{figure:,.0f}" for figure in figures)])
    return table(("process", "values of 64 bytes", "empty, MiB", "with the values, MiB"), rows) + "\n"


# --- plots


def _bars(figure: str, title: str, unit: str) -> Callable[[Results], str | None]:
    def make(results: Results) -> str | None:
        rows = []
        for case in speed.CASES:
            values = {
                system: value
                for system in _systems(results, case.name)
                if (value := results.median(case.name, system, figure)) is not None
            }
            if values:
                rows.append((case.title, values))
        return svg.bars(title, unit, rows) if rows else None

    return make


def _by(prefix: str, sizes: Sequence[int], title: str, x: str, mb: bool) -> Callable[[Results], str | None]:
    def make(results: Results) -> str | None:
        series: dict[str, list[svg.Point]] = {}
        for size in sizes:
            for system in (OURS, REDIS):
                rate = results.median(f"{prefix}-{size}", system, "rate")
                if rate is not None:
                    series.setdefault(system, []).append((size, rate * size / 1e6 if mb else rate))
        if not series:
            return None
        return svg.lines(title, x, "MB/s" if mb else "per second", series, log_x=len(sizes) > 3)

    return make


def _gaps(results: Results) -> str | None:
    series = {}
    for name, title in (("failover", "[300, 600]"), ("failover-150", "[150, 300]")):
        gaps = sorted(results.series(name, "gap_ms"))
        if gaps:
            series[title] = [(100 * (n + 1) / len(gaps), gap) for n, gap in enumerate(gaps)]
    if not series:
        return None
    title = "kill -9 of the leader until the next acknowledged write"
    return svg.lines(title, "percent of the kills", "ms", series)


def _over_time(figure: str, title: str, y: str, name: str) -> Callable[[Results], str | None]:
    def make(results: Results) -> str | None:
        at, values = results.series("endurance", "at_s"), results.series("endurance", figure)
        if not values:
            return None
        return svg.lines(title, "seconds", y, {name: list(zip(at, values, strict=True))})

    return make


PLOTS: dict[str, Callable[[Results], str | None]] = {
    "throughput": _bars("rate", "Throughput, median of the rounds", "operations per second"),
    "latency": _bars("p50_ms", "Latency, median of the rounds", "p50, ms"),
    "nodes": _by("nodes", scale.NODES, "SET, 50 clients, by nodes", "nodes", mb=False),
    "keys": _by("keys", scale.KEYS, "SET, 50 clients, by keys", "keys (logarithmic)", mb=False),
    "values": _by(
        "values", scale.SIZES, "SET, 50 clients, by size", "bytes of a value (logarithmic)", mb=True
    ),
    "failover": _gaps,
    "endurance-rate": _over_time("rate", "Full load: throughput", "per second", "SET, 50 clients"),
    "endurance-memory": _over_time("memory_mb", "Full load: memory", "MiB", "largest node"),
}
