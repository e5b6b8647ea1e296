"""Nodes die, stop and come back under load: nothing acknowledged is lost, nobody reads the past."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import Cluster, eventually, running
from node_support import (
    Load,
    ask_all,
    check_rule_8,
    connect,
    pack,
    read_replies,
    replay,
    word,
)

pytestmark = pytest.mark.process
INTERVALS = {"interval_ms": 250, "ban_threshold": 1000}


def check_ledger(cluster: Cluster, scratch: Path) -> None:
    """The logs of all nodes tell the same story, in which the ledger adds up. Stops the nodes."""
    check_rule_8(cluster)
    cluster.agree()
    digests = dict(cluster.digests().values())
    cluster.kill(*cluster.alive(), sig=signal.SIGTERM)
    assert [process.returncode for process in cluster.processes.values()] == [0] * len(cluster.ids)
    told = [replay(cluster, node, scratch) for node in cluster.ids]
    shortest = min(len(said.entries) for said in told)
    assert shortest >= max(digests), "an applied entry is not in a log"
    for said in told:
        assert said.entries[: max(digests)] == told[0].entries[: max(digests)], "logs differ"
    # One outcome per (interval, follower) is checked while replaying; here none is left out and sums add up.
    said = told[0]
    earned: Counter[str] = Counter()
    for row in said.outcomes.values():
        earned[row.node] += row.delta
        assert row.delta == {"hit": 10, "missed": -5, "excused": 0}[row.outcome], row
    for row in said.machine.ledger.pull(1_000_000, full=True).rewards:  # type: ignore[union-attr]
        assert row.amount == earned[row.node] == row.earned - row.penalties - row.claimed, row
    numbers = sorted({number for number, _ in said.outcomes})
    assert numbers == list(range(1, len(numbers) + 1)), "an interval was skipped"


def kill_and_restart_leader(cluster: Cluster, load: Load) -> None:
    leader = cluster.leader()
    cluster.kill(leader)
    load.progress()
    cluster.start(leader)
    cluster.ready(leader)


def kill_and_restart_follower(cluster: Cluster, load: Load) -> None:
    follower = cluster.followers()[0]
    cluster.kill(follower)
    load.progress()
    cluster.start(follower)
    cluster.ready(follower)


def kill_all_and_restart(cluster: Cluster, load: Load) -> None:
    for node in cluster.ids:  # not one after the other: all are dead before any is waited for
        cluster.processes[node].send_signal(signal.SIGKILL)
    cluster.kill(*cluster.ids)
    cluster.start()
    cluster.ready()


def pause_leader(cluster: Cluster, load: Load) -> None:
    leader = cluster.leader()
    cluster.pause(leader)
    others = [n for n in cluster.ids if n != leader]
    eventually(lambda: any(cluster.info(n)["role"] == "leader" for n in others), 20, "another leader")
    cluster.resume(leader)


def pause_follower(cluster: Cluster, load: Load) -> None:
    follower = cluster.followers()[0]
    before = load.acked
    cluster.pause(follower)
    eventually(lambda: load.acked > before + 20, 20, "progress without a follower")
    cluster.resume(follower)


def pause_majority(cluster: Cluster, load: Load) -> None:
    stopped = cluster.followers()[:2]
    cluster.pause(*stopped)
    rest = next(n for n in cluster.ids if n not in stopped)
    eventually(lambda: cluster.info(rest)["role"] != "leader", 20, "the leader stepping down")
    cluster.resume(*stopped)


PAUSES = [pause_leader, pause_follower, pause_majority]
DISASTERS = [kill_and_restart_leader, kill_and_restart_follower, kill_all_and_restart, *PAUSES]


@pytest.mark.parametrize("lease_reads", [False, True], ids=["read-index", "lease"])
def test_nothing_acknowledged_is_lost_whatever_dies(tmp_path: Path, lease_reads: bool) -> None:
    """Every disaster in turn, under load, in one life of a cluster: books, digests, logs and ledger agree."""
    with running(tmp_path, rewards=INTERVALS, raft={"lease_reads": lease_reads}) as cluster:
        cluster.leader()
        with Load(cluster) as load:
            load.progress()
            for disaster in DISASTERS if not lease_reads else PAUSES:
                disaster(cluster, load)
                cluster.leader()
                load.progress(20)
            load.stop()
        assert not load.wrong, load.wrong
        load.check(cluster)
        check_ledger(cluster, tmp_path / "replay")


def test_leaders_killed_one_after_the_other(tmp_path: Path) -> None:
    """Three leaders in a row die under load; the next write is acknowledged soon after each."""
    with running(tmp_path, rewards=INTERVALS) as cluster:
        cluster.leader()
        with Load(cluster, threads=3) as load:
            load.progress()
            for _ in range(3):
                leader = cluster.leader()
                survivor = next(n for n in cluster.ids if n != leader)
                cluster.kill(leader)
                died = time.monotonic()
                cluster.execute(survivor, "SET", "after", leader)
                assert time.monotonic() - died < 5, "failover took too long"
                cluster.start(leader)
                cluster.ready(leader)
                load.progress(10)
            load.stop()
        load.check(cluster)
        check_ledger(cluster, tmp_path / "replay")


@contextmanager
def deposed(cluster: Cluster) -> Iterator[tuple[int, int]]:
    """(stopped old leader, new leader)."""
    old = cluster.leader()
    cluster.pause(old)
    try:
        others = [n for n in cluster.ids if n != old]

        def new_leader() -> int | None:
            return next((n for n in others if cluster.info(n)["role"] == "leader"), None)

        yield old, eventually(new_leader, 20, "a new leader")  # type: ignore[misc]
    finally:
        cluster.resume(old)


@pytest.mark.parametrize("lease_reads", [False, True], ids=["read-index", "lease"])
def test_a_deposed_leader_never_serves_the_past(tmp_path: Path, lease_reads: bool) -> None:
    """BUGS 30, 31, 34: reads that wait in a stopped leader's sockets, and reads sent as it wakes up."""
    with running(tmp_path, raft={"lease_reads": lease_reads}) as cluster:
        for number in range(4):
            cluster.execute(cluster.leader(), "SET", "x", f"old {number}")
            leader = cluster.leader()
            port = cluster.client_ports[leader]
            early = [connect(port) for _ in range(8)]
            for sock in early:  # known to the handler threads before it stops
                sock.sendall(pack(("GET", "x")))
                assert read_replies(sock, 1) == [f"old {number}".encode()]
            with deposed(cluster) as (old, new):
                assert old == leader
                for sock in early:
                    sock.sendall(pack(("GET", "x"), ("STRLEN", "x"), ("GET", "x")))
                cluster.execute(new, "SET", "x", f"newer {number}")
            # The old leader runs again: all that it says about x must be the new value, or an error.
            late = ask_all([(port, ("GET", "x"))] * 20, timeout_s=10)
            replies = [reply for sock in early for reply in read_replies(sock, 3)]
            replies += [reply for reply, _ in late]
            for sock in early:
                sock.close()
            allowed = (f"newer {number}".encode(), len(f"newer {number}"))
            wrong = [r for r in replies if word(r) == "ok" and r not in allowed]
            assert not wrong, f"stale: {wrong[:3]}"
            assert {word(r) for r in replies} <= {"ok", "CLUSTERDOWN"}, replies


def test_a_deposed_leaders_writes_are_never_acknowledged_and_lost(tmp_path: Path) -> None:
    """Writes that reach a leader while it is stopped: acknowledged means that they are there."""
    with running(tmp_path) as cluster:
        for number in range(3):
            leader = cluster.leader()
            cluster.execute(leader, "SET", "warm", number)
            socks = [connect(cluster.client_ports[leader]) for _ in range(8)]
            for sock in socks:
                sock.sendall(pack(("PING",)))
                read_replies(sock, 1)
            with deposed(cluster):
                for place, sock in enumerate(socks):
                    sock.sendall(pack(("SET", f"w:{number}:{place}", "mine")))
            answers = {f"w:{number}:{place}": read_replies(sock, 1)[0] for place, sock in enumerate(socks)}
            for sock in socks:
                sock.close()
            for node in cluster.ids:
                for key, reply in answers.items():
                    found = cluster.execute(node, "GET", key)
                    if word(reply) == "ok":
                        assert found == "mine", (node, key)
                    elif word(reply) in ("CLUSTERDOWN", "BUSY"):
                        assert found is None, (node, key, reply)
                    else:
                        assert word(reply) == "INDETERMINATE", reply


def test_a_slow_client_of_a_killed_follower_loses_only_its_own_requests(tmp_path: Path) -> None:
    """A follower dies with forwarded commands under way: each is done once or not at all."""
    with running(tmp_path) as cluster:
        follower = cluster.followers()[0]
        acked: list[int] = []
        done = threading.Event()

        def write() -> None:
            with connect(cluster.client_ports[follower]) as sock:
                while True:
                    try:
                        sock.sendall(pack(("INCR", "c")))
                        (reply,) = read_replies(sock, 1)
                    except OSError:
                        break
                    if word(reply) == "ok":
                        acked.append(reply)
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        eventually(lambda: len(acked) > 50, 20, "some increments")
        cluster.kill(follower)
        assert done.wait(15)
        thread.join()
        assert acked == list(range(1, len(acked) + 1)), "an increment was done twice"
        for node in cluster.alive():
            assert int(cluster.execute(node, "GET", "c")) - len(acked) in (0, 1)


def test_a_node_that_was_away_catches_up(tmp_path: Path) -> None:
    """It gets what it missed from the others, also several megabytes and with its own log restarted."""
    with running(tmp_path) as cluster:
        away = cluster.followers()[0]
        cluster.kill(away)
        rest = cluster.alive()
        for number in range(40):
            cluster.execute(rest[number % 2], "SET", f"big:{number}", str(number) * 100_000)
        cluster.start(away)
        cluster.ready(away)
        cluster.agree()
        for number in range(40):
            assert cluster.execute(away, "STRLEN", f"big:{number}") == len(str(number)) * 100_000
        cluster.kill(*rest)  # both others: what it tells now is its own
        cluster.start(rest[0])
        cluster.leader()
        assert cluster.execute(away, "GET", "big:7") == "7" * 100_000


def test_a_failed_command_is_not_answered_ok_after_all(tmp_path: Path) -> None:
    """A leader without its quorum takes writes and must not acknowledge them when the others are gone."""
    with running(tmp_path) as cluster:
        leader = cluster.leader()
        others = cluster.followers()
        cluster.execute(leader, "SET", "k", "before")
        cluster.pause(*others)
        replies = ask_all([(cluster.client_ports[leader], ("SET", f"k:{n}", "v")) for n in range(5)], 10)
        assert {word(reply) for reply, _ in replies} <= {"INDETERMINATE", "CLUSTERDOWN"}
        cluster.resume(*others)
        cluster.leader()
        for number, (reply, _) in enumerate(replies):
            if word(reply) == "CLUSTERDOWN":
                assert cluster.execute(others[0], "GET", f"k:{number}") is None


def test_a_node_that_returns_under_a_stream_of_writes_is_found_by_its_leader(tmp_path: Path) -> None:
    """Writes so dense that no heartbeat is ever due on its own must not keep a returning node waiting."""
    with running(tmp_path) as cluster:
        cluster.leader()
        away = cluster.followers()[0]
        cluster.kill(away)
        leader = cluster.leader()
        stop = threading.Event()

        def stream() -> None:
            with connect(cluster.client_ports[leader]) as sock:
                while not stop.is_set():
                    sock.sendall(pack(*(("SET", "s", "v") for _ in range(5))))
                    read_replies(sock, 5)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            eventually(lambda: int(cluster.info(leader)["commit_index"]) > 100, what="the stream running")
            cluster.start(away)
            cluster.ready(away)
            eventually(lambda: cluster.info(away)["leader_id"] == str(leader), 5, "the leader being heard")
            goal = int(cluster.info(leader)["commit_index"])
            eventually(lambda: int(cluster.info(away)["applied_index"]) >= goal, 10, "catching up")
        finally:
            stop.set()
            thread.join()
