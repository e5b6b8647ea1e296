"""Real node processes for the process tests: start, kill, look inside through the client port, compare.

Every wait has a condition and a deadline; what went wrong is told with the ends of the nodes' logs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis
import yaml

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
_ports = itertools.count(os.getpid() * 131)
# What a healthy run never logs. A test that provokes one of them allows it by name.
TROUBLE = re.compile(r"ERROR|CRITICAL|Traceback|Exception|a command of the leader itself failed")


def free_ports(count: int) -> list[int]:
    """Ports nobody uses now, all different, below the ephemeral range: an outgoing connection must not take
    the port of a node that is down for a moment."""
    found: list[int] = []
    while len(found) < count:
        port = 15_000 + next(_ports) % 17_000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


def eventually(check: Callable[[], T], timeout_s: float = 15.0, what: str = "condition") -> T:
    """The first true value of check(), asked again and again; AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            last = value = check()
            if value:
                return value
        except (redis.RedisError, OSError, AssertionError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} not reached in {timeout_s} s; last seen: {last!r}")
        time.sleep(0.02)


class Cluster:
    """Nodes 1..count in processes of their own under one directory."""

    def __init__(self, directory: Path, count: int = 3, **overrides: dict[str, Any]) -> None:
        """overrides: whole sections merged over the defaults, such as rewards={"interval_ms": 200}."""
        self.directory = directory
        self.ids = list(range(1, count + 1))
        ports = free_ports(3 * count + 1)
        nodes: list[dict[str, Any]] = [
            {"id": n, "host": "127.0.0.1", "raft_port": a, "client_port": b, "http_port": c}
            for n, a, b, c in zip(self.ids, ports[0::3], ports[1::3], ports[2::3], strict=False)
        ]
        self.client_ports: dict[int, int] = {node["id"]: node["client_port"] for node in nodes}
        settings: dict[str, Any] = {
            "cluster": {"name": "test-cluster", "nodes": nodes},
            "raft": {},
            "storage": {"data_dir": str(directory / "data")},
            # Nobody listens here: MongoDB is away unless a test brings it.
            "database": {"uri": f"mongodb://127.0.0.1:{ports[-1]}/?directConnection=true"},
            "rewards": {},
        }
        for section, values in overrides.items():
            settings.setdefault(section, {}).update(values)
        self.config = directory / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.configs: dict[int, Path] = {}  # of nodes that were added later; the founders' never changes
        self.addresses: dict[int, dict[str, Any]] = {node["id"]: node for node in nodes}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.paused_once: set[int] = set()  # client ports of nodes that a test has stopped for a while
        self._clients: dict[int, Any] = {}

    # --- processes ------------------------------------------------------------------------------------

    def start(
        self, *ids: int, before: Sequence[str] = (), program: Sequence[str] = ("super_node.py",)
    ) -> None:
        """Start these nodes (default: all). before: words in front of the command, such as strace and its
        options; program: what Python runs instead of super_node.py."""
        for n in ids or self.ids:
            config = self.configs.get(n, self.config)
            command = [*before, sys.executable, *program, "--id", str(n), "--config", str(config)]
            with (self.directory / f"node-{n}.log").open("ab") as out:
                self.processes[n] = subprocess.Popen(
                    command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
                )

    def prepare(self, node: int) -> list[Any]:
        """A new machine: ports, and a config.yaml that lists it beside the founders. Returns the words of its
        RAFT ADD, without AUTO. It is not started yet."""
        a, b, c = free_ports(3)
        address = {"id": node, "host": "127.0.0.1", "raft_port": a, "client_port": b, "http_port": c}
        settings = yaml.safe_load(self.config.read_text())
        founders = [each for each in settings["cluster"]["nodes"] if each["id"] != node]
        settings["cluster"]["nodes"] = [*founders, address]
        self.configs[node] = self.directory / f"config-{node}.yaml"
        self.configs[node].write_text(yaml.safe_dump(settings))
        self.addresses[node] = address
        self.client_ports[node] = b
        if node in self._clients:
            self._clients.pop(node).close()
        if node not in self.ids:
            self.ids.append(node)
        return ["RAFT", "ADD", node, "127.0.0.1", a, b, c]

    def data(self, node: int) -> Path:
        """The node's data directory."""
        return self.directory / "data" / f"node-{node}"

    def ready(self, *ids: int, timeout_s: float = 30.0) -> None:
        """Wait until these nodes (default: all) answer PING."""
        for n in ids or self.ids:
            eventually(lambda n=n: self.client(n).ping(), timeout_s, f"node {n} answering")  # type: ignore[misc]

    def pause(self, *ids: int) -> None:
        """SIGSTOP, and wait until each process has really stopped."""
        self.paused_once.update(self.client_ports[n] for n in ids if n in self.client_ports)
        for n in ids:
            self.processes[n].send_signal(signal.SIGSTOP)
        for n in ids:
            stat = Path(f"/proc/{self.processes[n].pid}/stat")
            eventually(lambda stat=stat: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", 5, "stopped")  # type: ignore[misc]

    def resume(self, *ids: int) -> None:
        """SIGCONT."""
        for n in ids:
            self.processes[n].send_signal(signal.SIGCONT)

    def exit_code(self, node: int, timeout_s: float = 30.0) -> int:
        """Wait for a node to end by itself. AssertionError if it does not."""
        try:
            return self.processes[node].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"node {node} still runs after {timeout_s} s") from None

    def kill(self, *ids: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to these nodes; after SIGKILL and SIGTERM wait for their end."""
        for n in ids:
            self.processes[n].send_signal(sig)
        if sig in (signal.SIGKILL, signal.SIGTERM):
            for n in ids:
                self.processes[n].wait(25)

    def alive(self) -> list[int]:
        """Nodes whose process runs."""
        return [n for n, process in self.processes.items() if process.poll() is None]

    def stop(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what stands before it, such as strace
            process.wait(10)
        for client in self._clients.values():
            client.close()

    def log_of(self, node: int) -> str:
        """Everything that a node has logged."""
        return (self.directory / f"node-{node}.log").read_text(errors="replace")

    def troubles(self, *allowed: str) -> list[str]:
        """Lines in the nodes' logs that a healthy run does not have, but for those that match allowed."""
        return [
            f"node {n}: {line}"
            for n in self.ids
            if (self.directory / f"node-{n}.log").exists()
            for line in self.log_of(n).splitlines()
            if TROUBLE.search(line) and not any(re.search(pattern, line) for pattern in allowed)
        ]

    # --- looking in -----------------------------------------------------------------------------------

    def client(self, node: int) -> Any:
        """A client of this node only, without retries."""
        if node not in self._clients:
            self._clients[node] = redis.Redis(
                port=self.client_ports[node], socket_timeout=5, decode_responses=True, protocol=2,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            )  # fmt: skip
        return self._clients[node]

    def info(self, node: int) -> dict[str, str]:
        """RAFT INFO as a dict."""
        text = self.client(node).execute_command("RAFT", "INFO")
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def execute(self, node: int, *words: str | int, timeout_s: float = 20.0, idempotent: bool = False) -> Any:
        """A command on one node, sent again after CLUSTERDOWN and BUSY (certainly not executed), and if
        idempotent after INDETERMINATE as well. Raises whatever else is answered."""
        again = ("CLUSTERDOWN", "BUSY", "INDETERMINATE") if idempotent else ("CLUSTERDOWN", "BUSY")
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.client(node).execute_command(*words)
            except redis.RedisError as error:
                if code_of(error) not in again or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def leader(self, timeout_s: float = 20.0) -> int:
        """The node that a majority of the living agree on as their leader, itself included."""

        def agreed() -> int | None:
            seen: dict[int, int] = {}
            for n in self.alive():
                with contextlib.suppress(redis.RedisError, OSError):
                    leader = self.info(n).get("leader_id", "")
                    if leader.isdigit() and int(leader) in self.alive():
                        seen[int(leader)] = seen.get(int(leader), 0) + 1
            best = max(seen, key=lambda n: seen[n], default=None)
            if best is None:
                return None
            info = self.info(best)
            voters = [int(voter) for voter in info["voters"].split(",")]
            agreeing = seen[best] > len(voters) // 2
            return best if agreeing and info["role"] == "leader" else None

        return eventually(agreed, timeout_s, "a leader")  # type: ignore[return-value]

    def digests(self) -> dict[int, list[Any]]:
        """RAFT DIGEST of every living node."""
        return {n: self.client(n).execute_command("RAFT", "DIGEST") for n in self.alive()}

    def followers(self) -> list[int]:
        """The living nodes that do not lead, once there is a leader."""
        leader = self.leader()
        return [n for n in self.alive() if n != leader]

    def agree(self, timeout_s: float = 30.0) -> None:
        """Wait until all living nodes report one digest at one applied index.

        Intervals go on meanwhile, so the indexes only meet now and then: digests are collected by index.
        """
        by_index: dict[int, dict[int, str]] = {}

        def met() -> bool:
            for n, (index, digest) in self.digests().items():
                by_index.setdefault(index, {})[n] = digest
            for index, digests in by_index.items():
                assert_same(index, digests)
            return any(len(digests) == len(self.alive()) for digests in by_index.values())

        eventually(met, timeout_s, "equal digests at one index")


def code_of(error: BaseException) -> str:
    """The first word of an error as the node sent it (redis-py cuts some off); else its type's name."""
    if isinstance(error, redis.exceptions.ClusterDownError):
        return "CLUSTERDOWN"
    if isinstance(error, redis.ResponseError):
        return str(error).split(" ", 1)[0]
    return type(error).__name__


def assert_same(index: int, digests: dict[int, str]) -> None:
    """Two digests at one index must be equal: a difference is never waited out."""
    if len(set(digests.values())) > 1:
        raise RuntimeError(f"replicas differ at index {index}: {digests}")


@contextlib.contextmanager
def running(
    directory: Path, count: int = 3, *, allowed: Sequence[str] = (), **overrides: dict[str, Any]
) -> Iterator[Cluster]:
    """A started cluster; on failure the ends of the logs are printed. At the end nothing may stand in the
    logs that a healthy run does not have, but for lines that match one of allowed."""
    cluster = Cluster(directory, count, **overrides)
    try:
        cluster.start()
        cluster.ready()
        yield cluster
        assert cluster.troubles(*allowed) == []
    except BaseException:
        for n in cluster.ids:
            if (directory / f"node-{n}.log").exists():
                print(f"--- node {n}, end of log\n{cluster.log_of(n)[-5000:]}")
        raise
    finally:
        cluster.stop()
