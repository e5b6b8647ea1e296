"""A bug is put into the core: the schedule that finds it is shrunk, replayed, and told as a timeline."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree
from pathlib import Path

import pytest

from tests.simulation import timeline
from tests.simulation.__main__ import main
from tests.simulation.bugs import commit_by_counting, failing_schedule
from tests.simulation.events import split_name
from tests.simulation.recorder import record
from tests.simulation.schedule import Schedule, command_of, decode, describe, execute, signature_of
from tests.simulation.shrink import Shrunk, shrink

TRIES = 60
SVG = "{http://www.w3.org/2000/svg}"


def small(schedule: Schedule) -> Shrunk:
    """Shrunk within so many tries: the clock ticks with each of them, so that no time of day matters."""
    clock = itertools.count()
    shrunk = shrink(schedule, TRIES, lambda: next(clock))
    assert shrunk is not None
    return shrunk


def test_a_failure_is_shrunk_replayed_and_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit_by_counting(monkeypatch)
    schedule, outcome = failing_schedule(least_events=12)
    assert outcome.failure is not None
    shrunk = small(schedule)
    assert shrunk.events_before == len(outcome.events)
    assert len(shrunk.events) <= shrunk.events_before // 2
    assert shrunk.failure.signature == outcome.failure.signature
    assert "of an earlier term by counting" in shrunk.failure.reason

    file = tmp_path / "schedule.json"
    file.write_bytes(shrunk.schedule.encode())
    assert decode(file.read_bytes()) == shrunk.schedule
    for _ in range(2):
        again = execute(decode(file.read_bytes()))
        assert (again.failure, again.events) == (shrunk.failure, shrunk.events)

    assert main(["--replay", str(file), "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert shrunk.failure.reason in printed
    assert all(event.name in printed for event in shrunk.events)
    check_timeline(printed, shrunk)
    check_picture(tmp_path / f"seed-{schedule.seed}.html", shrunk)

    monkeypatch.undo()
    assert execute(shrunk.schedule).failure is None, "only the bug makes it fail"


def check_timeline(printed: str, shrunk: Shrunk) -> None:
    """One column per node; the leader's election, the fault events and the violation are in it."""
    lines = printed.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("       ms"))
    nodes = lines[head].split()[2:]
    configuration = shrunk.schedule.drawn().configuration
    assert {str(node) for node in (*configuration.voters, *configuration.learners)} <= set(nodes)
    end = next(number for number, line in enumerate(lines) if "!!! SafetyViolation: leader" in line)
    table = "\n".join(lines[head:end])
    assert "LEADER t" in table and "append" in table and "commit" in table
    times = [float(line[:9]) for line in lines[head + 1 : end + 1] if not line.startswith("  …")]
    assert times == sorted(times) and times[-1] == pytest.approx(shrunk.failure.at_ms, abs=0.1)


def check_picture(page: Path, shrunk: Shrunk) -> None:
    """Well-formed, with the roles, the faults and the violation, and nothing from outside."""
    html = page.read_text()
    root = xml.etree.ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    told = [element.text or "" for tag in ("text", "title") for element in root.iter(SVG + tag)]
    assert any("LEADER t" in each for each in told)
    assert any(each.startswith("SafetyViolation: leader") for each in told)
    assert all(any(event.name in each for each in told) for event in shrunk.events)
    assert "<script" not in html and "http" not in html.replace(SVG[1:-1], "")


def test_a_schedule_that_does_not_fail_is_not_shrunk() -> None:
    assert shrink(Schedule(1, steps=100)) is None


def test_recording_changes_nothing() -> None:
    for seed in (3, 4, 8):
        outcome, simulation = record(Schedule(seed))
        plain = execute(Schedule(seed))
        assert simulation is not None
        assert (outcome.steps, outcome.events, outcome.figures) == (plain.steps, plain.events, plain.figures)


def test_verbosity_shows_more() -> None:
    _, simulation = record(Schedule(3, steps=300))
    assert simulation is not None
    nodes = sorted(simulation.nodes)
    tables = [timeline.text(simulation.marks, nodes, verbosity) for verbosity in range(3)]
    assert "heartbeat" in tables[2] and "heartbeat" not in tables[1]
    assert "fsync" in tables[1] and "fsync" not in tables[0]
    assert len(tables[0]) < len(tables[1]) < len(tables[2])


def test_failures_of_one_kind_have_one_signature() -> None:
    one = signature_of(KeyError(17))
    assert one == signature_of(KeyError(4)) != signature_of(ValueError(4))
    many = (AssertionError(f"no progress of [1, {n}] within {n}00 ms; more") for n in (2, 3))
    assert {signature_of(error) for error in many} == {"AssertionError: no progress of"}


def test_the_command_says_what_is_left_out() -> None:
    told = command_of(Schedule(7, steps=500, variation=2, only=("f1-crash", "c0-change")))
    assert told == "python -m tests.simulation --seed 7 --steps 500 --variation 2 --only f1-crash,c0-change"
    assert command_of(Schedule(7, only=())).endswith("--seed 7 --only none")
    assert "0 fault events" in describe(Schedule(7, only=()), ())
    for name in ("crash", "f-crash", "x1-crash", "f1"):
        with pytest.raises(ValueError, match="is not the name of an event"):
            split_name(name)
