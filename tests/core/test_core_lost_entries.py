"""A follower that has lost what it acknowledged (a lying disk, a cut file): said aloud, and sent again."""

from __future__ import annotations

from raft.core.messages import AppendEntries, AppendEntriesResponse
from tests.core.lab import Lab, acknowledge_all, leader_alone


def refuse(lab: Lab, request: AppendEntries, has: int) -> None:
    lab.receive(1, 2, AppendEntriesResponse(1, False, 0, request.round, request.prev_log_index, has + 1, 0))


def probe_after_a_restart(lab: Lab) -> AppendEntries:
    """What node 1 asks node 2 first when its connection is new."""
    lab.sent(1, 2, AppendEntries)
    lab.nodes[1].disconnected(2)
    lab.settle(1)
    lab.advance(60, 1)
    return lab.sent(1, 2, AppendEntries)[0]


def leader_of_five_entries() -> Lab:
    lab = leader_alone()
    lab.propose(1, b"b", b"c", b"d", b"e")
    acknowledge_all(lab, 2)
    assert lab.state(1).progress[2].match_index == lab.state(1).commit_index == 5
    return lab


def test_a_follower_that_lost_acknowledged_entries_gets_them_again() -> None:
    lab = leader_of_five_entries()
    probe = probe_after_a_restart(lab)
    assert probe.prev_log_index == 5
    refuse(lab, probe, has=3)
    again = lab.sent(1, 2, AppendEntries)
    assert [entry.index for entry in again[-1].entries] == [4, 5]
    assert lab.state(1).progress[2].match_index == 0, "nothing that it promised counts any more"
    assert lab.state(1).commit_index == 5
    lab.receive(1, 2, AppendEntriesResponse(1, True, 5, again[-1].round))
    assert lab.state(1).progress[2].match_index == 5


def test_what_it_lost_is_not_counted_for_new_entries() -> None:
    lab = leader_of_five_entries()
    refuse(lab, probe_after_a_restart(lab), has=3)
    lab.propose(1, b"f")
    assert lab.state(1).commit_index == 5


def test_an_old_refusal_of_what_matches_now_changes_nothing() -> None:
    """BUGS 21: it was sent before the entries arrived, and comes late."""
    lab = leader_alone()
    before = lab.state(1).round
    lab.propose(1, b"b", b"c")
    acknowledge_all(lab, 2)
    match = lab.state(1).progress[2].match_index
    lab.receive(1, 2, AppendEntriesResponse(1, False, 0, before, match, 1, 0))
    assert lab.state(1).progress[2].match_index == match == 3
