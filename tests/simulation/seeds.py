"""The schedules of the test suite, a quarter in each of four files, so that they run on several cores."""

from __future__ import annotations

import pytest

from tests.simulation.schedule import Schedule, command_of, execute

BATCH = 10
QUARTERS = 4
SEEDS = 520


def quarter(number: int) -> pytest.MarkDecorator:
    """Batches of the number-th quarter of all seeds; together they are all of them."""
    each = SEEDS // QUARTERS
    return pytest.mark.parametrize("first", range(number * each, (number + 1) * each, BATCH))


def run_batch(first: int, count: int = BATCH) -> None:
    """Run so many seeds; the first that fails is told, with what replays it."""
    for seed in range(first, first + count):
        schedule = Schedule(seed)
        outcome = execute(schedule)
        if outcome.failure is not None:
            told = f"seed {seed}, {outcome.failure}\nreplay: {command_of(schedule)}\n{outcome.trace}"
            pytest.fail(told, pytrace=False)
