"""The names that the specification gives are real, working parts of RaftNode: three nodes in this process."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually
from node_support import connect, pack, read_replies, word

from raft import RaftNode, raft_node_worker
from raft.config import load_settings


class Nodes:
    """RaftNode objects by id. Stopped with stop()."""

    def __init__(self, directory: Path, count: int = 3, **overrides: dict[str, Any]) -> None:
        raft = {"election_timeout_ms": [600, 1200], "ping_interval_ms": 200}
        settings_of: dict[str, Any] = {"raft": raft, "rewards": {"interval_ms": 300}, **overrides}
        self.cluster = Cluster(directory, count, **settings_of)
        settings = load_settings(self.cluster.config, {})
        self.by_id = {n: RaftNode(n, settings=settings, rng=random.Random(n)) for n in self.cluster.ids}

    def start(self) -> None:
        for node in self.by_id.values():
            node.start()

    def stop(self) -> None:
        for node in self.by_id.values():
            node.stop()

    def leader(self) -> RaftNode:
        """The node that all running nodes take for their leader."""

        def agreed() -> RaftNode | None:
            statuses = [node.status() for node in self.by_id.values()]
            leaders = {status.leader_id for status in statuses}
            terms = {status.term for status in statuses}
            if len(leaders) == 1 and len(terms) == 1 and None not in leaders:
                found = self.by_id[leaders.pop()]  # type: ignore[index]
                return found if found.status().role == "leader" else None
            return None

        return eventually(agreed, 20, "a leader")  # type: ignore[return-value]

    def others(self) -> list[RaftNode]:
        leader = self.leader()
        return [node for node in self.by_id.values() if node is not leader]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("spec"))
    made.start()
    yield made
    made.stop()
    assert [node.exit_code for node in made.by_id.values()] == [0, 0, 0]


def through(node: RaftNode, *commands: tuple[str, ...]) -> list[Any]:
    """The replies to commands, sent through handle_client and a socket pair."""
    ours, theirs = socket.socketpair()
    with ours:
        node.handle_client(theirs, ("127.0.0.1", 5))
        ours.sendall(pack(*commands))
        return read_replies(ours, len(commands), 10)


def works(nodes: Nodes) -> bool:
    """Whether a write on each node succeeds and is read on the next."""
    ids = list(nodes.by_id)
    for place, n in enumerate(ids):
        value = f"{n} {random.random()}"
        if word(through(nodes.by_id[n], ("SET", "works", value))[0]) != "ok":
            return False
        if through(nodes.by_id[ids[(place + 1) % len(ids)]], ("GET", "works")) != [value.encode()]:
            return False
    return True


def test_no_two_nodes_draw_the_same_timeouts(tmp_path: Path) -> None:
    """Equal seeds would mean split votes again and again (hashicorp/raft cda1ee8)."""
    settings = load_settings(Cluster(tmp_path).config, {})
    made = [RaftNode(n, settings=settings) for n in (1, 2, 3, 1)]  # and not the same ones at each start
    assert len({node._rng.random() for node in made}) == 4


def test_the_names_exist(nodes: Nodes) -> None:
    names = (
        "start_election send_request_vote_request reset_election_timeout become_leader reset_election "
        "send_heartbeat handle_append_entries handle_request_vote handle_client ping_nodes has_responded "
        "is_raft_leader send_ping_request start"
    )
    for name in names.split():
        assert callable(getattr(RaftNode, name)), name
    assert callable(raft_node_worker)


def test_nothing_is_opened_before_start(tmp_path: Path) -> None:
    made = Nodes(tmp_path)
    assert not (tmp_path / "data").exists()
    with pytest.raises(OSError):
        connect(made.cluster.client_ports[1], 1)


def test_one_becomes_leader_and_handle_client_serves_resp(nodes: Nodes) -> None:
    leader = nodes.leader()
    assert [n.is_raft_leader(leader.node_id) for n in nodes.by_id.values()] == [True] * 3
    other = nodes.others()[0].node_id
    assert [n.is_raft_leader(other) for n in nodes.by_id.values()] == [False] * 3
    for node in nodes.by_id.values():
        pairs = through(
            node, ("SET", "a", str(node.node_id)), ("GET", "a"), ("INCR", "a"), ("PING",), ("NO",)
        )
        assert pairs[:4] == [b"OK", str(node.node_id).encode(), node.node_id + 1, b"PONG"]
        assert word(pairs[4]) == "ERR"
    assert works(nodes)


def test_has_responded_follows_the_pings(nodes: Nodes) -> None:
    for node in nodes.by_id.values():
        for member in nodes.by_id:
            eventually(lambda node=node, member=member: node.has_responded(member), 10, "an answered ping")  # type: ignore[misc]
        assert not node.has_responded(99)


def test_send_ping_request_sends_a_ping(nodes: Nodes) -> None:
    one, two = nodes.by_id[1], nodes.by_id[2]
    before = one._pings._peers[2].nonce
    one.send_ping_request(2)
    eventually(lambda: one._pings._peers[2].nonce > before, 5, "the ping leaving")
    eventually(lambda: one._pings._peers[2].unanswered == 0, 5, "its answer")
    assert two.has_responded(1)


def test_start_election_before_its_time_disturbs_nobody(nodes: Nodes) -> None:
    leader, term = nodes.leader(), nodes.leader().status().term
    for _ in range(50):
        for node in nodes.by_id.values():
            node.start_election()
    assert works(nodes)
    assert nodes.leader() is leader and leader.status().term == term


def test_send_heartbeat_from_any_thread_is_harmless(nodes: Nodes) -> None:
    def beat() -> None:
        for _ in range(50):
            for node in nodes.by_id.values():
                node.send_heartbeat()

    threads = [threading.Thread(target=beat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert works(nodes)


def test_a_higher_term_makes_a_leader_step_down(nodes: Nodes) -> None:
    """Paper 5.1, through handle_append_entries as a newer leader would send it; then the cluster recovers."""
    leader = nodes.leader()
    status = leader.status()
    newer = status.term + 5
    other = nodes.others()[0].node_id
    leader.handle_append_entries(other, (), 0, term=newer, prev_log_index=0, prev_log_term=0)
    eventually(lambda: leader.status().term >= newer, 5, "the newer term")
    eventually(lambda: nodes.leader().status().term >= newer, 20, "a leader of a newer term still")
    eventually(lambda: works(nodes), 20, "service")


def test_an_old_term_is_refused(nodes: Nodes) -> None:
    """Paper figure 2, AppendEntries step 1: nothing changes."""
    leader = nodes.leader()
    term = leader.status().term
    other = nodes.others()[0].node_id
    for node in nodes.by_id.values():
        sender = other if node.node_id != other else leader.node_id
        node.handle_append_entries(sender, (), 10**9, term=term - 1, prev_log_index=0, prev_log_term=0)
        node.handle_request_vote(term - 1, sender, last_log_index=10**9, last_log_term=term - 1)
    assert works(nodes)
    assert nodes.leader() is leader and leader.status().term == term


def test_a_candidate_cannot_disturb_a_living_leader(nodes: Nodes) -> None:
    """Thesis 4.2.3: who hears its leader gives no vote, whatever the term; no term moves."""
    leader = nodes.leader()
    term = leader.status().term
    follower, third = nodes.others()
    assert works(nodes)
    for pre_vote in (True, False):
        follower.handle_request_vote(
            term + 50, third.node_id, last_log_index=10**9, last_log_term=term + 49, pre_vote=pre_vote
        )
    assert works(nodes)
    assert follower.status().term == term and nodes.leader() is leader


@pytest.mark.parametrize("stranger", [0, 4, 99])
def test_a_stranger_on_the_api_harms_nobody(nodes: Nodes, stranger: int) -> None:
    """A wrong id given by the caller must not end the node (nor move its term)."""
    node = nodes.others()[0]
    term = node.status().term
    node.send_ping_request(stranger)
    node.handle_request_vote(term + 9, stranger, last_log_index=10**9, last_log_term=term + 8, pre_vote=True)
    node.send_request_vote_request(stranger)
    assert works(nodes)
    assert not node.wait(0) and node.exit_code == 0


def test_impossible_append_entries_on_the_api_do_not_end_the_node(nodes: Nodes) -> None:
    """Entries that do not follow each other: refused as from the network, the node lives on."""
    from raft.core.entry import Entry, EntryKind

    node, leader = nodes.others()[0], nodes.leader()
    term = leader.status().term
    gap = (Entry(10**6, term, EntryKind.NOOP, b""),)
    node.handle_append_entries(leader.node_id, gap, 0, term=term, prev_log_index=0, prev_log_term=0)
    assert works(nodes)
    assert not node.wait(0) and node.exit_code == 0


def test_a_campaign_from_silence_to_leadership(tmp_path: Path) -> None:
    """The leader stops: reset_election, start_election, send_request_vote_request, become_leader all do their
    part in the node that wins; a vote that the loser gives is the winner's."""
    made = Nodes(tmp_path)
    called: dict[int, list[str]] = {n: [] for n in made.by_id}
    for n, node in made.by_id.items():
        for name in ("become_leader", "reset_election", "send_request_vote_request", "start_election"):
            watch(node, name, called[n])
    made.start()
    try:
        old = made.leader()
        assert "become_leader" in called[old.node_id]
        for seen in called.values():
            seen.clear()
        old.stop()
        rest = [n for n in made.by_id if n != old.node_id]

        def leading() -> list[int]:
            return [n for n in rest if made.by_id[n].status().role == "leader"]

        (winner,) = eventually(leading, 20, "a new leader")
        loser = next(n for n in rest if n != winner)
        eventually(lambda: made.by_id[loser].is_raft_leader(winner), 10, "the loser following")
        # The request goes out twice at least: for the pre-vote and for the vote.
        assert called[winner].count("send_request_vote_request") >= 2
        assert called[winner].count("become_leader") == 1 and "become_leader" not in called[loser]
        assert "reset_election" in called[loser]
        assert made.by_id[loser].status().voted_for == winner
        assert through(made.by_id[loser], ("SET", "k", "v"), ("GET", "k")) == [b"OK", b"v"]
        eventually(lambda: not made.by_id[winner].has_responded(old.node_id), 10, "the dead not responding")
    finally:
        made.stop()


def watch(node: RaftNode, name: str, calls: list[str]) -> None:
    """Note each call of a method, and let it do its work."""
    method = getattr(node, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return method(*args, **kwargs)

    setattr(node, name, noted)


def test_a_silent_leader_is_suspected_through_its_pings(tmp_path: Path) -> None:
    """ping_nodes brings the election forward: a leader's worker hangs while its connections stay open, and
    the others have a new leader before the shortest election timeout (9 s) could have passed."""
    made = Nodes(tmp_path, raft={"election_timeout_ms": [9000, 10000], "ping_interval_ms": 200})
    made.start()
    release = threading.Event()
    try:
        eventually(lambda: any(n.status().role == "leader" for n in made.by_id.values()), 70, "a leader")
        leader = made.leader()
        others = [n for n in made.by_id.values() if n is not leader]
        eventually(lambda: all(n.is_raft_leader(leader.node_id) for n in others), 20, "all knowing it")
        leader._worker.post(lambda _now: release.wait(60))  # type: ignore[arg-type]
        eventually(lambda: any(n.status().role == "leader" for n in others), 8.5, "a new leader")
        release.set()
        eventually(lambda: leader.status().role == "follower", 10, "the old one stepping down")
    finally:
        release.set()
        made.stop()


def broken_worker(node: RaftNode) -> None:
    def fail(_now: float) -> None:
        raise RuntimeError("injected")

    node._worker.post(fail)


def broken_method(name: str) -> Callable[[RaftNode], None]:
    def spoil(node: RaftNode) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("injected")

        setattr(node, name, fail)

    return spoil


BROKEN = {
    "raft-worker": broken_worker,
    "heartbeat": broken_method("send_heartbeat"),
    "ping": broken_method("send_ping_request"),
    "status": broken_method("publish_status"),
}


@pytest.mark.parametrize("thread", BROKEN)
def test_an_exception_in_any_thread_ends_the_node(
    tmp_path: Path, thread: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 5: wait() returns, the exit code is 1, the log names the thread; the port is free after."""
    made = Nodes(tmp_path, count=3 if thread == "ping" else 1)
    node = made.by_id[1]
    made.start()
    try:
        made.leader()
        BROKEN[thread](node)
        assert node.wait(10), "the node lives on without a thread"
        assert node.exit_code == 1
        expected = "raft-worker" if thread == "status" else thread
        assert any(f"fatal in thread {expected}" in record.getMessage() for record in caplog.records)
    finally:
        made.stop()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", made.cluster.client_ports[1]))
    again_node = RaftNode(1, settings=node.settings)
    again_node.start()  # nothing is left of the dead one: no lock, no port
    again_node.stop()
    assert again_node.exit_code == 0


def test_stop_ends_every_thread_and_twice_is_harmless(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    made = Nodes(tmp_path)
    made.start()
    made.leader()
    made.stop()
    made.stop()
    eventually(
        lambda: not {t for t in threading.enumerate() if t.is_alive()} - before, 10, "all threads ending"
    )
