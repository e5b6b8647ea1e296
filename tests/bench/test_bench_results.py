"""The benchmarks' own sums: statistics, goals, what is kept, and the page that is made from it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import svg
from bench.cases import endurance, scale, speed
from bench.cases.followers import longest_lag_s
from bench.goals import FIRST_FOUR, GOALS, Goal
from bench.render import judge, render, verdict
from bench.results import OURS, Results, ResultsError, machine, percentile


def measured(path: Path | None = None) -> Results:
    """Every case once or more, with figures whose ratios are known."""
    results = Results(path, {"started": "today", "cores": 2, "load_before": [0.1]})
    for number, moods in enumerate((1.0, 0.5, 2.0), 1):  # the machine's: they strike both
        for case in speed.CASES:
            ours = {"rate": 30_000 * moods, "p50_ms": 0.4 / moods, "p99_ms": 2.0, "cpu_us_0": 20.0}
            results.add(case.name, number, OURS, **ours)
            results.add(case.name, number, speed.REDIS, rate=50_000 * moods, p50_ms=0.2 / moods, p99_ms=1.0)
        results.add("set-50", number, speed.ETCD, rate=4_000 * moods, p50_ms=9.0, p99_ms=20.0)
        results.add("set-1", number, speed.ETCD, rate=1_000 * moods, p50_ms=0.8 / moods, p99_ms=2.0)
        results.add("set-50", number, speed.PYSYNCOBJ, rate=5_000 * moods, p50_ms=9.0, p99_ms=20.0)
        for count, rate in zip(scale.NODES, (30_000, 24_000, 15_000), strict=True):
            results.add(f"nodes-{count}", number, OURS, rate=rate * moods, p50_ms=1.0, p99_ms=2.0)
        for size in (*(f"keys-{n}" for n in scale.KEYS), *(f"values-{n}" for n in scale.SIZES)):
            results.add(size, number, OURS, rate=20_000.0, p50_ms=1.0, p99_ms=2.0)
    results.add("set-50", 1, "etcd check perf xl", rate=5_000.0)
    for number, gap in enumerate((400.0, 1600.0, 500.0), 1):
        results.add("failover", number, OURS, gap_ms=gap)
        results.add("failover-150", number, OURS, gap_ms=gap / 2)
    for number in range(10):
        row = {"rate": 1000.0, "p999_ms": float(number), "elections": 0, "memory_mb": 100.0 + 5 * number}
        results.add("endurance", number, OURS, at_s=15.0 * number, **row)
    results.add("followers", 1, OURS, lost=0, close_ms=[20.0, 120.0], leader_cpu=0.6, lag_intervals=0.2)
    results.add("memory", 1, OURS, memory_mb=300.0, empty_mb=50.0, keys=10)
    results.add("memory", 1, speed.REDIS, memory_mb=100.0, empty_mb=10.0, keys=10)
    for record in results.records:
        results.done[record["case"]] = 1.0
    return results


def values(results: Results) -> dict[str, tuple[float | None, str]]:
    return {goal.what: (value, verdict(goal, value)) for goal, value in judge(results)}


# --- goals


def test_ratios_are_taken_within_a_round() -> None:
    results = measured()
    assert results.ratios("set-50", "rate", speed.REDIS) == pytest.approx([0.6, 0.6, 0.6])
    results.records = [r for r in results.records if (r["round"], r["system"]) != (2, speed.REDIS)]
    assert len(results.ratios("set-50", "rate", speed.REDIS)) == 2


def test_every_goal_against_figures_that_are_known() -> None:
    found = values(measured())
    assert len(found) == len(GOALS)
    wanted = {
        "SET, 50 clients: of a bare Redis": (0.6, "reached"),
        "SET, 50 clients: of etcd's best check perf": (6.0, "reached"),
        "SET, 50 clients: of etcd with 50 clients": (7.5, "reported"),
        "SET, 50 clients: of PySyncObj without fsync": (6.0, "reached"),
        "SET, 1 client, p50: of Redis": (2.0, "reached"),
        "SET, 1 client, p50: of etcd": (0.5, "**missed**"),
        "1,000 clients: of our 50": (1.0, "reached"),
        "5 nodes: of 3 nodes": (0.8, "reached"),
        "7 nodes: of 3 nodes": (0.5, "**missed**"),
        "up to 1 M keys: the lowest of 1 k keys": (1.0, "reached"),
        "values of 16 KiB": (327.68, "reported"),
        "kill -9 → next write: median": (500.0, "reached"),
        "kill -9 → next write: worst": (1600.0, "**missed**"),
        "10 minutes of full load: elections": (0.0, "reached"),
        "10 minutes: memory, end over beginning": (140 / 110, "**missed**"),
        "10,000 followers: acknowledged turns lost": (0.0, "reached"),
        "close of an interval, owner thread, worst": (120.0, "**missed**"),
        "leader's CPU": (0.6, "reached"),
        "1 M values of 64 bytes: of Redis": (3.0, "**missed**"),
        "followers whose sum in MongoDB differs": (None, "not measured"),
    }
    for what, (value, word) in wanted.items():
        assert found[what][1] == word, what
        assert found[what][0] == (None if value is None else pytest.approx(value)), what


def test_nothing_measured_reaches_nothing() -> None:
    assert {word for _, word in values(Results(None)).values()} == {"not measured"}


def test_a_goal_is_compared_as_it_is_shown() -> None:
    goal = Goal("case", "what", lambda _: None, at_least=0.5)
    assert [goal.reached(value) for value in (0.4949, 0.495001, 0.5)] == [False, True, True]
    assert goal.show(0.495001) == "0.50 ×"


def test_quick_shows_the_first_four_rows() -> None:
    assert {goal.case for goal in FIRST_FOUR} == set(speed.FIRST_FOUR)


# --- statistics and what other programs print


def test_percentile() -> None:
    assert [percentile([3, 1, 2, 4], p) for p in (0, 25, 50, 75, 99, 100)] == [1, 1, 2, 3, 4, 4]
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_memory_growth_compares_the_last_fifth_with_the_second() -> None:
    assert endurance.memory_growth([50, 100, 100, 100, 150]) == 1.5
    assert endurance.memory_growth([50]) == 1.0


def test_the_longest_time_behind() -> None:
    samples = [(0.0, 0), (1.0, 5), (2.0, 3), (3.0, 0), (4.0, 1), (8.0, 1), (9.0, 0)]
    assert longest_lag_s(samples) == 4.0
    assert longest_lag_s([]) == 0.0


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("\r 60 / 60\rFAIL: Throughput too low: 4850 writes/s\nPASS: Slowest request took 0.2s\n", 4850.0),
        ("PASS: Throughput is 7921 writes/s\n", 7921.0),
    ],
)
def test_what_check_perf_says(text: str, rate: float) -> None:
    assert speed.parse_check_perf(text) == rate


def test_what_check_perf_does_not_say() -> None:
    with pytest.raises(RuntimeError, match="connection refused"):
        speed.parse_check_perf("Error: connection refused")


REDIS_BENCHMARK = """\
Latency by percentile distribution:
0.000% <= 0.200 milliseconds (cumulative count 1)
50.000% <= 0.500 milliseconds (cumulative count 500)
98.438% <= 2.000 milliseconds (cumulative count 985)
99.219% <= 3.000 milliseconds (cumulative count 993)
99.902% <= 7.000 milliseconds (cumulative count 999)
100.000% <= 9.000 milliseconds (cumulative count 1000)

Cumulative distribution of latencies:
0.000% <= 0.103 milliseconds (cumulative count 0)
100.000% <= 10.103 milliseconds (cumulative count 1000)

Summary:
  throughput summary: 31250.50 requests per second
"""


def test_what_redis_benchmark_says() -> None:
    figures = endurance.parse(REDIS_BENCHMARK)
    assert figures == {"rate": 31250.5, "p50_ms": 0.5, "p99_ms": 3.0, "p999_ms": 7.0, "max_ms": 9.0}
    with pytest.raises(RuntimeError, match="nothing"):
        endurance.parse("nothing")


# --- files


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = measured(tmp_path / "deep" / "raw.json")
    results.finish("set-1", 12.34)
    again = Results.load(tmp_path / "deep" / "raw.json")
    assert (again.meta, again.records, again.done) == (results.meta, results.records, results.done)
    assert again.done["set-1"] == 12.3
    again.forget("set-1")
    assert "set-1" not in again.done and not again.values("set-1", OURS, "rate")
    assert again.values("set-50", OURS, "rate")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 99}', '{"format": 1, "meta": {}, "done": {}, "records": [{"case": 1}]}'],
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(ResultsError, match=r"other\.json"):
        Results.load(file)
    with pytest.raises(ResultsError, match="No such file"):
        Results.load(tmp_path / "none.json")


def test_the_machine_is_told() -> None:
    assert machine()["cores"] >= 1
    assert json.dumps(machine())


# --- the page


def test_the_page_is_the_same_each_time_and_shows_all(tmp_path: Path) -> None:
    page, plots = tmp_path / "docs" / "page.md", tmp_path / "docs" / "plots"
    render(measured(), page, plots)
    text = page.read_text()
    render(measured(), page, plots)
    assert page.read_text() == text
    for what in ("| SET, 50 clients: of a bare Redis | ≥ 0.5 × | 0.60 × | reached |", "2 cores", "327.7"):
        assert what in text
    for case in speed.CASES:
        assert case.title in text
    pictures = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 8
    assert all((page.parent / picture).exists() for picture in pictures)


def test_other_parameters_are_said(tmp_path: Path) -> None:
    results = measured()
    results.meta["options"] = {"rounds": 5, "endurance_s": 20.0}
    render(results, tmp_path / "page.md", tmp_path / "plots")
    text = (tmp_path / "page.md").read_text()
    assert "Not with the usual parameters: endurance_s 20.0." in text


def test_a_page_of_nothing_has_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "keys.svg").write_text("of an earlier run")
    render(Results(None), tmp_path / "page.md", tmp_path / "plots")
    assert "![" not in (tmp_path / "page.md").read_text()
    assert not list((tmp_path / "plots").iterdir())


# --- plots


def inside(picture: str) -> None:
    """Well-formed, and all of it within the picture."""
    root = ET.fromstring(picture)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        assert 0 <= x + float(element.get("width", 0)) <= width and 0 <= y <= height, element.attrib
        for point in element.get("points", "").split():
            across, up = map(float, point.split(","))
            assert 0 <= across <= width and 0 <= up <= height


def test_bars_are_as_long_as_their_values() -> None:
    picture = svg.bars("a < b", "per second", [("one", {"us": 100.0, "them": 50.0}), ("two", {"us": 25.0})])
    inside(picture)
    widths = [
        float(each.attrib["width"])
        for each in ET.fromstring(picture)
        if each.tag.endswith("rect") and each.get("height") == "12"
    ]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.5, 0.25], abs=0.01)


@pytest.mark.parametrize("log_x", [True, False])
def test_lines_stay_inside(log_x: bool) -> None:
    points = [(10.0**n, float(n * n)) for n in range(7)]
    inside(svg.lines("t", "x", "y", {"us": points, "them": points[:1]}, log_x=log_x, goal=40.0))
    inside(svg.lines("t", "x", "y", {"us": [(5.0, 0.0)]}, log_x=log_x))


def test_numbers_as_people_write_them() -> None:
    assert [svg.number(v) for v in (0, 0.123, 12.34, 1234.5)] == ["0", "0.12", "12.3", "1,234"]
    assert [svg.nice(v) for v in (0, 1, 1.1, 3, 7, 9, 99, 100)] == [1, 1, 2, 4, 8, 10, 100, 100]
