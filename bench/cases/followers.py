"""10,000 followers with turns of 10 s, each over a connection of its own, 2 % of them missing.

No acknowledged turn may be lost: in the end each follower's `earned`, on a node and in MongoDB, is the reward
times the turns that were acknowledged to it. The nodes run as bench/timed_node.py, which notes how long the
owner thread takes for a close. MongoDB is the stand-in that the demo starts; it shares the cores.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from bench.cluster import Cluster, cluster
from bench.context import OURS, Case, Context, Group, Options
from bench.fleet import Fleet
from bench.processes import HOST, cpu_s, free_ports, until
from cli.link import Link, fields
from database.embedded import EmbeddedServer

NAME, MISSING, REWARD = "followers", 0.02, 10
PROGRAM = "bench/timed_node.py"


class Watcher:
    """A thread that notes every 200 ms how many ledger rows are not known to be in MongoDB."""

    def __init__(self, nodes: Cluster, leader: int) -> None:
        self.samples: list[tuple[float, int]] = []
        self._nodes, self._leader = nodes, leader
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            lag = self._nodes.info(self._leader).get("database_lag", "")
            if lag.isdigit():
                self.samples.append((time.monotonic(), int(lag)))


def longest_lag_s(samples: list[tuple[float, int]]) -> float:
    """The longest time in which there was always something that MongoDB did not have."""
    longest, since = 0.0, None
    for at, lag in samples:
        if lag == 0:
            since = None
            continue
        since = at if since is None else since
        longest = max(longest, at - since)
    return longest


def run(context: Context, _wanted: frozenset[str]) -> None:
    """See the top."""
    options, path = context.options, context.directory
    interval_ms = round(1000 * options.interval_s)
    closes = path / "closes"
    with (
        EmbeddedServer(path / "mongodb", HOST, free_ports(1)[0]) as mongo,
        cluster(
            path / "nodes",
            program=PROGRAM,
            environ={"BENCH_CLOSES": str(closes)},
            rewards={"interval_ms": interval_ms},
            database={"uri": mongo.uri, "name": "bench"},
        ) as nodes,
    ):
        leader = nodes.leader()
        others = [n for n in nodes.ids if n != leader]
        fleet = Fleet(
            [nodes.address(n) for n in (leader, *others)], options.followers, MISSING, options.interval_s
        )
        try:
            context.tell(f"{NAME}: {options.followers:,} join")
            fleet.connect(lambda _more: None)
            context.step()
            fleet.subscribe()
            _measure(context, nodes, leader, fleet, closes, mongo.uri)
        finally:
            fleet.close()


def _measure(
    context: Context, nodes: Cluster, leader: int, fleet: Fleet, closes: Path, mongo_uri: str
) -> None:
    options = context.options
    context.tell(f"{NAME}: the first turn")
    fleet.serve(3 * options.interval_s + 10, lambda: len(fleet.announced) >= 2)  # one interval as a warm-up
    context.step()
    watcher, term = Watcher(nodes, leader), nodes.info(leader).get("term")
    pid = nodes.processes[leader].pid
    began, cpu, first = time.monotonic(), cpu_s(pid), len(fleet.announced)
    _forget_closes(closes)
    for number in range(1, options.intervals + 1):
        context.tell(f"{NAME}: interval {number} of {options.intervals}")
        fleet.serve(2 * options.interval_s + 5, lambda number=number: len(fleet.announced) >= first + number)  # type: ignore[misc]
        context.step()
    leader_cpu = (cpu_s(pid) - cpu) / (time.monotonic() - began)
    fleet.stop_announcing()
    fleet.serve(options.interval_s + 5, lambda: fleet.idle)
    lag_rows = max((lag for _, lag in watcher.samples), default=0)
    lag_s = longest_lag_s(watcher.samples)
    watcher.close()
    rows = _closes(closes, pid)
    if not rows:
        raise RuntimeError("no interval was closed while it was measured")
    lost, extra = _compare(fleet, nodes, leader, options.interval_s)
    missing_in_mongo = _compare_mongodb(fleet, nodes, leader, mongo_uri, options.interval_s)
    context.results.add(
        NAME, 1, OURS,
        followers=options.followers,
        intervals=options.intervals,
        acknowledged=sum(len(follower.acknowledged) for follower in fleet.followers),
        lost=lost, more_than_acknowledged=extra, wrong_in_mongodb=missing_in_mongo,
        errors=sum(fleet.errors.values()),
        close_ms=[row["wall_ms"] for row in rows],
        close_cpu_ms=[row["cpu_ms"] for row in rows],
        judge_ms=[row["judge_ms"] for row in rows],
        gc_ms=[row["gc_ms"] for row in rows],
        lag_intervals=lag_s / options.interval_s,
        lag_rows=lag_rows,
        leader_cpu=leader_cpu,
        led_throughout=float(nodes.info(leader).get("term") == term),
        report_p50_ms=_middle(fleet.report_ms, 0.5),
        report_p99_ms=_middle(fleet.report_ms, 0.99),
    )  # fmt: skip
    context.step()


def _middle(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0


def _forget_closes(closes: Path) -> None:
    for file in closes.parent.glob(closes.name + ".*"):
        with suppress(FileNotFoundError):
            file.write_text("")


def _closes(closes: Path, pid: int) -> list[dict[str, float]]:
    file = closes.with_name(f"{closes.name}.{pid}")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _compare(fleet: Fleet, nodes: Cluster, leader: int, interval_s: float) -> tuple[int, int]:
    """(acknowledged turns that the ledger does not have, turns that it has more). What is more was answered
    to a connection that broke. Waits for the close of the last interval that anybody answered."""
    last = max((max(each.acknowledged) for each in fleet.followers if each.acknowledged), default=0)
    with Link(nodes.address(leader), 30.0) as link:

        def closed() -> bool:
            return bool(fields(link.ask("INTERVAL", "SHOW", str(last))).get("closed_at"))

        until(closed, f"interval {last} is closed", 2 * interval_s + 10, 0.2)
        lost = extra = 0
        for first in range(0, len(fleet.followers), 500):
            some = fleet.followers[first : first + 500]
            answers = link.ask_all([["FOLLOWER", "INFO", follower.name] for follower in some])
            for follower, answer in zip(some, answers, strict=True):
                difference = int(fields(answer)["earned"]) // REWARD - len(set(follower.acknowledged))
                lost, extra = lost - min(0, difference), extra + max(0, difference)
    return lost, extra


def _compare_mongodb(fleet: Fleet, nodes: Cluster, leader: int, uri: str, interval_s: float) -> int:
    """How many followers have another `earned` in MongoDB than was acknowledged to them, once it caught up
    or patience is at its end; all of them if it does not answer."""
    with suppress(RuntimeError):
        until(
            lambda: nodes.info(leader).get("database_lag") == "0",
            "MongoDB has everything",
            4 * interval_s + 30,
            0.2,
        )
    earned: dict[str, int] = {}
    with suppress(PyMongoError), MongoClient(uri, serverSelectionTimeoutMS=5000) as client:
        earned = {row["_id"]: row["earned"] for row in client["bench"]["rewards"].find({}, {"earned": 1})}
    wanted = {each.name: REWARD * len(set(each.acknowledged)) for each in fleet.followers}
    return sum(earned.get(name) != amount for name, amount in wanted.items())


def estimate(options: Options, _wanted: frozenset[str]) -> float:
    """Seconds: joining, one interval to begin with, those measured, the last close and MongoDB."""
    return 20 + options.followers / 500 + (options.intervals + 4) * options.interval_s


GROUP = Group(
    "followers",
    (Case(NAME, "10,000 followers, interval 10 s, 2 % missing"),),
    run,
    estimate,
    lambda options, _wanted: options.intervals + 3,
)
