"""The runner of many schedules: its sums are right, and nothing that fails in a process gets lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation import runner
from tests.simulation.__main__ import main
from tests.simulation.bugs import commit_by_counting, failing_schedule
from tests.simulation.runner import Report, run_seeds
from tests.simulation.schedule import Outcome, Schedule, execute

STEPS = 200


def test_the_sums_of_all_processes_are_those_of_the_single_runs(tmp_path: Path) -> None:
    figures: Counter[str] = Counter()
    steps = 0
    for seed in range(10, 23):
        outcome = execute(Schedule(seed, STEPS))
        figures.update(outcome.figures)
        steps += outcome.steps
    file = tmp_path / "summary.json"
    assert (
        main(["--first", "10", "--seeds", "13", "--steps", f"{STEPS}", "--jobs", "2", "--json", f"{file}"])
        == 0
    )
    told = json.loads(file.read_text())
    assert told["schedules"] == told["wanted"] == 13 and told["processes"] == 2
    assert told["steps"] == steps and not told["failures"]
    assert Counter(told["figures"]) == figures
    assert told["figures"]["leaders"] >= 13


def test_a_failing_seed_gives_exit_1_and_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit_by_counting(monkeypatch)
    schedule, outcome = failing_schedule(least_events=1)
    seed = schedule.seed
    arguments = ["--first", f"{seed}", "--seeds", "1", "--jobs", "2", "--shrink", "0", "--out", f"{tmp_path}"]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert f"FAILED seed {seed}, {outcome.failure}" in printed
    assert f"python -m tests.simulation --seed {seed}\n" in printed
    assert "1 failed" in printed and "FAILED 1× SafetyViolation: leader # of #" in printed


def test_it_stops_after_so_many_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "execute", lambda schedule: broken())
    report = run_seeds(range(1000), STEPS, 2, most_failures=3)
    assert 3 <= len(report.failures) < 20 and report.done < 100


def broken() -> Outcome:
    failure = runner.Failure(1, 2.0, "Error", "why", "Error: why")
    return Outcome(1, failure, ())


def test_a_process_that_dies_or_hangs_is_a_failure_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(schedule: Schedule) -> Outcome:
        if schedule.seed == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if schedule.seed == 9:
            time.sleep(1000)
        return Outcome(7, None, (), Counter(runs=1))

    monkeypatch.setattr(runner, "execute", strange)
    report = run_seeds(range(20), STEPS, 2, silence_s=6.0)
    assert {seed: failure.reason for seed, failure in report.failures.items()} == {
        5: "the process died", 9: "no end within 6 s",
    }  # fmt: skip
    assert report.done == 20 and report.figures["runs"] == 18 and report.steps == 18 * 7


def test_ctrl_c_ends_all_processes_and_prints_what_there_is() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "100000", "--steps", "50", "--jobs", "2"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as running:
        children = wait_for_children(running.pid, 2)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "(interrupted)" in out and "of 100,000 schedules" in out and "Traceback" not in err
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def wait_for_children(pid: int, count: int) -> list[int]:
    """The process ids of the workers, once there are so many and they have done something."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        children = [int(child) for child in text.split()]
        if len(children) == count and all(ticks(child) > 5 for child in children):
            return children
        time.sleep(0.02)
    raise AssertionError("the workers have not begun")


def ticks(pid: int) -> int:
    """Processor time that it has used in its own right."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_the_line_of_progress_says_what_is_left() -> None:
    report = Report(wanted=200, jobs=2, done=50, steps=10_000, cpu_s=4.0, wall_s=2.0)
    assert report.line() == "50/200 schedules, 0 failed, 5,000 steps/s, 2,500 per core, 6 s left"
