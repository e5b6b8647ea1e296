"""Leadership transfer (thesis 3.10), sentence by sentence."""

from __future__ import annotations

from raft.core.messages import AppendEntriesResponse, RequestVote, TimeoutNow
from raft.core.state import CoreOptions, Role
from tests.core.lab import HEARTBEAT, TIMEOUT_MAX, TIMEOUT_MIN, Lab, leader_alone


def transfer(lab: Lab, target: int | None) -> str | None:
    """Ask node 1 to hand over; its effects are carried out."""
    refusal = lab.nodes[1].running.transfer(target, lab.now)
    lab.settle(1)
    return refusal


def test_the_target_takes_over_at_once_though_everyone_hears_the_leader() -> None:
    lab = Lab(3)
    lab.elect(1)
    assert transfer(lab, 2) is None
    lab.exchange()
    assert lab.state(2).role is Role.LEADER
    assert lab.state(1).role is Role.FOLLOWER
    assert {lab.state(n).term for n in (1, 2, 3)} == {lab.state(2).term}


def test_without_a_target_the_voter_with_the_longest_log_is_chosen() -> None:
    lab = leader_alone()
    lab.propose(1, b"x")
    lab.receive(1, 3, AppendEntriesResponse(lab.state(1).term, True, lab.state(1).log.last_index, 1))
    lab.clear()
    assert transfer(lab, None) is None
    assert lab.sent(1, 3, TimeoutNow)
    assert not lab.sent(1, 2, TimeoutNow)


def test_the_target_is_brought_up_to_date_first() -> None:
    lab = leader_alone()
    lab.propose(1, b"x")
    assert transfer(lab, 2) is None
    assert not lab.sent(1, 2, TimeoutNow), "its log lacks an entry"
    state = lab.state(1)
    lab.receive(1, 2, AppendEntriesResponse(state.term, True, state.log.last_index, state.round))
    assert lab.sent(1, 2, TimeoutNow) == [TimeoutNow(state.term)]


def test_the_leader_takes_no_proposals_meanwhile_bugs_12() -> None:
    lab = leader_alone()
    last = lab.state(1).log.last_index
    assert transfer(lab, 2) is None
    assert lab.propose(1, b"x") is None
    assert lab.state(1).log.last_index == last


def test_a_transfer_is_given_up_after_an_election_timeout_and_proposals_go_on() -> None:
    lab = leader_alone()
    assert transfer(lab, 2) is None
    for _ in range(int(TIMEOUT_MAX / HEARTBEAT) + 1):
        lab.advance(HEARTBEAT)
        state = lab.state(1)
        lab.receive(1, 3, AppendEntriesResponse(state.term, True, state.log.last_index, state.round))
    assert lab.state(1).role is Role.LEADER
    assert lab.state(1).transfer_target is None
    assert lab.propose(1, b"x") is not None
    assert transfer(lab, 2) is None, "it may be tried again"


def test_what_cannot_be_handed_over_is_refused() -> None:
    lab = leader_alone(learners=1)
    assert transfer(lab, 1) == "this node leads already"
    assert transfer(lab, 9) == "node 9 is not a voter"
    assert transfer(lab, 4) == "node 4 is not a voter", "a learner never leads (bugs 42)"
    assert transfer(lab, 2) is None
    assert transfer(lab, 3) == "a transfer to node 2 is under way"
    other = Lab(3)
    assert transfer(other, 2) == "this node is not the leader"


def test_no_lease_outlives_the_request_to_take_over_bugs_32() -> None:
    lab = leader_alone(options=CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, lease_reads=True))
    assert lab.nodes[1].running.lease_until_ms() > lab.now
    assert transfer(lab, 2) is None
    assert lab.nodes[1].running.lease_until_ms() < lab.now
    state = lab.state(1)
    lab.advance(HEARTBEAT)
    lab.receive(1, 3, AppendEntriesResponse(state.term, True, state.log.last_index, state.round))
    assert lab.nodes[1].running.lease_until_ms() < lab.now, "nor does a later round bring one in this term"


def test_an_old_or_foreign_request_to_take_over_is_ignored() -> None:
    lab = Lab(3)
    lab.elect(1)
    term = lab.state(2).term
    lab.receive(2, 1, TimeoutNow(term - 1))
    lab.receive(2, 3, TimeoutNow(term))
    assert lab.state(2).role is Role.FOLLOWER
    assert lab.state(2).term == term


def test_a_plain_candidate_is_still_kept_from_disturbing() -> None:
    lab = Lab(3)
    lab.elect(1)
    state = lab.state(3)
    lab.receive(3, 2, RequestVote(state.term + 1, 2, state.log.last_index, state.log.last_term))
    assert lab.state(3).leader_id == 1
