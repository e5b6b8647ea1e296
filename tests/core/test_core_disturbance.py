"""Who may disturb a leader: PreVote (thesis 9.6), stickiness (4.2.3), CheckQuorum (6.2), suspicion."""

from __future__ import annotations

import pytest

from raft.core.effects import HardState
from raft.core.messages import AppendEntriesResponse, RequestVote, RequestVoteResponse
from raft.core.state import CoreOptions, Role
from tests.core.lab import (
    HEARTBEAT,
    TIMEOUT_MAX,
    TIMEOUT_MIN,
    Lab,
    append,
    ask_vote,
    leader_alone,
)


def test_a_pre_vote_is_not_a_vote() -> None:
    lab = Lab(up=[1])
    lab.campaign(1)
    lab.receive(1, 2, RequestVoteResponse(1, True, True))
    lab.receive(1, 3, RequestVoteResponse(1, True, True))
    assert lab.state(1).role is Role.CANDIDATE


def test_asking_for_a_pre_vote_changes_neither_term_nor_vote() -> None:
    lab = Lab(up=[1, 2])
    lab.campaign(1)
    lab.deliver(1, 2)
    for node_id in (1, 2):
        assert (lab.state(node_id).term, lab.state(node_id).voted_for) == (0, None)
    assert lab.sent(2, 1, RequestVoteResponse) == [RequestVoteResponse(1, True, True)]


def test_an_isolated_server_does_not_inflate_its_term() -> None:
    """cockroach 1131; thesis 9.6: it disturbs nobody when it returns."""
    lab = Lab()
    lab.elect(1)
    for _ in range(40):
        lab.advance(HEARTBEAT)
        lab.exchange(1, 2)
        for node_id in (1, 2):
            lab.links[3, node_id].clear()
            lab.links[node_id, 3].clear()
    assert lab.state(3).role is Role.PRE_CANDIDATE
    assert lab.state(3).term == 1
    for _ in range(20):
        lab.advance(HEARTBEAT)
        lab.exchange()
    assert (lab.state(1).role, lab.state(1).term) == (Role.LEADER, 1)
    assert lab.state(3).leader_id == 1


@pytest.mark.parametrize("pre_vote", [True, False])
def test_a_server_that_hears_its_leader_gives_no_vote(pre_vote: bool) -> None:
    lab = Lab(up=[1], hard_states={1: HardState(1)})
    lab.receive(1, 2, append(1, 0, 0))
    lab.now += TIMEOUT_MIN - 1
    answer = ask_vote(lab, 1, 3, RequestVote(9, 3, 9, 8, pre_vote))
    assert answer is None or not answer.vote_granted
    assert lab.state(1).term == 1
    lab.now += 1
    answer = ask_vote(lab, 1, 3, RequestVote(9, 3, 9, 8, pre_vote))
    assert answer is not None and answer.vote_granted


@pytest.mark.parametrize("pre_vote", [True, False])
def test_a_leader_with_a_quorum_lets_nobody_disturb_it(pre_vote: bool) -> None:
    lab = leader_alone()
    answer = ask_vote(lab, 1, 3, RequestVote(9, 3, 9, 8, pre_vote))
    assert answer is None or not answer.vote_granted
    assert (lab.state(1).role, lab.state(1).term) == (Role.LEADER, 1)


@pytest.mark.parametrize("pre_vote", [True, False])
def test_the_known_leader_itself_gets_the_vote_it_asks_for(pre_vote: bool) -> None:
    """hashicorp/raft 497108f: who asks for votes leads no longer, so there is nothing to protect."""
    lab = Lab(up=[1], hard_states={1: HardState(1)})
    lab.receive(1, 2, append(1, 0, 0))
    assert lab.state(1).leader_id == 2
    answer = ask_vote(lab, 1, 2, RequestVote(2, 2, 0, 0, pre_vote))
    assert answer is not None and answer.vote_granted


def test_a_partly_partitioned_server_leaves_a_stable_leader() -> None:
    """Cloudflare 2020: 3 sees 2, but not the leader 1."""
    lab = Lab()
    lab.elect(1)
    terms = set()
    for _ in range(60):
        lab.advance(HEARTBEAT / 2)
        while any(lab.links[link] for link in lab.links):
            lab.links[1, 3].clear()
            lab.links[3, 1].clear()
            lab.exchange(1, 2)
            lab.exchange(2, 3)
        terms.add(lab.state(1).term)
        assert lab.state(1).role is Role.LEADER
    assert terms == {1}


def test_a_leader_without_a_quorum_for_an_election_timeout_steps_down() -> None:
    lab = leader_alone(5)
    lab.advance(TIMEOUT_MAX - 1)
    assert lab.state(1).role is Role.LEADER
    lab.advance(1)
    assert (lab.state(1).role, lab.state(1).term, lab.state(1).leader_id) == (Role.FOLLOWER, 1, None)


def test_a_leader_that_one_follower_of_three_answers_stays() -> None:
    lab = leader_alone()
    for _ in range(30):
        lab.advance(HEARTBEAT)
        lab.receive(1, 2, AppendEntriesResponse(1, True, 1, lab.state(1).round))
    assert lab.state(1).role is Role.LEADER


def test_a_leader_that_was_paused_steps_down_before_it_speaks() -> None:
    lab = leader_alone()
    lab.clear()
    lab.advance(10 * TIMEOUT_MAX)
    assert lab.state(1).role is Role.FOLLOWER
    assert not any(lab.links.values())


# --- suspicion: the node's pings say that the leader is dead --------------------------------------------


def test_a_suspicion_brings_the_election_forward() -> None:
    lab = Lab()
    lab.elect(1)
    lab.exchange()
    lab.crash(1)
    died = lab.now
    for node_id in (2, 3):
        lab.nodes[node_id].suspect(1)
    first = min((2, 3), key=lambda n: lab.nodes[n].running.next_deadline_ms())
    lab.advance(lab.nodes[first].running.next_deadline_ms() - lab.now, first)
    lab.exchange(2, 3)
    assert lab.state(first).role is Role.LEADER
    assert lab.now - died <= HEARTBEAT


def test_a_wrong_suspicion_disturbs_nobody() -> None:
    lab = Lab()
    lab.elect(1)
    lab.exchange()
    lab.nodes[3].suspect(1)
    lab.advance(HEARTBEAT, 3)
    assert lab.state(3).role is Role.PRE_CANDIDATE
    lab.exchange(2, 3)
    lab.advance(HEARTBEAT, 1, 2)
    lab.exchange()
    assert (lab.state(1).role, lab.state(1).term) == (Role.LEADER, 1)
    assert (lab.state(3).role, lab.state(3).leader_id) == (Role.FOLLOWER, 1)


def test_a_suspicion_of_another_node_than_the_leader_changes_nothing() -> None:
    lab = Lab()
    lab.elect(1)
    lab.exchange()
    before = lab.nodes[3].running.next_deadline_ms()
    lab.nodes[3].suspect(2)
    lab.nodes[1].suspect(1)
    assert lab.nodes[3].running.next_deadline_ms() == before
    assert lab.state(1).role is Role.LEADER


def test_the_next_heartbeat_clears_a_suspicion() -> None:
    lab = Lab(up=[1])
    lab.receive(1, 2, append(1, 0, 0))
    lab.nodes[1].suspect(2)
    lab.receive(1, 2, append(1, 0, 0))
    answer = ask_vote(lab, 1, 3, RequestVote(2, 3, 9, 9, True))
    assert answer is not None and not answer.vote_granted
    assert lab.nodes[1].running.next_deadline_ms() >= lab.now + TIMEOUT_MIN


def test_with_lease_reads_a_suspicion_waits_until_the_promise_has_passed() -> None:
    lab = Lab(up=[1], options=CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, lease_reads=True))
    lab.now += TIMEOUT_MAX
    lab.receive(1, 2, append(1, 0, 0))
    lab.nodes[1].suspect(2)
    answer = ask_vote(lab, 1, 3, RequestVote(2, 3, 9, 9, True))
    assert answer is not None and not answer.vote_granted
    lab.advance(TIMEOUT_MIN - 1)
    assert lab.state(1).role is Role.FOLLOWER
    lab.advance(HEARTBEAT + 1)
    assert lab.state(1).role is Role.PRE_CANDIDATE
