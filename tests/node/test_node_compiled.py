"""What mypyc makes of the sources (cli/compile.py) is the same program: in a cluster of both kinds of nodes,
and under the simulation's invariants."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import ROOT, Cluster, eventually

from cli.compile import MODULES, compile_into

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]  # the compilers take a minute or two
SCHEDULES = 40


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a compiled copy."""
    place = tmp_path_factory.mktemp("compiled") / "compiled"
    told: list[int] = []
    compile_into(place, lambda _what, _total: None, told.append, optimise=0)
    assert sum(told) > len(MODULES), "the bar did not move"
    assert len(list(place.rglob("*.so"))) == len(MODULES) + 2  # what they share, and raft/_syscalls.c
    return place


def python_in(place: Path, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Python where raft is the compiled copy's, and all else the sources'."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def start(cluster: Cluster, node: int, place: Path | None) -> None:
    cluster.start(node, before=("env", f"SUPER_NODE_COMPILED={place or 0}"))


def test_compiled_and_interpreted_nodes_are_one_cluster(compiled: Path, tmp_path: Path) -> None:
    """Each kind leads once; nothing that was answered is lost or done twice, and the machines stay equal."""
    kinds = {1: compiled, 2: None, 3: compiled}
    cluster = Cluster(tmp_path, rewards={"interval_ms": 200}, storage={"snapshot_every_entries": 200})
    try:
        for node, place in kinds.items():
            start(cluster, node, place)
        cluster.ready()
        led: set[bool] = set()
        done = number = 0
        while len(led) < 2:
            leader = cluster.leader()
            led.add(kinds[leader] is not None)
            client = cluster.client(leader)
            for _ in range(100):
                done, number = done + 20, number + 1
                pipe = client.pipeline(transaction=False)
                for _ in range(20):
                    pipe.incr("counter")
                pipe.execute_command("ONCE", "s", number, "INCR", "once")
                assert pipe.execute()[-2:] == [done, number]
            client.set("short", "lived", px=200)
            cluster.kill(leader)
            start(cluster, leader, kinds[leader])
            cluster.ready(leader)
        again = cluster.client(cluster.leader())
        assert again.execute_command("ONCE", "s", number, "INCR", "once") == number
        assert [int(value) for value in again.mget("counter", "once")] == [done, number]
        eventually(lambda: cluster.client(2).get("short") is None, what="the key is gone")
        cluster.agree()
        for node, place in kinds.items():
            assert ("compiled modules from" in cluster.log_of(node)) == (place is not None)
        assert cluster.troubles() == []
    finally:
        cluster.stop()


BROKEN_CLIENT = """
import socket
from raft.clients.connection import Connection
from raft.clients.requests import FastReader, RequestParser

class Owner:
    subscriptions = None
    poked = 0
    def poke(self, connection):
        self.poked += 1

owner, (ours, theirs) = Owner(), socket.socketpair()
connection = Connection(ours, "there", 1, owner, RequestParser(1024, FastReader()))
theirs.close()
connection.send(b"news")
print(connection.failure, owner.poked, Connection.__init__)
"""


def test_a_client_that_is_gone_ends_no_node(compiled: Path) -> None:
    """Found by chaos: the second look at an attribute that had been None before a call was a TypeError, which
    ended the handler. (`make check` has warn_unreachable since, which names such places.)"""
    done = python_in(compiled, "-c", BROKEN_CLIENT)
    assert done.stdout.startswith("sending failed: Broken pipe 1 <slot wrapper"), done.stdout + done.stderr


THE_TESTS_OF_SYSCALLS = """
import sys
import pytest, raft._syscalls, raft.syscalls
assert raft.syscalls.send is raft._syscalls.send
sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", sys.argv[1]]))
"""


def test_the_system_calls_in_c_are_those_of_python(compiled: Path) -> None:
    """All that is tested of raft/syscalls.py, of raft/_syscalls.c."""
    done = python_in(
        compiled, "-c", THE_TESTS_OF_SYSCALLS, str(ROOT / "tests/transport/test_transport_syscalls.py")
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_simulation_finds_nothing_in_it(compiled: Path) -> None:
    """The compiled core, log, desk and key-value store, in this directory before those of the sources."""
    probe = "import raft.core.core, raft.storage.log_store as s; print(raft.core.core.__file__, s.__file__)"
    found = python_in(compiled, "-c", probe).stdout.split()
    assert [Path(each).suffix for each in found] == [".so", ".so"], found
    summary = compiled.parent / "summary.json"
    arguments = ("--seeds", str(SCHEDULES), "--jobs", "1", "--json", str(summary))
    result = python_in(compiled, "-m", "tests.simulation", *arguments, timeout_s=500)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert re.search(rf"{SCHEDULES} of {SCHEDULES} schedules, 0 failed", result.stdout)
    assert json.loads(summary.read_text())
