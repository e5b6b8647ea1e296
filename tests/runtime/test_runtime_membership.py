"""RAFT ADD, PROMOTE and REMOVE on the leader: what is refused, what waits, when it is answered."""

from __future__ import annotations

import random

import pytest

from raft.clients.batch import Batch
from raft.core.core import RaftCore
from raft.core.entry import EntryKind
from raft.core.membership import Configuration, Server
from raft.core.messages import AppendEntriesResponse, RequestVoteResponse
from raft.core.state import CoreOptions, Role
from raft.runtime.load import Load
from raft.runtime.membership import MAX_WAITING, Membership
from tests.runtime.runtime_support import MemoryLog


def server(node_id: int, identity: str = "") -> Server:
    return Server(node_id, "127.0.0.1", 7100 + node_id, 7200 + node_id, 7300 + node_id, identity)


class Leader:
    """Node 1 of a cluster leads; the others are played by the test."""

    def __init__(self, *, voters: int = 3, learners: int = 0, recorded: bool = True) -> None:
        ids = tuple(range(1, voters + learners + 1))
        servers = tuple(server(i, f"disk-{i}" if recorded else "") for i in ids)
        cluster_id = "c" if recorded else ""
        configuration = Configuration(ids[:voters], ids[voters:], servers, cluster_id)
        self.log = MemoryLog([])
        self.now = 1000.0
        self.core = RaftCore(
            1,
            configuration,
            self.log,
            options=CoreOptions(300, 600, 60),
            rng=random.Random(1),
            now=self.now,
            identity="disk-1",
        )
        self.heard: dict[int, str] = {}
        self.load = Load(1000)
        self.membership = Membership(self.core, self.load, lambda: self.heard, "named-by-1")
        self.answers: dict[int, bytes] = {}
        self._elect(voters)

    def _elect(self, voters: int) -> None:
        self.now += 700
        self.core.tick(self.now)
        for pre_vote in (True, False):
            for peer in range(2, voters + 1):
                if self.state.role is not Role.LEADER:
                    response = RequestVoteResponse(1, True, pre_vote)
                    self.core.receive(peer, response, self.now)
            self.settle()
        assert self.state.role is Role.LEADER

    @property
    def state(self):  # type: ignore[no-untyped-def]
        return self.core.state

    def settle(self) -> None:
        """Carry out what the core wants, on a log in memory."""
        while True:
            effects = self.core.take_effects()
            if not effects.log:
                return
            for operation in effects.log:
                self.log.append(operation.entries)  # type: ignore[union-attr]
            self.core.disk_done(self.log.last_index, self.log.term(self.log.last_index), self.now)

    def acknowledge(self, *peers: int) -> None:
        """These peers have the whole log; a turn passes."""
        for peer in peers:
            response = AppendEntriesResponse(self.state.term, True, self.state.log.last_index)
            self.core.receive(peer, response, self.now)
        self.turn()

    def turn(self, after_ms: float = 1.0) -> None:
        self.now += after_ms
        self.core.tick(self.now)
        self.membership.advance(self.now)
        self.settle()

    def ask(self, text: str) -> int:
        """A client's command; returns the number under which its answer will stand in answers."""
        number = len(self.answers) + self.load.taken
        self.load.take(1)

        def done(replies: list[bytes]) -> None:
            self.answers[number] = replies[0]

        batch = Batch.of_commands([text.encode().split()], 1, 2, done)
        self.membership.take(batch, self.now)
        self.settle()
        return number


def add(node_id: int, auto: str = "") -> str:
    port = 7100 + node_id
    return f"RAFT ADD {node_id} 127.0.0.1 {port} {port + 100} {port + 200} {auto}"


def test_an_added_server_is_a_learner_at_once_and_answered_when_committed() -> None:
    leader = Leader()
    leader.acknowledge(2)
    asked = leader.ask(add(4))
    assert leader.state.configuration.learners == (4,)
    assert leader.state.configuration.voters == (1, 2, 3)
    assert asked not in leader.answers
    leader.acknowledge(2)
    assert leader.answers[asked] == b"+OK\r\n"
    assert leader.load.taken == 0


def test_nothing_changes_before_the_first_commit_of_the_term() -> None:
    """BUGS 36: Ongaro's correction of 2015."""
    leader = Leader()
    asked = leader.ask(add(4))
    leader.turn()
    assert leader.state.configuration.learners == ()
    assert asked not in leader.answers  # it waits
    leader.acknowledge(2)
    assert leader.state.configuration.learners == (4,)


def test_changes_wait_for_each_other() -> None:
    leader = Leader()
    leader.acknowledge(2)
    first, second = leader.ask(add(4)), leader.ask(add(5))
    assert leader.state.configuration.learners == (4,)
    leader.acknowledge(2)
    assert leader.answers == {first: b"+OK\r\n"}
    assert leader.state.configuration.learners == (4, 5)
    leader.acknowledge(3)
    assert leader.answers[second] == b"+OK\r\n"


def test_a_removal_is_over_only_when_the_core_has_parted_from_the_server() -> None:
    """The answer may be heard, and the next change asked for, in the very turn of the commit."""
    leader = Leader()
    leader.acknowledge(2, 3)
    first = leader.ask("RAFT REMOVE 3")
    response = AppendEntriesResponse(leader.state.term, True, leader.state.log.last_index)
    leader.core.receive(2, response, leader.now)
    leader.membership.advance(leader.now)
    assert leader.answers[first] == b"+OK\r\n"
    second = leader.ask(add(4))
    leader.turn()
    leader.acknowledge(2)
    assert leader.answers[second] == b"+OK\r\n"


def test_a_change_that_cannot_begin_in_time_is_refused() -> None:
    leader = Leader()
    leader.acknowledge(2)
    leader.ask(add(4))
    late = leader.ask(add(5))
    for _ in range(30):  # peers answer heartbeats but their disks are stuck: nothing is committed
        for peer in (2, 3):
            leader.core.receive(peer, AppendEntriesResponse(leader.state.term, True, 1), leader.now)
        leader.turn(50)
    assert leader.answers[late] == b"-ERR an earlier change is not committed yet\r\n"


def test_too_many_changes_at_once_are_refused() -> None:
    leader = Leader()
    asked = [leader.ask(add(10 + i)) for i in range(MAX_WAITING + 1)]
    assert leader.answers[asked[-1]].startswith(b"-BUSY")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("RAFT ADD x 127.0.0.1 1 2 3", b"-ERR id is not a number\r\n"),
        ("RAFT ADD 4 127.0.0.1 0 2 3", b"-ERR Expected `int` >= 1 - at `$.raft_port`\r\n"),
        ("RAFT ADD 4 bad/host 1 2 3", b"-ERR Expected `str` matching regex"),
        ("RAFT ADD 4 127.0.0.1 7104 7204 7304 NOW", b"-ERR RAFT ADD id host"),
        ("RAFT ADD 2 127.0.0.1 9 9 9", b"-ERR node 2 is a member already, at 127.0.0.1:7102\r\n"),
        ("RAFT ADD 4 127.0.0.1 7102 8 9", b"-ERR 127.0.0.1:7102 is the address of node 2\r\n"),
        ("RAFT PROMOTE 9", b"-ERR node 9 is not a member: see RAFT MEMBERS\r\n"),
        ("RAFT REMOVE 9", b"-ERR node 9 is not a member: see RAFT MEMBERS\r\n"),
        ("RAFT REMOVE", b"-ERR wrong number of arguments for 'raft|remove' command\r\n"),
        ("RAFT PROMOTE 1 2", b"-ERR wrong number of arguments for 'raft|promote' command\r\n"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(command: str, error: bytes) -> None:
    leader = Leader()
    leader.acknowledge(2)
    before = leader.state.log.last_index
    asked = leader.ask(command)
    assert leader.answers[asked].startswith(error)
    assert leader.state.log.last_index == before


def test_what_is_so_already_is_answered_at_once() -> None:
    leader = Leader(learners=1)
    leader.acknowledge(2)
    before = leader.state.log.last_index
    for command in (add(4), add(2), "RAFT PROMOTE 2"):
        assert leader.answers[leader.ask(command)] == b"+OK\r\n"
    assert leader.state.log.last_index == before


def test_a_learner_gets_its_vote_only_once_it_has_caught_up() -> None:
    leader = Leader(learners=1)
    leader.acknowledge(2)
    refused = leader.ask("RAFT PROMOTE 4")
    assert leader.answers[refused].startswith(b"-ERR node 4 has not caught up: it lacks 1 entries")
    leader.acknowledge(4)
    leader.acknowledge(4)  # a whole round, quickly
    asked = leader.ask("RAFT PROMOTE 4")
    assert leader.state.configuration.voters == (1, 2, 3, 4)
    leader.acknowledge(2)  # two of four are no quorum
    assert asked not in leader.answers
    leader.acknowledge(4)
    assert leader.answers[asked] == b"+OK\r\n"


def test_a_learner_that_takes_longer_than_an_election_timeout_for_a_round_is_not_promoted() -> None:
    leader = Leader(learners=1)
    leader.acknowledge(2)
    leader.acknowledge(4)
    for _ in range(5):
        leader.acknowledge(2, 3)
        leader.turn(80)
    leader.acknowledge(4)
    assert leader.answers[leader.ask("RAFT PROMOTE 4")].startswith(b"-ERR node 4 has not caught up")


def test_a_server_whose_identity_is_not_recorded_gets_no_vote() -> None:
    leader = Leader(learners=1, recorded=False)
    leader.heard = {2: "disk-2", 3: "disk-3"}
    leader.acknowledge(2)
    leader.acknowledge(2)
    leader.acknowledge(4)
    leader.acknowledge(4)
    assert leader.answers[leader.ask("RAFT PROMOTE 4")].startswith(b"-ERR node 4 has not caught up")


def test_auto_promotes_without_being_asked() -> None:
    leader = Leader()
    leader.acknowledge(2)
    leader.ask(add(4, "AUTO"))
    leader.heard = {4: "disk-4"}
    for _ in range(4):
        leader.acknowledge(2, 4)
    assert leader.state.configuration.voters == (1, 2, 3, 4)
    assert leader.state.configuration.promote == ()
    assert leader.state.configuration.identity_of(4) == "disk-4"


def test_auto_waits_for_the_identity() -> None:
    """It has caught up before its ADD is committed, so nothing could be recorded yet. A voter that gives no
    vote (election.keeps_its_promises) only makes the quorum larger."""
    leader = Leader()
    leader.acknowledge(2)
    leader.ask(add(4, "AUTO"))
    for _ in range(4):
        leader.acknowledge(4)
    leader.acknowledge(2, 4)
    assert leader.state.configuration.learners == (4,)
    leader.heard = {4: "disk-4"}
    for _ in range(4):
        leader.acknowledge(2, 4)
    assert leader.state.configuration.voters == (1, 2, 3, 4)


def test_the_last_voter_stays() -> None:
    leader = Leader(voters=1)
    assert leader.answers[leader.ask("RAFT REMOVE 1")] == b"-ERR the last voter cannot be removed\r\n"


def test_a_removal_that_would_leave_no_quorum_is_refused() -> None:
    leader = Leader()
    for _ in range(20):
        leader.turn(50)
        leader.acknowledge(2)  # 3 is silent
    refused = leader.answers[leader.ask("RAFT REMOVE 2")]
    assert refused == b"-ERR without node 2 there would be no quorum: node 3 does not answer\r\n"
    leader.ask("RAFT REMOVE 3")
    assert leader.state.configuration.voters == (1, 2)


def test_a_leader_that_removes_itself_says_ok_once_it_is_committed() -> None:
    leader = Leader()
    leader.acknowledge(2, 3)
    asked = leader.ask("RAFT REMOVE 1")
    assert leader.state.role is Role.LEADER  # thesis 4.2.2: it goes on until then, not counting itself
    leader.acknowledge(2)
    assert asked not in leader.answers
    response = AppendEntriesResponse(leader.state.term, True, leader.state.log.last_index)
    leader.core.receive(3, response, leader.now)
    leader.settle()
    assert leader.state.role is Role.FOLLOWER
    leader.membership.leadership_lost()
    assert leader.answers[asked] == b"+OK\r\n"


def test_a_lost_leader_does_not_know_what_became_of_its_change() -> None:
    leader = Leader()
    leader.acknowledge(2)
    taken, waiting = leader.ask(add(4)), leader.ask(add(5))
    leader.membership.leadership_lost()
    assert leader.answers[taken].startswith(b"-INDETERMINATE")
    assert leader.answers[waiting].startswith(b"-CLUSTERDOWN")
    assert leader.load.taken == 0


def test_identities_and_the_clusters_name_are_recorded_when_first_heard() -> None:
    leader = Leader(recorded=False)
    leader.heard = {2: "disk-2"}
    leader.turn()
    assert leader.state.configuration.cluster_id == ""  # nothing before the term's first commit
    leader.acknowledge(2)
    configuration = leader.state.configuration
    assert configuration.cluster_id == "named-by-1"
    assert [each.identity for each in configuration.servers] == ["disk-1", "disk-2", ""]
    leader.heard = {2: "another", 3: "disk-3"}
    leader.acknowledge(2)
    assert [each.identity for each in leader.state.configuration.servers] == ["disk-1", "disk-2", "disk-3"]
    leader.acknowledge(2)
    recorded = [entry for entry in leader.log.stored if entry.kind == EntryKind.CONFIGURATION]
    leader.acknowledge(2)
    leader.acknowledge(3)
    assert len(recorded) == 2
    assert [e for e in leader.log.stored if e.kind == EntryKind.CONFIGURATION] == recorded
