"""Leader election: paper 5.1, 5.2, 5.4.1; PreVote, thesis 9.6; stickiness, 4.2.3; CheckQuorum, 6.2."""

from __future__ import annotations

import random

import pytest

from raft.core.effects import HardState
from raft.core.messages import AppendEntriesResponse, RequestVote, RequestVoteResponse
from raft.core.state import Role
from tests.core.lab import (
    TIMEOUT_MAX,
    TIMEOUT_MIN,
    Lab,
    append,
    ask_vote,
    leader_alone,
    log_of,
    terms_of,
)


def test_servers_begin_as_followers() -> None:
    lab = Lab()
    assert [lab.state(n).role for n in (1, 2, 3)] == [Role.FOLLOWER] * 3
    assert [lab.state(n).term for n in (1, 2, 3)] == [0, 0, 0]


def test_a_follower_that_hears_nothing_for_an_election_timeout_asks_for_votes() -> None:
    lab = Lab(up=[1])
    deadline = lab.nodes[1].running.next_deadline_ms()
    lab.advance(deadline - lab.now - 1)
    assert lab.state(1).role is Role.FOLLOWER
    lab.advance(1)
    assert lab.state(1).role is Role.PRE_CANDIDATE
    assert lab.sent(1, 2, RequestVote) == [RequestVote(1, 1, 0, 0, True, founding=True)]


def test_election_timeouts_lie_in_the_interval_and_differ_by_seed() -> None:
    timeouts = set()
    for seed in range(50):
        lab = Lab(up=[])
        lab.nodes[1].start(random.Random(seed))
        timeouts.add(lab.nodes[1].running.next_deadline_ms() - lab.now)
    assert len(timeouts) == 50
    assert all(TIMEOUT_MIN <= timeout <= TIMEOUT_MAX for timeout in timeouts)
    assert max(timeouts) - min(timeouts) > (TIMEOUT_MAX - TIMEOUT_MIN) / 2


def test_a_new_timeout_is_drawn_for_every_campaign() -> None:
    lab = Lab(up=[1])
    timeouts = set()
    for _ in range(10):
        deadline = lab.nodes[1].running.next_deadline_ms()
        timeouts.add(deadline - lab.now)
        lab.advance(deadline - lab.now)
    assert len(timeouts) == 10


def test_a_candidate_wins_with_votes_from_a_majority() -> None:
    lab = Lab(5, up=[1])
    lab.campaign(1)
    for pre_vote, role in ((True, Role.CANDIDATE), (False, Role.LEADER)):
        lab.receive(1, 2, RequestVoteResponse(1, True, pre_vote))
        assert lab.state(1).role is not role
        lab.receive(1, 3, RequestVoteResponse(1, True, pre_vote))
        assert lab.state(1).role is role


def test_a_vote_that_arrives_twice_counts_once() -> None:
    lab = Lab(5, up=[1])
    lab.campaign(1)
    lab.receive(1, 2, RequestVoteResponse(1, True, True))
    lab.receive(1, 2, RequestVoteResponse(1, True, True))
    assert lab.state(1).role is Role.PRE_CANDIDATE
    lab.receive(1, 3, RequestVoteResponse(1, True, True))
    lab.receive(1, 2, RequestVoteResponse(1, True))
    lab.receive(1, 2, RequestVoteResponse(1, True))
    assert lab.state(1).role is Role.CANDIDATE


@pytest.mark.parametrize("voters, others_needed", [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)])
def test_a_quorum_is_more_than_half_of_the_voters_also_of_an_even_number(
    voters: int, others_needed: int
) -> None:
    lab = Lab(voters, up=[1])
    lab.campaign(1)
    for pre_vote in (True, False):
        for peer in range(2, 2 + others_needed):
            assert lab.state(1).role is not Role.LEADER
            lab.receive(1, peer, RequestVoteResponse(1, True, pre_vote))
    assert lab.state(1).role is Role.LEADER
    assert lab.configuration.quorum() == others_needed + 1


def test_a_server_grants_at_most_one_vote_per_term() -> None:
    lab = Lab(up=[1])
    assert ask_vote(lab, 1, 2, RequestVote(1, 2, 0, 0)) == RequestVoteResponse(1, True)
    assert ask_vote(lab, 1, 3, RequestVote(1, 3, 0, 0)) == RequestVoteResponse(1, False)
    assert ask_vote(lab, 1, 2, RequestVote(1, 2, 0, 0)) == RequestVoteResponse(1, True), "a repetition"


def test_a_candidate_has_voted_for_itself() -> None:
    lab = Lab(up=[1])
    lab.campaign(1)
    lab.receive(1, 2, RequestVoteResponse(1, True, True))
    assert lab.nodes[1].disk.hard_state == HardState(1, 1)
    assert ask_vote(lab, 1, 3, RequestVote(1, 3, 9, 9)) == RequestVoteResponse(1, False)


def test_the_vote_is_on_disk_before_it_is_given() -> None:
    lab = Lab(up=[1])
    assert lab.receive(1, 2, RequestVote(1, 2, 0, 0)) == ["hard state", "message"]
    assert lab.nodes[1].disk.hard_state == HardState(1, 2)


def test_the_candidates_own_vote_is_on_disk_before_it_asks_for_others() -> None:
    lab = Lab(up=[1])
    lab.campaign(1)
    steps = lab.receive(1, 2, RequestVoteResponse(1, True, True))
    assert steps == ["hard state", "message", "message"]


def test_a_restarted_server_remembers_its_vote_and_term() -> None:
    lab = Lab(up=[1])
    ask_vote(lab, 1, 2, RequestVote(4, 2, 0, 0))
    lab.crash(1)
    lab.start(1)
    assert ask_vote(lab, 1, 3, RequestVote(4, 3, 9, 3)) == RequestVoteResponse(4, False)
    assert ask_vote(lab, 1, 3, RequestVote(3, 3, 9, 2)) == RequestVoteResponse(4, False)
    assert ask_vote(lab, 1, 2, RequestVote(4, 2, 0, 0)) == RequestVoteResponse(4, True)


def test_after_a_full_restart_no_log_that_lacks_a_committed_entry_wins() -> None:
    """PySyncObj 202: term and vote were lost, and the stale log won."""
    lab = Lab()
    lab.elect(1)
    lab.exchange()
    lab.propose(1, b"kept")
    lab.exchange(1, 2)
    assert lab.state(1).commit_index == 2
    for node_id in (1, 2, 3):
        lab.crash(node_id)
    lab.clear()
    for node_id in (1, 2, 3):
        lab.start(node_id)
        assert lab.state(node_id).term == 1
    lab.campaign(3)
    lab.exchange()
    assert lab.state(3).role is not Role.LEADER
    lab.elect(2)
    assert lab.state(2).term > 1
    assert lab.log_terms(3)[:2] == [1, 1]


def test_a_log_ahead_of_the_stored_term_is_refused_at_start() -> None:
    with pytest.raises(Exception, match="ahead of the stored term"):
        Lab(up=[1], logs={1: [1, 3]}, hard_states={1: HardState(2)})


def test_the_vote_survives_a_step_down_within_the_term() -> None:
    lab = Lab(up=[1])
    lab.campaign(1)
    lab.receive(1, 2, RequestVoteResponse(1, True, True))
    lab.receive(1, 3, append(1, 0, 0, leader=3))
    assert (lab.state(1).role, lab.state(1).leader_id) == (Role.FOLLOWER, 3)
    assert lab.state(1).voted_for == 1
    assert lab.nodes[1].disk.hard_state == HardState(1, 1)


def test_the_vote_survives_a_leaders_step_down_for_want_of_a_quorum() -> None:
    lab = leader_alone()
    lab.advance(TIMEOUT_MAX)
    assert lab.state(1).role is Role.FOLLOWER
    assert (lab.state(1).term, lab.state(1).voted_for) == (1, 1)
    lab.advance(0)
    assert ask_vote(lab, 1, 2, RequestVote(1, 2, 9, 1)) == RequestVoteResponse(1, False)


def test_a_server_with_a_stale_term_is_answered_with_the_newer_one() -> None:
    lab = Lab(up=[1], hard_states={1: HardState(5)})
    assert ask_vote(lab, 1, 2, RequestVote(4, 2, 9, 4)) == RequestVoteResponse(5, False)
    lab.receive(1, 2, append(4, 0, 0, [4]))
    assert lab.sent(1, 2, AppendEntriesResponse)[0].term == 5
    assert lab.log_terms(1) == []


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER])
def test_whoever_sees_a_higher_term_becomes_a_follower(role: Role) -> None:
    lab = Lab(up=[1])
    lab.campaign(1)
    if role is not Role.PRE_CANDIDATE:
        lab.receive(1, 2, RequestVoteResponse(1, True, True))
    if role is Role.LEADER:
        lab.receive(1, 2, RequestVoteResponse(1, True))
    assert lab.state(1).role is role
    lab.receive(1, 3, AppendEntriesResponse(7, False, 0))
    if role is not Role.LEADER:
        lab.receive(1, 3, RequestVoteResponse(7, False))
    assert (lab.state(1).role, lab.state(1).term) == (Role.FOLLOWER, 7)
    assert lab.nodes[1].disk.hard_state == HardState(7, None)


def test_a_candidate_that_hears_the_leader_of_its_term_follows_it() -> None:
    lab = Lab(up=[1])
    lab.campaign(1)
    lab.receive(1, 2, RequestVoteResponse(1, True, True))
    lab.receive(1, 3, append(1, 0, 0, [1], leader=3))
    assert (lab.state(1).role, lab.state(1).leader_id) == (Role.FOLLOWER, 3)
    assert lab.log_terms(1) == [1]


@pytest.mark.parametrize(
    "own, last_index, last_term, granted",
    [
        ((1, 1), 2, 1, True),
        ((1, 1), 1, 1, False),
        ((1, 1), 1, 2, True),
        ((1, 2), 9, 1, False),
        ((1, 2), 2, 2, True),
        ((), 0, 0, True),
    ],
)
@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_vote_goes_only_to_a_log_at_least_as_up_to_date(
    own: tuple[int, ...], last_index: int, last_term: int, granted: bool, pre_vote: bool
) -> None:
    lab = Lab(up=[1], logs={1: own}, hard_states={1: HardState(2)})
    answer = ask_vote(lab, 1, 2, RequestVote(3, 2, last_index, last_term, pre_vote))
    assert answer is not None
    assert answer.vote_granted is granted


def test_a_denied_vote_still_updates_the_term() -> None:
    lab = Lab(up=[1], logs={1: [1, 1]})
    assert ask_vote(lab, 1, 2, RequestVote(6, 2, 0, 0)) == RequestVoteResponse(6, False)
    assert lab.nodes[1].disk.hard_state == HardState(6, None)


def test_granting_a_vote_resets_the_election_timeout() -> None:
    lab = Lab(up=[1])
    lab.now += TIMEOUT_MIN - 1
    ask_vote(lab, 1, 2, RequestVote(1, 2, 0, 0))
    assert lab.nodes[1].running.next_deadline_ms() >= lab.now + TIMEOUT_MIN


def test_answers_to_an_earlier_campaign_do_not_count() -> None:
    lab = Lab(5, up=[1])
    lab.campaign(1)
    for peer in (2, 3):
        lab.receive(1, peer, RequestVoteResponse(1, True, True))
    lab.campaign(1)  # split vote: the next campaign, in term 2
    for peer in (2, 3):
        lab.receive(1, peer, RequestVoteResponse(2, True, True))
    assert (lab.state(1).role, lab.state(1).term) == (Role.CANDIDATE, 2)
    for peer in (2, 3, 4, 5):
        lab.receive(1, peer, RequestVoteResponse(1, True))
    assert lab.state(1).role is Role.CANDIDATE


def test_learners_never_campaign_and_their_votes_do_not_count() -> None:
    lab = Lab(3, learners=2, up=[1, 4])
    lab.now += TIMEOUT_MAX
    lab.tick(4)
    assert lab.state(4).role is Role.FOLLOWER
    assert not any(lab.links.values())
    lab.tick(1)
    for learner in (4, 5):
        lab.receive(1, learner, RequestVoteResponse(1, True, True))
    assert lab.state(1).role is Role.PRE_CANDIDATE


def test_a_learner_suspects_nobody_into_an_election() -> None:
    """etcd raft db54973: a learner became leader."""
    lab = Lab(3, learners=1, up=[4])
    lab.receive(4, 1, append(1, 0, 0, leader=1))
    lab.nodes[4].suspect(1)
    lab.advance(TIMEOUT_MAX)
    lab.receive(4, 2, RequestVoteResponse(2, True, True), RequestVoteResponse(2, True))
    assert lab.state(4).role is Role.FOLLOWER
    assert not lab.sent(4, 2, RequestVote)


def test_a_new_leader_begins_its_term_with_an_entry_of_its_own() -> None:
    lab = leader_alone(log=(1, 1), answer_no_op=False)
    assert lab.log_terms(1) == [1, 1, 2]
    assert lab.nodes[1].disk.log[-1].kind == 0


def test_the_laboratory_makes_equal_logs_from_equal_terms() -> None:
    assert terms_of(log_of(1, 1, 2)) == [1, 1, 2]
    assert log_of(1, 2)[0] == log_of(1, 3)[0]
