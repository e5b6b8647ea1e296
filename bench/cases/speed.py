"""SET, GET, mixed, ONCE INCR, MULTI and many clients; beside a bare Redis, etcd and PySyncObj, interleaved.

All servers run all the time, one of them is loaded at a time; a round loads each once in each case. The order
of the systems turns from round to round. redis-benchmark loads where it can; the loads it does not know, and
etcd's and PySyncObj's, come from this project's own loaders.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import etcd_client, rig
from bench.cluster import ROOT, Cluster, bare_redis, cluster, etcd_members, fill, missing
from bench.context import OURS, Case, Context, Group, Options
from bench.processes import HOST, end, free_ports, spawn, until
from bench.results import INTERPRETED
from bench.rig import Server
from cli.compiled import VARIABLE, nodes_use_it
from cli.load import LoadRun, Outcome, Plan, Request, Source, encode

SIZE, KEYS = 64, 100_000
REDIS, ETCD, PYSYNCOBJ = "redis", "etcd", "PySyncObj"
CHECK_PERF = ("l", "xl")  # etcd's own loads: 500 and 1,000 clients
CHECK_PERF_S = 62.0
RIG = {
    "set-1": rig.Case("SET 1 client", "set", 1),
    "set-50": rig.Case("SET 50 clients", "set", 50),
    "set-50-p16": rig.Case("SET 50 clients, pipeline 16", "set", 50, 16),
    "get-50-leader": rig.Case("GET 50 clients, leader", "get", 50),
    "get-50-follower": rig.Case("GET 50 clients, follower", "get", 50, follower=True),
    "set-200": rig.Case("SET 200 clients", "set", 200),
    "set-1000": rig.Case("SET 1,000 clients", "set", 1000),
}
OWN = {
    "mixed-90-10": "GET 90 %, SET 10 %, 50 clients",
    "once-incr": "ONCE INCR, 50 clients",
    "multi-5": "MULTI of 5 SETs, 50 clients",
}
CASES = tuple(
    Case(name, title) for name, title in [*((name, case.name) for name, case in RIG.items()), *OWN.items()]
)
FIRST_FOUR = ("set-50", "set-50-p16", "set-1", "get-50-leader", "get-50-follower")
_FEWEST = 200  # requests of a run of redis-benchmark


def mixed(rng: random.Random) -> Source:
    """90 GETs in 100 requests, the rest SETs, of random keys."""
    value = b"x" * SIZE

    def request(_client: int) -> Request:
        key = b"key:%012d" % int(rng.random() * KEYS)
        if rng.random() < 0.9:
            return Request(encode(b"GET", key), 1, "GET")
        return Request(encode(b"SET", key, value), 1, "SET")

    return request


def once_incr(run: str) -> Source:
    """Each client has a session of its own and increments a counter of its own."""
    numbers = [itertools.count(1) for _ in range(50)]

    def request(client: int) -> Request:
        number = b"%d" % next(numbers[client])
        session, counter = b"%s-%d" % (run.encode(), client), b"counter:%d" % client
        return Request(encode(b"ONCE", session, number, b"INCR", counter), 1, "INCR")

    return request


def plain_incr(_run: str) -> Source:
    """What Redis has in place of it."""
    return lambda client: Request(encode(b"INCR", b"counter:%d" % client), 1, "INCR")


def multi(rng: random.Random) -> Source:
    """MULTI, five SETs, EXEC sent at once: one operation of seven answers."""
    value = b"x" * SIZE

    def request(_client: int) -> Request:
        sets = [encode(b"SET", b"key:%012d" % int(rng.random() * KEYS), value) for _ in range(5)]
        return Request(b"".join((encode(b"MULTI"), *sets, encode(b"EXEC"))), 7, "MULTI")

    return request


class Speed:
    """One run of the group; its servers."""

    def __init__(self, context: Context, wanted: frozenset[str], stack: ExitStack) -> None:
        self._context = context
        self._options = context.options
        self._requests: dict[tuple[str, str], int] = {}  # as many as take the wanted time
        self.names = [case.name for case in CASES if case.name in wanted]
        self._serial = itertools.count()
        path = context.directory
        context.tell("starting the servers")
        self._redis = stack.enter_context(bare_redis(path))
        self._nodes: Cluster = stack.enter_context(cluster(path / "nodes"))
        self._interpreted: Cluster | None = None
        if nodes_use_it() and wanted & frozenset(FIRST_FOUR):
            self._interpreted = stack.enter_context(cluster(path / "interpreted", environ={VARIABLE: "0"}))
        self._etcd: Server | None = None
        self.etcd_urls: list[str] = []
        if {"set-1", "set-50"} & wanted and not missing("etcd", "etcdctl"):
            self._etcd, self.etcd_urls = stack.enter_context(etcd_members(path))
        clusters = [self._nodes, *([self._interpreted] if self._interpreted else [])]
        for port in (self._redis.port, *(each.server().port for each in clusters)):
            fill(port, KEYS)

    def round(self, number: int) -> None:
        """Round 0 is the warm-up: it finds out how many requests take the wanted time."""
        for name in self.names:
            systems = self._systems(name)
            turn = number % len(systems)
            for system, measure in systems[turn:] + systems[:turn]:
                self._context.tell(f"{name}: {system}, {f'round {number}' if number else 'warm-up'}")
                seconds = self._options.seconds if number else min(0.5, self._options.seconds)
                figures = measure(seconds)
                if number:
                    self._context.results.add(name, number, system, **figures)
            self._context.step()

    def _systems(self, name: str) -> list[tuple[str, Callable[[float], dict[str, float]]]]:
        follower = name == "get-50-follower"

        def ours() -> Server:
            return self._nodes.server(follower=follower)

        if name in RIG:
            systems = [
                (OURS, lambda seconds: self._benchmark(name, OURS, ours(), seconds)),
                (REDIS, lambda seconds: self._benchmark(name, REDIS, self._redis, seconds)),
            ]
        else:
            systems = [
                (OURS, lambda seconds: self._own(name, OURS, ours(), seconds)),
                (REDIS, lambda seconds: self._own(name, REDIS, self._redis, seconds)),
            ]
        if self._interpreted is not None and name in FIRST_FOUR:
            slow = self._interpreted
            systems.append(
                (
                    INTERPRETED,
                    lambda seconds: self._benchmark(
                        name, INTERPRETED, slow.server(follower=follower), seconds
                    ),
                )
            )
        if self._etcd is not None and name in ("set-1", "set-50"):
            etcd = self._etcd
            clients = RIG[name].clients
            systems.append((ETCD, lambda seconds: figures_of(etcd_client.load(etcd.port, clients, seconds))))
        if name == "set-50" and not missing_pysyncobj():
            directory = self._context.directory
            systems.append((PYSYNCOBJ, lambda seconds: pysyncobj(directory, seconds)))
        return systems

    def _benchmark(self, name: str, system: str, server: Server, seconds: float) -> dict[str, float]:
        requests = self._requests.get((name, system), _FEWEST)
        measured = rig.run(server, RIG[name], requests)
        if (name, system) not in self._requests:  # the first was too short to tell
            measured = rig.run(server, RIG[name], max(_FEWEST, int(measured.rate * seconds)))
        self._requests[name, system] = max(_FEWEST, int(measured.rate * self._options.seconds))
        cpu = {f"cpu_us_{n}": used for n, used in enumerate(measured.cpu_us)}
        return {"rate": measured.rate, "p50_ms": measured.p50_ms, "p99_ms": measured.p99_ms, **cpu}

    def _own(self, name: str, system: str, server: Server, seconds: float) -> dict[str, float]:
        run = f"run-{next(self._serial)}-{time.time_ns()}"
        sources: dict[str, Source] = {
            "mixed-90-10": mixed(random.Random(1)),
            "once-incr": once_incr(run) if system == OURS else plain_incr(run),
            "multi-5": multi(random.Random(1)),
        }
        plan = Plan(clients=50, pipeline=1, seconds=seconds)
        outcome = LoadRun([(HOST, server.port)], plan, sources[name]).run()
        if outcome.errors:
            raise RuntimeError(f"{name}: {system} answered errors: {dict(outcome.errors)}")
        return figures_of(outcome)


def figures_of(outcome: Outcome) -> dict[str, float]:
    """Rate and latencies."""
    total = outcome.total
    return {
        "rate": total.count / outcome.seconds,
        "p50_ms": total.percentile_ms(50),
        "p99_ms": total.percentile_ms(99),
    }


def missing_pysyncobj() -> bool:
    """Whether it is not installed."""
    from importlib.util import find_spec

    return find_spec("pysyncobj") is None


def pysyncobj(directory: Path, seconds: float, in_flight: int = 50) -> dict[str, float]:
    """Three processes, new ones each time. Raises RuntimeError."""
    file = directory / f"pysyncobj-{time.time_ns()}.json"
    addresses = [f"{HOST}:{port}" for port in free_ports(3)]
    processes = []
    try:
        for own in addresses:
            others = ",".join(address for address in addresses if address != own)
            command = [sys.executable, str(ROOT / "bench" / "pysyncobj_node.py"), own, others]
            command += [str(seconds), str(in_flight), str(SIZE), str(file)]
            processes.append(spawn(command, directory / "pysyncobj.log", ROOT, stdin=subprocess.PIPE))
        until(file.exists, f"PySyncObj is done (see {directory}/pysyncobj.log)", 60 + 4 * seconds, 0.1)
        figures: dict[str, float] = json.loads(file.read_text())
        return figures
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        end(processes, 3.0)


def check_perf(urls: Sequence[str], load: str) -> float:
    """Writes per second, as etcd's own tool tells. Raises RuntimeError."""
    command = ["etcdctl", "--endpoints", ",".join(urls), "check", "perf", "--load", load]
    environ = {"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin:/usr/local/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environ)
    return parse_check_perf(done.stdout + done.stderr)


def parse_check_perf(text: str) -> float:
    """`PASS: Throughput is 7921 writes/s` or `FAIL: Throughput too low: 4850 writes/s`."""
    for line in text.replace("\r", "\n").splitlines():
        if "Throughput" in line and "writes/s" in line:
            return float(line.rpartition(" writes/s")[0].rpartition(" ")[2])
    raise RuntimeError(f"etcdctl check perf said: {text[-300:]!r}")


def run(context: Context, wanted: frozenset[str]) -> None:
    """See the top."""
    with ExitStack() as stack:
        speed = Speed(context, wanted, stack)
        for number in range(context.options.rounds + 1):
            speed.round(number)
        if "set-50" in wanted and speed.etcd_urls and context.options.check_perf:
            for load in CHECK_PERF:
                context.tell(f"etcdctl check perf --load={load}")
                context.results.add(
                    "set-50", 1, f"etcd check perf {load}", rate=check_perf(speed.etcd_urls, load)
                )


def estimate(options: Options, wanted: frozenset[str]) -> float:
    """Seconds: servers and filling, then each load with what it takes to start and to end."""
    loads = 2 * len(wanted) + len({"set-1", "set-50"} & wanted)
    loads += len(wanted & frozenset(FIRST_FOUR)) if nodes_use_it() else 0
    one = options.seconds + 0.5
    pysyncobj_s = (2 * options.seconds + 4) if "set-50" in wanted else 0.0
    check = len(CHECK_PERF) * CHECK_PERF_S if "set-50" in wanted and options.check_perf else 0.0
    return 15 + (options.rounds + 1) * (loads * one + pysyncobj_s) + check


GROUP = Group(
    "speed",
    CASES,
    run,
    estimate,
    lambda options, wanted: (options.rounds + 1) * len(wanted),
    ("redis-server", "redis-benchmark"),
)
