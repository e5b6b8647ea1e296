"""Linearizable reads: ReadIndex (thesis 6.4) and leases (6.4.1)."""

from __future__ import annotations

import pytest

from raft.core.effects import HardState
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)
from raft.core.state import CoreOptions, Role
from tests.core.lab import (
    HEARTBEAT,
    TIMEOUT_MAX,
    TIMEOUT_MIN,
    Lab,
    acknowledge_all,
    append,
    ask_vote,
    leader_alone,
)

LEASES = CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, lease_reads=True)


def quiet_cluster(options: CoreOptions | None = None) -> Lab:
    """Node 1 leads term 1; everyone has and knows the committed no-op."""
    lab = Lab(options=options)
    lab.elect(1)
    lab.advance(HEARTBEAT, 1)
    lab.exchange()
    assert [lab.state(n).commit_index for n in (1, 2, 3)] == [1, 1, 1]
    return lab


def test_a_read_waits_for_a_round_of_heartbeats_that_began_after_it() -> None:
    lab = leader_alone()
    lab.advance(HEARTBEAT)  # a round that began before the read
    before = lab.sent(1, 2, AppendEntries)[-1].round
    read = lab.read(1)
    lab.receive(1, 2, AppendEntriesResponse(1, True, 1, before))
    assert lab.was_read(1, read) is None
    during = lab.sent(1, 2, AppendEntries)[-1].round
    assert during > before
    lab.receive(1, 2, AppendEntriesResponse(1, True, 1, during))
    assert lab.was_read(1, read) == 1


def test_a_read_needs_a_quorum_of_voters_not_of_answers() -> None:
    lab = leader_alone(5, learners=1)
    read = lab.read(1)
    round = lab.state(1).round
    for peer in (2, 2, 6):
        lab.receive(1, peer, AppendEntriesResponse(1, True, 1, round))
    assert lab.was_read(1, read) is None
    lab.receive(1, 3, AppendEntriesResponse(1, True, 1, round))
    assert lab.was_read(1, read) == 1


def test_a_follower_that_refuses_the_entries_still_confirms_the_leader() -> None:
    lab = leader_alone()
    lab.propose(1, b"x")
    read = lab.read(1)
    request = lab.sent(1, 2, AppendEntries)[-1]
    lab.receive(1, 2, AppendEntriesResponse(1, False, 0, request.round, request.prev_log_index, 1))
    assert lab.was_read(1, read) is None  # the read came after that round began: it needs the next
    request = lab.sent(1, 2, AppendEntries)[-1]
    lab.advance(HEARTBEAT)
    lab.receive(1, 2, AppendEntriesResponse(1, False, 0, lab.state(1).round, 0, 1))
    assert lab.was_read(1, read) == 1


def test_reads_that_wait_together_share_one_round() -> None:
    lab = leader_alone()
    first = lab.read(1)
    began = lab.state(1).round
    later = [lab.read(1) for _ in range(50)]
    assert lab.state(1).round == began, "reads that arrive meanwhile wait for the round under way"
    acknowledge_all(lab, 2)
    assert lab.was_read(1, first) == 1
    assert [lab.was_read(1, read) for read in later] == [1] * 50
    assert lab.state(1).round == began + 1


def test_before_the_terms_first_commit_the_leader_does_not_know_what_is_committed() -> None:
    """redisraft 18: empty reads after a restart."""
    lab = leader_alone(log=(1, 1), answer_no_op=False)
    assert lab.state(1).commit_index == 0
    read = lab.read(1)
    for request in lab.sent(1, 2, AppendEntries):
        lab.receive(1, 2, AppendEntriesResponse(2, False, 0, request.round, 2, 2))
    assert lab.was_read(1, read) is None, "leadership is proved, but nothing of this term is committed"
    acknowledge_all(lab, 2)
    assert lab.state(1).commit_index == 3
    assert lab.was_read(1, read) == 3


def test_with_leases_too_a_read_waits_for_the_terms_first_commit() -> None:
    lab = leader_alone(log=(1, 1), answer_no_op=False, options=LEASES)
    for request in lab.sent(1, 2, AppendEntries):
        lab.receive(1, 2, AppendEntriesResponse(2, False, 0, request.round, 2, 2))
    assert lab.nodes[1].running.lease_until_ms() > lab.now
    read = lab.read(1)
    assert lab.was_read(1, read) is None
    acknowledge_all(lab, 2)
    assert lab.was_read(1, read) == 3


def test_a_deposed_leader_serves_no_reads() -> None:
    """consul 54."""
    lab = quiet_cluster()
    read = lab.read(1)
    lab.clear()
    lab.elect(2, 2, 3)
    lab.propose(2, b"new")
    lab.exchange(2, 3)
    lab.exchange(1, 2)
    assert lab.was_read(1, read) is None
    assert lab.nodes[1].reads_failed == [read]
    assert lab.state(1).role is Role.FOLLOWER


def test_a_leader_cut_off_from_the_quorum_fails_its_reads_when_it_steps_down() -> None:
    lab = leader_alone()
    read = lab.read(1)
    lab.advance(TIMEOUT_MAX)
    assert lab.nodes[1].reads_failed == [read]


def test_answers_of_an_earlier_term_confirm_nothing() -> None:
    lab = quiet_cluster()
    lab.read(1)
    old = lab.state(1).round
    lab.elect(2)
    lab.elect(1)
    lab.clear()
    read = lab.read(1)
    lab.receive(1, 2, AppendEntriesResponse(1, True, 1, old))
    lab.receive(1, 3, AppendEntriesResponse(1, True, 1, old))
    assert lab.was_read(1, read) is None


def test_a_follower_without_a_leader_refuses_at_once() -> None:
    lab = Lab(up=[1])
    read = lab.read(1)
    assert lab.nodes[1].reads_failed == [read]


def test_a_follower_asks_the_leader_and_reads_its_own_state() -> None:
    lab = quiet_cluster(LEASES)  # with a lease, no round brings the follower up to date
    lab.propose(1, b"x")
    lab.exchange(1, 3)
    lab.clear()
    read = lab.read(2)
    lab.exchange()
    assert lab.state(2).follower_reads == {}
    assert lab.was_read(2, read) is None, "the read index is known, but entry 2 is not applied yet"
    lab.advance(HEARTBEAT)
    lab.exchange()
    assert lab.was_read(2, read) == 2
    assert len(lab.nodes[2].applied) == 2


def test_a_read_index_that_comes_for_a_forgotten_read_is_ignored() -> None:
    """etcd 20418: an answer delayed by a pause must not serve a read that was asked again."""
    lab = quiet_cluster()
    first = lab.read(2)
    delayed = ReadIndexResponse(1, first, 1, True)
    lab.clear()
    lab.elect(3)
    assert first in lab.nodes[2].reads_failed
    again = lab.read(2)
    lab.receive(2, 1, delayed)
    assert lab.was_read(2, first) is None
    assert lab.was_read(2, again) is None


def test_a_doubled_request_is_answered_once_to_the_client() -> None:
    lab = quiet_cluster()
    read = lab.read(2)
    request = lab.links[2, 1][-1]
    lab.links[2, 1].append(request)
    lab.exchange()
    assert [r for r, _ in lab.nodes[2].reads_ready] == [read]


def test_a_node_that_is_no_leader_refuses_a_read_index() -> None:
    lab = Lab(up=[1])
    lab.receive(1, 2, ReadIndexRequest(0, 77))
    assert lab.sent(1, 2, ReadIndexResponse) == [ReadIndexResponse(0, 77, 0, False)]


def test_a_leader_that_steps_down_refuses_the_reads_of_its_followers() -> None:
    """Else they would wait for ever where the same node is elected again."""
    lab = leader_alone()
    lab.receive(1, 2, ReadIndexRequest(1, 77))
    lab.sent(1, 2, AppendEntries)
    lab.receive(1, 3, AppendEntriesResponse(2, False, 0))
    answers = lab.sent(1, 2, ReadIndexResponse)
    assert [(answer.request_id, answer.ok) for answer in answers] == [(77, False)]


@pytest.mark.parametrize("lost", ["request", "response"])
def test_a_followers_read_whose_messages_are_lost_fails_in_time(lost: str) -> None:
    """A read never hangs: not even under a leader whose heartbeats go on arriving."""
    lab = quiet_cluster()
    read = lab.read(2)
    if lost == "response":
        lab.deliver(2, 1)
        lab.exchange(1, 3)
    lab.clear()
    deadline = lab.now + 2 * TIMEOUT_MIN
    while lab.now < deadline:
        lab.advance(HEARTBEAT)
        lab.exchange()
    assert lab.nodes[2].reads_failed == [read]
    assert lab.state(2).leader_id == 1


def test_a_node_wakes_up_in_time_to_fail_a_read() -> None:
    lab = quiet_cluster()
    lab.read(2)
    asked = lab.now
    lab.clear()
    lab.now += TIMEOUT_MAX - 1
    lab.receive(2, 1, append(1, 1, 1, commit=1, leader=1))
    assert lab.nodes[2].running.next_deadline_ms() <= asked + TIMEOUT_MAX


def test_a_broken_connection_to_the_leader_fails_the_reads_asked_of_it() -> None:
    lab = quiet_cluster()
    read = lab.read(2)
    lab.clear()
    lab.nodes[2].disconnected(3)
    lab.settle(2)
    assert lab.nodes[2].reads_failed == []
    lab.nodes[2].disconnected(1)
    lab.settle(2)
    assert lab.nodes[2].reads_failed == [read]


def test_reads_fail_when_the_same_node_leads_a_new_term() -> None:
    lab = Lab(up=[1])
    lab.receive(1, 2, append(1, 0, 0))
    read = lab.read(1)
    lab.receive(1, 2, append(2, 0, 0))
    assert lab.nodes[1].reads_failed == [read]


def test_a_single_voter_reads_without_asking_anybody() -> None:
    lab = Lab(1)
    lab.elect(1)
    read = lab.read(1)
    assert lab.was_read(1, read) == 1


# --- leases ---------------------------------------------------------------------------------------------


def leader_with_lease() -> Lab:
    """Node 1 leads, with a lease from a round that node 2 has just acknowledged."""
    lab = leader_alone(options=LEASES)
    lab.advance(HEARTBEAT)
    acknowledge_all(lab, 2)
    lab.clear()
    assert lab.nodes[1].running.lease_until_ms() == lab.now + 0.9 * TIMEOUT_MIN
    return lab


def test_within_its_lease_a_leader_answers_at_once() -> None:
    lab = leader_with_lease()
    read = lab.read(1)
    assert lab.was_read(1, read) == 1
    assert not any(lab.links.values())


def test_the_lease_counts_from_when_the_round_was_sent() -> None:
    lab = leader_alone(options=LEASES)
    lab.advance(HEARTBEAT)
    sent = lab.now
    lab.now += 100
    acknowledge_all(lab, 2)
    assert lab.nodes[1].running.lease_until_ms() == sent + 0.9 * TIMEOUT_MIN


def test_an_expired_lease_asks_the_quorum_again() -> None:
    """A lease is a comparison with the time, not a timer that may be late (sofa-jraft 34)."""
    lab = leader_with_lease()
    lab.now += 0.9 * TIMEOUT_MIN
    read = lab.read(1)  # no tick came between
    assert lab.was_read(1, read) is None
    acknowledge_all(lab, 2)
    assert lab.was_read(1, read) == 1


def test_a_leader_that_steps_down_loses_its_lease() -> None:
    lab = leader_with_lease()
    lab.receive(1, 3, AppendEntriesResponse(2, False, 0))
    read = lab.read(1)
    assert lab.was_read(1, read) is None
    assert lab.nodes[1].running.lease_until_ms() < lab.now


def test_a_lease_of_an_earlier_term_is_worth_nothing() -> None:
    lab = quiet_cluster(LEASES)
    lab.elect(2)
    lab.elect(1)
    fresh = leader_alone(options=LEASES, answer_no_op=False)
    assert fresh.nodes[1].running.lease_until_ms() < fresh.now


def test_without_lease_reads_every_read_is_confirmed() -> None:
    lab = leader_alone()
    lab.advance(HEARTBEAT)
    acknowledge_all(lab, 2)
    read = lab.read(1)
    assert lab.was_read(1, read) is None


@pytest.mark.parametrize("pre_vote", [True, False])
@pytest.mark.parametrize("term", [5, 6])
def test_a_restarted_voter_keeps_the_promise_it_may_have_made(term: int, pre_vote: bool) -> None:
    lab = Lab(up=[1], options=LEASES, hard_states={1: HardState(5)})
    request = RequestVote(term, 2, 9, 5, pre_vote)
    lab.now += TIMEOUT_MIN - 1
    answer = ask_vote(lab, 1, 2, request)
    assert answer is None or not answer.vote_granted
    lab.now += 1
    answer = ask_vote(lab, 1, 2, request)
    assert answer is not None and answer.vote_granted is (term > 5 or not pre_vote)


@pytest.mark.parametrize("term", [6, 7])
def test_a_voter_keeps_its_promise_though_its_leader_was_deposed_meanwhile(term: int) -> None:
    """The promise is to the leader's lease. Learning a higher term does not take it back: the leader, who has
    not heard of that term, still answers reads on the strength of it (thesis 6.4.1)."""
    lab = Lab(up=[1], options=LEASES, hard_states={1: HardState(5)})
    lab.now += TIMEOUT_MAX
    lab.receive(1, 2, append(5, 0, 0, round=7))  # acknowledged: leader 2 has a lease now
    lab.now += 10
    lab.receive(1, 3, RequestVoteResponse(6, False, True))  # a late refusal, from 3's own campaign in term 6
    answer = ask_vote(lab, 1, 3, RequestVote(term, 3, 9, 5, True))
    assert answer is None or not answer.vote_granted
    answer = ask_vote(lab, 1, 3, RequestVote(term, 3, 9, 5))
    assert answer is None or not answer.vote_granted
    lab.now += TIMEOUT_MIN
    answer = ask_vote(lab, 1, 3, RequestVote(term, 3, 9, 5))
    assert answer is not None and answer.vote_granted


def test_a_stale_read_cannot_be_had_under_leases() -> None:
    """The same as a whole story: 3 campaigned in term 2, 2 hears of it late, 1 holds a lease from 2."""
    lab = quiet_cluster(LEASES)
    lab.clear()
    lab.now = lab.nodes[3].running.next_deadline_ms()
    lab.tick(3)
    lab.receive(3, 2, RequestVoteResponse(2, True, True))
    assert (lab.state(3).role, lab.state(3).term) == (Role.CANDIDATE, 2)
    lab.clear()  # its requests are lost
    lab.tick(1)
    lab.exchange(1, 2)  # 1 gets a lease from 2
    assert lab.nodes[1].running.lease_until_ms() > lab.now
    lab.receive(2, 3, RequestVoteResponse(2, False, True))
    lab.advance(1, 2)
    lab.receive(2, 3, RequestVote(2, 3, lab.state(3).log.last_index, 1))
    lab.exchange(2, 3)
    if lab.state(3).role is Role.LEADER:
        lab.propose(3, b"new")
        lab.exchange(2, 3)
    known = lab.state(3).commit_index
    read = lab.read(1)
    index = lab.was_read(1, read)
    assert index is None or index >= known
