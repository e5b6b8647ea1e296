"""Disks that hang, fail, fill up or rot under real processes: strace delays and fails the system calls, a
small tmpfs is full. What the node promised stands; what it cannot promise it refuses, in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, eventually, running
from node_support import LIMIT_S, REFUSED, Load, ask_all, word
from test_node_faults import injected

pytestmark = pytest.mark.process

ENDS = ["fatal in thread", "stopped by a fatal fault", "Traceback", "Error", "is the disk ill"]
ELECTION_S = 0.6  # the longest election timeout
SLACK_S = 0.8  # for a busy machine


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("whom", ["leader", "follower"])
def test_a_node_whose_disk_hangs_answers_its_clients_and_ends(
    tmp_path: Path, require_tool: Callable[[str], str], whom: str
) -> None:
    """BUGS 45. Gone within two election timeouts; what was in the log is INDETERMINATE, nothing is served."""
    strace = require_tool("strace")
    with running(tmp_path, allowed=ENDS) as cluster:
        victim = cluster.leader() if whom == "leader" else cluster.followers()[0]
        others = [n for n in cluster.ids if n != victim]
        cluster.execute(victim, "SET", "k", "before")
        port = cluster.client_ports[victim]
        log = next(cluster.data(victim).glob("log-*.seg"))
        with Load(cluster, threads=2) as load:
            load.progress(10)
            hang = "fdatasync:delay_enter=5s"
            began = time.monotonic()
            with injected(strace, cluster.processes[victim].pid, hang, tmp_path / "strace", log):
                questions = [("SET", "k", "hung"), ("GET", "k"), ("INCR", "n"), ("SET", "a", "b")]
                answers = ask_all([(port, words) for words in questions], LIMIT_S + SLACK_S)
                eventually(lambda: refuses(port), 10, "a closed client port")
                took = time.monotonic() - began
                assert cluster.exit_code(victim, 15) == 1  # strace lets no thread go before its delay is over
            assert took < 2 * ELECTION_S + SLACK_S, f"it took {took:.2f} s"
            assert {word(reply) for reply, _ in answers} <= {*REFUSED, "ok"}, answers
            load.progress(20)
            load.stop()
        told = cluster.log_of(victim)
        assert f"{log}: fdatasync has not returned for 1." in told, told[-2000:]
        assert cluster.execute(others[0], "GET", "k") in ("before", "hung")
        cluster.start(victim)
        cluster.ready(victim)
        load.check(cluster)
        cluster.agree()
