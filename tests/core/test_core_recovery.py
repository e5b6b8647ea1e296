"""A server that has lost what it had acknowledged: no vote until it has it again (raft/core/recovery.py).

Node 2 has the log 1.1 2.1 3.1 of term 1 and loses it from entry 2 on. The test plays the others.
"""

from __future__ import annotations

import random

import pytest

from raft.core.core import RaftCore
from raft.core.effects import Effects, HardState, LostEntries
from raft.core.invariants import InvariantViolation
from raft.core.membership import Configuration
from raft.core.messages import (
    AppendEntriesResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.core.recovery import COMPLAIN_EVERY_MS
from raft.core.state import CoreOptions, Role
from tests.core.lab import HEARTBEAT, TIMEOUT_MAX, TIMEOUT_MIN, Lab, append, ask_vote, log_of
from tests.simulation.disk import Disk

T = 1  # the term in which the entries were lost


def damaged(voters: int = 3) -> Lab:
    """Node 2 has started on the damaged log; the election timeout in which it might owe silence is over."""
    lab = Lab(voters, up=[], logs={2: (1, 1, 1)})
    lab.lose(2, 2)
    lab.start(2)
    lab.now += TIMEOUT_MAX
    assert lab.log_terms(2) == [1]
    return lab


def is_recovering(lab: Lab) -> bool:
    in_core = lab.state(2).recovering is not None
    assert in_core == (lab.nodes[2].disk.lost is not None), "the marker goes with the recovery"
    return in_core


def question(lab: Lab) -> ReadIndexRequest:
    """What node 2 asks its leader, node 1."""
    asked = lab.sent(2, 1, ReadIndexRequest)
    assert asked, "it asks where the log ends"
    assert asked[-1].log_end
    return asked[-1]


def tell_end(lab: Lab, last_index: int, term: int = T, request_id: int | None = None) -> None:
    """Node 1 answers the question."""
    if request_id is None:
        request_id = question(lab).request_id
    lab.receive(2, 1, ReadIndexResponse(term, request_id, 0, True, last_index))


def vote_for_everything(term: int, pre_vote: bool) -> RequestVote:
    return RequestVote(term, 3, 99, term - 1, pre_vote)


@pytest.mark.parametrize("pre_vote", [False, True])
def test_it_gives_no_vote_however_good_the_candidate(pre_vote: bool) -> None:
    lab = damaged()
    answer = ask_vote(lab, 2, 3, vote_for_everything(5, pre_vote))
    assert answer is not None
    assert not answer.vote_granted
    assert lab.state(2).voted_for is None
    assert lab.state(2).term == (1 if pre_vote else 5), "it follows the term all the same"


def test_it_does_not_campaign_and_says_so_now_and_then() -> None:
    lab = damaged()
    for _ in range(10):
        lab.campaign(2)
    assert lab.state(2).role is Role.FOLLOWER
    assert lab.sent(2, 1, RequestVote) == []
    told = [line for line in lab.nodes[2].news if "no leader is heard" in line]
    assert len(told) == 1
    assert "2 of the voters [1, 3] must be up and healthy" in told[0]
    lab.now += COMPLAIN_EVERY_MS
    lab.campaign(2)
    assert len([line for line in lab.nodes[2].news if "no leader is heard" in line]) == 2


def test_it_does_not_tell_to_start_voters_that_there_are_not() -> None:
    """Of two voters the other cannot win alone; a founder may have lost all configurations but its first."""
    lab = damaged(voters=2)
    lab.campaign(2)
    assert any("the voters [1] are too few without it" in line for line in lab.nodes[2].news)


def test_it_does_not_campaign_when_its_leader_asks_it_to() -> None:
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, leader=1), TimeoutNow(T))
    assert lab.state(2).role is Role.FOLLOWER
    assert lab.state(2).term == T


def test_under_the_old_leader_it_is_healed_once_it_has_all_that_leader_had() -> None:
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, leader=1))
    tell_end(lab, 3)
    lab.receive(2, 1, append(T, 1, 1, (1,), leader=1))
    assert is_recovering(lab), "entry 3 may have been acknowledged"
    lab.receive(2, 1, append(T, 2, 1, (1,), leader=1))
    assert not is_recovering(lab)
    lab.now += TIMEOUT_MAX
    answer = ask_vote(lab, 2, 3, vote_for_everything(T + 1, False))
    assert answer is not None
    assert answer.vote_granted


def test_having_got_everything_without_knowing_it_is_not_enough() -> None:
    """What is sent by itself may have been under way since before the loss."""
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, (1, 1), commit=3, leader=1))
    assert is_recovering(lab)
    tell_end(lab, 3)
    assert not is_recovering(lab)


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("of another question", {"request_id": 7}),
        ("of a leader that knows no such question", {"last_index": 0}),
        ("of a later term, which rule A is for", {"term": T + 1}),
    ],
)
def test_other_answers_do_not_count(what: str, answer: dict[str, int]) -> None:
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, (1, 1), leader=1))
    tell_end(lab, **{"last_index": 2, **answer})
    assert is_recovering(lab), what
    assert not lab.nodes[2].reads_ready


def test_it_asks_again_but_not_with_every_message() -> None:
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, leader=1), append(T, 1, 1, leader=1))
    assert len(lab.sent(2, 1, ReadIndexRequest)) == 1
    lab.now += HEARTBEAT
    lab.receive(2, 1, append(T, 1, 1, leader=1))
    assert len(lab.sent(2, 1, ReadIndexRequest)) == 1


def test_another_leaders_log_end_is_not_taken_for_the_old_ones() -> None:
    """Rule B holds in term T only: in a later one the log may have been cut again since it matched."""
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, (1,), leader=1))
    asked = question(lab)
    lab.receive(2, 3, append(T + 1, 1, 1, leader=3))
    tell_end(lab, 2, request_id=asked.request_id)
    assert is_recovering(lab)


def test_an_entry_of_a_later_term_heals() -> None:
    lab = damaged()
    lab.receive(2, 3, append(T + 1, 1, 1, (1, 1), leader=3))
    assert is_recovering(lab), "these are not all that the leader had when its term began"
    assert lab.sent(2, 3, ReadIndexRequest) == [], "there is nothing to ask"
    lab.receive(2, 3, append(T + 1, 3, 1, (2,), leader=3))
    assert not is_recovering(lab)


def test_an_entry_of_an_earlier_term_does_not_heal() -> None:
    lab = damaged()
    lab.receive(2, 3, append(T + 3, 1, 1, (1, 1, 1, 1), commit=5, leader=3))
    assert is_recovering(lab)


def core_on_a_slow_disk() -> RaftCore:
    return RaftCore(
        2,
        Configuration((1, 2, 3)),
        Disk(log_of(1)),
        hard_state=HardState(T),
        options=CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT),
        rng=random.Random(2),
        now=0.0,
        lost=LostEntries(2, T),
    )


def take(core: RaftCore) -> Effects:
    return core.take_effects()


@pytest.mark.parametrize("later", [False, True])
def test_only_what_is_on_disk_counts(later: bool) -> None:
    core = core_on_a_slow_disk()
    term = T + later
    core.receive(1, append(T, 1, 1, leader=1), 1.0)
    asked = next(message for _, message in take(core).messages if isinstance(message, ReadIndexRequest))
    core.receive(1, ReadIndexResponse(T, asked.request_id, 0, True, 2), 1.0)
    core.receive(1, append(term, 1, 1, (term,), commit=1, leader=1), 2.0)
    assert not take(core).healed
    core.disk_done(2, term, 3.0)
    effects = take(core)
    assert effects.healed
    assert any("healed" in line for line in effects.news)


def test_a_leader_says_at_once_where_its_log_ends() -> None:
    """Also before it has committed anything in its term: perhaps it needs the one that asks for that."""
    lab = Lab(3, up=[1])
    lab.campaign(1)
    for pre_vote in (True, False):
        lab.receive(1, 3, RequestVoteResponse(1, True, pre_vote))
    lab.receive(1, 2, ReadIndexRequest(1, 77, log_end=True))
    assert lab.sent(1, 2, ReadIndexResponse) == [ReadIndexResponse(1, 77, 0, True, 1)]


def test_a_follower_knows_of_no_end() -> None:
    lab = Lab(3, up=[1])
    lab.receive(1, 2, ReadIndexRequest(1, 77, log_end=True))
    assert lab.sent(1, 2, ReadIndexResponse) == [ReadIndexResponse(0, 77, 0, False)]


def test_it_acknowledges_what_it_has_and_confirms_its_leader() -> None:
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, (1,), round=9, leader=1))
    assert lab.sent(2, 1, AppendEntriesResponse)[-1] == AppendEntriesResponse(T, True, 2, 9)
    assert is_recovering(lab)


def test_the_marker_outlives_a_restart() -> None:
    lab = damaged()
    lab.receive(2, 1, append(T, 1, 1, (1, 1), leader=1))
    lab.crash(2)
    lab.start(2)
    assert is_recovering(lab)
    lab.receive(2, 1, append(T, 3, 1, leader=1))
    tell_end(lab, 3)
    assert not is_recovering(lab)


def test_a_marker_from_the_future_is_refused() -> None:
    """The hard state would have been set back since."""
    with pytest.raises(InvariantViolation):
        RaftCore(
            *(2, Configuration((1, 2, 3)), Disk(log_of(1))),
            hard_state=HardState(1),
            rng=random.Random(2),
            now=0.0,
            lost=LostEntries(2, 2),
        )
