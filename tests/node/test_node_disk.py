"""Disks that hang, fail, fill up or rot under real processes: strace delays and fails the system calls, a
small tmpfs is full. What the node promised stands; what it cannot promise it refuses, in time."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from cluster import Cluster, eventually, running
from node_support import LIMIT_S, REFUSED, Load, ask_all, word
from test_node_faults import injected, small_disk

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


# --- a full disk ----------------------------------------------------------------------------------------

FULL = ["waiting for space", "disk is full", "is full: writes are refused", "no space"]
BIG = "x" * 200_000


def is_full(cluster: Cluster, node: int) -> bool:
    return "waiting for space" in cluster.log_of(node)


def fill(cluster: Cluster, through: int, *victims: int) -> None:
    """Write until the victims' disks are full: about one log segment."""
    for number in range(600):
        if all(is_full(cluster, victim) for victim in victims):
            return
        cluster.execute(through, "SET", f"fill:{number % 10}", BIG)
    raise AssertionError("the disk never became full")


def follow(cluster: Cluster, node: int) -> int:
    """Make the node a follower; returns the leader."""
    eventually(lambda: cluster.leader() != node or not hand_over(cluster, node), 20, "another leader")
    return cluster.leader()


def hand_over(cluster: Cluster, node: int) -> bool:
    return bool(cluster.client(node).execute_command("RAFT", "TRANSFER"))


def test_a_follower_with_a_full_disk_goes_on_as_far_as_it_can(tmp_path: Path) -> None:
    """BUGS 46, 47. It hears its leader, passes its clients' commands on, and catches up by itself."""
    with (
        small_disk(tmp_path / "data" / "node-1", "20m") as resize,
        running(tmp_path, allowed=FULL) as cluster,
    ):
        leader = follow(cluster, 1)
        fill(cluster, leader, 1)
        term = cluster.info(1)["term"]
        for number in range(30):
            cluster.execute(leader, "SET", "more", BIG + str(number))
        asked = [("SET", "a", "1"), ("GET", "more"), ("INCR", "n"), ("PING",)]
        for reply, seconds in ask_all([(cluster.client_ports[1], words) for words in asked], 10):
            assert word(reply) == "ok" and seconds < LIMIT_S, (reply, seconds)
        info = cluster.info(1)
        assert (info["term"], info["leader_id"]) == (term, str(leader)), "it took heartbeats for silence"
        behind = int(cluster.info(leader)["commit_index"]) - int(info["commit_index"])
        assert behind > 10, "nothing was refused: this test is about nothing"
        resize("80m")
        eventually(lambda: "there is space on the disk again" in cluster.log_of(1), 10, "space")
        cluster.agree()
        assert cluster.execute(1, "GET", "more") == BIG + "29"
        assert cluster.processes[1].poll() is None


def test_a_leader_with_a_full_disk_hands_over(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "data" / "node-1", "20m") as resize,
        running(tmp_path, allowed=FULL) as cluster,
    ):
        if cluster.leader() != 1:
            cluster.execute(cluster.leader(), "RAFT", "TRANSFER", 1)
        eventually(lambda: cluster.leader() == 1, 10, "node 1 leading")
        for number in range(600):
            reply, seconds = ask_all([(cluster.client_ports[1], ("SET", f"f:{number % 10}", BIG))], 10)[0]
            assert seconds < LIMIT_S + SLACK_S and word(reply) in {"ok", *REFUSED}
            if is_full(cluster, 1):
                break
        eventually(lambda: cluster.leader() != 1, 10, "another leader")
        assert "handing leadership" in cluster.log_of(1)
        assert "stepped down" not in cluster.log_of(1), "nobody had to notice"
        assert cluster.execute(1, "SET", "after", "full") and cluster.execute(1, "GET", "after") == "full"
        resize("80m")
        cluster.agree()
        assert cluster.execute(1, "GET", "after") == "full"


def test_a_majority_of_full_disks_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with (
        small_disk(data / "node-1", "20m") as resize_1,
        small_disk(data / "node-2", "20m") as resize_2,
        running(tmp_path, allowed=FULL) as cluster,
    ):
        cluster.execute(1, "SET", "k", "v")
        number = 0
        while not all(is_full(cluster, node) for node in (1, 2)):
            number += 1
            assert number < 600
            reply, seconds = ask_all([(cluster.client_ports[3], ("SET", f"f:{number % 10}", BIG))], 10)[0]
            assert seconds < LIMIT_S + SLACK_S and word(reply) in {"ok", *REFUSED}, reply

        def refused() -> bool:
            ports = [cluster.client_ports[node] for node in cluster.ids]
            answers = ask_all([(port, ("SET", f"no:{port}", "v")) for port in ports], 10)
            assert all(seconds < LIMIT_S + SLACK_S for _, seconds in answers)
            assert all(word(reply) in REFUSED for reply, _ in answers)
            return all("is full; the command was not executed" in str(reply) for reply, _ in answers)

        eventually(refused, 20, "a clear refusal on every node")
        for _ in range(3):  # it stays so, and reads go on
            assert refused()
            reads = ask_all([(cluster.client_ports[cluster.leader()], ("GET", "k"))] * 3, 10)
            assert [str(reply) for reply, _ in reads] == ["b'v'"] * 3, reads
        resize_1("80m")
        resize_2("80m")
        assert cluster.execute(1, "SET", "k", "later")
        cluster.agree()
        for node in cluster.ids:
            assert cluster.execute(node, "GET", "k") == "later"
            for port in cluster.client_ports.values():
                assert cluster.execute(node, "GET", f"no:{port}") is None


def test_a_node_votes_while_its_disk_is_full(tmp_path: Path) -> None:
    """Term and vote have their file already."""
    with (
        small_disk(tmp_path / "data" / "node-1", "60m") as resize,
        running(tmp_path, allowed=FULL) as cluster,
    ):
        leader = follow(cluster, 1)
        ballast = cluster.data(1) / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        other = next(n for n in (2, 3) if n != leader)
        cluster.kill(leader)
        assert cluster.execute(other, "SET", "later", "yes"), "node 1 and the other are a majority"
        assert "hard-state: the disk is full" not in cluster.log_of(1)
        assert cluster.execute(1, "GET", "later") == "yes"
        resize("100m")
        cluster.start(leader)
        cluster.ready(leader)
        cluster.agree()


# --- OK waits for the disks of a majority ---------------------------------------------------------------


def test_no_ok_leaves_before_a_majority_has_synced(
    tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    """Each fdatasync of both followers takes 150 ms longer: so does each answer. With one it does not."""
    strace = require_tool("strace")
    slow_elections = {"election_timeout_ms": [1500, 3000]}
    with running(tmp_path, raft=slow_elections) as cluster, contextlib.ExitStack() as stack:
        leader = cluster.leader()

        def fastest() -> float:
            answers = []
            for number in range(8):
                (answer,) = ask_all([(cluster.client_ports[leader], ("SET", "k", number))], 10)
                assert word(answer[0]) == "ok"
                answers.append(answer[1])
            return min(answers)

        for number, follower in enumerate(cluster.followers()):
            log = next(cluster.data(follower).glob("log-*.seg"))
            pid = cluster.processes[follower].pid
            delay = "fdatasync:delay_exit=150000"
            stack.enter_context(injected(strace, pid, delay, tmp_path / f"strace-{follower}", log))
            assert (fastest() >= 0.15) is (number == 1)


FILES = {
    "log": ("log-*.seg", "fdatasync"),
    "hard state": ("hard-state.tmp", "fsync"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_failed_sync_ends_the_node_and_is_never_repeated(
    tmp_path: Path, require_tool: Callable[[str], str], kind: str
) -> None:
    """BUGS 51: strace writes down every sync of the file; the one that failed is the last."""
    strace = require_tool("strace")
    pattern, call = FILES[kind]
    with running(tmp_path, allowed=ENDS) as cluster:
        leader = cluster.leader()
        victim = cluster.followers()[0]
        with Load(cluster, threads=2) as load:
            load.progress(10)
            file = next(cluster.data(victim).glob(pattern))
            # The third: those before it succeed, and those after it would.
            when = 3 if kind == "log" else 1
            output = tmp_path / "strace"
            fault = f"{call}:error=EIO:when={when}"
            with injected(strace, cluster.processes[victim].pid, fault, output, file):
                if kind == "hard state":
                    with contextlib.suppress(redis.RedisError):  # if it was to be the victim
                        cluster.execute(leader, "RAFT", "TRANSFER")
                assert cluster.exit_code(victim) == 1
            load.progress(10)
            load.stop()
        syncs = [line for line in output.read_text().splitlines() if "sync(" in line]
        assert sum("(INJECTED)" in line for line in syncs) == 1, syncs
        assert "(INJECTED)" in syncs[-1], syncs
        assert str(file).removesuffix(".tmp") in cluster.log_of(victim)
        cluster.start(victim)
        cluster.ready(victim)
        load.check(cluster)
        cluster.agree()


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_snapshot_that_cannot_be_synced_ends_the_node_and_never_counts(
    tmp_path: Path, require_tool: Callable[[str], str], call: str
) -> None:
    """The child fails; what it wrote goes, the log stays, and the next start takes another."""
    strace = require_tool("strace")
    quiet = {"interval_ms": 600_000}  # nothing else is applied: the file's name is known in advance
    with running(tmp_path, count=1, allowed=[*ENDS, "snapshot of entry"], rewards=quiet) as cluster:
        for number in range(12):
            cluster.execute(1, "SET", f"k:{number}", BIG)
        file = cluster.data(1) / f"snapshot-{cluster.execute(1, 'RAFT', 'DIGEST')[0]:016d}.taking.tmp"
        pid = cluster.processes[1].pid
        with injected(strace, pid, f"{call}:error=EIO", tmp_path / "strace", file):
            with contextlib.suppress(redis.RedisError):
                cluster.client(1).execute_command("RAFT", "SNAPSHOT")
            assert cluster.exit_code(1) == 1
        assert "snapshot" in cluster.log_of(1)[cluster.log_of(1).index("fatal in thread") :]
        assert not list(cluster.data(1).glob("snapshot-*.snap"))
        cluster.start(1)
        cluster.ready(1)
        assert cluster.execute(1, "GET", "k:11") == BIG
        assert cluster.execute(1, "RAFT", "SNAPSHOT") in (True, "OK")
        assert not list(cluster.data(1).glob("*.taking.tmp"))
