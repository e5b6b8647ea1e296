"""A disk or a system call fails under a node: it ends loudly, or waits if that is right; nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import Cluster, eventually, running
from node_support import LIMIT_S, REFUSED, Load, ask_all, word

pytestmark = pytest.mark.process


@contextmanager
def injected(strace: str, pid: int, fault: str, output: Path, only: Path | None = None) -> Iterator[None]:
    """A fault in the system calls of all threads of a process, from now on. only: those on this file."""
    where = [] if only is None else ["-P", str(only)]
    with output.open("wb") as out:
        tracer = subprocess.Popen(
            [strace, "-f", "-qq", *where, "-e", f"inject={fault}", "-p", str(pid)],
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        status = Path(f"/proc/{pid}/status")

        def traced() -> bool:
            assert tracer.poll() is None, output.read_text()
            tasks = status.with_name("task").glob("*/status")
            return all(f"TracerPid:\t{tracer.pid}" in task.read_text() for task in tasks)

        eventually(traced, 15, "strace attached")
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)


FAULTS = {
    "fdatasync": ("fdatasync:error=EIO", r"\d+\.log: fsync failed|fsync failed"),
    "write": ("pwrite64:error=EIO", "cannot write"),
    "poll": ("epoll_wait:error=EBADF", "Bad file descriptor"),
}


@pytest.mark.parametrize(
    ("fault", "whom"),
    [("fdatasync", "leader"), ("fdatasync", "follower"), ("write", "follower"), ("poll", "leader")],
)
def test_a_failing_system_call_ends_the_node_and_loses_nothing(
    tmp_path: Path, require_tool: Callable[[str], str], fault: str, whom: str
) -> None:
    strace = require_tool("strace")
    inject, says = FAULTS[fault]
    ends = [
        "fatal in thread",
        "stopped by a fatal fault",
        "Traceback",
        "Error",
        says,
        r"thread clients-\w+ failed",
    ]
    with running(tmp_path, allowed=ends) as cluster:
        victim = cluster.leader() if whom == "leader" else cluster.followers()[0]
        with Load(cluster, threads=3) as load:
            load.progress(20)
            with injected(strace, cluster.processes[victim].pid, inject, tmp_path / "strace"):
                assert cluster.exit_code(victim) == 1
            load.progress(20)
            load.stop()
        log = cluster.log_of(victim)
        assert "fatal in thread" in log
        assert says.split("|")[-1] in log, log[-2000:]
        if fault != "poll":
            assert f"{tmp_path}/data/node-{victim}/" in log[log.index("fatal in thread") :], (
                "the file is not named"
            )
        cluster.start(victim)
        cluster.ready(victim)
        load.check(cluster)
        cluster.agree()


def test_a_vote_that_cannot_be_stored_is_not_given(
    tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    """The hard state's fsync fails in an election: the node ends instead of voting; no majority is left."""
    strace = require_tool("strace")
    with running(tmp_path, allowed=["fatal", "Traceback", "Error", "hard-state"]) as cluster:
        leader = cluster.leader()
        victim, other = cluster.followers()
        cluster.execute(leader, "SET", "k", "v")
        # On that file alone: the segment preparer may still be about its own.
        file = tmp_path / "data" / f"node-{victim}" / "hard-state.tmp"
        with injected(strace, cluster.processes[victim].pid, "fsync:error=EIO", tmp_path / "strace", file):
            cluster.kill(leader)
            assert cluster.exit_code(victim) == 1
        assert "hard-state" in cluster.log_of(victim)
        replies = ask_all([(cluster.client_ports[other], ("GET", "k"))], LIMIT_S)
        assert word(replies[0][0]) == "CLUSTERDOWN"
        cluster.start(victim)
        assert cluster.execute(other, "GET", "k") == "v"


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A tmpfs of that size; the function that is yielded gives it another size."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount")
    where.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "super-node-test", where],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")

    def resize(new: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={new}", where], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def fill(cluster: Cluster, through: int, victim: int) -> None:
    """Write until the victim's disk is full: about one log segment."""
    for number in range(600):
        cluster.execute(through, "SET", f"fill:{number % 10}", "x" * 200_000)
        if "waiting for space" in cluster.log_of(victim):
            return
    raise AssertionError("the disk never became full")


IMPATIENT = (
    "-c",
    "import sys, runpy, raft.node; raft.node.HUNG_TURN_MS = 1500.0; sys.argv[0] = 'super_node.py';"
    "runpy.run_path('super_node.py', run_name='__main__')",
)
FULL = ["waiting for space", "disk is full"]


def test_a_follower_with_a_full_disk_waits_and_recovers(tmp_path: Path) -> None:
    """BUGS 46, 47. Its clients are answered meanwhile, the cluster goes on, and the watchdog over a hanging
    disk (here after 1.5 s instead of 30) lets it live."""
    with small_disk(tmp_path / "data" / "node-1", "20m") as resize:
        with running(tmp_path, allowed=FULL) as cluster:
            cluster.kill(1, sig=signal.SIGTERM)  # so that it does not lead
            cluster.leader()
            cluster.start(1, program=IMPATIENT)
            cluster.ready(1)
            others = [2, 3]
            cluster.leader()
            if cluster.leader() == 1:
                pytest.fail("a node that came later leads")
            fill(cluster, 2, 1)
            full_since = time.monotonic()
            answers = ask_all(
                [(cluster.client_ports[1], w) for w in (("SET", "a", 1), ("GET", "a"), ("PING",))], 10
            )
            assert all(seconds < LIMIT_S for _, seconds in answers), answers
            for node in others:
                assert cluster.execute(node, "SET", "during", node)
            remaining = full_since + 3.0 - time.monotonic()
            with pytest.raises(subprocess.TimeoutExpired):
                cluster.processes[1].wait(remaining)
            resize("80m")
            cluster.agree()
            assert cluster.execute(1, "GET", "during") == "3"
            assert "there is space on the disk again" in cluster.log_of(1)
        assert cluster.processes[1].poll() is not None


def test_a_leader_with_a_full_disk_is_replaced(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "data" / "node-1", "20m") as resize,
        running(tmp_path, allowed=FULL) as cluster,
    ):
        for _ in range(20):
            if (leader := cluster.leader()) == 1:
                break
            cluster.kill(leader, sig=signal.SIGTERM)
            cluster.leader()
            cluster.start(leader)
            cluster.ready(leader)
        assert cluster.leader() == 1
        for _ in range(600):
            reply = ask_all([(cluster.client_ports[1], ("SET", "f", "x" * 200_000))], 10)[0][0]
            if "waiting for space" in cluster.log_of(1):
                break
            assert word(reply) in {"ok", *REFUSED}
        assert "waiting for space" in cluster.log_of(1)
        assert cluster.execute(2, "SET", "after", "full") and cluster.execute(3, "GET", "after") == "full"
        resize("80m")
        cluster.agree()
        assert cluster.execute(1, "GET", "after") == "full"


def test_a_full_disk_at_an_election_is_waited_out(tmp_path: Path) -> None:
    """Term and vote find no space: nothing was promised, so the node waits, as for the log."""
    disk = small_disk(tmp_path / "data" / "node-1", "60m")
    with disk as resize, running(tmp_path, allowed=[*FULL, "No space|no space"]) as cluster:
        for _ in range(20):
            if cluster.leader() != 1:
                break
            cluster.kill(1, sig=signal.SIGTERM)
            cluster.leader()
            cluster.start(1)
            cluster.ready(1)
        leader = cluster.leader()
        ballast = tmp_path / "data" / "node-1" / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        cluster.kill(leader)
        eventually(lambda: "hard-state: the disk is full" in cluster.log_of(1), 20, "the disk being full")
        assert cluster.processes[1].poll() is None, "the node gave up"
        resize("100m")
        assert cluster.execute(1, "SET", "later", "yes")
        cluster.start(leader)
        cluster.ready(leader)
        cluster.agree()
