"""InstallSnapshot at one follower (paper section 7, figure 13), step by step."""

from __future__ import annotations

import pytest

from raft.core.effects import HardState, ResetLog
from raft.core.entry import Entry, EntryKind
from raft.core.invariants import InvariantViolation, ProtocolViolation
from raft.core.membership import Configuration, encode_configuration
from raft.core.messages import AppendEntriesResponse, InstallSnapshot, InstallSnapshotResponse
from raft.core.state import Role
from tests.core.lab import Lab, append, leader_alone

OTHER = Configuration((1, 2, 3, 4))


def chunk(index: int, term: int = 1, in_term: int = 1, leader: int = 2) -> InstallSnapshot:
    """The first and last piece of a snapshot."""
    return InstallSnapshot(in_term, leader, index, term, 0, 4, b"data")


def follower(*terms: int) -> Lab:
    """Node 1 with this log, its state as it is after a start; the test plays the others."""
    return Lab(3, up=[1], logs={1: terms})


def installed(lab: Lab, index: int, term: int, configuration: Configuration = OTHER) -> bool:
    """What the node says once the snapshot is durable and loaded."""
    return lab.nodes[1].running.snapshot_installed(index, term, configuration, lab.now)


def answers(lab: Lab) -> list[AppendEntriesResponse]:
    """What node 1 would tell node 2 now; its effects are not carried out."""
    effects = lab.nodes[1].running.take_effects()
    return [m for _, m in effects.messages if isinstance(m, AppendEntriesResponse)]


def test_step_1_reply_immediately_if_term_is_older() -> None:
    lab = Lab(3, up=[1], hard_states={1: HardState(5)})
    lab.nodes[1].receive(2, chunk(9, in_term=4))
    effects = lab.nodes[1].running.take_effects()
    assert effects.messages == [(2, InstallSnapshotResponse(5, 9, 0))]
    assert not effects.snapshot_chunks
    assert lab.state(1).leader_id is None


def test_a_snapshot_brings_word_of_its_leader_and_its_term() -> None:
    lab = follower()
    lab.nodes[1].receive(2, chunk(9, in_term=3))
    effects = lab.nodes[1].running.take_effects()
    assert effects.hard_state == HardState(3, None)
    assert effects.snapshot_chunks == [(2, chunk(9, in_term=3))]
    assert lab.state(1).leader_id == 2


def test_step_6_entries_that_follow_the_snapshot_are_retained() -> None:
    lab = follower(1, 1, 1, 1)
    lab.nodes[1].receive(2, chunk(2))
    lab.nodes[1].running.take_effects()
    assert installed(lab, 2, 1)
    effects = lab.nodes[1].running.take_effects()
    assert not effects.log, "the log has that very entry: it stays"
    assert effects.messages == [(2, AppendEntriesResponse(1, True, 2))]
    state = lab.state(1)
    assert (state.log.last_index, state.commit_index, state.configuration) == (4, 2, OTHER)


@pytest.mark.parametrize("terms", [(1, 1), (1, 1, 1), (1, 1, 1, 1, 1)])
def test_step_7_else_the_entire_log_is_discarded(terms: tuple[int, ...]) -> None:
    lab = follower(*terms)
    lab.nodes[1].receive(2, append(2, 0, 0))
    lab.nodes[1].receive(2, chunk(3, term=2, in_term=2))
    lab.nodes[1].running.take_effects()
    assert installed(lab, 3, 2)
    effects = lab.nodes[1].running.take_effects()
    assert effects.log == [ResetLog(3, 2)]
    log = lab.state(1).log
    assert (log.first_index, log.last_index, log.last_term) == (4, 3, 2)
    assert lab.state(1).durable_index == 3, "the snapshot is on disk"


def test_step_8_the_configuration_is_the_snapshots_even_against_one_in_the_log_bugs_39() -> None:
    lab = follower(1, 1, 1)
    discarded = Entry(4, 1, EntryKind.CONFIGURATION, encode_configuration(Configuration((1, 2))))
    lab.nodes[1].receive(2, append(2, 0, 0, leader=2))
    state = lab.state(1)
    state.append([discarded])
    assert state.configuration == Configuration((1, 2))
    assert installed(lab, 3, 2)
    assert state.configuration == state.committed_configuration == OTHER


def test_a_configuration_after_the_snapshot_stays_in_force() -> None:
    lab = follower(1)
    state = lab.state(1)
    later = Configuration((1, 2, 3), (5,))
    state.append([Entry(2, 1, EntryKind.CONFIGURATION, encode_configuration(later))])
    assert installed(lab, 1, 1)
    assert (state.configuration, state.committed_configuration) == (later, OTHER)


def test_a_snapshot_of_what_is_committed_changes_nothing_bugs_43() -> None:
    lab = follower(1, 1, 1)
    lab.nodes[1].receive(2, append(1, 3, 1, commit=3))
    lab.settle(1)
    lab.nodes[1].receive(2, chunk(2))
    effects = lab.nodes[1].running.take_effects()
    assert not effects.snapshot_chunks
    assert effects.messages == [(2, AppendEntriesResponse(1, True, 3))]
    assert not installed(lab, 3, 1), "a second one, loaded in vain"
    assert answers(lab) == [AppendEntriesResponse(1, True, 3)]
    assert lab.state(1).log.last_index == 3


def test_a_snapshot_of_a_future_term_is_an_error_of_this_node_bugs_4() -> None:
    lab = follower()
    with pytest.raises(InvariantViolation):
        installed(lab, 5, 7)


def test_an_installed_snapshot_leaves_term_and_vote_alone_bugs_4() -> None:
    lab = Lab(3, up=[1], hard_states={1: HardState(5, 3)})
    lab.nodes[1].receive(2, chunk(4, term=2, in_term=5))
    lab.nodes[1].running.take_effects()
    assert installed(lab, 4, 2)
    assert (lab.state(1).term, lab.state(1).voted_for) == (5, 3)
    assert lab.nodes[1].running.take_effects().hard_state is None


@pytest.mark.parametrize(
    "wrong",
    [chunk(0), chunk(-1), chunk(5, term=0), chunk(5, term=2, in_term=1), chunk(5, leader=3)],
    ids=str,
)
def test_what_no_leader_sends_is_a_protocol_violation_and_changes_nothing(wrong: InstallSnapshot) -> None:
    lab = follower()
    with pytest.raises(ProtocolViolation):
        lab.nodes[1].receive(2, wrong)
    assert lab.state(1).term == 0
    assert lab.state(1).leader_id is None


def test_a_peers_answer_about_a_snapshot_is_contact_and_no_match() -> None:
    lab = leader_alone(3)
    progress = lab.state(1).progress[2]
    before = progress.match_index
    lab.now += 50
    lab.receive(1, 2, InstallSnapshotResponse(lab.state(1).term, 99, 5))
    assert (progress.last_contact_ms, progress.match_index) == (lab.now, before)
    lab.receive(1, 2, InstallSnapshotResponse(lab.state(1).term + 1, 99, 0))
    assert lab.state(1).role is Role.FOLLOWER, "a newer term"


def test_after_compaction_prev_index_0_is_checked_by_what_is_committed_bugs_23() -> None:
    lab = follower()
    lab.nodes[1].receive(2, chunk(5))
    lab.nodes[1].running.take_effects()
    installed(lab, 5, 1)
    lab.settle(1)
    lab.clear()
    lab.receive(1, 2, append(1, 0, 0, [1, 1, 1], leader=2))
    assert lab.sent(1, 2, AppendEntriesResponse) == [AppendEntriesResponse(1, True, 5)]
    lab.receive(1, 2, append(1, 6, 1, [1], leader=2))
    assert not lab.sent(1, 2, AppendEntriesResponse)[0].success, "entry 6 is missing"


def test_a_compacted_term_is_never_read_as_0_bugs_24() -> None:
    lab = Lab(3, up=[1], logs={1: (1, 1, 1)})
    node = lab.nodes[1]
    node.receive(2, append(1, 3, 1, commit=3))
    lab.settle(1)
    node.take_snapshot()
    node.disk.compact(2)
    log = lab.state(1).log
    assert log.matches(2, 1) and not log.matches(1, 0) and not log.matches(1, 1)
    lab.start(1)
    log = lab.state(1).log
    assert log.term(2) == 1
    for index in (0, 1):
        assert not log.matches(index, 0)
        with pytest.raises(IndexError):
            log.term(index)
