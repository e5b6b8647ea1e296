"""The clock that a node of a chaos run gets: it jumps, drifts, and comes back without ever going back."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.chaos.node_program import DRIFT, BentClock


def test_it_drifts_and_comes_back_slowly(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    file.write_text("0 0")
    clock = BentClock(file, 1000.0)
    assert clock.look(1100.0) == 1100.0
    file.write_text(f"5000 {-DRIFT}")
    assert clock.look(1121.0) == 1121.0 and clock.offset_ms == 5000  # from now on
    assert clock.look(2121.0) == pytest.approx(2121 - 45)
    file.write_text("0 0")
    shown = [clock.look(2142.0 + step) for step in range(0, 2000, 10)]
    assert all(8 < b - a < 12 for a, b in itertools.pairwise(shown))
    assert shown[-1] == 2142.0 + 1990 and clock.offset_ms == 0


def test_two_threads_that_read_out_of_order_see_no_step_back(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    file.write_text(f"0 {DRIFT}")
    clock = BentClock(file, 0.0)
    seen = [clock.look(at) for at in (100.0, 300.0, 299.0, 310.0)]
    assert seen == sorted(seen)
