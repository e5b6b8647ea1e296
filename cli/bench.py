"""`super_node.py bench`: a load test of a running cluster over its client ports, bounded in time and number.

It writes keys of its own, under a prefix that nobody else has, and deletes them at the end, after Ctrl-C as
well. Somebody has to agree to that, at the terminal or with --yes. One process of Python makes the load:
where it needs a whole core itself, the cluster could have done more (`load_cpu` tells).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from cli.histogram import Histogram
from cli.link import Address, Link, LinkLost, client_address, error_text
from cli.load import LATE, LOST, LoadRun, Outcome, Plan, Request, Source, encode
from cli.progress import Advance, Stage, ended_by_sigterm, progress_bar
from cli.status import parse_info
from raft.config import load_settings

ASK_S = 5.0  # for one answer
CLEAN_S = 60.0  # for deleting, then it is given up
SETTLE_S = 2.0  # what had no answer may be executed for so long
MAX_BYTES = 1 << 30  # keys times size
UNKNOWN = (LOST, LATE, "INDETERMINATE")  # errors after which a write may still come
_STEP = 200  # keys that go through one command
_STEP_BYTES = 256 * 1024


class BenchError(Exception):
    """No load was made, or keys were left behind; the text says which."""


class Load(msgspec.Struct, frozen=True):
    """What was asked for. reads: GETs in a hundred; requests: at most so many."""

    clients: int
    pipeline: int
    size: int
    keys: int
    reads: int
    seconds: int
    requests: int
    timeout_s: float = 5.0


class Latency(msgspec.Struct, frozen=True):
    """One kind of request: how many were answered without an error, and how fast (milliseconds)."""

    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Report(msgspec.Struct, frozen=True):
    """load_cpu: share of one core that making the load took; left_keys: not deleted, None: nobody knows."""

    nodes: tuple[str, ...]
    prefix: str
    load: Load
    seconds: float
    total: Latency
    kinds: dict[str, Latency]
    errors: dict[str, int]
    reconnects: int
    load_cpu: float
    left_keys: int | None


class Keys:
    """The keys of one run, and whoever of the nodes does what is to be done with all of them."""

    def __init__(self, addresses: Sequence[Address], prefix: str, count: int, size: int) -> None:
        self._addresses = addresses
        self._prefix = prefix
        self.count = count
        self.value = (secrets.token_hex(size // 2 + 1)).encode()[:size]
        self._step = max(1, min(_STEP, _STEP_BYTES // (size + 64)))

    def name(self, number: int) -> str:
        """The key with this number, from 0 on."""
        return f"{self._prefix}{number:08d}"

    def fill(self, advance: Advance) -> None:
        """Set all of them. Raises BenchError."""
        value = self.value.decode()
        for numbers in self._pieces():
            self._ask(["MSET", *(word for n in numbers for word in (self.name(n), value))])
            advance(len(numbers))

    def delete(self, advance: Advance) -> None:
        """Delete all of them. Raises BenchError."""
        for numbers in self._pieces():
            self._ask(["DEL", *(self.name(n) for n in numbers)])
            advance(len(numbers))

    def left(self) -> int:
        """How many there are. Raises BenchError."""
        return sum(self._ask(["EXISTS", *(self.name(n) for n in numbers)]) for numbers in self._pieces())

    def _pieces(self) -> Iterator[range]:
        for first in range(0, self.count, self._step):
            yield range(first, min(self.count, first + self._step))

    def _ask(self, words: list[str]) -> int:
        """The answer of whichever node gives one, asked until a deadline: all that is asked here may be sent
        twice."""
        deadline, tries = time.monotonic() + CLEAN_S, 0
        while True:
            host, port = self._addresses[tries % len(self._addresses)]
            tries += 1
            try:
                with Link((host, port), ASK_S) as link:
                    answer = link.ask(*words)
                if (error := error_text(answer)) is None:
                    return answer if isinstance(answer, int) else 0
                problem = error
            except LinkLost as reason:
                problem = str(reason)
            if time.monotonic() > deadline:
                raise BenchError(f"{host}:{port}: {words[0]}: {problem}")
            time.sleep(min(1.0, 0.05 * tries))


def mixed(keys: Keys, reads: int, rng: random.Random) -> Source:
    """GETs and SETs of random keys, `reads` in a hundred GETs."""
    value = keys.value

    def request(_client: int) -> Request:
        name = keys.name(int(rng.random() * keys.count)).encode()
        if rng.random() * 100 < reads:
            return Request(encode(b"GET", name), 1, "GET")
        return Request(encode(b"SET", name, value), 1, "SET")

    return request


def check_nodes(addresses: Sequence[Address]) -> list[Address]:
    """The nodes that answer. Raises BenchError when there is none, or none that knows of a leader."""
    problems, answering, leader = [], [], ""
    for address in addresses:
        host, port = address
        try:
            with Link(address, ASK_S) as link:
                answer = link.ask("RAFT", "INFO")
        except LinkLost as reason:
            problems.append(f"{host}:{port}: {reason}")
            continue
        if (error := error_text(answer)) is not None:
            problems.append(f"{host}:{port}: is no node of a super node cluster: {error}")
            continue
        answering.append(address)
        known = parse_info(str(answer)).get("leader_id", "")
        leader = known if known.isdigit() and known != "0" else leader
    if not answering:
        raise BenchError(f"no node answers: {'; '.join(problems)}")
    if not leader:
        raise BenchError("the nodes that answer know of no leader")
    return answering


def measure(
    addresses: Sequence[Address], load: Load, stage: Stage, advance: Advance, prefix: str | None = None
) -> Report:
    """Fill, load, delete. Raises BenchError; whatever is raised, the keys are deleted if that is possible."""
    prefix = prefix if prefix is not None else f"bench:{secrets.token_hex(6)}:"
    answering = check_nodes(addresses)
    keys = Keys(answering, prefix, load.keys, load.size)
    plan = Plan(load.clients, load.pipeline, load.seconds, load.requests, load.timeout_s)
    left: int | None = None
    outcome = Outcome()
    try:
        stage("filling", load.keys)
        keys.fill(advance)
        stage("loading", load.seconds * 1000)
        run = LoadRun(answering, plan, mixed(keys, load.reads, random.Random()))
        outcome = run.outcome
        run.run(_ticks(advance))
    finally:
        with contextlib.suppress(BenchError):
            left = _clean(keys, outcome, stage, advance)
    return _report(answering, prefix, load, outcome, left)


def _ticks(advance: Advance) -> Callable[[float], None]:
    told = 0

    def tick(elapsed: float) -> None:
        nonlocal told
        now = int(1000 * elapsed)
        advance(now - told)
        told = now

    return tick


def _clean(keys: Keys, outcome: Outcome, stage: Stage, advance: Advance) -> int:
    if any(outcome.errors[kind] for kind in UNKNOWN):
        stage("waiting for writes without an answer", None)
        time.sleep(SETTLE_S)
    stage("deleting", keys.count)
    keys.delete(advance)
    return keys.left()


def _report(
    addresses: Sequence[Address], prefix: str, load: Load, outcome: Outcome, left: int | None
) -> Report:
    seconds = outcome.seconds
    return Report(
        tuple(f"{host}:{port}" for host, port in addresses),
        prefix,
        load,
        round(seconds, 3),
        _latency(outcome.total, seconds),
        {kind: _latency(each, seconds) for kind, each in sorted(outcome.by_kind.items())},
        dict(sorted((kind, count) for kind, count in outcome.errors.items() if count)),
        outcome.reconnects,
        round(outcome.cpu_s / seconds, 2) if seconds else 0.0,
        left,
    )


def _latency(histogram: Histogram, seconds: float) -> Latency:
    p50, p99, p999 = (histogram.percentile_ms(percent) for percent in (50, 99, 99.9))
    rate = histogram.count / seconds if seconds else 0.0
    return Latency(histogram.count, round(rate, 1), p50, p99, p999, histogram.greatest_us / 1000)


# --- the command


def run_bench(options: argparse.Namespace) -> int:
    """Prints the report; 0, or 1 with one line on standard error: nothing was answered, or keys are left.
    2 when nobody has agreed to the writing. Raises ConfigError."""
    load = Load(
        options.clients, options.pipeline, options.size, options.keys,
        options.reads, options.seconds, options.requests,
    )  # fmt: skip
    if load.keys * load.size > MAX_BYTES:
        asked = f"{load.keys:,} keys of {load.size:,} bytes"
        print(f"super_node.py: bench: {asked} are more than {MAX_BYTES:,} bytes", file=sys.stderr)
        return 2
    addresses = options.connect
    if addresses is None:
        addresses = [client_address(member) for member in load_settings(options.config).cluster.nodes]
    if not _agreed(addresses, load, yes=options.yes):
        return 2
    try:
        with ended_by_sigterm(), progress_bar() as (stage, advance):
            report = measure(addresses, load, stage, advance)
    except (BenchError, OSError) as error:
        print(f"super_node.py: bench: {error}", file=sys.stderr)
        return 1
    if options.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        sys.stdout.flush()
    else:
        show(report, Console(width=None if sys.stdout.isatty() else 110, highlight=False))
    if report.left_keys != 0:
        count = "nobody knows how many" if report.left_keys is None else report.left_keys
        print(f"super_node.py: bench: {count} keys {report.prefix}* are left, delete them", file=sys.stderr)
        return 1
    return 0 if report.total.count else 1


def _agreed(addresses: Sequence[Address], load: Load, *, yes: bool) -> bool:
    """Whether somebody wants this cluster to be written to."""
    if yes:
        return True
    nodes = ", ".join(f"{host}:{port}" for host, port in addresses)
    what = (
        f"bench writes to the cluster at {nodes}: {load.keys:,} keys bench:…, {load.size:,} bytes each, for "
        f"{load.seconds} s; it deletes them afterwards"
    )
    if not sys.stdin.isatty():
        print(f"super_node.py: {what}. Say --yes if it may", file=sys.stderr)
        return False
    print(
        f"{what}. The load slows down whoever else uses it. Go on? [y/N] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def show(report: Report, console: Console) -> None:
    """The table for people."""
    load = report.load
    table = Table(
        title=f"{load.clients} clients, pipeline {load.pipeline}, {load.size} bytes, {report.seconds:.1f} s",
        box=box.HORIZONTALS,
        padding=(0, 1),
    )
    table.add_column("request")
    for name in ("answered", "per second", "p50 ms", "p99 ms", "p99.9 ms", "max ms"):
        table.add_column(name, justify="right")
    for kind, each in [*report.kinds.items(), ("all", report.total)]:
        figures = (each.p50_ms, each.p99_ms, each.p999_ms, each.max_ms)
        table.add_row(kind, f"{each.count:,}", f"{each.rate:,.0f}", *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    errors = ", ".join(f"{count:,} {kind}" for kind, count in report.errors.items()) or "none"
    console.print(f"errors: {errors}; connections opened again: {report.reconnects}")
    console.print(f"nodes: {', '.join(report.nodes)}; making the load took {report.load_cpu:.0%} of a core")
