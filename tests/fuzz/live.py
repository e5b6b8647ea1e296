"""A real cluster under valid load while strangers (strangers.py) do what they can to its ports.

The load is checked answer by answer, and its times are compared with those of a phase without strangers on
the same machine; what the nodes hold is watched meanwhile and compared afterwards.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import redis

from tests.fuzz.strangers import Plan, Port
from tests.node.cluster import ROOT, Cluster, eventually, free_ports, running

MOST_MORE_MB = 250  # what a node may grow by: four who do not read are owed a batch of 16 MB each, and copies
MORE_LATER_MB = 60  # and what it may keep more after the last round than after the first ones
PEER = 4
ROUNDS = 15  # of each load in a phase, however busy the machine is with other things
STARVED_S = 120.0


class Load:
    """A valid client of one node: counts up, reads back, and keeps what was answered wrongly."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        self._client = redis.Redis(port=cluster.client_ports[node], socket_timeout=20)
        self._key = f"load-{node}"
        self._stop = threading.Event()
        self.count = 0
        self.took_s: list[float] = []
        self.wrong: list[str] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                answers: list[Any] = [
                    self._client.incr(self._key),
                    self._client.get(self._key),
                    self._client.set(f"{self._key}-{self.count % 50}", self.count),
                    self._client.get(f"{self._key}-{self.count % 50}"),
                ]
            except redis.RedisError as error:
                self.wrong.append(repr(error))
                return
            wanted = [self.count + 1, b"%d" % (self.count + 1), True, b"%d" % self.count]
            if answers != wanted:
                self.wrong.append(f"{answers} instead of {wanted}")
                return
            self.count += 1
            self.took_s.append(time.monotonic() - began)

    def stop(self) -> None:
        self._stop.set()
        self.thread.join(25)
        self._client.close()
        assert not self.thread.is_alive()


class Loads:
    """One of each node."""

    def __init__(self, cluster: Cluster) -> None:
        self.all = [Load(cluster, node) for node in cluster.ids]
        eventually(lambda: all(load.count > 20 for load in self.all), 20, "load")

    def phase(self, seconds: float) -> Iterator[float]:
        """Runs so long, and until every load has done ROUNDS; wakes up now and then. phase_s() has the times
        of its rounds then."""
        for load in self.all:
            load.took_s = []
        until = time.monotonic() + seconds
        latest = until + STARVED_S
        while (left := until - time.monotonic()) > 0 or any(len(load.took_s) < ROUNDS for load in self.all):
            assert self.wrong() == [], self.wrong()
            assert time.monotonic() < latest, f"rounds: {[len(load.took_s) for load in self.all]}"
            yield left
            time.sleep(0.1)  # between two looks

    def phase_s(self) -> list[float]:
        """How long the rounds of four commands took since the last phase began, sorted."""
        return sorted(each for load in self.all for each in load.took_s)

    def wrong(self) -> list[str]:
        return [each for load in self.all for each in load.wrong]


class Watch:
    """What the nodes hold: now, most of it, and before."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.fds = {node: descriptors(cluster, node) for node in cluster.ids}
        self.mb = {node: resident_mb(cluster, node) for node in cluster.ids}
        self.most_fds = 0
        self.most_mb = 0.0

    def begin(self) -> None:
        """Most descriptors from now on."""
        self.most_fds = 0

    def more_fds(self) -> int:
        """The fewest that any node has more than before."""
        return min(descriptors(self._cluster, node) - self.fds[node] for node in self._cluster.ids)

    def look(self) -> None:
        for node in self._cluster.ids:
            self.most_fds = max(self.most_fds, descriptors(self._cluster, node) - self.fds[node])
            self.most_mb = max(self.most_mb, resident_mb(self._cluster, node) - self.mb[node])

    def left_over_mb(self) -> float:
        return max(resident_mb(self._cluster, node) - self.mb[node] for node in self._cluster.ids)

    def back_to_normal(self) -> None:
        cluster = self._cluster
        eventually(
            lambda: all(descriptors(cluster, node) <= self.fds[node] for node in cluster.ids),
            20,
            "descriptors are closed",
        )


def descriptors(cluster: Cluster, node: int) -> int:
    return len(list(Path(f"/proc/{cluster.processes[node].pid}/fd").iterdir()))


def resident_mb(cluster: Cluster, node: int) -> float:
    status = Path(f"/proc/{cluster.processes[node].pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


def ports_of(cluster: Cluster) -> list[Port]:
    """All that something listens on."""
    ports: list[Port] = []
    for node in cluster.ids:
        for kind in ("raft", "client", "http"):
            number = cluster.addresses[node][f"{kind}_port"]
            with contextlib.suppress(ConnectionRefusedError):
                redis.Connection(port=number)._connect().close()
                ports.append((kind, number))
    return ports


@contextlib.contextmanager
def strangers(plan: Plan, counts: dict[str, int]) -> Iterator[None]:
    """They are there meanwhile; what they did is added to counts at the end."""
    command = [sys.executable, "-m", "tests.fuzz.strangers", msgspec.json.encode(plan).decode()]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield
            assert child.poll() is None, "the strangers ended early"
            said, _ = child.communicate("", timeout=60)  # which closes its standard input
        finally:
            child.kill()
    assert child.returncode == 0
    for name, count in json.loads(said).items():
        counts[name] = counts.get(name, 0) + count


def asked_over_http(number: int) -> str:
    """What a monitor that comes newly gets: "200", or why it gets nothing."""
    probe = http.client.HTTPConnection("127.0.0.1", number, timeout=20)
    try:
        with contextlib.closing(probe):
            probe.request("GET", "/health/live")
            return str(probe.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return repr(error)


@dataclass(frozen=True, slots=True)
class Scene:
    """What every attack has before it. control: how long rounds of the load took while nobody attacked."""

    cluster: Cluster
    loads: Loads
    watch: Watch
    ports: list[Port]
    control: list[float]


class Siege:
    """A cluster, its load, the strangers, and what is measured. max_clients: a node's limit."""

    def __init__(self, directory: Path, max_clients: int, pause_s: float = 0.02) -> None:
        """pause_s: of the peer that floods."""
        self._pause_s = pause_s
        self._directory = directory
        self._max_clients = max_clients
        self.counts: dict[str, int] = {}
        self.figures: dict[str, float] = {}

    def run(self, *, control_s: float, attack_s: float, crowd_s: float, cycles: int = 1) -> None:
        """The phases, the attacks several times; AssertionError if anybody was disturbed."""
        raft = {"election_timeout_ms": [4000, 8000], "heartbeat_interval_ms": 200}
        limits = {"max_clients": self._max_clients}
        with running(self._directory, 3, raft=raft, limits=limits) as cluster:
            leader = cluster.leader()
            term = cluster.info(leader)["term"]
            cluster.execute(leader, "SET", "big", "x" * 500_000)
            loads, ports = Loads(cluster), ports_of(cluster)
            for _ in loads.phase(control_s):
                pass
            watch = Watch(cluster)
            scene = Scene(cluster, loads, watch, ports, loads.phase_s())
            left_over = []
            for _ in range(cycles):
                self._attack(scene, attack_s)
                watch.back_to_normal()
                self._crowd(scene, crowd_s)
                watch.back_to_normal()
                left_over.append(watch.left_over_mb())
                self._keep("rounds", sum(load.count for load in loads.all))
                self._keep("more MB", watch.most_mb)
                self._keep("MB left over", left_over[-1])
            for load in loads.all:
                load.stop()
            assert loads.wrong() == []
            assert watch.most_mb < MOST_MORE_MB, f"{watch.most_mb} MB more"
            assert left_over[-1] <= max(left_over[:2]) + MORE_LATER_MB, f"memory grows: {left_over}"
            for node in cluster.ids:
                assert cluster.info(node)["term"] == term, "there was an election"
            assert cluster.leader() == leader
            cluster.agree()

    def _keep(self, name: str, value: float) -> None:
        self.figures[name] = max(self.figures.get(name, 0), round(value, 1))

    def _attack(self, scene: Scene, seconds: float) -> None:
        """Everything but crowds, with a peer among the strangers."""
        cluster, loads, watch, ports = scene.cluster, scene.loads, scene.watch, scene.ports
        watch.begin()
        leader = cluster.leader()
        (peer_port,) = free_ports(1)
        plan = Plan(ports, peer=PEER, peer_port=peer_port, pause_s=self._pause_s)
        with strangers(plan, self.counts):
            cluster.execute(leader, "RAFT", "ADD", PEER, "127.0.0.1", peer_port, 1, 2)
            answers: Counter[str] = Counter()
            for _ in loads.phase(seconds):
                watch.look()
                web = [number for kind, number in ports if kind == "http"]
                answers.update(map(asked_over_http, web))
            self._undisturbed("attack", scene.control, loads.phase_s())
            cluster.execute(leader, "RAFT", "REMOVE", PEER)
        self._keep("attack: more descriptors", watch.most_fds)
        for answer, count in answers.items():
            self.counts[f"monitor: {answer}"] = self.counts.get(f"monitor: {answer}", 0) + count
        assert watch.most_fds <= 60 + 3 * 128, "descriptors"
        late = sum(
            count for answer, count in answers.items() if answer.startswith("Timeout")
        )  # a busy machine
        assert answers["200"] >= 0.9 * (answers.total() - late), f"a monitor is kept out: {answers}"
        assert late <= answers["200"], f"monitors wait in vain: {answers}"
        assert self.counts.get("peer never reads", 0) >= 1
        assert self.counts.get("peer floods", 0) >= 1

    def _crowd(self, scene: Scene, seconds: float) -> None:
        """Connections that never finish: as many as there may be, and a few more that are refused."""
        cluster, loads, watch = scene.cluster, scene.loads, scene.watch
        watch.begin()
        with strangers(Plan(scene.ports, threads=0, crowd=self._max_clients), self.counts):
            eventually(lambda: watch.more_fds() > 0.8 * self._max_clients, 180, "the crowd has come in")
            for _ in loads.phase(seconds):
                watch.look()
            self._undisturbed("crowd", scene.control, loads.phase_s())
        self._keep("crowd: more descriptors", watch.most_fds)
        assert watch.most_fds <= self._max_clients + 60 + 128, "descriptors"
        for node in cluster.ids:  # a new client is served again as soon as they are gone
            with contextlib.closing(redis.Redis(port=cluster.client_ports[node], socket_timeout=5)) as new:
                eventually(new.ping, 10, "a new client is served")

    def _undisturbed(self, name: str, control: list[float], took: list[float]) -> None:
        """Slower by a factor that only a starved or blocked node passes: it is a shared machine."""
        before, now = statistics.median(control), statistics.median(took)
        for phase, times in (("control", control), (name, took)):
            self._keep(f"{phase}: median ms", 1000 * statistics.median(times))
            self._keep(f"{phase}: most ms", 1000 * times[-1])
        assert now < 50 * before + 0.1, f"{name}: {now:.3f} s instead of {before:.3f} s"
        most = max(10, 50 * control[-1])
        assert took[-1] < most, f"{name}: a round took {took[-1]:.1f} s, most of them {now:.3f} s"


def run_for(minutes: float, max_clients: int) -> int:
    """The same for minutes, for `python -m tests.fuzz live`: cycles of about a minute each."""
    cycles = max(1, round(minutes))
    with tempfile.TemporaryDirectory(prefix="fuzz-live-") as directory:
        siege = Siege(Path(directory), max_clients, pause_s=0.002)
        try:
            siege.run(control_s=10, attack_s=40, crowd_s=15, cycles=cycles)
        finally:
            for name, figure in sorted({**siege.figures, **siege.counts}.items()):
                print(f"{name:28} {figure:>12,}")
    return 0
