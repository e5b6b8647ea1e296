"""Who may vote: a server that has lost its disk has lost its promises, and must not give others.

Node 1 votes; its data directory is called "disk-1". The candidates are 2 and 3.
"""

from __future__ import annotations

import random

import pytest

from raft.core.core import RaftCore
from raft.core.effects import HardState
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server, encode_configuration
from raft.core.messages import Message, RequestVote, RequestVoteResponse
from raft.core.reconfiguration import refuse_disks
from raft.core.state import CoreOptions, Role
from tests.core.lab import TIMEOUT_MAX
from tests.simulation.disk import Disk

FOUNDING = Configuration((1, 2, 3), servers=tuple(Server(n, "h", 1, 2, 3) for n in (1, 2, 3)))
NOOP = Entry(1, 1, EntryKind.NOOP, b"")


def recorded(**names: str) -> Entry:
    """Entry 2: a configuration with these identities."""
    servers = tuple(Server(n, "h", 1, 2, 3, names.get(f"n{n}", "")) for n in (1, 2, 3))
    configuration = Configuration((1, 2, 3), servers=servers, cluster_id="c")
    return Entry(2, 1, EntryKind.CONFIGURATION, encode_configuration(configuration))


def start(node_id: int, *log: Entry) -> RaftCore:
    """A node that starts again with this log."""
    term = log[-1].term if log else 0
    return RaftCore(
        node_id,
        FOUNDING,
        Disk(list(log)),
        hard_state=HardState(term),
        options=CoreOptions(300, 600, 60),
        rng=random.Random(node_id),
        now=0.0,
        identity=f"disk-{node_id}",
        later_configurations=[entry for entry in log if entry.kind == EntryKind.CONFIGURATION],
    )


def take(core: RaftCore) -> list[tuple[int, Message]]:
    return core.take_effects().messages


def requests(core: RaftCore, pre_vote: bool) -> RequestVote:
    """What a candidate asks node 1."""
    if pre_vote:
        core.tick(TIMEOUT_MAX)
    else:
        core.receive(3, RequestVoteResponse(core.state.term + 1, True, True), TIMEOUT_MAX)
    return next(message for peer, message in take(core) if peer == 1 and isinstance(message, RequestVote))


def votes(voter: RaftCore, candidate: RaftCore) -> tuple[bool, bool]:
    """Whether it gives a pre-vote, and whether a vote."""
    granted = []
    for pre_vote in (True, False):
        voter.receive(candidate.state.node_id, requests(candidate, pre_vote), TIMEOUT_MAX)
        ((_, answer),) = take(voter)
        assert isinstance(answer, RequestVoteResponse)
        granted.append(answer.vote_granted)
    return granted[0], granted[1]


YES, NO = (True, True), (False, False)


def test_founding_servers_vote_for_each_other() -> None:
    assert votes(start(1), start(2)) == YES


def test_who_has_lost_its_disk_gives_no_vote() -> None:
    assert votes(start(1), start(2, NOOP, recorded(n1="disk-1-lost", n2="disk-2"))) == NO
    log = NOOP, recorded(n1="disk-1-lost", n2="disk-2")
    assert votes(start(1, *log), start(2, *log)) == NO, "not even once it has the log again"


def test_a_recorded_server_votes() -> None:
    log = NOOP, recorded(n1="disk-1", n2="disk-2")
    assert votes(start(1, *log), start(2, *log)) == YES


@pytest.mark.parametrize("log", [(), (NOOP,)])
def test_a_cluster_whose_first_leader_died_before_it_recorded_anybody_elects_another(
    log: tuple[Entry, ...],
) -> None:
    """All have its no-op: were that proof that this is no founding, nobody could ever vote again."""
    assert votes(start(1, *log), start(2, NOOP)) == YES


def test_no_vote_before_the_identity_is_recorded_once_the_candidate_has_recorded_others() -> None:
    """The voter may have been a member with another disk: its own log cannot tell. If the candidate's does,
    that is as good."""
    assert votes(start(1, NOOP), start(2, NOOP, recorded(n2="disk-2"))) == NO
    assert votes(start(1, NOOP), start(2, NOOP, recorded(n1="disk-1", n2="disk-2"))) == YES


def test_all_three_go_on_after_a_power_cut_in_the_first_moment() -> None:
    cores = {n: start(n, NOOP) for n in (1, 2, 3)}
    now, wire = 0.0, list[tuple[int, int, Message]]()
    while not any(core.state.role is Role.LEADER for core in cores.values()):
        now += 10.0
        assert now < 20 * TIMEOUT_MAX, "no leader"
        for sender, receiver, message in wire:
            cores[receiver].receive(sender, message, now)
        wire = []
        for node_id, core in cores.items():
            core.tick(now)
            wire += [(node_id, peer, message) for peer, message in take(core)]


def test_an_empty_server_that_has_heard_of_a_cluster_founds_no_second_one() -> None:
    """Two of three disks are lost, or two new machines come at once: they are a majority of their list."""
    voter, candidate = start(1), start(2)
    voter.state.founded = True
    assert votes(voter, candidate) == NO
    voter.tick(10 * TIMEOUT_MAX)
    assert not take(voter) and voter.state.role is Role.FOLLOWER
    with_log = start(1, NOOP, recorded(n1="disk-1", n2="disk-2"))
    with_log.state.founded = True
    with_log.tick(TIMEOUT_MAX)
    assert with_log.state.role is Role.PRE_CANDIDATE


def test_who_has_lost_its_disk_does_not_elect_itself_where_it_was_the_only_voter() -> None:
    """It is added again, gets the log from its beginning, and meets a configuration of long ago (simulation,
    seed 41757)."""
    alone = Configuration((1,), servers=(Server(1, "h", 1, 2, 3, "disk-1-lost"),), cluster_id="c")
    old = Entry(2, 1, EntryKind.CONFIGURATION, encode_configuration(alone))
    wiped = start(1, NOOP, old)
    wiped.tick(10 * TIMEOUT_MAX)
    assert (wiped.state.role, wiped.state.term) == (Role.FOLLOWER, 1)
    intact = Configuration((1,), servers=(Server(1, "h", 1, 2, 3, "disk-1"),), cluster_id="c")
    same = start(1, NOOP, Entry(2, 1, EntryKind.CONFIGURATION, encode_configuration(intact)))
    same.tick(10 * TIMEOUT_MAX)
    assert same.state.role is Role.LEADER


def test_the_first_record_names_a_quorum_or_nobody() -> None:
    """Once anyone is recorded, who is not gives no votes: a record of one of three would be the end."""
    before = FOUNDING
    assert refuse_disks(before, before.with_identities({1: "disk-1"}, "c")) is not None
    assert refuse_disks(before, before.with_identities({1: "disk-1", 3: "disk-3"}, "c")) is None
    assert refuse_disks(before, before) is None
