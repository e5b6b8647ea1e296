"""What fuzzing has found in messages of peers: one odd message must stop no node."""

from __future__ import annotations

import msgspec
import pytest

from raft.core.core import FURTHEST_TERM
from raft.core.entry import Entry
from raft.core.invariants import ProtocolViolation
from raft.core.membership import Configuration, ConfigurationFormatError, Server, decode_configuration
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    Message,
    ReadIndexRequest,
    RequestVote,
    TimeoutNow,
)
from raft.core.state import Role
from raft.runtime.passed import MAX_FORWARD_BYTES, acceptable
from raft.transport.node_messages import Forward
from tests.fuzz import samples
from tests.fuzz.wire_targets import Node

FOLLOWER, LEADER, AFTER_SNAPSHOT = 0, 2, 1


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        pytest.param(FOLLOWER, AppendEntries(3, 2, 8, 3, (Entry(9, 3, -1, b""),), 0), id="kind below 0"),
        pytest.param(FOLLOWER, AppendEntries(3, 2, 8, 3, (Entry(9, 3, 3, b""),), 0), id="unknown kind"),
        pytest.param(FOLLOWER, AppendEntries(3, 2, 8, 3, (Entry(9, 3, 256, b""),), 0), id="unreadable kind"),
        pytest.param(FOLLOWER, AppendEntries(3, 2, -1, 0, (Entry(0, 0, 1, b""),), 0), id="index below 0"),
        pytest.param(FOLLOWER, AppendEntries(3, 2, 3, 1, samples.entries(4, 3), 4), id="another entry"),
        pytest.param(FOLLOWER, AppendEntries(3, 2, 3, 2, (), 4), id="contradicts it in prev_log_term"),
        pytest.param(
            AFTER_SNAPSHOT, AppendEntries(3, 2, 3, 1, samples.entries(4, 1, 1, 1), 4), id="below a snapshot"
        ),
        pytest.param(LEADER, AppendEntries(4, 2, 0, 0, (), 0), id="a second leader"),
        pytest.param(LEADER, InstallSnapshot(4, 2, 99, 3, 0, 1, b""), id="a second leader with a snapshot"),
        pytest.param(FOLLOWER, InstallSnapshot(3, 2, 2**64 - 1, 3, 0, 1, b""), id="the last index"),
        pytest.param(FOLLOWER, RequestVote(2**64 - 1, 2, 99, 3), id="the last term there is"),
        pytest.param(FOLLOWER, RequestVote(4 + FURTHEST_TERM, 2, 99, 3), id="an impossible term"),
        pytest.param(FOLLOWER, ReadIndexRequest(-1, 1), id="term below 0"),
        pytest.param(FOLLOWER, TimeoutNow(2**63), id="a term beyond 63 bits"),
    ],
)  # fmt: skip
def test_one_odd_message_of_a_peer_is_refused_and_changes_nothing(situation: int, message: Message) -> None:
    """Each of these has stopped a node, some of them for good; in the end only the sender is wrong."""
    node = Node(situation)
    role, before = node.core.state.role, node.picture()
    with pytest.raises(ProtocolViolation):
        node.core.receive(2, message, node.now)
    assert node.picture() == before
    assert node.core.state.role is role
    assert (role is Role.LEADER) == (situation == LEADER)


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(
            Configuration((1, 2), promote=(2,)), id="promotes a voter: the leader would make it two"
        ),
        pytest.param(Configuration((1,), promote=(9,)), id="promotes nobody it knows"),
        pytest.param(Configuration((1,), servers=(Server(2, "h", 1, 2, 3),)), id="addresses of a stranger"),
        pytest.param(
            Configuration((1,), servers=(Server(1, "h", 1, 2, 3),) * 2), id="one node's addresses twice"
        ),
    ],
)
def test_no_leader_proposes_such_a_configuration(configuration: Configuration) -> None:
    with pytest.raises(ConfigurationFormatError):
        decode_configuration(msgspec.msgpack.encode(configuration))


def test_a_forward_that_no_frame_could_carry_as_an_entry_is_not_accepted() -> None:
    """A Forward of a full frame became an entry longer than one: to encode it ended the leader."""
    fits = Forward(1, 2, [[b"SET", b"a", bytes(MAX_FORWARD_BYTES - 100)]], b"~2.run.1", 1)
    assert acceptable(fits)
    assert not acceptable(Forward(1, 2, [[b"SET", b"a", bytes(MAX_FORWARD_BYTES)]], b"~2.run.1", 1))
    assert not acceptable(Forward(1, 2, [[b"DEL", *[b""] * (MAX_FORWARD_BYTES // 5)]], b"~2.run.1", 1))


def test_who_has_acknowledged_nothing_has_lost_nothing() -> None:
    """A peer that refuses the log's beginning again and again is no line in the log each time."""
    node = Node(LEADER)
    for _ in range(3):
        node.core.receive(3, AppendEntriesResponse(4, False, 0, 1), node.now)
    assert node.core.take_effects().news == []
