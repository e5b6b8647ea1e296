"""Writes through followers while their leader dies or hands over: each runs once, hardly one is in doubt."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hiredis
import pytest
from cluster import Cluster, running
from node_support import connect, pack, read_replies, word

pytestmark = pytest.mark.process
CLIENTS_PER_FOLLOWER = 4


class Counting:
    """Clients of the nodes that follow, each with a key of its own that it increments."""

    def __init__(self, cluster: Cluster, nodes: list[int], prefix: str) -> None:
        self.answers: dict[str, list[object]] = {}
        self._stop = threading.Event()
        self._threads = []
        for node in nodes:
            for place in range(CLIENTS_PER_FOLLOWER):
                key = f"{prefix}:{node}:{place}"
                self.answers[key] = []
                port = cluster.client_ports[node]
                self._threads.append(threading.Thread(target=self._run, args=(port, key), daemon=True))
        for thread in self._threads:
            thread.start()

    def _run(self, port: int, key: str) -> None:
        with connect(port) as sock:
            while not self._stop.is_set():
                sock.sendall(pack(("INCR", key), ("GET", key)))
                self.answers[key].append(read_replies(sock, 2))

    def progress(self, more: int) -> None:
        """Wait until every client has had so many more acknowledged."""
        goals = {key: self._ok(key) + more for key in self.answers}
        deadline = time.monotonic() + 30
        while any(self._ok(key) < goal for key, goal in goals.items()):
            assert time.monotonic() < deadline, f"no progress: {self.codes()}"
            time.sleep(0.01)

    def stop(self) -> None:
        """End them all; what is under way is waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a client hangs"

    def codes(self) -> Counter[str]:
        """How many INCRs were answered how."""
        return Counter(word(incr) for answers in self.answers.values() for incr, _ in answers)  # type: ignore[misc]

    def _ok(self, key: str) -> int:
        return sum(word(incr) == "ok" for incr, _ in self.answers[key])  # type: ignore[misc]

    def check(self, cluster: Cluster, node: int) -> None:
        """Each acknowledged INCR counted once, each unknown one at most once, no other at all."""
        for key, answers in self.answers.items():
            least = most = 0
            for incr, got in answers:  # type: ignore[misc]
                code = word(incr)
                assert code in ("ok", "INDETERMINATE", "CLUSTERDOWN", "BUSY"), incr
                least += code == "ok"
                most += code in ("ok", "INDETERMINATE")
                if code == "ok":
                    assert least <= incr <= most, f"{key}: {incr} is not between {least} and {most}"
                    if not isinstance(got, hiredis.ReplyError):
                        assert int(got) == incr
            assert least <= int(cluster.execute(node, "GET", key) or 0) <= most, key


def kill_leader(cluster: Cluster, leader: int) -> None:
    cluster.kill(leader)


def hand_over(cluster: Cluster, leader: int) -> None:
    cluster.execute(leader, "RAFT", "TRANSFER")


def rounds(cluster: Cluster, count: int, trouble: Callable[[Cluster, int], None]) -> Counter[str]:
    """So often trouble for the leader while its followers' clients count. Returns the answers' codes."""
    codes: Counter[str] = Counter()
    for number in range(count):
        leader = cluster.leader()
        counting = Counting(cluster, [n for n in cluster.ids if n != leader], f"{trouble.__name__}:{number}")
        counting.progress(10)
        trouble(cluster, leader)
        counting.progress(10)
        counting.stop()
        codes += counting.codes()
        counting.check(cluster, cluster.leader())
        if leader not in cluster.alive():
            cluster.start(leader)
            cluster.ready(leader)
            counting.check(cluster, leader)
    return codes


@pytest.mark.parametrize("trouble", [kill_leader, hand_over])
def test_increments_through_followers_count_once_and_their_answers_survive_the_leader(
    tmp_path: Path, trouble: Callable[[Cluster, int], None]
) -> None:
    with running(tmp_path) as cluster:
        codes = rounds(cluster, 4, trouble)
        # A machine so slow that no leader comes within two election timeouts is all that may leave a doubt.
        assert codes["INDETERMINATE"] <= CLIENTS_PER_FOLLOWER, codes
        cluster.agree()


def test_a_name_of_a_nodes_own_is_refused_to_clients(tmp_path: Path) -> None:
    with running(tmp_path, count=1) as cluster:
        cluster.leader()
        with connect(cluster.client_ports[1]) as sock:
            sock.sendall(
                pack(("ONCE", "~1.run.1", 1, "INCR", "n"), ("~ONCE", "~1.run.1", 1, "x"), ("GET", "n"))
            )
            first, second, third = read_replies(sock, 3)
        assert "must not begin with '~'" in str(first)
        assert "unknown command" in str(second)
        assert third is None
