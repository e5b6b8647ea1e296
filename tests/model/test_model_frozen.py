"""A frozen node is the whole node: every attribute is known, thawing gives it back, names are only names."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from raft.core.effects import Effects
from raft.core.messages import AppendEntries, InstallSnapshot, Message, RequestVote
from raft.core.state import PendingRead, Progress
from tests.core.lab import Lab, leader_alone
from tests.model.frozen import (
    KNOWN_CORE,
    KNOWN_LOG,
    KNOWN_PROGRESS,
    KNOWN_READ,
    KNOWN_STATE,
    NotAtRest,
    freeze,
    renamed,
    thaw,
)
from tests.model.scopes import SCOPES
from tests.model.search import Search
from tests.model.tables import renamed_message
from tests.model.turns import Event, Turns


def test_every_attribute_of_the_core_is_known() -> None:
    """Whoever adds one decides in frozen.py whether a decision can depend on it."""
    core = leader_alone().nodes[1].running
    assert set(vars(core)) == KNOWN_CORE
    assert set(vars(core.state)) == KNOWN_STATE
    assert set(vars(core.state.log)) == KNOWN_LOG
    assert {field.name for field in dataclasses.fields(Progress)} == KNOWN_PROGRESS
    assert {field.name for field in dataclasses.fields(PendingRead)} == KNOWN_READ


def test_every_field_of_a_message_that_names_a_node_is_known() -> None:
    """What renamed_message must rename; a configuration names nodes in scopes that are not symmetric."""
    naming = {
        (kind.__name__, field)
        for kind in Message.__args__
        for field in kind.__struct_fields__
        if field.endswith("_id") and field != "request_id"
    }
    known = {(RequestVote, "candidate_id"), (AppendEntries, "leader_id"), (InstallSnapshot, "leader_id")}
    assert naming == {(kind.__name__, field) for kind, field in known}
    assert issubclass(RequestVote, msgspec.Struct)


@pytest.fixture(scope="module")
def searched() -> Search:
    search = Search(SCOPES["elections"])
    search.run(states=1500)
    return search


def test_a_thawed_node_freezes_to_the_same(searched: Search) -> None:
    frozen = searched.tables.nodes.values
    assert len(frozen) > 50
    turns = searched.turns
    for each in frozen:
        node = turns.nodes[each.node_id]
        thaw(each, node)
        assert freeze(node, reads=False, pre_votes=False) == each
        node.core = None


def test_a_renamed_node_does_the_same_under_other_names(searched: Search) -> None:
    """Symmetry: renaming before a turn and after it gives the same, messages and crashes included."""
    tables, turns = searched.tables, searched.turns
    tried = 0
    for number, each in enumerate(list(tables.nodes.values)):
        events = [events for node, events in searched._turns if node == number]
        for names in tables.names[1:3]:
            for (event,) in events:
                sent = (event.peer, each.node_id, event.message)
                there = Event(event.name)
                if event.message is not None:
                    peer, _, message = renamed_message(sent, names)
                    there = Event(event.name, peer, message)
                ends = turns.outcomes(each, (event,))
                ends_there = turns.outcomes(renamed(each, names), (there,))
                whole, whole_there = ends[0], ends_there[0]
                assert renamed(whole.node, names) == whole_there.node
                assert {renamed_message(m, names) for m in whole.sent} == set(whole_there.sent)
                assert {renamed(end.node, names) for end in ends} == {end.node for end in ends_there}
                tried += 1
    assert tried > 500


def test_a_node_in_the_middle_of_a_turn_is_not_frozen() -> None:
    lab = Lab(3)
    lab.now += 2000
    lab.nodes[1].tick()
    assert lab.state(1).effects != Effects()
    with pytest.raises(NotAtRest, match="effects left"):
        freeze(lab.nodes[1], reads=False, pre_votes=False)


def test_a_crash_leaves_any_prefix_of_what_is_not_synced() -> None:
    """A candidate that wins writes its no-op: with the vote stored, the crash may take the entry."""
    turns = Turns(Lab(3).configuration, pre_votes=False, reads=False)
    search = Search(SCOPES["crashes"])
    search.run(states=3000)
    crashed = [
        move.outcome
        for moves in search._turns.values()
        for move in moves
        if move.outcome.crashed and move.events[0].name != "crash"
    ]
    assert any(outcome.sent for outcome in crashed)  # AppendEntries leave before the entry is on disk
    assert any(outcome.led for outcome in crashed)
    assert turns.nodes.keys() == {1, 2, 3}
