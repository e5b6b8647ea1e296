"""The simulation's own parts: a checker that cannot fail proves nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ledger.ledger import Policy
from raft.core.effects import AppendLog, HardState, TruncateLog
from raft.core.messages import AppendEntriesResponse, RequestVoteResponse
from raft.machine.arguments import RefusedError
from raft.machine.batch import encode_commands
from raft.machine.sessions import SessionTable
from raft.transport.node_messages import Forward
from tests.core.lab import Lab, log_of
from tests.simulation.checker import Checker, SafetyViolation
from tests.simulation.disk import Disk
from tests.simulation.events import Plan
from tests.simulation.machines import LAST, NEVER_SET, Machines
from tests.simulation.model import Model
from tests.simulation.network import Network
from tests.simulation.service import ServicePlan
from tests.simulation.simulation import scenario_of

POLICY = Policy(
    interval_ms=1000,
    reward=10,
    penalty=5,
    ban_threshold=3,
    ban_cooldown_s=5,
    max_spam=4,
    follower_version="1.0",
)


def watched() -> tuple[Lab, Checker]:
    """Three nodes with a checker that saw them start."""
    lab = Lab()
    checker = Checker(lab.nodes)
    for node in lab.nodes.values():
        checker.started(node)
    return lab, checker


def test_a_power_cut_keeps_any_prefix_of_what_was_not_synced() -> None:
    left = set()
    for seed in range(100):
        disk = Disk(log_of(1, 1))
        disk.write(TruncateLog(2))
        disk.write(AppendLog(log_of(1, 2, 2)[1:]))
        disk.crash(random.Random(seed), power_cut=True)
        left.add(tuple(entry.term for entry in disk.log))
    assert left == {(1, 1), (1,), (1, 2), (1, 2, 2)}


def test_what_was_synced_survives_a_power_cut() -> None:
    disk = Disk()
    disk.write(AppendLog(log_of(1, 1)))
    disk.sync()
    disk.write(AppendLog(log_of(1, 1, 1)[2:]))
    assert disk.holds(2, 1) and not disk.holds(3, 1)
    disk.crash(random.Random(1), power_cut=True)
    assert disk.last_index >= 2


def test_two_leaders_in_a_term_are_found() -> None:
    lab, checker = watched()
    lab.elect(1)
    checker.changed(lab.nodes[1])
    checker.leaders[1] = 2
    with pytest.raises(SafetyViolation, match="two leaders"):
        checker.changed(lab.nodes[1])


def test_a_second_vote_is_found() -> None:
    lab, checker = watched()
    lab.nodes[1].disk.hard_state = HardState(1, 2)
    checker.sending(lab.nodes[1], 2, RequestVoteResponse(1, True))
    lab.nodes[1].disk.hard_state = HardState(1, 3)
    with pytest.raises(SafetyViolation, match="voted for 2 and 3"):
        checker.sending(lab.nodes[1], 3, RequestVoteResponse(1, True))


def test_a_vote_before_its_write_is_found() -> None:
    lab, checker = watched()
    with pytest.raises(SafetyViolation, match="before it was stored"):
        checker.sending(lab.nodes[1], 2, RequestVoteResponse(1, True))


def test_an_acknowledgement_before_its_fsync_is_found() -> None:
    lab, checker = watched()
    lab.nodes[1].disk.hard_state = HardState(1)
    lab.nodes[1].disk.write(AppendLog(log_of(1)))
    with pytest.raises(SafetyViolation, match="acknowledges 1, has 0"):
        checker.sending(lab.nodes[1], 2, AppendEntriesResponse(1, True, 1))


def test_a_commit_without_a_durable_quorum_is_found() -> None:
    lab, checker = watched()
    lab.elect(1)
    for node_id in (2, 3):
        lab.nodes[node_id].disk.synced.clear()
    with pytest.raises(SafetyViolation, match="durable only on"):
        checker.changed(lab.nodes[1])


def test_two_logs_that_do_not_match_are_found() -> None:
    lab, checker = watched()
    checker.writing(lab.nodes[1], AppendLog(log_of(1)))
    other = log_of(1)[0]
    with pytest.raises(SafetyViolation, match="log matching"):
        checker.writing(lab.nodes[2], AppendLog([type(other)(other.index, other.term, other.kind, b"other")]))


def test_a_lost_commit_is_found_at_the_end() -> None:
    lab, checker = watched()
    lab.elect(1)
    checker.changed(lab.nodes[1])
    checker.check_everything_kept(lab.configuration)
    for node_id in (1, 2):
        lab.nodes[node_id].disk.synced.clear()
    with pytest.raises(SafetyViolation, match="is left on"):
        checker.check_everything_kept(lab.configuration)


def test_the_model_refuses_a_copy_that_comes_after_its_lanes_next_number_as_the_machine_does() -> None:
    """Its sender has given it up, and used the lane again; the network had it all the time."""
    table, model = SessionTable(), Model(exact=True)
    table.keep(b"~1.1", 2, b"two", 1, 0)
    with pytest.raises(RefusedError):
        table.recall(b"~1.1", 1, b"one", 0)
    for index, number in enumerate((b"2", b"1", b"3", b"3"), 1):
        model.apply(index, 0, [[b"~ONCE", b"~1.1", number, encode_commands([[b"INCR", number]])]])
    assert model.values == {b"2": b"1", b"3": b"1"}


def test_raft_messages_are_doubled_and_what_rests_on_the_transports_promise_is_not() -> None:
    """A Forward that was refused is taken for one that carried out nothing: a copy would belie that."""
    faults = replace(scenario_of(0).faults, ordered=False, drop=0.0, duplicate=1.0)
    arrived: list[object] = []
    network = Network(
        Plan(1),
        faults,
        now=lambda: 0.0,
        deliver_at=lambda _at, _link, message: arrived.append(message),
        break_at=lambda _at, _link: None,
    )
    network.send(1, 2, RequestVoteResponse(1, True))
    assert len(arrived) == 2
    network.post(1, 2, Forward(1, 2, [[b"INCR", b"n"]], b"~1.1", 1))
    assert len(arrived) == 3


def test_a_read_may_stand_between_two_commands_of_an_entry_but_not_before_what_was_seen() -> None:
    machines = Machines(ServicePlan(POLICY))
    machines.history = {
        b"x": [NEVER_SET, ((5, LAST), b"old"), ((6, 0), b"between"), ((6, 1), b"new"), ((6, LAST), b"new")],
        b"y": [NEVER_SET, ((6, 1), b"too"), ((6, LAST), b"too")],
    }
    machines.check_read([b"x", b"y"], [b"between", None], 5, "at 1")
    machines.check_read([b"x", b"y"], [b"new", b"too"], 5, "at 1")
    for values, floor in (([b"between", b"too"], 5), ([b"between", None], 6), ([b"old", None], 6)):
        with pytest.raises(SafetyViolation, match="stale read"):
            machines.check_read([b"x", b"y"], values, floor, "at 1")
    model = Model(exact=True)
    model.apply(1, 0, [[b"SET", b"x", b"a"], [b"SET", b"x", b"b"]])
    assert model.changes == [(b"x", b"a"), (b"x", b"b")]
