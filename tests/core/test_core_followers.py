"""The follower's side of AppendEntries (paper figure 2, 5.3), and messages that no correct peer sends."""

from __future__ import annotations

import itertools

import pytest

from raft.core.effects import HardState
from raft.core.entry import Entry
from raft.core.invariants import InvariantViolation, ProtocolViolation
from raft.core.messages import AppendEntries, AppendEntriesResponse
from raft.core.state import Role
from tests.core.lab import (
    Lab,
    append,
    leader_alone,
    log_of,
    terms_of,
)


def answer_to(lab: Lab, request: AppendEntries) -> AppendEntriesResponse:
    """Node 1, a follower, answers node 2."""
    lab.receive(1, 2, request)
    (answer,) = lab.sent(1, 2, AppendEntriesResponse)
    return answer


def follower(*terms: int, term: int = 9) -> Lab:
    """Node 1 alone, in `term`, with this log."""
    return Lab(up=[1], logs={1: terms}, hard_states={1: HardState(max((term, *terms)))})


@pytest.mark.parametrize(
    "own, prev, prev_term, matches",
    [
        ((), 0, 0, True),
        ((1, 1), 2, 1, True),
        ((1, 1), 1, 1, True),
        ((1, 1), 2, 2, False),
        ((1, 1), 3, 1, False),
        ((1, 2, 3), 2, 1, False),
    ],
)
def test_append_entries_is_refused_unless_the_previous_entry_matches(
    own: tuple[int, ...], prev: int, prev_term: int, matches: bool
) -> None:
    lab = follower(*own)
    answer = answer_to(lab, append(9, prev, prev_term, [9]))
    assert answer.success is matches
    assert lab.log_terms(1) == ([*own[:prev], 9] if matches else list(own))


@pytest.mark.parametrize(
    "own, prev, prev_term, new, result, truncated",
    [
        ((1, 2), 2, 2, [3], [1, 2, 3], False),
        ((1, 2), 1, 1, [3, 4], [1, 3, 4], True),
        ((1, 2), 0, 0, [1], [1, 2], False),
        ((1, 2), 0, 0, [3], [3], True),
        ((1, 1, 2), 1, 1, [1, 3], [1, 1, 3], True),
        ((1, 1, 2), 0, 0, [1, 1], [1, 1, 2], False),
    ],
)
def test_conflicting_entries_are_deleted_and_matching_ones_are_not(
    own: tuple[int, ...], prev: int, prev_term: int, new: list[int], result: list[int], truncated: bool
) -> None:
    lab = follower(*own)
    steps = lab.receive(1, 2, append(9, prev, prev_term, new))
    assert lab.log_terms(1) == result
    assert ("truncate" in steps) is truncated


def test_matching_entries_are_not_written_a_second_time() -> None:
    """hashicorp/raft 0f31a01: a crash between the truncation and the second write loses them."""
    lab = follower(1, 1, 1)
    steps = lab.receive(1, 2, append(9, 0, 0, [1, 1, 1]))
    assert not {"truncate", "append"} & set(steps)
    lab.receive(1, 2, append(9, 1, 1, [1, 1, 9]))
    assert lab.log_terms(1) == [1, 1, 1, 9]
    assert lab.nodes[1].disk.log[:3] == log_of(1, 1, 1)


def test_a_reordered_older_message_erases_nothing() -> None:
    """raftos 26."""
    lab = follower()
    newer = append(9, 0, 0, [9, 9, 9])
    older = append(9, 0, 0, [9])
    lab.receive(1, 2, newer)
    lab.sent(1, 2, AppendEntriesResponse)
    answer = answer_to(lab, older)
    assert lab.log_terms(1) == [9, 9, 9]
    assert (answer.success, answer.match_index) == (True, 1)
    lab.receive(1, 2, append(9, 0, 0))
    assert lab.log_terms(1) == [9, 9, 9]


def test_every_order_and_doubling_of_messages_gives_the_same_log() -> None:
    requests = [append(9, 0, 0, [9]), append(9, 1, 9, [9, 9], 1), append(9, 3, 9, [9], 3)]
    for order in itertools.permutations(requests * 2):
        lab = follower(1, 2)
        lab.receive(1, 2, *order)
        for request in requests:  # the leader sends again what was refused
            lab.receive(1, 2, request)
        assert lab.log_terms(1) == [9, 9, 9, 9]
        assert lab.state(1).commit_index == 3


def test_the_acknowledgement_leaves_after_the_entries_are_on_disk() -> None:
    lab = follower()
    assert lab.receive(1, 2, append(9, 0, 0, [9])) == ["append", "fsync", "message"]


def test_the_new_term_is_on_disk_before_the_acknowledgement() -> None:
    lab = follower(term=3)
    assert lab.receive(1, 2, append(9, 0, 0)) == ["hard state", "message"]


def test_the_commit_index_is_capped_at_the_last_new_entry() -> None:
    """cowsql 000eacf: what lies behind it may not be the leader's."""
    lab = follower(9, 9, 8 + 1)
    lab.receive(1, 2, append(9, 1, 9, [9], commit=50))
    assert lab.state(1).commit_index == 2
    assert terms_of(lab.nodes[1].applied) == [9, 9]


def test_a_heartbeat_commits_no_further_than_its_previous_entry() -> None:
    lab = follower(1, 2, 2)
    lab.receive(1, 2, append(9, 1, 1, commit=3))
    assert lab.state(1).commit_index == 1


def test_a_refused_message_commits_nothing() -> None:
    lab = follower(1, 2, 2)
    assert not answer_to(lab, append(9, 3, 9, commit=3)).success
    assert lab.state(1).commit_index == 0


def test_the_commit_index_never_regresses() -> None:
    """PySyncObj 166."""
    lab = follower()
    lab.receive(1, 2, append(9, 0, 0, [9, 9, 9], commit=3))
    for commit in (0, 1, 2):
        lab.receive(1, 2, append(9, 3, 9, commit=commit))
        lab.receive(1, 2, append(9, 0, 0, [9], commit=commit))
        assert lab.state(1).commit_index == 3


def test_a_committed_entry_is_never_truncated() -> None:
    lab = follower()
    lab.receive(1, 2, append(9, 0, 0, [9, 9], commit=2))
    with pytest.raises(ProtocolViolation, match="entry 2 has term 10, but that of term 9 is committed"):
        lab.receive(1, 3, append(10, 1, 9, [10], leader=3))
    assert lab.log_terms(1) == [9, 9]
    assert lab.state(1).term == 9


def test_an_elected_leader_refuses_a_second_one_and_leads_on() -> None:
    lab = leader_alone()
    with pytest.raises(ProtocolViolation, match="two leaders in term 1"):
        lab.receive(1, 2, append(1, 0, 0))
    assert lab.state(1).role is Role.LEADER


def test_a_success_for_an_entry_truncated_in_the_same_turn_belongs_to_the_old_term() -> None:
    """redpanda c230235: the new leader must not take it for its own."""
    lab = follower(term=4)
    lab.receive(1, 2, append(5, 0, 0, [5, 5], round=1), append(6, 0, 0, [6], round=1))
    answers = lab.sent(1, 2, AppendEntriesResponse)
    assert [(a.term, a.match_index) for a in answers] == [(5, 2), (6, 1)]
    assert lab.log_terms(1) == [6]


def test_a_truncated_entry_is_no_longer_durable() -> None:
    """Else this node, once leader, would count another entry at its index before that is on disk."""
    lab = follower(5, 5, 5)
    core = lab.nodes[1].running
    assert core.state.durable_index == 3
    core.receive(2, append(9, 1, 5, [9]), lab.now)
    assert core.state.durable_index == 1


def test_all_that_one_turn_commits_is_applied() -> None:
    lab = follower()
    lab.receive(1, 2, append(9, 0, 0, [9], commit=1), append(9, 1, 9, [9, 9], commit=3))
    assert len(lab.nodes[1].applied) == 3


def test_disk_news_of_an_entry_truncated_meanwhile_makes_nothing_durable() -> None:
    """redpanda c230235 on the leader's own disk."""
    lab = Lab(up=[1], hard_states={1: HardState(5)})
    core = lab.nodes[1].running
    core.receive(2, append(5, 0, 0, [5, 5, 5]), lab.now)
    core.receive(2, append(6, 1, 5, [6]), lab.now)
    core.disk_done(3, 5, lab.now)  # late: 3 is gone
    core.disk_done(2, 5, lab.now)  # late: 2 is another entry now
    assert core.state.durable_index == 0
    kept = core.state.log.entries(1, 3, 1000)
    assert terms_of(kept) == [5, 6], "nor may it forget entries that no disk has"
    core.disk_done(2, 6, lab.now)
    assert core.state.durable_index == 2


def test_a_refusal_names_the_conflicting_term_and_its_first_index() -> None:
    lab = follower(1, 4, 4, 4)
    answer = answer_to(lab, append(9, 4, 7, [9]))
    assert (answer.conflict_term, answer.conflict_index, answer.prev_log_index) == (4, 2, 4)


def test_a_refusal_for_a_short_log_names_its_end() -> None:
    lab = follower(1, 1)
    answer = answer_to(lab, append(9, 7, 7, [9]))
    assert (answer.conflict_term, answer.conflict_index, answer.prev_log_index) == (0, 3, 7)


# --- protocol violations ---


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(2, 9, 1, b"")],  # a gap
        [Entry(1, 9, 1, b""), Entry(3, 9, 1, b"")],  # a gap inside (LogCabin 160)
        [Entry(1, 9, 1, b""), Entry(1, 9, 1, b"")],  # twice
        [Entry(1, 9, 1, b""), Entry(2, 8, 1, b"")],  # terms fall
        [Entry(1, 99, 1, b"")],  # from the future
    ],
)
def test_entries_that_no_correct_leader_sends_change_nothing(entries: list[Entry]) -> None:
    lab = follower(term=3)
    with pytest.raises(ProtocolViolation):
        lab.nodes[1].receive(2, AppendEntries(9, 2, 0, 0, tuple(entries), 5))
    assert (lab.state(1).term, lab.state(1).leader_id, lab.state(1).commit_index) == (3, None, 0)
    assert lab.settle(1) == []


@pytest.mark.parametrize(
    "answer", [AppendEntriesResponse(1, True, 7, 1), AppendEntriesResponse(1, True, 1, 999)]
)
def test_an_acknowledgement_of_what_was_never_sent_changes_nothing(answer: AppendEntriesResponse) -> None:
    lab = leader_alone()
    read = lab.read(1)
    before = lab.state(1).progress[2].match_index
    with pytest.raises(ProtocolViolation):
        lab.nodes[1].receive(2, answer)
    lab.settle(1)
    assert lab.state(1).progress[2].match_index == before
    assert lab.was_read(1, read) is None
    assert lab.state(1).role is Role.LEADER


def test_time_that_goes_back_stops_the_node() -> None:
    lab = Lab(up=[1])
    with pytest.raises(InvariantViolation, match="time went back"):
        lab.nodes[1].running.tick(lab.now - 1)
