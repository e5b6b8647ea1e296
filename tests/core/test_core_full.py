"""A full disk, as the core sees it: entries that find no room are not taken, heartbeats and votes go on."""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.entry import Entry
from raft.core.messages import AppendEntries, AppendEntriesResponse, RequestVote
from tests.core.lab import HEARTBEAT, Lab, append, ask_vote, leader_alone


class SmallRoom:
    """Room for so many entries more, whatever their size."""

    def __init__(self, entries: int, *, low: bool | None = None) -> None:
        self.left = entries
        self._low = low

    @property
    def low(self) -> bool:
        return self.left == 0 if self._low is None else self._low

    def fits(self, entries: Sequence[Entry]) -> bool:
        return len(entries) <= self.left


def test_a_follower_takes_what_fits_and_acknowledges_no_more() -> None:
    lab = Lab(up=[1], logs={1: (1,)})
    lab.state(1).room = SmallRoom(2)
    lab.receive(1, 2, append(1, 1, 1, (1, 1)))
    lab.receive(1, 2, append(1, 3, 1, (1, 1, 1)), append(1, 3, 1, (), commit=3))
    first, dropped, beat = lab.sent(1, 2, AppendEntriesResponse)
    assert (first.success, first.match_index) == (True, 3)
    assert (dropped.success, dropped.match_index, dropped.full) == (True, 3, True)
    assert beat.success and lab.state(1).commit_index == 3
    assert lab.log_terms(1) == [1, 1, 1]


def test_what_is_accepted_but_not_yet_written_counts() -> None:
    """Two messages in one turn: the core never runs ahead of the disk."""
    lab = Lab(up=[1])
    lab.state(1).room = SmallRoom(3)
    lab.receive(1, 2, append(1, 0, 0, (1, 1)), append(1, 2, 1, (1, 1)))
    assert [(each.match_index, each.full) for each in lab.sent(1, 2, AppendEntriesResponse)] == [
        (2, False),
        (2, True),
    ]
    assert lab.log_terms(1) == [1, 1]


def test_a_conflict_that_finds_no_room_truncates_nothing() -> None:
    lab = Lab(up=[1], logs={1: (1, 1, 1)})
    lab.state(1).room = SmallRoom(1)
    lab.receive(1, 2, append(2, 1, 1, (2, 2)))
    (answer,) = lab.sent(1, 2, AppendEntriesResponse)
    assert (answer.success, answer.match_index, answer.full) == (True, 1, True)
    assert lab.log_terms(1) == [1, 1, 1]


def test_a_follower_with_a_full_disk_votes() -> None:
    lab = Lab(up=[1], logs={1: (1,)})
    lab.state(1).room = SmallRoom(0)
    answer = ask_vote(lab, 1, 2, RequestVote(2, 2, 1, 1))
    assert answer is not None and answer.vote_granted


def test_a_peer_whose_disk_is_full_gets_heartbeats_only_until_it_is_not() -> None:
    lab = leader_alone()
    state = lab.state(1)
    last = state.log.last_index
    lab.receive(1, 2, AppendEntriesResponse(state.term, True, last, state.round, full=True))
    lab.clear()
    for number in range(3):
        lab.propose(1, b"more %d" % number)
        lab.advance(HEARTBEAT)
        assert all(each.entries == () for each in lab.sent(1, 2, AppendEntries)), "no entries"
        lab.receive(1, 2, AppendEntriesResponse(state.term, True, last, state.round, full=True))
        assert lab.sent(1, 2, AppendEntries) == [], "no hurry"
    lab.receive(1, 2, AppendEntriesResponse(state.term, True, last, state.round))
    (message,) = lab.sent(1, 2, AppendEntries)
    assert [entry.index for entry in message.entries] == [last + 1, last + 2, last + 3]


def test_leadership_goes_to_nobody_whose_disk_is_full() -> None:
    lab = leader_alone()
    state = lab.state(1)
    for peer in (2, 3):
        lab.receive(1, peer, AppendEntriesResponse(state.term, True, 1, state.round, full=peer == 2))
    assert state.quorum_has_room()
    state.room = SmallRoom(0)
    assert not state.quorum_has_room()
    assert lab.nodes[1].running.transfer(None, lab.now) is None
    assert state.transfer_target == 3
