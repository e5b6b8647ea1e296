"""The staged races find a stale read: each with a bug put back that hands one out."""

from __future__ import annotations

import pytest

from raft.core import reads
from raft.core.core import RaftCore
from raft.core.state import CoreState, PendingRead
from tests.simulation.races import Races
from tests.simulation.schedule import Schedule, execute
from tests.simulation.simulation import is_read_race

FIRST_RACES = [seed for seed in range(100) if is_read_race(seed)]


def expect_a_stale_read(seeds: list[int]) -> None:
    """One of the schedules fails, and for that reason."""
    for seed in seeds:
        failure = execute(Schedule(seed)).failure
        if failure is not None:
            assert failure.reason.startswith("stale read"), failure
            return
    pytest.fail(f"none of {len(seeds)} races gave a stale read")


def test_a_deposed_leader_that_answers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_read(core: CoreState, origin: int | None, request_id: int) -> None:
        read = PendingRead(origin, request_id, core.commit_index, core.round + 1)
        if core.commit_index < core.term_first_index:
            core.early_reads.append(read)
        else:
            reads._answer(core, read)

    monkeypatch.setattr(reads, "add_read", add_read)
    expect_a_stale_read(FIRST_RACES)


def test_a_new_leader_that_answers_before_its_first_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_read(core: CoreState, origin: int | None, request_id: int) -> None:
        core.reads.append(PendingRead(origin, request_id, core.commit_index, core.round + 1))

    monkeypatch.setattr(reads, "add_read", add_read)
    expect_a_stale_read(FIRST_RACES)


def test_a_lease_that_is_not_looked_at_after_the_read_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaftCore, "lease_ended", lambda core, now: False)
    expect_a_stale_read(FIRST_RACES)


def test_every_kind_of_race_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    begin = Races.begin
    monkeypatch.setattr(Races, "begin", lambda races, rng: told.append(begin(races, rng)) or told[-1])
    for seed in FIRST_RACES[:10]:
        assert execute(Schedule(seed)).failure is None
    words = " ".join(told)
    for kind in ("is cut off", "behind", "hands over", "goes on", "hears of its successor", "gives way"):
        assert kind in words, kind
    assert sum(map(bool, told)) >= 20
