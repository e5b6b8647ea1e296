"""Simulated schedules of faults: many on all cores, or one that is looked at.

python -m tests.simulation --seeds 20000 [--first N] [--jobs N]     many; failures are shrunk and drawn
python -m tests.simulation --seed 17 [--only f3-crash,...]          one, with its timeline
python -m tests.simulation --replay FILE                            one from a file, with its timeline
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.simulation.events import split_name
from tests.simulation.runner import Report, make_progress, run_seeds
from tests.simulation.schedule import STEPS, Schedule, command_of, decode, describe
from tests.simulation.shrink import shrink
from tests.simulation.simulation import is_read_race
from tests.simulation.timeline import write

LAST_LINES = 60  # of a timeline that are printed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--first", type=int, default=0, help="first seed")
    made.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    made.add_argument("--steps", type=int, default=STEPS, help="steps with faults per seed")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one per core")
    made.add_argument("--seconds", type=float, default=float("inf"), help="stop after this much time")
    made.add_argument("--failures", type=int, default=5, help="stop after so many failures")
    made.add_argument("--only-races", action="store_true", help="only the schedules made for stale reads")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    made.add_argument("--shrink", type=float, default=60.0, metavar="SECONDS", help="for a failure; 0: not")
    made.add_argument("--seed", type=int, help="one schedule, with its timeline")
    made.add_argument(
        "--only", type=_events, metavar="EVENTS", help="of --seed: no other fault events; or none"
    )
    made.add_argument("--variation", type=int, default=0, help="of --seed: another network, other clients")
    made.add_argument("--replay", type=Path, metavar="FILE", help="the schedule in a file, with its timeline")
    made.add_argument("--out", type=Path, metavar="DIRECTORY", help="for schedules and timelines")
    made.add_argument("-v", "--verbose", action="count", default=0, help="more in the timeline; twice: all")
    return made


def _events(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    try:
        for name in names:
            split_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 1 if a schedule failed."""
    options = parser().parse_args(arguments)
    if options.replay is not None:
        return look_at(decode(options.replay.read_bytes()), options.out, options.verbose)
    if options.seed is not None:
        schedule = Schedule(options.seed, options.steps, options.variation, options.only)
        return look_at(schedule, options.out, options.verbose)
    seeds = range(options.first, options.first + options.seeds)
    chosen = [seed for seed in seeds if is_read_race(seed)] if options.only_races else seeds
    progress = make_progress()
    try:
        report = run_seeds(
            chosen,
            options.steps,
            options.jobs,
            most_failures=options.failures,
            seconds=options.seconds,
            progress=progress,
        )
    finally:
        progress.close()
    print(report.summary(), flush=True)
    if options.json is not None:
        options.json.write_text("")  # a path that cannot be written is told before the shrinking
        report.write(options.json)
    explain(report, options.steps, options.shrink, options.out, options.verbose)
    return 1 if report.failures else 130 if report.interrupted else 0


def explain(report: Report, steps: int, budget_s: float, out: Path | None, verbosity: int) -> None:
    """Every failing seed with its reason; the first of each kind shrunk, and drawn."""
    seen: set[str] = set()
    for seed, failure in sorted(report.failures.items()):
        print(f"\nFAILED seed {seed}, {failure}\n  {command_of(Schedule(seed, steps))}", flush=True)
        if failure.signature in seen or budget_s <= 0 or failure.exception == "Lost":
            continue
        seen.add(failure.signature)
        shrunk = shrink(Schedule(seed, steps), budget_s)
        if shrunk is None:
            print("  it did not fail again: something is not decided by the seed", flush=True)
            continue
        how = "as small as it gets" if shrunk.finished else "the time was over"
        events = f"{shrunk.events_before} fault events to {len(shrunk.events)}"
        print(f"shrunk from {events} in {shrunk.tries} tries, {how}")
        look_at(shrunk.schedule, out, verbosity)


def look_at(schedule: Schedule, out: Path | None, verbosity: int) -> int:
    """Run one schedule; print what it is, the end of its timeline, and where all of it is."""
    directory = out or Path(tempfile.mkdtemp(prefix="simulation-"))
    outcome, _, story = write(schedule, directory, verbosity)
    lines = story.read_text().splitlines()
    print(describe(schedule, outcome.events))
    table = next((number for number, line in enumerate(lines) if line.startswith("       ms ")), None)
    if table is not None:
        end = lines.index("", table) if "" in lines[table:] else len(lines)
        print("\n" + lines[table])
        if end - table - 1 > LAST_LINES:
            print(f"  … {end - table - 1 - LAST_LINES} lines before these are in {story}")
        print("\n".join(lines[max(table + 1, end - LAST_LINES) : end]))
    print(f"\nseed {schedule.seed}: {outcome.failure or f'no failure in {outcome.steps} steps'}")
    print(f"timeline: {story} and {story.with_suffix('.html')}")
    print(f"replay:   {command_of(schedule, story.with_suffix('.json'))}", flush=True)
    return 1 if outcome.failure else 0


if __name__ == "__main__":
    logging.disable()  # what nodes have to say about their disks; inherited by the workers
    sys.exit(main())
