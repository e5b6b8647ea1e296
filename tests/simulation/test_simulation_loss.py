"""Disks lose the end of a log, and say so: safe all the same, and whole again in the end.

python -m tests.simulation.loss --first SEED --seeds 1
"""

from __future__ import annotations

import pytest

from raft.core import recovery
from raft.core.recovery import Recovering
from raft.core.state import CoreState
from tests.simulation.checker import SafetyViolation
from tests.simulation.loss import LossSimulation

STEPS = 2000
BATCH = 10


@pytest.mark.parametrize("first", range(0, 6 * BATCH, BATCH))
def test_safety_under_losses_and_progress_after_them(first: int) -> None:
    for seed in range(first, first + BATCH):
        simulation = LossSimulation(seed)
        try:
            simulation.run(STEPS)
        except Exception as error:
            error.add_note(f"seed {seed}, step {simulation.steps}")
            raise


def test_the_schedules_are_worth_running() -> None:
    """Losses happen, also of what only just made a quorum, and are made good."""
    losses, healed, asked = 0, 0, 0
    for seed in range(100, 115):
        simulation = LossSimulation(seed)
        for _ in range(STEPS):
            simulation.step()
        losses += simulation.losses
        news = [line for node in simulation.nodes.values() for line in node.news]
        healed += sum(line.startswith("healed") for line in news)
        asked += sum("has lost entries that it had acknowledged" in line for line in news)
    assert losses >= 60, losses
    assert healed >= 30, healed
    assert asked >= 10, asked


def test_who_takes_itself_for_healed_too_soon_breaks_safety(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedules find it: a candidate without a committed entry gets the vote."""

    def at_once(_core: CoreState, _recovering: Recovering) -> bool:
        return True

    monkeypatch.setattr(recovery, "is_healed", at_once)
    with pytest.raises(SafetyViolation):
        for seed in range(40):
            LossSimulation(seed).run(STEPS)
