"""Schedules with every mix of faults; a failure names its seed, and what replays it and draws its timeline:

python -m tests.simulation --seed SEED
"""

from __future__ import annotations

import pytest

from raft.core.state import Role
from tests.simulation.schedule import STEPS, Schedule, execute
from tests.simulation.seeds import BATCH, QUARTERS, SEEDS, quarter, run_batch
from tests.simulation.simulation import Simulation


@quarter(0)
def test_safety_under_faults_and_progress_after_them(first: int) -> None:
    run_batch(first)


def test_there_are_enough_schedules() -> None:
    assert SEEDS >= 500 and STEPS >= 2000 and SEEDS % (QUARTERS * BATCH) == 0
    batches = [first for number in range(QUARTERS) for first in quarter(number).args[1]]
    assert [seed for first in batches for seed in range(first, first + BATCH)] == list(range(SEEDS))


def test_a_failing_schedule_is_told_with_what_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def end_badly(simulation: Simulation, steps: int) -> None:
        raise AssertionError("a made-up end")

    monkeypatch.setattr(Simulation, "run", end_badly)
    with pytest.raises(pytest.fail.Exception, match=r"seed 30, .*: a made-up end\nreplay: .* --seed 30\n"):
        run_batch(30)


def test_one_seed_gives_one_schedule() -> None:
    stories = []
    for _ in range(2):
        simulation = Simulation(42)
        simulation.run(STEPS)
        stories.append((simulation.steps, simulation.now, simulation.plan.happened, simulation.describe()))
    assert stories[0] == stories[1]


def test_what_is_left_out_changes_nothing_before_it() -> None:
    """Each fault event has random numbers of its own: those that stay are the same events."""
    whole = execute(Schedule(42))
    names = tuple(event.name for event in whole.events)
    assert len(names) > 10
    again = execute(Schedule(42, only=names))
    assert (again.steps, again.events, again.figures) == (whole.steps, whole.events, whole.figures)
    half = execute(Schedule(42, only=names[: len(names) // 2]))
    assert half.events == whole.events[: len(names) // 2]
    assert execute(Schedule(42, only=())).events == ()


def test_the_schedules_are_worth_running() -> None:
    """Elections, crashes, commits, reads, snapshots, changes of members and lost disks happen in them. 60 of
    these 75 schedules are no races, which leave most of this out."""
    terms, restarts, commits, reads, leaders = 0, 0, 0, 0, 0
    installs, changes, wipes, loads = 0, 0, 0, 0
    writes, reports, claims, bans, hits, once = 0, 0, 0, 0, 0, 0
    for seed in range(1000, 1075):
        simulation = Simulation(seed)
        for _ in range(STEPS):
            simulation.step()
        terms += max(simulation.checker.leaders, default=0)
        leaders += len(set(simulation.checker.leaders.values()))
        restarts += sum(node.incarnation - 1 for node in simulation.nodes.values())
        commits += len(simulation.checker.committed)
        reads += simulation.workload.reads_answered
        installs += simulation.installs
        changes += len(simulation.checker.configurations)
        wipes += simulation.members.wipes
        loads += bool(simulation.scenario.load_every_ms)
        writes += simulation.workload.writes_acknowledged
        books = simulation.machines.books
        reports += len(books.acknowledged)
        claims += len(books.claims)
        bans += books.bans
        hits += sum(outcome == "hit" for outcome in books.outcomes.values())
        once += len(simulation.machines.model.numbers)
        assert all(host.node.role in (None, *Role) for host in simulation.hosts.values())
    assert terms >= 60, terms
    assert leaders >= 20, leaders
    assert restarts >= 60, restarts
    assert commits >= 500, commits
    assert reads >= 300, reads
    assert installs >= 20, installs
    assert changes >= 150, changes
    assert wipes >= 5, wipes
    assert loads >= 1, loads
    assert writes >= 500, writes
    assert reports >= 80, reports
    assert claims >= 40, claims
    assert bans >= 15, bans
    assert hits >= 150, hits
    assert once >= 500, once
