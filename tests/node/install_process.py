"""Tools of the tests in which a node is sent a snapshot: logs that do not reach back, nodes that die in the
middle of receiving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import Cluster, eventually

# Long enough that a busy machine brings no election by itself: a term that rises was made to.
PATIENT = {"election_timeout_ms": [1500, 3000], "heartbeat_interval_ms": 100}
# Snapshots only on request, and log files of two large values.
ON_REQUEST = {"segment_bytes": 65536, "snapshot_every_entries": 10**9}
LARGE = "x" * 40_000
INSTALLED = "installed the snapshot of entry"


def start_of_log(cluster: Cluster, node: int) -> int:
    return int(cluster.info(node)["first_log_index"])


def last_of_log(cluster: Cluster, node: int) -> int:
    return int(cluster.info(node)["last_log_index"])


def outrun(cluster: Cluster, last: int) -> None:
    """Write, and have every living node take snapshots, until no log goes back to the entry behind `last`."""
    leader = cluster.leader()
    for _ in range(2):
        for number in range(4):
            cluster.execute(leader, "SET", f"large:{number}", LARGE)
        for node in cluster.alive():
            assert cluster.client(node).execute_command("RAFT", "SNAPSHOT") == "OK"
    for node in cluster.alive():
        eventually(lambda node=node: start_of_log(cluster, node) > last + 1, 30, "a shorter log")  # type: ignore[misc]


def fill(cluster: Cluster, megabytes: int) -> None:
    """Keys that a snapshot of about so many megabytes comes from; none of them a repetition."""
    leader = cluster.leader()
    for number in range(2 * megabytes):
        text = f"{number:08}" * (512 * 1024 // 8 // 4)
        cluster.client(leader).mset({f"fill:{number}:{part}": text + str(part) for part in range(4)})


def kill_leave(cluster: Cluster, node: int) -> int:
    """Kill a node; the last entry of its log."""
    last = last_of_log(cluster, node)
    cluster.kill(node)
    return last


def installs(cluster: Cluster, node: int) -> int:
    """How many snapshots of others this node has installed so far."""
    return cluster.log_of(node).count(INSTALLED)


def incoming_bytes(cluster: Cluster, node: int) -> int:
    """The size of the file that this node is just receiving; 0 if it receives none."""
    sizes = [0]
    for path in cluster.data(node).glob("*.incoming.tmp"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # just done
            continue
    return max(sizes)


def node_with(patch: str) -> Sequence[str]:
    """What Python runs instead of super_node.py: the same, after a patch. die() is there to be called."""
    return (
        "-c",
        "import os, runpy, signal, sys, time\n"
        "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{patch}\n"
        "sys.argv[0] = 'super_node.py'\n"
        "runpy.run_path('super_node.py', run_name='__main__')",
    )


def wrapped(module: str, name: str, *, before: str = "pass", after: str = "pass") -> str:
    """A patch: a function of a class that does something more before or after itself, with `calls` counted
    from 1. name: Class.method."""
    return (
        f"import {module} as module\n"
        f"original, calls = module.{name}, 0\n"
        "def patched(*args, **options):\n"
        "    global calls\n"
        "    calls += 1\n"
        f"    {before}\n"
        "    result = original(*args, **options)\n"
        f"    {after}\n"
        "    return result\n"
        f"module.{name} = patched"
    )


def memory_kb(cluster: Cluster, node: int, what: str) -> int:
    """VmRSS, or VmHWM (the most since it was reset), of a node."""
    status = Path(f"/proc/{cluster.processes[node].pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what)))


def reset_high_water(cluster: Cluster, node: int) -> None:
    """VmHWM begins anew."""
    Path(f"/proc/{cluster.processes[node].pid}/clear_refs").write_text("5")


def voters(cluster: Cluster, node: int) -> list[str]:
    return cluster.info(node)["voters"].split(",")


def add_words(cluster: Cluster, node: int) -> list[Any]:
    """RAFT ADD of a machine that there is."""
    it = cluster.addresses[node]
    return ["RAFT", "ADD", *(it[key] for key in ("id", "host", "raft_port", "client_port", "http_port"))]
