"""See test_simulation_seeds.py: the second quarter of the schedules."""

from __future__ import annotations

from tests.simulation.seeds import quarter, run_batch


@quarter(1)
def test_safety_under_faults_and_progress_after_them(first: int) -> None:
    run_batch(first)
