"""What a client hears when the cluster cannot work, and what a node does that cannot: never silence."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, eventually, running
from node_support import Load, ask_all, connect, pack, read_replies, word

from raft.machine.commands import COMMANDS, Kind

pytestmark = pytest.mark.process

LIMIT_S = 1.2 + 1.0  # two election timeouts of at most 600 ms, and slack for a busy machine
REFUSED = {"CLUSTERDOWN", "INDETERMINATE"}
ARGUMENTS: dict[str, list[str | int]] = {
    "FOLLOWER JOIN": ["w", "1.0"], "FOLLOWER REPORT": ["w", 1, "data"], "FOLLOWER LIST": [],
    "REWARD CLAIM": ["w", 5, "c"], "REWARD TOP": [], "REWARD HISTORY": ["w"], "INTERVAL SHOW": [1],
    "FOLLOWER PARDON": ["w", "why"], "SET": ["k", "v"], "GETEX": ["k"], "MSET": ["k", "v"],
    "MSETNX": ["k", "v"], "EXPIRE": ["k", 9], "PEXPIRE": ["k", 9], "SCAN": [0], "KEYS": ["*"],
    "INCRBY": ["n", 1], "DECRBY": ["n", 1], "INCR": ["n"], "DECR": ["n"], "APPEND": ["k", "v"],
}  # fmt: skip


def every_command() -> list[list[str | int]]:
    """One valid example of each command that reads or writes replicated state."""
    examples: list[list[str | int]] = []
    for spec in COMMANDS.values():
        if spec.kind in (Kind.READ, Kind.WRITE):
            name = spec.name.decode()
            given: list[str | int] = ARGUMENTS.get(name, ["k"] * (abs(spec.arity) - len(name.split())))
            examples.append([*name.split(), *given])
    return examples


def test_the_examples_are_valid(tmp_path: Path) -> None:
    """Else the test below would be content with a syntax error's absence of meaning."""
    with running(tmp_path, count=1) as cluster:
        cluster.leader()
        cluster.execute(1, "FOLLOWER", "JOIN", "w", "1.0")
        replies = ask_all([(cluster.client_ports[1], words) for words in every_command()], 20)
        wrong = [
            (words, reply)
            for words, (reply, _) in zip(every_command(), replies, strict=True)
            if "syntax" in str(reply) or "wrong number" in str(reply) or "unknown" in str(reply)
        ]
        assert wrong == []
        assert len(replies) > 35


@contextmanager
def without_quorum(cluster: Cluster, how: str, survivor: str) -> Iterator[int]:
    """The node that is left when the two others are killed or stopped."""
    leader = cluster.leader()
    left = leader if survivor == "leader" else cluster.followers()[0]
    others = [n for n in cluster.ids if n != left]
    if how == "killed":
        for node in others:
            cluster.processes[node].send_signal(signal.SIGKILL)
    else:
        cluster.pause(*others)
    yield left


@pytest.mark.parametrize(
    ("survivor", "how"), [("leader", "killed"), ("leader", "stopped"), ("follower", "killed")]
)
def test_without_a_quorum_every_command_is_refused_in_time(tmp_path: Path, how: str, survivor: str) -> None:
    with running(tmp_path) as cluster:
        cluster.leader()
        cluster.execute(1, "SET", "k", "v")
        commands = every_command()
        with without_quorum(cluster, how, survivor) as left:
            port = cluster.client_ports[left]
            # At once, while the node may still believe in its leader; and again when it knows better.
            for attempt in range(2):
                answers = ask_all([(port, words) for words in commands], LIMIT_S)
                codes = {word(reply) for reply, _ in answers}
                assert codes <= REFUSED, (attempt, codes)
                if attempt:
                    assert codes == {"CLUSTERDOWN"}
            slowest = max(seconds for _, seconds in answers)
            assert slowest < LIMIT_S
            # A pipeline is refused as a whole just as fast, and what needs no quorum still works.
            with connect(port) as sock:
                sock.sendall(
                    pack(*(("SET" if n % 2 else "GET", *(["p"] + ["v"] * (n % 2))) for n in range(100)))
                )
                assert {word(reply) for reply in read_replies(sock, 100, LIMIT_S)} == {"CLUSTERDOWN"}
            assert cluster.client(left).ping()
            assert cluster.info(left)["role"] != "leader"
            assert cluster.client(left).execute_command("RAFT", "LEADER") is None
            assert "cluster_state:fail" in str(cluster.client(left).execute_command("CLUSTER", "INFO"))
            others = [n for n in cluster.ids if n != left]
            eventually(
                lambda: cluster.info(left)["silent"] == ",".join(map(str, others)),
                10,
                "silent peers in RAFT INFO",
            )
        if how == "killed":
            for node in others:
                cluster.processes[node].wait(10)
            cluster.start(*others)
            cluster.ready(*others)
        else:
            cluster.resume(*others)
        assert cluster.execute(left, "SET", "k", "again", idempotent=True)
        assert cluster.execute(left, "GET", "k") == "again"


def test_certainly_not_executed_means_just_that(tmp_path: Path) -> None:
    """CLUSTERDOWN from a leader that has lost its quorum: the command never appears, whoever leads later."""
    with running(tmp_path) as cluster:
        leader = cluster.leader()
        others = cluster.followers()
        cluster.pause(*others)
        refused: list[str] = []
        number = 0
        while len(refused) < 50:
            keys = [f"no:{number + n}" for n in range(25)]
            number += 25
            answers = ask_all([(cluster.client_ports[leader], ("SET", key, "v")) for key in keys], LIMIT_S)
            assert {word(reply) for reply, _ in answers} <= REFUSED
            refused += [k for k, (r, _) in zip(keys, answers, strict=True) if word(r) == "CLUSTERDOWN"]
        cluster.resume(*others)
        cluster.leader()
        for node in cluster.ids:
            assert set(cluster.execute(node, "MGET", *refused)) == {None}


def test_a_follower_whose_leader_is_stopped_answers_in_time(tmp_path: Path) -> None:
    """The leader's sockets stay open and silent: forwarded commands still get an answer."""
    with running(tmp_path) as cluster:
        leader = cluster.leader()
        followers = cluster.followers()
        cluster.pause(leader)
        ports = [cluster.client_ports[n] for n in followers]
        asked = [(port, words) for port in ports for words in (("SET", "a", 1), ("GET", "a"), ("INCR", "b"))]
        for reply, seconds in ask_all(asked, 10):
            assert seconds < LIMIT_S
            assert word(reply) in {"ok", *REFUSED}, reply
        cluster.resume(leader)
        assert cluster.execute(leader, "SET", "a", "2", idempotent=True)


# --- limits -----------------------------------------------------------------------------------------------


def test_busy_when_too_many_requests_are_pending(tmp_path: Path) -> None:
    """Refused before it was taken: nothing of it is done; and the counter comes back to 0 (BUGS 56)."""
    with running(tmp_path, limits={"max_pending_requests": 20}) as cluster:
        leader = cluster.leader()
        follower = cluster.followers()[0]
        for node in (leader, follower):
            others = [n for n in cluster.ids if n != node]
            cluster.execute(node, "SET", "warm", 1)
            cluster.pause(*others)
            keys = [f"busy:{node}:{n}" for n in range(60)]
            answers = ask_all([(cluster.client_ports[node], ("SET", key, "v")) for key in keys], LIMIT_S)
            codes = [word(reply) for reply, _ in answers]
            assert codes.count("BUSY") >= 30 and set(codes) <= {"BUSY", *REFUSED}, codes
            cluster.resume(*others)
            cluster.leader()
            eventually(lambda node=node: cluster.info(node)["pending_requests"] == "0", 10, "no pending")  # type: ignore[misc]
            busy = [key for key, code in zip(keys, codes, strict=True) if code == "BUSY"]
            assert set(cluster.execute(node, "MGET", *busy)) == {None}
        # A pipeline that is longer than the limit works when nothing else is pending.
        with connect(cluster.client_ports[leader]) as sock:
            sock.sendall(pack(*(("INCR", "long") for _ in range(200))))
            replies = read_replies(sock, 200, 20)
        good = [reply for reply in replies if word(reply) == "ok"]
        assert {word(reply) for reply in replies} <= {"ok", "BUSY"}
        assert good == list(range(1, len(good) + 1)) and good


def test_max_clients(tmp_path: Path) -> None:
    with running(tmp_path, count=1, limits={"max_clients": 5}) as cluster:
        cluster.client(1).close()
        socks: list[socket.socket] = []
        try:

            def full() -> bool:
                socks.append(connect(cluster.client_ports[1]))
                socks[-1].sendall(pack(("PING",)))
                reply = read_replies(socks[-1], 1)[0]
                if word(reply) == "ok":
                    return False
                assert str(reply).startswith("ERR max number of clients reached"), reply
                return True

            eventually(full, 10, "a client refused")
            assert len(socks) in (5, 6)
            for sock in socks[:4]:  # those that were in are served on
                sock.sendall(pack(("PING",)))
                assert read_replies(sock, 1) == [b"PONG"]
        finally:
            for sock in socks:
                sock.close()
        cluster.ready()


# --- starting ---------------------------------------------------------------------------------------------


def refuses(cluster: Cluster, node: int, *words: str) -> None:
    """The node ends at once with exit 1 and one clear line that holds these words."""
    before = len(cluster.log_of(node)) if (cluster.directory / f"node-{node}.log").exists() else 0
    cluster.start(node)
    assert cluster.exit_code(node) == 1
    said = cluster.log_of(node)[before:]
    assert "Traceback" not in said, said
    assert any(all(w in line for w in words) for line in said.splitlines()), said


def test_a_data_directory_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, allowed=["cannot start"]) as cluster:
        cluster.leader()
        cluster.kill(*cluster.ids, sig=signal.SIGTERM)
        data = tmp_path / "data"
        data.joinpath("node-2").rename(data / "real")
        shutil.copytree(data / "node-1", data / "node-2")
        refuses(cluster, 2, "node-2", "belongs to node 1", "wanted node 2")
        shutil.rmtree(data / "node-2")
        data.joinpath("real").rename(data / "node-2")
        settings = yaml.safe_load(cluster.config.read_text())
        settings["cluster"]["name"] = "another"
        cluster.config.write_text(yaml.safe_dump(settings))
        refuses(cluster, 2, "node-2", "'test-cluster'", "wanted node 2 of cluster 'another'")
        settings["cluster"]["name"] = "test-cluster"
        cluster.config.write_text(yaml.safe_dump(settings))
        cluster.start()  # nothing was harmed
        cluster.ready()
        cluster.agree()


def test_a_second_process_on_the_same_data_directory_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, count=1, allowed=["cannot start"]) as cluster:
        cluster.leader()
        first = cluster.processes[1]
        refuses(cluster, 1, "another process is using this data directory")
        cluster.processes[1] = first
        assert cluster.execute(1, "SET", "a", "b")


@pytest.mark.parametrize("key", ["client_port", "raft_port"])
def test_a_taken_port_is_refused(tmp_path: Path, key: str) -> None:
    cluster = Cluster(tmp_path, 3)
    port = yaml.safe_load(cluster.config.read_text())["cluster"]["nodes"][1][key]
    with socket.create_server(("127.0.0.1", port)):
        try:
            refuses(cluster, 2, "cannot start", f"127.0.0.1:{port}", "in use")
        finally:
            cluster.stop()


def test_a_signal_ends_every_node_with_exit_0_under_load(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        cluster.leader()
        with Load(cluster, threads=3) as load:
            load.progress(20)
            for node in cluster.ids:
                cluster.processes[node].send_signal(signal.SIGTERM)
            assert [cluster.exit_code(node) for node in cluster.ids] == [0, 0, 0]
            load.stop()
        cluster.start()
        cluster.ready()
        load.check(cluster)
        cluster.kill(*cluster.ids[1:])  # without a quorum it stops as well
        cluster.processes[1].send_signal(signal.SIGINT)
        assert cluster.exit_code(1) == 0


# --- disks and threads that fail --------------------------------------------------------------------------


@contextmanager
def injected(strace: str, pid: int, fault: str, output: Path) -> Iterator[None]:
    """A fault in the system calls of all threads of a process, from now on."""
    with output.open("wb") as out:
        tracer = subprocess.Popen(
            [strace, "-f", "-qq", "-e", f"inject={fault}", "-p", str(pid)],
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
    with running(
        tmp_path, allowed=["fatal", "Traceback", "Error", "hard-state", "segment preparer failed"]
    ) as cluster:
        leader = cluster.leader()
        victim, other = cluster.followers()
        cluster.execute(leader, "SET", "k", "v")
        with injected(strace, cluster.processes[victim].pid, "fsync:error=EIO", tmp_path / "strace"):
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
