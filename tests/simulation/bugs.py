"""Bugs put into the core, in the tests of what is to find and explain them."""

from __future__ import annotations

import pytest

from raft.core import replication
from raft.core.state import CoreState, Role
from tests.simulation.schedule import Outcome, Schedule, execute


def commit_by_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader takes an entry of an earlier term for committed once a majority has it (paper figure 8)."""

    def maybe_commit(core: CoreState) -> None:
        if core.role is not Role.LEADER:
            return
        index = core.configuration.quorum_value(
            [
                core.durable_index if voter == core.node_id else core.progress[voter].match_index
                for voter in core.configuration.voters
            ]
        )
        if index > core.commit_index:
            core.commit(index)

    monkeypatch.setattr(replication, "maybe_commit", maybe_commit)


def failing_schedule(least_events: int, seeds: range = range(100)) -> tuple[Schedule, Outcome]:
    """The first schedule that fails for the bug after so many fault events."""
    for seed in seeds:
        outcome = execute(Schedule(seed))
        if outcome.failure is not None and len(outcome.events) >= least_events:
            return Schedule(seed), outcome
    raise AssertionError("no seed finds the bug")
