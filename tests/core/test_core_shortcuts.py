"""What is remembered or left out to save time never says anything else than the long way would."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from raft.core.effects import Effects, HardState
from raft.core.log import RaftLog
from raft.core.messages import AppendEntriesResponse
from raft.core.state import Role
from tests.core.lab import HEARTBEAT, TIMEOUT_MIN, Lab, acknowledge_all, leader_alone, server


def test_effects_begin_empty_each_with_lists_of_its_own() -> None:
    first, second = Effects(), Effects()
    for field in dataclasses.fields(Effects):
        value = getattr(first, field.name)  # AttributeError: __init__ has forgotten it
        assert not value
        assert not isinstance(value, list) or value is not getattr(second, field.name)


# Only a follower has chunks; operations on the log come with a higher last index.
NOT_A_LEADERS = {"snapshot_chunks", "log"}


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(Effects)])
def test_no_effect_is_left_lying_because_a_leader_seems_at_rest(field: str) -> None:
    lab = leader_alone()
    core = lab.nodes[1].running
    core.take_effects()
    assert core.at_rest()
    empty = getattr(Effects(), field)
    some: Any = True if empty is False else [1] if empty == [] else 1
    setattr(core.state.effects, field, HardState() if field == "hard_state" else some)
    assert core.at_rest() == (field in NOT_A_LEADERS)


@pytest.mark.parametrize("what", ["a proposal", "a read", "a change", "a transfer", "a follower"])
def test_what_makes_effects_is_no_rest(what: str) -> None:
    lab = leader_alone()
    core = lab.nodes[1].running
    core.take_effects()
    if what == "a proposal":
        core.propose([b"x"], lab.now)
    elif what == "a read":
        core.read(1, lab.now)
    elif what == "a change":
        assert isinstance(core.change_configuration(lab.configuration.with_learner(server(4)), lab.now), int)
    elif what == "a transfer":
        core.transfer(2, lab.now)
    else:
        core.receive(2, AppendEntriesResponse(core.state.term + 1, False, 0), lab.now)
    assert not core.at_rest()
    while not core.at_rest() and core.state.role is Role.LEADER:
        before = core.state.log.last_index
        effects = core.take_effects()
        if not effects.early_messages and not effects.messages:
            break
        core.disk_done(before, core.state.log.term(before), lab.now)
    assert not core.take_effects().committed


def some_time_with(lab: Lab, rng: random.Random) -> None:
    """Something that may change who is in contact, or who has to be."""
    state = lab.state(1)
    what = rng.random()
    if what < 0.4:
        lab.now += rng.choice((1.0, 20.0, HEARTBEAT, 150.0, TIMEOUT_MIN - 1, TIMEOUT_MIN))
        if rng.random() < 0.7:
            lab.tick(1)
    elif what < 0.85:
        acknowledge_all(lab, rng.choice(state.configuration.peers(1) or (2,)))
    elif what < 0.95:
        members = state.configuration
        wanted = [members.without(each) for each in members.voters if each != 1]
        wanted += [
            members.with_learner(server(new)) for new in range(2, len(lab.nodes) + 1) if not members.has(new)
        ]
        wanted += [members.with_voter(learner) for learner in members.learners]
        if wanted:
            lab.change(1, rng.choice(wanted))
    else:
        lab.nodes[1].running.disconnected(2, lab.now)


@pytest.mark.parametrize("seed", range(40))
def test_a_quorum_is_near_exactly_when_a_look_says_so(seed: int) -> None:
    """Thesis 6.2, 4.2.3: with whatever changes of members and jumps of time in between."""
    rng = random.Random(seed)
    lab = leader_alone(rng.choice((2, 3, 4, 5)))
    for _ in range(150):
        some_time_with(lab, rng)
        state = lab.state(1)
        if state.role is not Role.LEADER:
            return
        state.now = lab.now
        if rng.random() < 0.8:
            looked = state.quorum_contact_ms() + TIMEOUT_MIN > state.now
            assert state.quorum_is_near() == state.leader_is_alive() == looked


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5, 6, 7])
def test_the_value_of_a_quorum_is_the_largest_that_a_majority_has(voters: int) -> None:
    rng = random.Random(voters)
    configuration = Lab(voters).configuration
    for _ in range(200):
        values = {voter: rng.randint(0, 4) for voter in configuration.voters}
        reached = [v for v in range(5) if configuration.has_quorum(n for n in values if values[n] >= v)]
        assert configuration.quorum_value(list(values.values())) == max(reached)


def test_the_end_of_the_log_matches_as_any_other_entry() -> None:
    lab = leader_alone(log=(1, 1, 3))
    log: RaftLog = lab.state(1).log
    for index in range(-1, log.last_index + 3):
        for term in range(6):
            inside = 0 <= index <= log.last_index
            assert log.matches(index, term) == (inside and log.term(index) == term)
