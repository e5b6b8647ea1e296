"""A short run with a fixed seed: kills, pauses, partitions, transfers on three real nodes under clients."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.history import read_history
from tests.chaos.nemesis import CALM, KINDS, kinds_of, plan
from tests.chaos.run import Options, Run

KINDS_OF_THE_SHORT_RUN = tuple(kinds_of(["kill", "pause", "partition", "transfer"]))


@pytest.mark.process
@pytest.mark.timeout(240)
@pytest.mark.needs_tool("ip")
@pytest.mark.needs_tool("iptables")
def test_a_cluster_survives_a_short_run(tmp_path: Path) -> None:
    """Where there is no root, every link goes through a proxy instead of namespaces."""
    options = Options(tmp_path / "run", 25, seed=4, kinds=KINDS_OF_THE_SHORT_RUN, round_s=9, mongo=False)
    options.least_rounds = 2
    report = Run(options, lambda _: None).run()
    assert report.violations == [], f"look at {options.directory}/timeline.html"
    assert report.operations["ok"] > 500 and report.rounds >= 2
    assert sum(report.faults.values()) >= 10
    assert len(list(read_history(options.directory / "history.jsonl"))) == sum(report.operations.values())
    page = (options.directory / "timeline.html").read_text()
    assert all(f"node {n}" in page for n in (1, 2, 3)) and "leader of term" in page


def test_a_seed_decides_the_schedule() -> None:
    kinds = list(KINDS)
    assert plan(random.Random(7), kinds, 60) == plan(random.Random(7), kinds, 60)
    assert plan(random.Random(7), kinds, 60) != plan(random.Random(8), kinds, 60)


def test_a_schedule_has_every_kind_and_never_too_many_at_once() -> None:
    planned = plan(random.Random(1), list(KINDS), 120, together=3)
    assert {p.kind for p in planned} == set(KINDS) - set(CALM)
    for each in planned:
        together = [p for p in planned if p.at_s <= each.at_s < p.at_s + p.lasts_s]
        assert len(together) <= 3


def test_unknown_faults_are_named() -> None:
    with pytest.raises(ValueError, match="no fault 'flood'"):
        kinds_of(["kill", "flood"])
