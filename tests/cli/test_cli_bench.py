"""bench: what it writes and takes away again, what it counts, and who must agree."""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cli_fakes import Encoded, FakeCluster, FakeError, FakeNode, fake_cluster
from rich.console import Console

import cli.bench
import super_node
from cli.bench import BenchError, Keys, Load, Report, check_nodes, measure, mixed, show
from cli.histogram import Histogram
from cli.link import Address
from cli.load import LATE, LOST, LoadRun, Plan, Request, encode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "node"))
TINY = Load(clients=4, pipeline=2, size=16, keys=50, reads=50, seconds=5, requests=200, timeout_s=2.0)
INFO = "node_id:1\r\nrole:leader\r\nleader_id:1\r\n"


class Store:
    """The values of a fake cluster: what bench needs of a node. before(node, words) may answer instead."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.values: dict[str, str] = {}
        self.info = INFO
        self.before: Callable[[FakeNode, tuple[str, ...]], Any] = lambda node, words: ...
        cluster.script = self._answer

    def _answer(self, node: FakeNode, words: tuple[str, ...]) -> Any:
        answer = self.before(node, words)
        if answer is not ...:
            return answer
        match words:
            case ("RAFT", "INFO"):
                return self.info
            case ("MSET", *pairs):
                self.values.update(zip(pairs[::2], pairs[1::2], strict=True))
                return "OK"
            case ("SET", key, value):
                self.values[key] = value
                return "OK"
            case ("GET", key):
                return self.values.get(key)
            case ("DEL", *keys):
                return sum(self.values.pop(key, None) is not None for key in keys)
            case ("EXISTS", *keys):
                return sum(key in self.values for key in keys)
        return ...


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster(2) as made:
        yield made


@pytest.fixture
def store(cluster: FakeCluster) -> Store:
    return Store(cluster)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.bench, "SETTLE_S", 0.01)
    monkeypatch.setattr(cli.bench, "CLEAN_S", 0.3)


def addresses(cluster: FakeCluster) -> list[Address]:
    return [node.address for node in cluster.nodes]


def bench(cluster: FakeCluster, load: Load = TINY) -> Report:
    return measure(addresses(cluster), load, lambda what, total: None, lambda more: None, "mine:")


# --- what it does to the cluster


def test_it_counts_what_was_answered_and_leaves_nothing_behind(cluster: FakeCluster, store: Store) -> None:
    store.values["someone's"] = "else"
    report = bench(cluster)
    assert store.values == {"someone's": "else"}
    assert report.left_keys == 0
    assert report.total.count == 200
    assert sum(each.count for each in report.kinds.values()) == 200
    assert set(report.kinds) == {"GET", "SET"}
    assert report.errors == {}
    assert 0 < report.total.p50_ms <= report.total.p99_ms <= report.total.max_ms
    written = [words for words in cluster.received if words[0] in ("SET", "MSET", "DEL")]
    assert all(words[1].startswith("mine:") for words in written)
    assert {len(words[2]) for words in written if words[0] == "SET"} == {16}


def test_errors_are_counted_by_their_kind(cluster: FakeCluster, store: Store) -> None:
    given = iter(range(1000))

    def sometimes_busy(_node: FakeNode, words: tuple[str, ...]) -> Any:
        return FakeError("BUSY try again") if words[0] == "SET" and next(given) % 2 else ...

    store.before = sometimes_busy
    report = bench(cluster)
    assert report.errors == {"BUSY": next(given) // 2}
    assert report.total.count + report.errors["BUSY"] == 200
    assert report.left_keys == 0


def test_a_lost_node_is_left_for_another(cluster: FakeCluster, store: Store) -> None:
    first, seen = cluster.nodes[0], [0]

    def dies(node: FakeNode, words: tuple[str, ...]) -> Any:
        if node is first and words[0] in ("GET", "SET"):
            seen[0] += 1
            if seen[0] == 20:
                node.die_after_this()
                raise ConnectionResetError
        return ...

    store.before = dies
    report = bench(cluster)
    assert report.errors[LOST] >= 1
    assert report.total.count + sum(report.errors.values()) >= 200
    assert report.reconnects >= 1
    assert report.left_keys == 0 and not store.values


def test_keys_that_cannot_be_deleted_are_told(cluster: FakeCluster, store: Store) -> None:
    store.before = lambda node, words: FakeError("CLUSTERDOWN no") if words[0] == "DEL" else ...
    assert bench(cluster).left_keys is None


def test_an_interrupted_run_deletes_its_keys(
    cluster: FakeCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        assert len(store.values) == TINY.keys
        raise KeyboardInterrupt

    monkeypatch.setattr(LoadRun, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(cluster)
    assert not store.values


@pytest.mark.parametrize(
    ("info", "words"), [("leader_id:0\r\n", "no leader"), (FakeError("ERR unknown"), "no node of a super")]
)
def test_nothing_is_written_where_nobody_leads(
    cluster: FakeCluster, store: Store, info: str, words: str
) -> None:
    store.info = info
    with pytest.raises(BenchError, match=words):
        bench(cluster)
    assert {words[:2] for words in cluster.received} == {("RAFT", "INFO")}


def test_nobody_answers() -> None:
    with pytest.raises(BenchError, match=r"127.0.0.1:9: .*refused"):
        check_nodes([("127.0.0.1", 9)])


def test_the_mix_is_what_was_asked_for() -> None:
    keys = Keys([("h", 1)], "p:", 10, 64)
    source = mixed(keys, 90, random.Random(1))
    made = [source(0) for _ in range(2000)]
    assert 1740 <= sum(request.kind == "GET" for request in made) <= 1860
    for reads, kind in ((0, "SET"), (100, "GET")):
        source = mixed(keys, reads, random.Random(1))
        assert {source(0).kind for _ in range(100)} == {kind}


# --- the load itself


def test_the_time_ends_it(cluster: FakeCluster, store: Store) -> None:
    plan = Plan(clients=2, pipeline=1, seconds=0.3)
    ticks: list[float] = []
    run = LoadRun(addresses(cluster), plan, lambda n: Request(encode(b"GET", b"k"), 1, "GET"))
    outcome = run.run(ticks.append)
    assert outcome.total.count > 0
    assert 0.29 <= outcome.seconds <= 0.31
    assert ticks == sorted(ticks)


def test_requests_of_several_answers_count_once(cluster: FakeCluster, store: Store) -> None:
    plan = Plan(clients=2, pipeline=3, seconds=5, requests=30)
    both = encode(b"SET", b"k", b"v") + encode(b"GET", b"k")
    outcome = LoadRun(addresses(cluster), plan, lambda n: Request(both, 2, "pair")).run()
    assert outcome.total.count == 30
    assert sum(words[0] == "GET" for words in cluster.received) == 30


def test_silence_is_given_up(cluster: FakeCluster, store: Store) -> None:
    store.before = lambda node, words: Encoded(b"")
    plan = Plan(clients=1, pipeline=1, seconds=0.3, timeout_s=0.1)
    outcome = LoadRun(addresses(cluster), plan, lambda n: Request(encode(b"GET", b"k"), 1, "GET")).run()
    assert outcome.errors[LATE] >= 1
    assert outcome.total.count == 0


# --- statistics


def test_percentiles_are_right_to_one_part_in_a_hundred() -> None:
    rng = random.Random(3)
    values = sorted(int(10 ** rng.uniform(0, 6)) for _ in range(20_000))
    halves = Histogram(), Histogram()
    for number, value in enumerate(values):
        halves[number % 2].add(value)
    halves[0].merge(halves[1])
    assert halves[0].count == len(values)
    for percent in (1, 50, 90, 99, 99.9, 100):
        exact = values[max(0, round(len(values) * percent / 100) - 1)] / 1000
        assert halves[0].percentile_ms(percent) == pytest.approx(exact, rel=0.01, abs=0.001)
    assert halves[0].percentile_ms(100) == values[-1] / 1000


def test_no_values_no_percentile() -> None:
    assert Histogram().percentile_ms(99) == 0.0


# --- the command


def options(*arguments: str) -> argparse.Namespace:
    return super_node.build_parser().parse_args(["bench", *arguments])


def test_nobody_agreed(
    cluster: FakeCluster, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    host, port = cluster.nodes[0].address
    assert cli.bench.run_bench(options("--connect", f"{host}:{port}")) == 2
    told = capsys.readouterr().err
    assert f"writes to the cluster at {host}:{port}" in told
    assert "deletes them afterwards" in told and "--yes" in told
    assert not cluster.received


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("yes\n", True), ("\n", False), ("n\n", False)])
def test_the_terminal_is_asked(monkeypatch: pytest.MonkeyPatch, typed: str, agreed: bool) -> None:
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert cli.bench._agreed([("h", 1)], TINY, yes=False) is agreed


def test_the_table(cluster: FakeCluster, store: Store) -> None:
    console = Console(width=110, file=io.StringIO(), color_system=None)
    show(bench(cluster), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 clients, pipeline 2, 16 bytes" in text
    assert "errors: none" in text
    first_words = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert [word for word in first_words if word in ("GET", "SET", "all")] == ["GET", "SET", "all"]


@pytest.mark.process
def test_a_real_cluster_is_loaded_and_left_as_it_was(tmp_path: Path) -> None:
    from cluster import Cluster, eventually

    nodes = Cluster(tmp_path)
    try:
        nodes.start()
        nodes.ready()
        eventually(lambda: nodes.client(1).set("mine", "stays"), 30, "a write")
        command = ["bench", "--config", str(nodes.config), "--yes", "--json", "--requests", "300"]
        command += ["--clients", "6", "--keys", "40", "--seconds", "30", "--size", "32"]
        done = subprocess.run(
            [sys.executable, "super_node.py", *command], cwd=ROOT, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["total"]["count"] == 300 - sum(report["errors"].values())
        assert len(report["nodes"]) == 3
        assert eventually(lambda: nodes.client(2).keys("*") == ["mine"], 10, "only what was there before")
    except redis.RedisError as error:
        pytest.fail(f"the cluster: {error}; {nodes.log_of(1)[-2000:]}")
    finally:
        nodes.stop()
