"""One run: a cluster, clients and followers at work, rounds of faults, and after each the questions.

A round: faults for a while; heal; measure how soon writes are acknowledged; the clients rest; everything is
read through every node; then judge: linearizability key by key, counters, ledger, digests. Its directory
holds what is needed to understand it: logs, history.jsonl, faults.jsonl, settings, timeline.html.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from database.embedded import EmbeddedServer
from tests.chaos import members
from tests.chaos.books import check_book
from tests.chaos.clients import Client, Findings, Link, LostError, NotSentError, Targets, Worker, code_of
from tests.chaos.faults import Scene
from tests.chaos.followers import Follower, flat
from tests.chaos.history import FAILED, OK, UNKNOWN, History, Operation
from tests.chaos.judge import ask_once, check_counters, check_growth, check_heard, final_reads, open_interval
from tests.chaos.linearizability import LINEARIZABLE, check
from tests.chaos.listeners import Ear, MongoWatch
from tests.chaos.mongo import check_mongo
from tests.chaos.nemesis import CALM, EXCUSES, EXPECTED, FAR_REACHING, Nemesis, plan
from tests.chaos.network import Loopback, Namespaces, Network, namespaces_work
from tests.chaos.nodes import ELECTION_S, ChaosCluster, usage_of
from tests.chaos.timeline import draw
from tests.chaos.truants import Pest, Sleeper
from tests.node.cluster import free_ports

RECOVERY_S = 10 * ELECTION_S
LAST_WORDS_NS = 10_000_000_000  # so long after a fault a node may still speak of it
RECENT = 200  # strikes; far more than there are in a round
SILENCE_EXCUSE_NS = 3_000_000_000  # after a node was struck it may still have to start


@dataclass
class Options:
    """What to run. kinds: of faults; rate_pause_s: the longest rest of a client between operations;
    followers: good ones, beside two that break rules; power: a kill loses what was not synced; least_rounds:
    however long they take."""

    directory: Path
    seconds: float
    seed: int
    nodes: int = 3
    kinds: tuple[str, ...] = ()
    clients: int = 10
    followers: int = 3
    round_s: float = 20.0
    least_rounds: int = 1
    rate_pause_s: float = 0.015
    mongo: bool = True
    loopback: bool = False
    lease_reads: bool = False
    power: bool = False
    mix: str = ""


@dataclass
class Report:
    """What came of it. violations: empty if all is well."""

    violations: list[str] = field(default_factory=list)
    rounds: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    longest_search: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    silences: int = 0
    intervals: int = 0
    slowest_s: float = 0.0  # the longest wait for an answer of a node that no fault held
    usage: dict[int, str] = field(default_factory=dict)
    tally: dict[str, int] = field(default_factory=dict)  # what nodes made of faults that leave a choice
    growth: list[dict[str, float]] = field(default_factory=list)  # after each round: see Run._note_growth
    documents: dict[str, int] = field(default_factory=dict)  # in MongoDB, by collection
    ledger: dict[str, int] = field(default_factory=dict)  # how often its rules came into play
    mongo_looks: int = 0
    unread: int = 0  # acknowledged reports whose outcome was not read in time (MongoDB was asked)
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


class Run:
    """See above. Main thread only."""

    def __init__(self, options: Options, progress: Callable[[str], None]) -> None:
        self.options, self._progress = options, progress
        self.report = Report()
        self.directory = options.directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.rng = random.Random(options.seed)
        self.findings = Findings()
        self.history = History(self.directory / "history.jsonl")
        self._stopped = threading.Event()
        self._targets = Targets({})
        self._looked = 0.0
        self._status = "starting"

    # --- the whole ----------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Start, rounds, end. Whatever goes wrong stands in the report."""
        began = self._began = time.monotonic()
        self._wall_offset_s = time.time() - began
        with contextlib.ExitStack() as stack:
            try:
                self._open(stack)
                while self._goes_on(left := self.options.seconds - (time.monotonic() - began)):
                    self._round(max(4.0, min(self.options.round_s, left - 6)))
                self._last_questions()
            except Exception as error:  # noqa: BLE001 - a harness that fails proves nothing
                self.report.violations.append(f"{type(error).__name__}: {error}")
                self._traceback()
            finally:
                self._stopped.set()
                self._conclude()
        return self.report

    def _goes_on(self, left_s: float) -> bool:
        more = left_s > 0 or self.report.rounds < self.options.least_rounds
        return more and not self.report.violations

    def _traceback(self) -> None:
        import traceback

        (self.directory / "traceback.txt").write_text(traceback.format_exc())

    def _open(self, stack: contextlib.ExitStack) -> None:
        options = self.options
        self.network = stack.enter_context(_network(options, self.rng))
        port = free_ports(1)[0]
        self.mongo = None
        if options.mongo:
            self.mongo = EmbeddedServer(self.directory / "mongo", host=self.network.gateway, port=port)
            self.mongo.start()
            stack.callback(self.mongo.kill)
        self.cluster = ChaosCluster(
            self.directory, self.network, options.nodes, disks="full" in options.kinds and os.geteuid() == 0,
            clocks=bool({"clock", "drift"} & set(options.kinds)), mongo_port=port, power=options.power,
            raft={"lease_reads": options.lease_reads},
        )  # fmt: skip
        stack.callback(self.cluster.stop)
        self.cluster.start()
        self.cluster.answering()
        self.cluster.leader()
        self.scene = Scene(self.cluster, self.rng, self.mongo)
        self.nemesis = Nemesis(self.scene, self._watch)
        self._aim()
        seed = f"{options.seed}"
        self.workers = [
            Worker(self._client(f"c{n}", seed), self.history, self._stopped, options.rate_pause_s)
            for n in range(options.clients)
        ]
        kinds: list[type[Follower]] = [*[Follower] * options.followers, Sleeper, Pest]
        self.followers = [kind(self._client(f"w{n}", seed), self._stopped) for n, kind in enumerate(kinds)]
        self.ear = Ear(seed, lambda: self._targets, self.findings, self._stopped)
        self.listeners: list[Ear | MongoWatch] = [self.ear]
        if self.mongo is not None:
            self.listeners.append(MongoWatch(self.mongo.uri, self.findings, self._stopped))
        for thread in (*self._threads(), *self.listeners):
            thread.start()

    def _client(self, name: str, seed: str) -> Client:
        return Client(name, seed, lambda: self._targets, self.findings)

    def _threads(self) -> list[Worker | Follower]:
        return [*self.workers, *self.followers]

    def _aim(self) -> None:
        addresses = {
            n: (self.cluster.addresses[n]["host"], self.cluster.addresses[n]["client_port"])
            for n in self.cluster.ids
        }
        self._targets = Targets(addresses, self.report.rounds)

    def _watch(self) -> None:
        if time.monotonic() - self._looked > 0.5:
            self._looked = time.monotonic()
            self.cluster.look()
            if set(self._targets.addresses) != set(self.cluster.ids):
                self._aim()

    # --- a round ------------------------------------------------------------------------------------------

    def _round(self, seconds: float) -> None:
        planned = plan(self.rng, list(self.options.kinds), seconds)
        self.nemesis.carry_out(planned, seconds, lambda now: self._show(f"faults: {now}"))
        self._heal()
        for kind in CALM:
            if kind in self.options.kinds:
                self._show(f"faults: {kind}")
                self.nemesis.strike(kind)
                self._heal()
        self._question()
        self._note_growth()
        self.report.rounds += 1
        self._aim()
        for thread in self._threads():
            thread.rest.clear()

    def _show(self, doing: str) -> None:
        counts = self.history.counts
        self._progress(
            f"round {self.report.rounds + 1}  {counts[OK]} ok  {counts[FAILED]} refused  "
            f"{counts[UNKNOWN]} unknown  {len(self.nemesis.strikes)} faults  {doing}"
        )

    def _heal(self) -> None:
        """All is whole: how long until a write is acknowledged?"""
        self._show("healing")
        self.network.heal()
        self.scene.blocks.clear()
        for node in self.cluster.ids:
            if self.cluster.processes[node].poll() is not None:
                self.cluster.look()
                self.cluster.start(node)
        self._majority_up()
        took = self._time_to_write()
        self.report.recoveries_s.append(took)
        if took > RECOVERY_S:
            self._violation(f"first write acknowledged {took:.1f} s after healing (limit {RECOVERY_S} s)")
        self.cluster.answering()
        members.settle(self.scene)
        self.cluster.look()
        if self.mongo is not None and not self.mongo.running:
            self.mongo.start()
        self._aim()

    def _majority_up(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            up = 0
            for n in self.cluster.ids:
                with contextlib.suppress(redis.RedisError, OSError):
                    up += bool(self.scene.info(n))
            if up > len(self.cluster.ids) // 2:
                return
        raise AssertionError("no majority answers RAFT INFO within 60 s after healing")

    def _time_to_write(self) -> float:
        began = time.monotonic()
        while time.monotonic() - began < 60:
            for n in list(self.cluster.ids):
                with contextlib.suppress(NotSentError, LostError):
                    address = self.cluster.addresses[n]
                    link = Link((address["host"], address["client_port"]))
                    try:
                        (reply,) = link.ask(["SET", "recovered", self.report.rounds], timeout_s=2)
                    finally:
                        link.close()
                    if not code_of(reply):
                        return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError("no write was acknowledged within 60 s after healing")

    # --- the questions ------------------------------------------------------------------------------------

    def _question(self) -> None:
        self._show("reading everything")
        for thread in self._threads():
            thread.resting.clear()
            thread.rest.set()
        for thread in self._threads():
            if not thread.resting.wait(60):
                self._violation(f"client {thread.name} hangs")
        operations = self.history.take()
        keys = sorted({operation.key for operation in operations})
        final_reads(self.history, self._targets.addresses, keys)
        operations += self.history.take()
        self._show("judging")
        self._judge(operations)
        for follower in self.followers:
            self._judge_follower(follower)
        self.cluster.agree(60)
        self._judge_nodes()

    def _judge(self, operations: list[Operation]) -> None:
        report = self.report
        for verdict in check(operations):
            report.keys += 1
            report.longest_search = max(report.longest_search, verdict.steps)
            if verdict.answer != LINEARIZABLE:
                around = "".join(f"\n    {each}" for each in verdict.around)
                self._violation(f"{verdict.key}: {verdict.answer}: {verdict.reason}{around}")
        report.violations += check_counters(operations)
        for o in operations:
            took = (o.ended - o.began) / 1e9
            once = o.key.startswith("o:") and o.what == "incr"
            if took > report.slowest_s and not once and not self._excused(o.node, o.began, o.ended):
                report.slowest_s = took

    def _judge_follower(self, follower: Follower) -> None:
        deadline = time.monotonic() + 30
        while not follower.look():
            if time.monotonic() > deadline:
                self._violation(f"REWARD HISTORY of {follower.name} is not answered")
                return
            time.sleep(0.05)
        while True:  # one interval must be open from the first question to the last
            node = self.rng.choice(self.cluster.ids)
            before = open_interval(self.cluster, node)
            info = flat(ask_once(self.cluster, node, "FOLLOWER", "INFO", follower.name))
            if before and info and follower.look() and open_interval(self.cluster, node) == before:
                break
            if time.monotonic() > deadline:
                self._violation("no quiet moment within an interval to read the ledger in")
                return
        self.report.intervals = max(self.report.intervals, before)
        self.report.violations += check_book(follower.book, info, before, later=self.mongo is not None)

    def _judge_nodes(self) -> None:
        watch = self.cluster.watch
        for found in (watch.deaths, self.findings.wrong, self.scene.wrong):
            self.report.violations += found
            found.clear()
        for line in self.cluster.new_troubles(self._explained)[:20]:
            self._violation(f"in the log: {line}")
        self.report.violations += self.cluster.missing_threads() + self.cluster.excesses()
        silences, self.findings.silences = self.findings.silences, []
        for node, began, ended in silences:
            self.report.silences += 1
            if not self._excused(node, began, ended):
                self._violation(f"node {node} gave no answer for {(ended - began) / 1e9:.1f} s, at {began}")

    def _note_growth(self) -> None:
        """What may not grow without bound: of nodes as they are now the most, of the harness and MongoDB."""
        taken = [usage_of(self.cluster.processes[n].pid) for n in self.cluster.ids]
        self.report.growth.append({
            "at_s": round(time.monotonic() - self._began),
            "node_mb": max(u.rss_mb for u in taken), "descriptors": max(u.descriptors for u in taken),
            "threads": max(u.threads for u in taken), "harness_mb": usage_of(os.getpid()).rss_mb,
            "mongo_mb": usage_of(self.mongo.pid).rss_mb if self.mongo and self.mongo.pid else 0,
        })  # fmt: skip

    def _explained(self, node: int, wall_s: float, line: str) -> bool:
        """Whether a fault that struck this node then (or, of some kinds, any node before) may say this."""
        at = (wall_s - self._wall_offset_s) * 1e9
        for strike in self.nemesis.strikes:
            if strike.began - 1e9 > at or not any(re.search(p, line) for p in EXPECTED.get(strike.kind, ())):
                continue
            if strike.kind in FAR_REACHING or (
                strike.node == node and at < (strike.ended or at) + LAST_WORDS_NS
            ):
                return True
        return False

    def _excused(self, node: int, began: int, ended: int) -> bool:
        return any(
            strike.kind in EXCUSES and strike.node == node
            and strike.began < ended and (strike.ended or ended) + SILENCE_EXCUSE_NS > began
            for strike in self.nemesis.strikes[-RECENT:]
        )  # fmt: skip

    def _last_questions(self) -> None:
        self._stopped.set()
        for thread in self._threads():
            thread.join(30)
        for thread in self.listeners:
            thread.join(30)
        books = [f.book for f in self.followers]
        self.report.ledger = {
            "answers BANNED": sum(book.bans for book in books),
            "bans for spam": sum(book.spam_bans for book in books),
            "absences": sum(len(book.absences) for book in books),
            "over-claims": sum(book.refused_claims for book in books),
            "published outcomes": len(self.ear.heard),
        }
        self.report.unread = sum(len(book.reported - book.outcomes.keys()) for book in books)
        self.report.violations += check_heard(books, self.ear.heard) + check_growth(self.report.growth)
        if self.mongo is not None:
            self._show("comparing with MongoDB")
            wrong, self.report.documents = check_mongo(self.cluster, self.mongo, books, self.ear.heard)
            self.report.violations += wrong
            self.report.mongo_looks = self.listeners[-1].looks  # type: ignore[union-attr]
        self.report.violations += self.findings.wrong

    def _violation(self, text: str) -> None:
        self.report.violations.append(text)

    def _conclude(self) -> None:
        self.history.close()
        self.report.operations = dict(self.history.counts)
        self.report.seconds = time.monotonic() - self._began
        told = asdict(self.options)
        self.report.settings = {name: value for name, value in told.items() if name != "directory"}
        if not hasattr(self, "nemesis"):
            return
        self.report.faults = dict(sorted(self.nemesis.counts.items()))
        self.report.tally = dict(sorted(self.scene.tally.items()))
        self.report.usage = {
            n: f"{u.rss_mb:.0f} MB, {u.descriptors} descriptors, {u.threads} threads"
            for n, u in sorted(self.cluster.watch.usage.items())
        }
        strikes = self.nemesis.strikes
        lines = [json.dumps(entry) for entry in self.nemesis.table()]
        (self.directory / "faults.jsonl").write_text("\n".join(lines) + "\n")
        (self.directory / "violations.txt").write_text("\n\n".join(self.report.violations))
        logs = {n: self.cluster.log_of(n) for n in sorted(self.cluster.ever)}
        page = draw(
            self.directory / "history.jsonl", logs, strikes, self._wall_offset_s, self.report.violations
        )
        (self.directory / "timeline.html").write_text(page)


@contextlib.contextmanager
def _network(options: Options, rng: random.Random) -> Iterator[Network]:
    network: Network
    if options.loopback or not namespaces_work():
        network = Loopback(random.Random(rng.random()), options.directory)
    else:
        network = Namespaces(random.Random(rng.random()))
    try:
        yield network
    finally:
        network.close()
