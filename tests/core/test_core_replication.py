"""The leader's side of replication: commitment (paper 5.3, 5.4, figure 8), progress of its followers."""

from __future__ import annotations

import pytest

from raft.core.effects import HardState
from raft.core.messages import AppendEntries, AppendEntriesResponse, RequestVoteResponse
from raft.core.state import CoreOptions, Role
from tests.core.lab import (
    HEARTBEAT,
    TIMEOUT_MAX,
    TIMEOUT_MIN,
    Lab,
    acknowledge_all,
    leader_alone,
)

# --- commitment ---


def test_an_entry_is_committed_once_a_majority_has_it() -> None:
    lab = leader_alone(5)
    lab.propose(1, b"x")
    lab.receive(1, 2, AppendEntriesResponse(1, True, 2))
    assert lab.state(1).commit_index == 1
    lab.receive(1, 2, AppendEntriesResponse(1, True, 2))
    assert lab.state(1).commit_index == 1, "the same follower twice is not a majority"
    lab.receive(1, 3, AppendEntriesResponse(1, True, 2))
    assert lab.state(1).commit_index == 2


@pytest.mark.parametrize("voters", [2, 4, 6])
def test_half_of_an_even_cluster_is_no_majority(voters: int) -> None:
    """hashicorp/raft 163a55f."""
    lab = leader_alone(voters)
    lab.propose(1, b"x")
    for peer in range(2, voters // 2 + 1):
        lab.receive(1, peer, AppendEntriesResponse(1, True, 2))
    assert lab.state(1).commit_index == 1
    lab.receive(1, voters // 2 + 1, AppendEntriesResponse(1, True, 2))
    assert lab.state(1).commit_index == 2


def test_learners_do_not_count_for_commitment() -> None:
    lab = leader_alone(3, learners=2)
    lab.propose(1, b"x")
    for learner in (4, 5):
        lab.receive(1, learner, AppendEntriesResponse(1, True, 2))
    assert lab.state(1).commit_index == 1


def test_a_leader_commits_only_entries_of_its_own_term_by_counting_figure_8() -> None:
    """PySyncObj 169. In (c) a majority has index 2 of term 2: it may still be overwritten."""
    lab = leader_alone(5, log=(1, 2), answer_no_op=False)
    assert lab.state(1).term == 3
    for peer in (2, 3):
        lab.receive(1, peer, AppendEntriesResponse(3, True, 2))
    assert lab.state(1).commit_index == 0
    for peer in (2, 3):
        lab.receive(1, peer, AppendEntriesResponse(3, True, 3))
    assert lab.state(1).commit_index == 3, "(e): an entry of its own term commits all before it"


def test_entries_of_earlier_terms_are_committed_by_the_no_op_without_any_client() -> None:
    """raftos 30: the over-correction stalls at the old entry."""
    lab = Lab(logs={1: (1, 1), 2: (1, 1)})
    lab.elect(1)
    assert lab.state(1).commit_index == 3
    lab.advance(HEARTBEAT, 1)
    lab.exchange()
    assert lab.state(3).commit_index == 3


def test_a_single_node_does_not_commit_before_its_disk() -> None:
    """etcd 14370."""
    lab = Lab(1)
    core = lab.nodes[1].running
    core.tick(lab.now + TIMEOUT_MAX)
    assert core.state.role is Role.LEADER
    assert (core.take_effects().committed, core.state.commit_index) == (None, 0)
    lab = Lab(1)
    lab.elect(1)
    core = lab.nodes[1].running
    assert core.propose([b"x"], lab.now) == 2
    effects = core.take_effects()
    assert effects.log and effects.committed is None
    assert core.state.commit_index == 1
    core.disk_done(2, 1, lab.now)
    assert core.take_effects().committed == 2


def test_the_leaders_own_disk_counts_only_when_it_is_done_but_need_not_count() -> None:
    """Thesis 10.2.1: a majority of followers may commit before the leader's own disk."""
    lab = leader_alone()
    core = lab.nodes[1].running
    core.propose([b"x"], lab.now)
    effects = core.take_effects()
    assert [type(m) for _, m in effects.early_messages] == [AppendEntries, AppendEntries]
    core.receive(2, AppendEntriesResponse(1, True, 2), lab.now)
    assert core.state.commit_index == 1, "one follower and an unfinished disk are no majority of three"
    core.receive(3, AppendEntriesResponse(1, True, 2), lab.now)
    assert core.state.commit_index == 2


def test_the_leader_sends_while_its_disk_works() -> None:
    lab = leader_alone()
    lab.clear()
    lab.nodes[1].propose([b"x"])
    assert lab.settle(1)[:4] == ["early message", "early message", "append", "fsync"]


def test_a_follower_learns_of_the_commit_and_applies() -> None:
    lab = Lab()
    lab.elect(1)
    lab.propose(1, b"x", b"y")
    lab.exchange()
    lab.advance(HEARTBEAT, 1)
    lab.exchange()
    for node_id in (1, 2, 3):
        assert [entry.data for entry in lab.nodes[node_id].applied] == [b"", b"x", b"y"]


def test_a_node_that_does_not_lead_takes_no_proposals() -> None:
    lab = Lab()
    lab.elect(1)
    assert lab.propose(2, b"x") is None
    assert lab.log_terms(2) == [1]


def test_proposing_nothing_appends_nothing() -> None:
    lab = leader_alone()
    assert lab.propose(1) is None
    assert lab.log_terms(1) == [1]


# --- progress of its followers ---


def test_match_never_regresses() -> None:
    """PySyncObj 167."""
    lab = leader_alone()
    lab.propose(1, b"x", b"y")
    lab.receive(1, 2, AppendEntriesResponse(1, True, 3))
    for stale in (
        AppendEntriesResponse(1, True, 1),
        AppendEntriesResponse(1, False, 0, 0, 1, 1),
        AppendEntriesResponse(1, False, 0, 0, 3, 1),
    ):
        lab.receive(1, 2, stale)
        assert lab.state(1).progress[2].match_index == 3
        assert lab.state(1).progress[2].next_index == 4


def test_match_is_reset_with_each_term() -> None:
    """copycat 29."""
    lab = leader_alone()
    assert lab.state(1).progress[2].match_index == 1
    lab.advance(TIMEOUT_MAX)
    lab.campaign(1)
    lab.receive(1, 2, RequestVoteResponse(2, True, True))
    lab.receive(1, 2, RequestVoteResponse(2, True))
    assert lab.state(1).role is Role.LEADER
    assert {p.match_index for p in lab.state(1).progress.values()} == {0}
    assert lab.state(1).commit_index == 1


def test_answers_of_another_term_change_nothing() -> None:
    lab = leader_alone(log=(1, 1), answer_no_op=False)
    lab.receive(1, 2, AppendEntriesResponse(1, True, 3, 1))
    lab.receive(1, 3, AppendEntriesResponse(1, True, 3, 1))
    assert {p.match_index for p in lab.state(1).progress.values()} == {0}
    assert lab.state(1).commit_index == 0


def round_trips_to_catch_up(leader_log: list[int], follower_log: list[int]) -> int:
    """How many AppendEntries node 1 needs until node 2's log equals its own."""
    lab = Lab(2, logs={1: leader_log, 2: follower_log})
    term = max(*leader_log, *follower_log) + 1
    lab.nodes[1].disk.hard_state = HardState(term)
    lab.crash(1)
    lab.start(1)
    lab.campaign(1)
    lab.exchange(1, 2)
    for pre_vote in (True, False):  # votes come from elsewhere: the test is about logs
        if lab.state(1).role is not Role.LEADER:
            lab.receive(1, 2, RequestVoteResponse(lab.state(1).term + pre_vote, True, pre_vote))
    trips = 0
    while lab.log_terms(2) != lab.log_terms(1):
        moved = lab.deliver(1, 2)
        assert moved, "the leader stopped sending"
        trips += moved
        lab.deliver(2, 1)
    return trips


@pytest.mark.parametrize(
    "leader_log, follower_log",
    [
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6]),  # figure 7 (a)
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4]),  # (b)
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),  # (c)
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),  # (d)
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 4, 4]),  # (e)
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),  # (f)
        ([1] * 300 + [9], [1] * 300 + [5] * 300),
        ([1] * 300 + [9] * 300, [1] * 10 + [5] * 600),
        ([1, 3, 5, 7, 9] * 1 + [9] * 200, [1, 2, 4, 6, 8] + [8] * 200),
    ],
)
def test_conflicts_cost_at_most_one_round_trip_per_term(
    leader_log: list[int], follower_log: list[int]
) -> None:
    """Paper 5.3, end. Without the optimisation it would be one per entry."""
    terms = len(set(follower_log) | set(leader_log))
    assert round_trips_to_catch_up(leader_log, follower_log) <= terms + 3


def test_stale_refusals_do_not_move_a_probe() -> None:
    lab = leader_alone(log=(1,) * 9, answer_no_op=False)
    lab.clear()
    lab.receive(1, 2, AppendEntriesResponse(2, False, 0, 1, 9, 5))
    assert lab.state(1).progress[2].next_index == 5
    lab.receive(1, 2, AppendEntriesResponse(2, False, 0, 1, 9, 2))
    assert lab.state(1).progress[2].next_index == 5


def test_one_probe_at_a_time_until_the_followers_log_is_known() -> None:
    lab = leader_alone(log=(1,) * 5, answer_no_op=False)
    assert len(lab.sent(1, 2, AppendEntries)) == 1
    for _ in range(5):
        lab.propose(1, b"x")
    assert lab.sent(1, 2, AppendEntries) == []
    lab.advance(HEARTBEAT)
    assert len(lab.sent(1, 2, AppendEntries)) == 1


def test_a_repeated_probe_does_not_carry_the_entries_again() -> None:
    """A dead follower must not cost its leader 64 KiB per heartbeat and per round of reads."""
    lab = leader_alone(log=(1,) * 5, answer_no_op=False)
    (first,) = lab.sent(1, 2, AppendEntries)
    assert first.entries
    lab.advance(HEARTBEAT)
    (again,) = lab.sent(1, 2, AppendEntries)
    assert again.entries == ()
    assert again.prev_log_index == first.prev_log_index
    lab.receive(1, 2, AppendEntriesResponse(2, True, 5, again.round))
    assert [len(m.entries) for m in lab.sent(1, 2, AppendEntries)] == [1], "the loss is made good"


def test_entries_are_pipelined_once_the_follower_is_known() -> None:
    lab = leader_alone()
    for number in range(5):
        lab.propose(1, b"%d" % number)
    sent = lab.sent(1, 2, AppendEntries)
    assert [message.prev_log_index for message in sent] == [1, 2, 3, 4, 5]


def test_the_window_is_bounded_in_messages() -> None:
    options = CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, max_inflight_messages=3)
    lab = leader_alone(options=options)
    for _ in range(10):
        lab.propose(1, b"x")
    assert len(lab.sent(1, 2, AppendEntries)) == 3
    assert len(lab.state(1).progress[2].inflight) == 3
    lab.receive(1, 2, AppendEntriesResponse(1, True, 2))
    assert len(lab.sent(1, 2, AppendEntries)) == 1, "room for one: it takes all that waits"
    assert lab.state(1).progress[2].next_index == 12


def test_the_window_is_bounded_in_bytes() -> None:
    """cockroach 90314."""
    options = CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, max_append_bytes=1000, max_inflight_bytes=4000)
    lab = leader_alone(options=options)
    for _ in range(40):
        lab.propose(1, b"x" * 500)
    sent = lab.sent(1, 2, AppendEntries)
    size = sum(len(entry.data) for message in sent for entry in message.entries)
    assert 4000 <= size < 5000
    assert lab.state(1).progress[2].inflight_bytes == size


def test_the_window_is_bounded_even_for_entries_without_data() -> None:
    """An entry costs memory beyond its data: a million empty ones must not go out as one message."""
    options = CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, max_append_entries=100)
    lab = leader_alone(options=options)
    lab.propose(1, *[b""] * 1000)
    assert [len(message.entries) for message in lab.sent(1, 2, AppendEntries)] == [100] * 10


def test_a_message_is_bounded_in_bytes_but_carries_at_least_one_entry() -> None:
    options = CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, max_append_bytes=100)
    lab = leader_alone(options=options)
    lab.propose(1, b"x" * 60, b"x" * 60, b"x" * 500, b"", b"x")
    for message in lab.sent(1, 2, AppendEntries):
        size = sum(len(entry.data) for entry in message.entries)
        assert message.entries
        assert size <= 100 or len(message.entries) == 1


def test_a_window_that_was_full_empties_and_goes_on() -> None:
    """A leaking window would stop replication for ever (etcd raft a370b6f)."""
    options = CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, max_inflight_messages=2, max_append_bytes=1)
    lab = Lab(options=options)
    lab.elect(1)
    for _ in range(50):
        lab.propose(1, b"abc", b"def")
        lab.exchange()
    lab.advance(HEARTBEAT, 1)
    lab.exchange()
    assert [lab.state(n).commit_index for n in (1, 2, 3)] == [101] * 3
    assert all(p.inflight_bytes == 0 and not p.inflight for p in lab.state(1).progress.values())


def test_messages_lost_without_a_word_are_made_good_by_the_next_heartbeat() -> None:
    lab = Lab()
    lab.elect(1)
    for _ in range(5):
        lab.propose(1, b"x")
    lab.links[1, 2].clear()
    lab.exchange()
    lab.advance(HEARTBEAT, 1)
    lab.exchange()
    assert lab.log_terms(2) == [1] * 6


def test_after_a_broken_connection_the_leader_starts_from_what_was_acknowledged() -> None:
    lab = leader_alone()
    lab.propose(1, b"x", b"y")
    lab.clear()
    lab.nodes[1].disconnected(2)
    progress = lab.state(1).progress[2]
    assert (progress.probing, progress.next_index, progress.match_index) == (True, 2, 1)
    assert (len(progress.inflight), progress.inflight_bytes) == (0, 0)
    lab.advance(HEARTBEAT)
    assert [len(acknowledged.entries) for acknowledged in acknowledge_all(lab, 2)] == [2]
    lab.nodes[1].disconnected(99)


def test_the_same_entries_for_two_followers_are_one_object() -> None:
    """So that the transport encodes them once."""
    lab = leader_alone()
    lab.clear()
    lab.propose(1, b"x")
    (two,), (three,) = lab.sent(1, 2, AppendEntries), lab.sent(1, 3, AppendEntries)
    assert two.entries is three.entries


def test_heartbeats_are_sent_in_time_and_only_then() -> None:
    lab = leader_alone()
    lab.clear()
    lab.advance(HEARTBEAT - 1)
    assert not any(lab.links.values())
    lab.advance(1)
    assert lab.sent(1, 2, AppendEntries)[0].entries == ()
    assert lab.nodes[1].running.next_deadline_ms() == lab.now + HEARTBEAT


def test_a_lost_probe_is_repeated_in_time_under_steady_load() -> None:
    """Broadcasts of entries to others must not put off the heartbeats that a probed follower lives on."""
    lab = leader_alone(log=(1,) * 5, answer_no_op=False)
    lab.clear()  # the first probe is lost
    heard = []
    for _ in range(12):
        lab.advance(HEARTBEAT / 6)
        lab.propose(1, b"x")
        heard += lab.sent(1, 2, AppendEntries)
    assert len(heard) == 2, "one per heartbeat interval"


def test_after_a_message_that_did_not_leave_the_leader_goes_back_to_what_was_acknowledged() -> None:
    lab = leader_alone()
    lab.propose(1, b"x")
    lab.clear()
    lab.nodes[1].running.not_sent(2, lab.now)
    progress = lab.state(1).progress[2]
    assert (progress.probing, progress.next_index) == (True, progress.match_index + 1)
    lab.propose(1, b"y")
    assert lab.sent(1, 2, AppendEntries) == [], "a dead peer costs nothing between heartbeats"
    lab.advance(HEARTBEAT)
    assert len(lab.sent(1, 2, AppendEntries)) == 1


def test_a_connection_that_breaks_before_the_first_answer_is_no_reason_to_search_from_1_on() -> None:
    """That would be the whole log; behind a compacted one a snapshot, for a peer that lacks little."""
    lab = leader_alone(3, log=[1] * 20, answer_no_op=False)
    (probe,) = lab.sent(1, 3, AppendEntries)
    assert probe.prev_log_index == 20
    lab.nodes[1].disconnected(3)
    lab.advance(HEARTBEAT, 1)
    (again,) = lab.sent(1, 3, AppendEntries)
    assert (again.prev_log_index, len(again.entries)) == (20, 1)


def test_who_leads_no_more_wants_no_snapshot_sent() -> None:
    lab = leader_alone(3, log=[1] * 5)
    state = lab.state(1)
    state.log.floor = 6  # as if the log were compacted; node 3 has nothing yet
    state.progress[3].become_probing(1)
    core = lab.nodes[1].running
    for step_down in (False, True):
        lab.now += HEARTBEAT
        core.tick(lab.now)
        if step_down:
            core.receive(2, AppendEntriesResponse(9, False, 0), lab.now)
        assert core.take_effects().snapshots_wanted == ([] if step_down else [3])
