"""Who may vote at all: a server that has lost its disk must not, one that was only left behind must."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from raft.core.core import RaftCore
from raft.core.effects import HardState
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server, encode_configuration
from raft.core.messages import RequestVote, RequestVoteResponse
from raft.core.state import Role

FOUNDERS = tuple(Server(n, "127.0.0.1", 7100 + n, 7200 + n, 7300 + n) for n in (1, 2, 3))
FOUNDING = Configuration((1, 2, 3), servers=FOUNDERS)
RECORDED = FOUNDING.with_identities({1: "one", 2: "two", 3: "three"}, "cluster")


def server(node_id: int, identity: str, *entries: Entry) -> RaftCore:
    """A server that has just started with this log."""
    log: Any = SimpleNamespace(
        first_index=1,
        last_index=len(entries),
        term=lambda index: entries[index - 1].term if index else 0,
        entries=lambda lo, hi, _max_bytes: entries[lo - 1 : hi - 1],
    )
    changes = [entry for entry in entries if entry.kind == EntryKind.CONFIGURATION]
    return RaftCore(
        node_id, FOUNDING, log, hard_state=HardState(1 if entries else 0), rng=random.Random(node_id), now=0,
        identity=identity, later_configurations=changes,
    )  # fmt: skip


def log_with(configuration: Configuration) -> list[Entry]:
    data = encode_configuration(configuration)
    return [Entry(1, 1, EntryKind.NOOP, b""), Entry(2, 1, EntryKind.CONFIGURATION, data)]


def asked(candidate: RaftCore, voter: RaftCore, now: float = 10_000) -> RequestVoteResponse:
    """The voter's answer to what the candidate asks after its timeout. It has no other leader to lose."""
    candidate.tick(now)
    assert candidate.state.role is Role.PRE_CANDIDATE
    to = voter.state.node_id
    (request,) = [
        message
        for peer, message in candidate.take_effects().messages
        if peer == to and isinstance(message, RequestVote)
    ]
    voter.receive(candidate.state.node_id, request, now)
    ((_, answer),) = voter.take_effects().messages
    assert isinstance(answer, RequestVoteResponse)
    return answer


def test_founders_with_empty_logs_vote_for_each_other() -> None:
    assert asked(server(3, "three"), server(2, "two")).vote_granted


@pytest.mark.parametrize("entries", [[], log_with(FOUNDING)[:1]])
def test_a_founder_that_the_record_of_identities_has_not_reached_may_vote(entries: list[Entry]) -> None:
    """The first leader died when a majority had it: without this vote there would be no next one."""
    assert asked(server(3, "three", *log_with(RECORDED)), server(2, "two", *entries)).vote_granted


@pytest.mark.parametrize("entries", [[], log_with(RECORDED)])
def test_a_server_with_another_directory_than_recorded_gives_no_vote(entries: list[Entry]) -> None:
    assert not asked(server(3, "three", *log_with(RECORDED)), server(2, "new", *entries)).vote_granted


def test_without_any_record_a_candidate_with_a_log_gets_no_vote() -> None:
    assert not asked(server(3, "three", *log_with(FOUNDING)[:1]), server(2, "two")).vote_granted
