"""The mixes name faults that there are; their reports become tables; planted bugs have names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.chaos.judge import check_growth
from tests.chaos.mixes import MIXES, merge, names_of
from tests.chaos.nemesis import KINDS, kinds_of
from tests.chaos.run import Options, Report
from tests.chaos.summary import told


def test_the_mixes_strike_with_every_fault_that_there_is() -> None:
    struck = {name: kinds_of(mix.faults.split(",")) for name, mix in MIXES.items()}
    assert set(struck["all-3"]) == set(struck["all-5"]) == set(KINDS)
    others = {kind for name, kinds in struck.items() if not name.startswith("all") for kind in kinds}
    assert others == set(KINDS)
    assert {mix.nodes for mix in MIXES.values()} == {3, 5}
    assert any(mix.lease_reads for mix in MIXES.values()) and any(mix.power for mix in MIXES.values())


def test_mixes_are_asked_for_by_name() -> None:
    assert names_of("all") == list(MIXES)
    assert names_of("disk,mongo") == ["disk", "mongo"]
    with pytest.raises(ValueError, match="no mix 'disks'"):
        names_of("disks")


def report(tmp_path: Path, mix: str, violations: list[str]) -> dict[str, object]:
    made = Report(
        violations=violations, rounds=2, operations={"ok": 1200, "failed": 3, "unknown": 4}, keys=55,
        faults={"kill": 2, "loss": 1}, recoveries_s=[0.2, 1.25], usage={1: "42 MB"}, seconds=60.0,
        growth=[
            {"at_s": 30, "node_mb": 41.7, "descriptors": 30, "threads": 17, "mongo_mb": 9, "harness_mb": 8},
        ],
    )  # fmt: skip
    options = asdict(Options(tmp_path, 60, seed=7, nodes=3, kinds=("kill", "loss"), power=True, mix=mix))
    made.settings = {name: value for name, value in options.items() if name != "directory"}
    return asdict(made)


def test_reports_become_tables(tmp_path: Path) -> None:
    for mix, violations in (("disk", []), ("mongo", ["something is lost"])):
        (tmp_path / f"{mix}.json").write_text(json.dumps(report(tmp_path, mix, violations)))
    merge(tmp_path)
    lines = (tmp_path / "tables.md").read_text().splitlines()
    (disk,) = [line for line in lines if line.startswith("| disk | 3 nodes, power loss, seed 7 |")]
    assert "1,200 / 3 / 4" in disk and "1.25 s" in disk and disk.endswith("| 0 |")
    (together,) = [line for line in lines if line.startswith("| together")]
    assert "2,400 / 6 / 8" in together and together.endswith("| 1 |")
    assert "| `kill` | 2 | 2 | 4 |" in lines and "| violations | 0 | 1 | 1 |" in lines
    assert "| disk | 30 s | 42 MB | 30 | 17 | 9 MB | 8 MB |" in lines


def test_a_report_is_told_with_its_violations(tmp_path: Path) -> None:
    text = told(report(tmp_path, "", ["something is lost"]))
    assert "VIOLATIONS: 1\n  something is lost" in text and "longest 1.25 s" in text
    assert told(report(tmp_path, "", [])).endswith("violations: none")


@pytest.mark.parametrize(("what", "step"), [("node_mb", 4.0), ("descriptors", 2.0), ("threads", 1.0)])
def test_slow_growth_of_a_node_is_found(what: str, step: float) -> None:
    calm: dict[str, float] = {"at_s": 0, "node_mb": 42, "descriptors": 33, "threads": 17}
    growth = [dict(calm) for _ in range(16)]
    growth[5][what] *= 4  # one moment
    assert check_growth(growth) == []
    for number, each in enumerate(growth):
        each[what] = calm[what] + number * step
    assert check_growth(growth) and what in check_growth(growth)[0]
