"""What the load tests share: a cluster on loopback with its data on a real disk, a bare Redis beside it,
redis-benchmark, and the CPU time that each process took."""

from __future__ import annotations

import csv
import io
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
BASE_PORT = 18100  # below the ephemeral range: nobody's outgoing connection can have it
_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 20.0


@dataclass(frozen=True, slots=True)
class Case:
    """One way to load a server. keys: what -r gets; size: bytes of a value."""

    name: str
    command: str
    clients: int
    pipeline: int = 1
    follower: bool = False
    keys: int = 100_000
    size: int = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. cpu_us: microseconds of CPU per operation and process, in the order of the server's pids."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """What answers on a port, and which processes it takes to do so."""

    port: int
    pids: tuple[int, ...]


def talk(port: int, request: bytes) -> bytes:
    """One inline request, what comes back within a moment. Raises OSError."""
    with socket.create_connection((HOST, port), timeout=2.0) as sock:
        sock.sendall(request + b"\r\n")
        return sock.recv(65536)


@contextmanager
def directory(parent: str | None) -> Iterator[Path]:
    """A temporary directory on a real disk; gone afterwards. ValueError for one in memory."""
    path = Path(tempfile.mkdtemp(prefix="super-node-bench-", dir=parent))
    try:
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True
        ).stdout.strip()
        if kind in ("tmpfs", "ramfs"):
            raise ValueError(f"{path} is in memory ({kind}): fdatasync costs nothing there, give --dir")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def redis_server(path: Path, port: int, *options: str) -> Iterator[Server]:
    """A bare Redis that syncs its append-only file before it answers."""
    (path / "redis").mkdir()
    arguments = ["--port", str(port), "--dir", str(path / "redis"), "--save", "", "--logfile", "redis.log"]
    durable = ["--appendonly", "yes", "--appendfsync", "always"]
    with _process(["redis-server", *arguments, *durable, *options]) as process:
        _until(lambda: talk(port, b"PING").startswith(b"+PONG"), "redis-server answers")
        yield Server(port, (process.pid,))


class Nodes:
    """A running cluster."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], ports: Sequence[int]) -> None:
        self._processes = processes
        self._ports = ports

    def leader(self) -> int:
        """The position of the node that leads. Waits for one."""
        found: list[int] = []

        def leads() -> bool:
            found[:] = [n for n, port in enumerate(self._ports) if b"role:leader" in talk(port, b"RAFT INFO")]
            return len(found) == 1

        _until(leads, "somebody leads")
        return found[0]

    def at(self, *, follower: bool) -> Server:
        """The leader, or a follower; the node that is loaded comes first among the processes."""
        first = self.leader()
        if follower:
            first = (first + 1) % len(self._ports)
        order = [(first + n) % len(self._ports) for n in range(len(self._ports))]
        return Server(self._ports[first], tuple(self._processes[n].pid for n in order))


@contextmanager
def nodes(path: Path, count: int = 3, program: str = "super_node.py", root: Path = ROOT) -> Iterator[Nodes]:
    """A cluster with default settings, but no MongoDB: the log keeps what that would get."""
    ports = [BASE_PORT + 10 * n for n in range(1, count + 1)]
    members = "".join(
        f"    - {{id: {n}, host: {HOST}, raft_port: {port}, client_port: {port + 1}, "
        f"http_port: {port + 2}}}\n"
        for n, port in enumerate(ports, 1)
    )
    config = path / "config.yaml"
    config.write_text(
        f"cluster:\n  name: bench\n  nodes:\n{members}"
        f"storage: {{data_dir: {path / 'data'}}}\n"
        f"database: {{uri: 'mongodb://{HOST}:{BASE_PORT}'}}\n"
        "limits: {max_clients: 10000}\n"
    )
    processes = []
    try:
        for n in range(1, count + 1):
            command = [sys.executable, program, "--id", str(n), "--config", str(config)]
            with (path / f"node-{n}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=root))
        cluster = Nodes(processes, [port + 1 for port in ports])
        leader = cluster.at(follower=False)
        _until(lambda: talk(leader.port, b"SET a b").startswith(b"+OK"), "the cluster takes a write")
        yield cluster
    finally:
        _end(processes)


def run(server: Server, case: Case, requests: int) -> Measured:
    """Load the server once. Raises RuntimeError if redis-benchmark fails or is answered errors."""
    before = [_cpu_s(pid) for pid in server.pids]
    command = [
        "redis-benchmark", "-h", HOST, "-p", str(server.port), "-t", case.command, "--csv",
        "-c", str(case.clients), "-P", str(case.pipeline), "-n", str(requests), "-r", str(case.keys),
        "-d", str(case.size),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    after = [_cpu_s(pid) for pid in server.pids]
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    if done.returncode or not rows or "rror" in done.stderr:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout} {done.stderr}")
    row = rows[-1]
    cpu = tuple(1e6 * (late - early) / requests for early, late in zip(before, after, strict=True))
    return Measured(float(row["rps"]), float(row["p50_latency_ms"]), float(row["p99_latency_ms"]), cpu)


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        _end([process])


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _until(happens: object, what: str) -> None:
    assert callable(happens)
    deadline = time.monotonic() + _START_S
    while True:
        with suppress(OSError):
            if happens():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {_START_S:.0f} s: {what}")
        time.sleep(0.05)
