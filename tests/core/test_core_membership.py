"""Configurations as values and as bytes, and what a leader refuses to make of them (thesis chapter 4)."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core import reconfiguration
from raft.core.entry import Entry, EntryKind
from raft.core.invariants import ProtocolViolation
from raft.core.membership import (
    Configuration,
    ConfigurationFormatError,
    Server,
    decode_configuration,
    encode_configuration,
)
from raft.core.messages import AppendEntries, AppendEntriesResponse, RequestVote, TimeoutNow
from raft.core.state import Role
from tests.core.lab import TIMEOUT_MIN, Lab, ask_vote, leader_alone, server


def configurations() -> st.SearchStrategy[Configuration]:
    """Any that a leader might propose."""

    def build(ids: list[int], cut: int, texts: list[str], promote: bool) -> Configuration:
        cut = 1 + cut % len(ids)
        voters, learners = tuple(ids[:cut]), tuple(ids[cut:])
        servers = tuple(
            Server(node, texts[i % len(texts)], i, i + 1, i + 2, texts[-1]) for i, node in enumerate(ids)
        )
        return Configuration(voters, learners, servers, texts[0], learners if promote else ())

    ids = st.lists(st.integers(1, 2**31), min_size=1, max_size=9, unique=True)
    texts = st.lists(st.text(max_size=20), min_size=1, max_size=4)
    return st.builds(build, ids, st.integers(0, 8), texts, st.booleans())


@given(configurations())
def test_decode_is_the_inverse_of_encode(configuration: Configuration) -> None:
    assert decode_configuration(encode_configuration(configuration)) == configuration


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_garbage_gives_a_format_error_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(ConfigurationFormatError):
        decode_configuration(data)


@given(configurations(), st.data())
@settings(max_examples=300)
def test_a_damaged_configuration_gives_a_format_error_or_another_sane_one(
    configuration: Configuration, data: st.DataObject
) -> None:
    encoded = bytearray(encode_configuration(configuration))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    del encoded[data.draw(st.integers(1, len(encoded))) :]
    try:
        damaged = decode_configuration(bytes(encoded))
    except ConfigurationFormatError:
        return
    assert damaged.voters and not set(damaged.voters) & set(damaged.learners)


def test_nesting_without_end_is_a_format_error() -> None:
    with pytest.raises(ConfigurationFormatError):
        decode_configuration(b"\x91" * 100_000)


@pytest.mark.parametrize(
    "wrong",
    [
        Configuration(()),
        Configuration((1, 1)),
        Configuration((1,), (1,)),
        Configuration((0, 1)),
        Configuration((1, 2), promote=(2,)),
        Configuration((1, 2), servers=(server(1), server(1))),
        Configuration((1, 2), servers=(server(3),)),
    ],
    ids=str,
)
def test_what_no_leader_would_propose_is_no_configuration(wrong: Configuration) -> None:
    with pytest.raises(ConfigurationFormatError):
        decode_configuration(msgspec.msgpack.encode(wrong))


def test_every_change_keeps_a_configuration_sane() -> None:
    start = Configuration((1, 2, 3), servers=tuple(server(n) for n in (1, 2, 3)))
    grown = start.with_learner(server(4), promote=True)
    assert (grown.voters, grown.learners, grown.promote) == ((1, 2, 3), (4,), (4,))
    voting = grown.with_voter(4)
    assert (voting.voters, voting.learners, voting.promote) == ((1, 2, 3, 4), (), ())
    assert voting.without(2).voters == (1, 3, 4)
    assert voting.without(2).server(2) is None
    known = start.with_identities({1: "a", 2: "b"}, "cluster")
    assert [known.identity_of(n) for n in (1, 2, 3)] == ["a", "b", ""]
    later = known.with_identities({1: "x", 3: "c"}, "another")
    assert [later.identity_of(n) for n in (1, 2, 3)] == ["a", "b", "c"], "what is recorded stays"
    assert later.cluster_id == "cluster"


# --- what a leader refuses ------------------------------------------------------------------------------


def test_two_voters_at_once_are_refused() -> None:
    lab = leader_alone(3)
    assert "one voter" in str(lab.change(1, Configuration((1, 2, 3, 4, 5))))
    assert "one voter" in str(lab.change(1, Configuration((1, 2, 4))))
    assert lab.state(1).configuration == lab.configuration


def test_the_last_voter_does_not_go() -> None:
    lab = Lab(1)
    lab.elect(1)
    assert lab.change(1, lab.configuration.without(1)) == "a cluster needs a voter"


def test_what_is_no_configuration_is_refused_before_it_is_in_the_log() -> None:
    lab = leader_alone(3)
    last = lab.state(1).log.last_index
    assert "not a configuration" in str(lab.change(1, Configuration((1, 2, 3), (3,))))
    assert lab.state(1).log.last_index == last


def test_only_a_leader_changes_the_configuration() -> None:
    lab = Lab(3)
    lab.elect(1)
    assert lab.change(2, lab.configuration) == "this node is not the leader"


def test_a_change_before_the_terms_first_commit_is_refused_bugs_36() -> None:
    lab = leader_alone(3, answer_no_op=False)
    assert "nothing of term" in str(lab.change(1, lab.configuration.without(3)))


def test_a_removal_that_unblocks_the_commit_commits_at_once() -> None:
    """The newest configuration decides (thesis 4.1): without node 3, two of two have what was proposed."""
    lab = leader_alone(4)
    lab.propose(1, b"x")
    state = lab.state(1)
    lab.receive(1, 2, AppendEntriesResponse(state.term, True, state.log.last_index, state.round))
    assert state.commit_index < state.log.last_index, "two of four are no majority"
    lab.change(1, lab.configuration.without(4))
    assert state.commit_index == state.log.last_index - 1, "two of three are one"


def test_a_voter_needs_a_recorded_disk() -> None:
    """Its vote may be needed to elect anyone, and nobody could tell whether its disk is the one it had."""
    lab = Lab(3, spares=1, identities="recorded")
    lab.elect(1)
    lab.change(1, lab.configuration.with_learner(server(4)))
    lab.exchange()
    now = lab.state(1).configuration
    assert lab.change(1, now.with_voter(4)) == "the data directory of node 4 is not recorded yet"
    lab.change(1, now.with_identities({4: "disk 4"}, "c"))
    lab.exchange()
    assert isinstance(lab.change(1, lab.state(1).configuration.with_voter(4)), int)


def test_a_learner_stuck_in_its_round_has_not_caught_up() -> None:
    lab = Lab(3, learners=1)
    lab.elect(1)
    for _ in range(4):
        lab.advance(60)
        lab.exchange()
    assert reconfiguration.caught_up(lab.state(1), 4)
    progress = lab.state(1).progress[4]
    lab.now += 2 * TIMEOUT_MIN
    lab.nodes[1].receive(4, AppendEntriesResponse(1, False, 0, progress.acked_round, 1))
    assert progress.last_contact_ms == lab.now
    assert not reconfiguration.caught_up(lab.state(1), 4)


# --- what a server makes of its own configuration -------------------------------------------------------


def test_a_learner_does_not_campaign_even_when_told_to_bugs_42() -> None:
    lab = Lab(3, learners=1)
    lab.elect(1)
    term = lab.state(4).term
    lab.receive(4, 1, TimeoutNow(term))
    lab.advance(5000, 4)
    assert lab.state(4).role is Role.FOLLOWER
    assert lab.state(4).term == term
    assert not lab.sent(4, 1, RequestVote)


def test_a_candidate_that_an_installed_snapshot_removes_becomes_a_follower() -> None:
    lab = Lab(3, up=[1])
    lab.campaign(1)
    assert lab.state(1).role is Role.PRE_CANDIDATE
    state = lab.state(1)
    state.term = 1
    assert lab.nodes[1].running.snapshot_installed(5, 1, Configuration((2, 3)), lab.now)
    lab.advance(2000)
    assert state.role is Role.FOLLOWER


def test_a_vote_counts_for_the_configuration_of_the_candidate_not_of_the_voter() -> None:
    """ "a server accepts ... without checking whether the leader is in its configuration" (thesis 4.1)."""
    lab = Lab(3, up=[1])
    answer = ask_vote(lab, 1, 2, RequestVote(1, 2, 0, 0))
    assert answer is not None and answer.vote_granted


@pytest.mark.parametrize("recorded", ["", "another disk"])
def test_a_server_whose_disk_nobody_has_recorded_votes_at_the_founding_only(recorded: str) -> None:
    lab = Lab(3, up=[1], identities="founding")
    node = lab.nodes[1]
    node.founding = lab.configuration.with_identities({1: recorded}, "c")
    lab.start(1)
    for last_index in (0, 7):  # a founding leader may have left a log, and nobody recorded
        for founding in (True, False):  # the candidate has recorded nobody, or others
            answer = ask_vote(lab, 1, 2, RequestVote(1, 2, last_index, 1, True, founding=founding))
            assert answer is not None and answer.vote_granted == (recorded == "" and founding)


def test_a_server_votes_if_the_candidate_has_recorded_its_disk() -> None:
    """It was away since the founding: its own configuration is from before it was recorded. And it does not
    vote if the candidate has recorded another disk: then its own is not the one that made the promises."""
    lab = Lab(3, up=[1], identities="founding")
    mine, other = lab.nodes[1].identity, "another disk"
    for recorded, granted in (("", False), (other, False), (mine, True)):
        answer = ask_vote(lab, 1, 2, RequestVote(1, 2, 7, 1, True, voter_identity=recorded))
        assert answer is not None and answer.vote_granted == granted, recorded


def test_a_candidate_tells_each_voter_what_is_recorded_for_it() -> None:
    lab = Lab(3, up=[1], identities="recorded")
    lab.campaign(1)
    for voter in (2, 3):
        assert lab.sent(1, voter, RequestVote)[0].voter_identity == f"disk {voter}"


def test_a_server_that_is_to_join_founds_nothing() -> None:
    lab = Lab(3, spares=1, up=[4], identities="founding")
    lab.blocked.clear()
    for founding in (False, True):
        answer = ask_vote(lab, 4, 2, RequestVote(1, 2, 0, 0, founding=founding))
        assert answer is not None and not answer.vote_granted, founding


# --- what no correct peer sends -------------------------------------------------------------------------


def test_an_entry_that_is_no_configuration_is_a_protocol_violation() -> None:
    lab = Lab(3, up=[1])
    entry = Entry(1, 1, EntryKind.CONFIGURATION, b"what?")
    with pytest.raises(ProtocolViolation):
        lab.nodes[1].receive(2, AppendEntries(1, 2, 0, 0, (entry,), 0))
    assert lab.state(1).term == 0, "nothing has changed"
