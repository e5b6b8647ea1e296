"""What is measured: nodes of super node, a bare Redis, members of etcd; each a context that cleans up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.processes import HOST, cpu_s, end, free_ports, memory_mb, spawn, until
from bench.rig import Server, talk
from cli.link import Address, Link, LinkLost, error_text
from cli.load import LoadRun, Plan, Request, encode
from cli.status import parse_info

ROOT = Path(__file__).resolve().parent.parent


class Cluster:
    """Nodes 1..count with the settings of the shipped config.yaml but for those given; no MongoDB unless its
    address is among them. Build it with cluster()."""

    def __init__(
        self, path: Path, count: int, program: str, environ: Mapping[str, str], settings: dict[str, Any]
    ) -> None:
        self.path = path
        self.ids = list(range(1, count + 1))
        ports = free_ports(3 * count + 1)
        self.ports = {n: ports[3 * n - 2] for n in self.ids}
        self._program, self._environ = program, environ
        members = [
            {"id": n, "host": HOST, "raft_port": a, "client_port": b, "http_port": c}
            for n, a, b, c in zip(self.ids, ports[0::3], ports[1::3], ports[2::3], strict=False)
        ]
        config: dict[str, Any] = {
            "cluster": {"name": "bench", "nodes": members},
            "storage": {"data_dir": str(path / "data")},
            "database": {"uri": f"mongodb://{HOST}:{ports[-1]}/?directConnection=true"},
        }
        for section, values in settings.items():
            config.setdefault(section, {}).update(values)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, node: int) -> None:
        """Start a node."""
        command = [sys.executable, self._program, "--id", str(node)]
        command += ["--config", str(self.path / "config.yaml")]
        self.processes[node] = spawn(command, self.path / f"node-{node}.log", ROOT, self._environ)

    def kill(self, node: int) -> None:
        """SIGKILL, and wait for its end."""
        self.processes[node].kill()
        self.processes[node].wait()

    def info(self, node: int) -> dict[str, str]:
        """RAFT INFO of a node; empty when it does not answer."""
        try:
            with Link((HOST, self.ports[node]), 2.0) as link:
                answer = link.ask("RAFT", "INFO")
        except LinkLost:
            return {}
        return {} if error_text(answer) else parse_info(str(answer))

    def leader(self) -> int:
        """The node that leads; waits for one that the others follow."""
        found: list[int] = []

        def leads() -> bool:
            infos = {n: self.info(n) for n in self.ids if self.processes[n].poll() is None}
            terms = {n: int(info["term"]) for n, info in infos.items() if info.get("role") == "leader"}
            # One that was deposed may not know it yet: the highest term counts.
            found[:] = sorted(terms, key=lambda n: -terms[n])[:1]
            agree = [info for info in infos.values() if found and info.get("leader_id") == str(found[0])]
            return bool(found) and len(agree) * 2 > len(self.ids)

        until(leads, f"somebody leads (see {self.path})", 60.0)
        return found[0]

    def server(self, *, follower: bool = False) -> Server:
        """Whom to load: the leader, or a follower. Its process comes first, then the others'."""
        first = self.leader()
        if follower:
            first = self.ids[self.ids.index(first) - 1]
        order = [first, *(n for n in self.ids if n != first)]
        return Server(self.ports[first], tuple(self.processes[n].pid for n in order))

    def address(self, node: int) -> Address:
        """Where its clients go."""
        return HOST, self.ports[node]

    def memory_mb(self, node: int) -> float:
        """Resident memory."""
        return memory_mb(self.processes[node].pid)

    def cpu_s(self, node: int) -> float:
        """CPU time taken since its start."""
        return cpu_s(self.processes[node].pid)


@contextmanager
def cluster(
    path: Path,
    count: int = 3,
    program: str = "super_node.py",
    environ: Mapping[str, str] | None = None,
    **settings: dict[str, Any],
) -> Iterator[Cluster]:
    """A running cluster that takes writes. settings: sections of config.yaml. Raises RuntimeError."""
    made = Cluster(path, count, program, environ or {}, settings)
    try:
        for node in made.ids:
            made.start(node)
        port = made.server().port
        until(lambda: talk(port, b"SET a b").startswith(b"+OK"), "the cluster takes a write")
        until(lambda: all(map(made.info, made.ids)), "every node answers", 60.0)
        yield made
    finally:
        end(list(made.processes.values()))


@contextmanager
def bare_redis(path: Path) -> Iterator[Server]:
    """redis-server that syncs its append-only file before it answers; all else as it comes."""
    (path / "redis").mkdir(parents=True)
    port = free_ports(1)[0]
    command = ["redis-server", "--port", str(port), "--dir", str(path / "redis"), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always"]
    process = spawn(command, path / "redis.log")
    try:
        until(lambda: talk(port, b"PING").startswith(b"+PONG"), "redis-server answers")
        yield Server(port, (process.pid,))
    finally:
        end([process])


@contextmanager
def etcd_members(path: Path, count: int = 3) -> Iterator[tuple[Server, list[str]]]:
    """etcd with its default settings; (its leader, the client URLs of all members)."""
    names = [f"m{n}" for n in range(1, count + 1)]
    ports = free_ports(2 * count)
    clients = [f"http://{HOST}:{port}" for port in ports[:count]]
    peers = [f"http://{HOST}:{port}" for port in ports[count:]]
    everyone = ",".join(f"{name}={peer}" for name, peer in zip(names, peers, strict=True))
    processes = []
    try:
        for name, client, peer in zip(names, clients, peers, strict=True):
            command = ["etcd", "--name", name, "--data-dir", str(path / f"etcd-{name}")]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", everyone, "--initial-cluster-token", "bench"]
            processes.append(spawn(command, path / f"etcd-{name}.log"))
        leaders: list[int] = []

        def leads() -> bool:
            leaders[:] = _etcd_leader(clients)
            return len(leaders) == 1

        until(leads, "etcd has a leader", 30.0, 0.3)
        first = leaders[0]
        order = [first, *(n for n in range(count) if n != first)]
        yield Server(ports[first], tuple(processes[n].pid for n in order)), clients
    finally:
        end(processes)


def _etcd_leader(urls: Sequence[str]) -> list[int]:
    command = ["etcdctl", "--endpoints", ",".join(urls), "endpoint", "status", "-w", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}
    )
    if done.returncode:
        return []
    leading = {
        row["Endpoint"] for row in json.loads(done.stdout)
        if row["Status"]["leader"] == row["Status"]["header"]["member_id"]
    }  # fmt: skip
    return [n for n, url in enumerate(urls) if url in leading]


def fill(port: int, keys: int, size: int = 64) -> None:
    """The keys that redis-benchmark -r draws from. Raises RuntimeError if the server refuses one."""
    step = max(1, min(200, 256 * 1024 // (size + 64)))
    value, pieces = b"x" * size, iter(range(0, keys, step))

    def request(_client: int) -> Request:
        first = next(pieces)
        words = [w for n in range(first, min(keys, first + step)) for w in (b"key:%012d" % n, value)]
        return Request(encode(b"MSET", *words), 1, "MSET")

    plan = Plan(clients=4, pipeline=1, seconds=600, requests=-(-keys // step), timeout_s=60)
    outcome = LoadRun([(HOST, port)], plan, request).run()
    if outcome.errors:
        raise RuntimeError(f"filling {keys} keys: {dict(outcome.errors)}")


def missing(*programs: str) -> list[str]:
    """Those that are not installed."""
    return [name for name in programs if shutil.which(name) is None]
