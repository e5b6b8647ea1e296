"""A cluster of real nodes, each in its own place of the network, with its own disk, and under watch."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import redis
import yaml

from tests.chaos.books import REWARDS
from tests.chaos.network import Loopback, Network
from tests.node.cluster import ROOT, TROUBLE, Cluster, eventually

ELECTION_S = 0.6  # the longest election timeout
DISK = "256m"
MAX_RSS_MB, MAX_DESCRIPTORS, MAX_THREADS = 200, 150, 50
THREADS = {  # what every node must have, beside a dialer for each peer
    "MainThread", "raft-worker", "election", "heartbeat", "ping", "projector", "segment-preparer",
    "raft-accept", "clients-acceptor", "http",
}  # fmt: skip
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z")
TIMING = {
    "election_timeout_ms": [300, int(ELECTION_S * 1000)],
    "ping_interval_ms": 500,
    "digest_interval_s": 2,
}


@dataclass
class Usage:
    """What a process takes, or the most that any process of a node has taken."""

    rss_mb: float = 0.0
    descriptors: int = 0
    threads: int = 0


def usage_of(pid: int) -> Usage:
    """What a process takes now; zeros if there is none."""
    usage = Usage()
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        found = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
        usage.rss_mb = round(int(found.get("VmRSS", 0)) / 1024, 1)
        usage.threads = int(found.get("Threads", 0))
        usage.descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return usage


@dataclass
class Watch:
    """What happened to processes: who may be dead now, and who died without leave."""

    down: set[int] = field(default_factory=set)  # stopped by the nemesis
    may_die: set[int] = field(default_factory=set)  # the fault allows exit 1
    deaths: list[str] = field(default_factory=list)  # without leave
    usage: dict[int, Usage] = field(default_factory=dict)


class ChaosCluster(Cluster):
    """Nodes 1..count, all in `network`. disks: whether each has a small disk of its own (tmpfs; root);
    clocks: whether their wall clocks can be set; power: whether a kill loses what was not synced."""

    def __init__(
        self, directory: Path, network: Network, count: int, *, disks: bool, clocks: bool, mongo_port: int,
        power: bool = False, **overrides: dict[str, Any],
    ) -> None:  # fmt: skip
        self.network, self.disks, self.clocks, self.power = network, disks, clocks, power
        self.directory = directory
        self.ids = list(range(1, count + 1))
        self.addresses = {n: network.add(n) for n in self.ids}
        self.client_ports = {n: address["client_port"] for n, address in self.addresses.items()}
        settings: dict[str, Any] = {
            "cluster": {"name": "test-cluster", "nodes": list(self.addresses.values())},
            "raft": dict(TIMING),
            "storage": {
                "data_dir": str(directory / "data"), "segment_bytes": 65536, "snapshot_every_entries": 500,
            },
            "database": {"uri": f"mongodb://{network.gateway}:{mongo_port}/?directConnection=true"},
            "rewards": dict(REWARDS),
            "security": {"insecure": True},
        }  # fmt: skip
        for section, values in overrides.items():
            settings.setdefault(section, {}).update(values)
        self.config = directory / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.configs: dict[int, Path] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.paused_once: set[int] = set()
        self._clients: dict[int, Any] = {}
        self.watch = Watch()
        self.ever = set(self.ids)
        self._mounted: list[Path] = []
        self._read_to: dict[
            int, tuple[int, bool]
        ] = {}  # of each log: bytes, whether the last line was excused

    # --- processes ----------------------------------------------------------------------------------------

    def start(self, *ids: int, before: Sequence[str] = (), program: Sequence[str] = ()) -> None:
        """See Cluster. Main thread only: the nodes end with the thread that started them."""
        for n in ids or self.ids:
            self._disk(n)
            environment = dict(os.environ)
            wrapped = self.clocks or self.power or isinstance(self.network, Loopback)
            wrapped = wrapped or "CHAOS_BUG" in environment
            if self.clocks:
                environment["CHAOS_CLOCK"] = str(self._clock(n))
            if self.power:
                environment["CHAOS_POWER"] = "1"
            if isinstance(self.network, Loopback):
                environment["CHAOS_ROUTES"] = str(self.network.routes(n))
            what = program or (["tests/chaos/node_program.py"] if wrapped else ["super_node.py"])
            config = self.configs.get(n, self.config)
            command = [*self.network.prefix(n), *before, sys.executable, *what]
            command += ["--id", str(n), "--config", str(config), "--die-with-parent", str(os.getpid())]
            with (self.directory / f"node-{n}.log").open("ab") as out:
                self.processes[n] = subprocess.Popen(
                    command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True, env=environment
                )
            self.watch.down.discard(n)

    def _disk(self, node: int) -> None:
        place = self.data(node)
        if self.disks and place not in self._mounted:
            place.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "super-node-chaos", str(place)]
            subprocess.run(command, check=True)
            self._mounted.append(place)

    def _clock(self, node: int) -> Path:
        file = self.directory / f"clock-{node}"
        if not file.exists():
            file.write_text("0 0")
        return file

    def set_clock(self, node: int, offset_ms: int = 0, drift: float = 0.0) -> None:
        """Put the node's wall clock that far off, and let its monotonic one run faster by that share."""
        fresh = self.directory / f"clock-{node}.new"
        fresh.write_text(f"{offset_ms} {drift}")
        fresh.rename(self._clock(node))

    def crash(self, node: int) -> None:
        """kill -9, with leave."""
        self.watch.down.add(node)
        process = self.processes[node]
        process.kill()
        process.wait(25)

    def prepare(self, node: int) -> list[Any]:
        """See Cluster."""
        self.addresses[node] = self.network.add(node)
        settings = yaml.safe_load(self.config.read_text())
        settings["cluster"]["nodes"] = [
            *(each for each in settings["cluster"]["nodes"] if each["id"] != node), self.addresses[node],
        ]  # fmt: skip
        self.configs[node] = self.directory / f"config-{node}.yaml"
        self.configs[node].write_text(yaml.safe_dump(settings))
        self.ever.add(node)
        if node not in self.ids:
            self.ids.append(node)
        return self.words_to_add(node)

    def words_to_add(self, node: int) -> list[Any]:
        """RAFT ADD for a node that has its place."""
        address = self.addresses[node]
        keys = ("id", "host", "raft_port", "client_port", "http_port")
        return ["RAFT", "ADD", *(address[key] for key in keys), "AUTO"]

    def forget(self, node: int) -> None:
        """The node was removed: end it; its logs stay."""
        if node in self.processes:
            self.crash(node)
            del self.processes[node]
        self.client_ports.pop(node, None)
        if node in self.ids:
            self.ids.remove(node)

    def empty(self, node: int) -> None:
        """A new disk in the place of a lost one. The node must not run."""
        kept = self.directory / f"lost-{node}-{time.monotonic_ns()}"
        kept.mkdir()
        for each in list(self.data(node).iterdir()):
            subprocess.run(["mv", str(each), str(kept)], check=True)
        if not self.disks:
            self.data(node).rmdir()

    def client(self, node: int) -> Any:
        """See Cluster."""
        if node not in self._clients:
            self._clients[node] = redis.Redis(
                host=self.addresses[node]["host"], port=self.addresses[node]["client_port"],
                socket_timeout=5, decode_responses=True, protocol=2,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            )  # fmt: skip
        return self._clients[node]

    def stop(self) -> None:
        """See Cluster; and the disks are taken away."""
        for process in self.processes.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
        super().stop()
        for place in self._mounted:
            subprocess.run(["umount", "-l", str(place)], check=False)

    # --- watching -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Note what the processes take, and who has died without leave."""
        for n, process in self.processes.items():
            code = process.poll()
            if code is None:
                self._measure(n, process.pid)
            elif n not in self.watch.down:
                self.watch.down.add(n)
                if n not in self.watch.may_die:
                    self.watch.deaths.append(f"node {n} ended by itself with exit code {code}")

    def _measure(self, node: int, pid: int) -> None:
        usage, now = self.watch.usage.setdefault(node, Usage()), usage_of(pid)
        usage.rss_mb = max(usage.rss_mb, now.rss_mb)
        usage.threads = max(usage.threads, now.threads)
        usage.descriptors = max(usage.descriptors, now.descriptors)

    def excesses(self) -> list[str]:
        """Nodes that took more than they may."""
        return [
            f"node {n} took {usage.rss_mb:.0f} MB, {usage.descriptors} descriptors, {usage.threads} threads"
            for n, usage in self.watch.usage.items()
            if usage.rss_mb > MAX_RSS_MB or usage.descriptors > MAX_DESCRIPTORS or usage.threads > MAX_THREADS
        ]

    def missing_threads(self, timeout_s: float = 10.0) -> list[str]:
        """Threads that a node should have and has not, told by name. A node that has just started, or has
        just learned of a peer, is given some time."""
        wrong = []
        for n in self.ids:
            wanted = THREADS | {f"raft-dial-{peer}" for peer in self.ids if peer != n}
            missing: set[str] = set()

            def complete(n: int = n, wanted: set[str] = wanted, missing: set[str] = missing) -> bool:
                there = self.info(n)["threads"].split(",")
                missing.clear()
                missing.update(wanted.difference(there))
                if not any(name.startswith("clients-") and name != "clients-acceptor" for name in there):
                    missing.add("a handler of clients")
                return not missing

            try:
                eventually(complete, timeout_s, "all threads")
            except AssertionError as error:
                wrong.append(f"node {n} is without {sorted(missing) or error}")
        return wrong

    def new_troubles(self, excused: Callable[[int, float, str], bool]) -> list[str]:
        """Lines since the last call that no log may have, of nodes that are and that were.

        excused(node, wall clock, line): whether a fault explains it; what follows without a time, such as a
        traceback, goes with it.
        """
        found = []
        for n in sorted(self.ever):
            path = self.directory / f"node-{n}.log"
            if not path.exists():
                continue
            start, allowed = self._read_to.get(n, (0, False))
            with path.open("rb") as file:
                file.seek(start)
                fresh = file.read()
            fresh = fresh[: fresh.rfind(b"\n") + 1]  # the rest is being written
            for line in fresh.decode(errors="replace").splitlines():
                if stamp := _STAMP.match(line):
                    trouble = TROUBLE.search(line) is not None
                    moment = datetime.fromisoformat(stamp[0]).timestamp() if trouble else 0.0
                    allowed = trouble and excused(n, moment, line)
                if TROUBLE.search(line) and not allowed:
                    found.append(f"node {n}: {line}")
            self._read_to[n] = (start + len(fresh), allowed)
        return found

    def answering(self, timeout_s: float = 60.0) -> None:
        """Wait until every node answers PING."""
        for n in list(self.processes):
            eventually(lambda n=n: self.client(n).ping(), timeout_s, f"node {n} answering")  # type: ignore[misc]
