"""A disk or a system call fails under a node: it ends loudly, or waits if that is right; nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import eventually, running
from node_support import LIMIT_S, Load, ask_all, word

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
        cluster.ready(victim)
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
