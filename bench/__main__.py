"""The driver: measures groups of cases one after the other, keeps the raw results, writes docs/benchmarks.md.

    python -m bench [--only speed,failover] [--resume] [--rounds 5] [--seconds 2] [--json]
    python -m bench --quick | --render | --record | --list

Whatever it starts ends with it: on Ctrl-C, SIGTERM and errors in order, after a SIGKILL through the kernel. A
group that fails is told with the ends of its servers' logs; the others are measured nevertheless.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench import rig
from bench.cases import endurance, failover, followers, scale, speed
from bench.cluster import missing
from bench.context import Context, Group, Options
from bench.goals import FIRST_FOUR, GOALS
from bench.render import Judged, judge, render, verdict
from bench.results import Results, ResultsError, machine
from cli.progress import ended_by_sigterm, progress_bar
from database.embedded import EmbeddedServerError

ROOT = Path(__file__).resolve().parent.parent
LATEST, RECORDED = ROOT / "bench/results/latest.json", ROOT / "bench/results/recorded.json"
PAGE, PLOTS = ROOT / "docs/benchmarks.md", ROOT / "docs/plots"
GROUPS = (
    speed.GROUP, scale.NODES_GROUP, scale.KEYS_GROUP, scale.VALUES_GROUP, scale.MEMORY_GROUP,
    failover.GROUP, followers.GROUP, endurance.GROUP,
)  # fmt: skip
QUICK = {"rounds": 3, "seconds": 1.0, "check_perf": False}
# What a server or a load may do; anything else is a bug of this program and ends it.
FAILURES = (RuntimeError, OSError, ValueError, KeyError, subprocess.SubprocessError, EmbeddedServerError)
Plan = list[tuple[Group, frozenset[str]]]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Options]:
    """Exits with 2 and a line for what makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure super node and its peers.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="the first four rows, beside the recorded ratios")
    what.add_argument("--render", action="store_true", help="only write the page, from raw results")
    what.add_argument("--record", action="store_true", help="only keep the raw results as the recorded ones")
    what.add_argument("--list", action="store_true", help="only tell which cases there are")
    parser.add_argument("--only", default="", metavar="NAME[,NAME…]", help="groups or cases")
    parser.add_argument("--resume", action="store_true", help="keep what is in the results, measure the rest")
    parser.add_argument("--results", type=Path, default=LATEST, metavar="FILE", help="raw results")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the page to write")
    parser.add_argument("--plots", type=Path, default=PLOTS, metavar="DIR", help="where its plots go")
    parser.add_argument("--dir", default=None, help="where the data goes while it is measured; on a disk")
    parser.add_argument("--json", action="store_true", help="goals and values for programs")
    parser.add_argument("--no-check-perf", dest="check_perf", action="store_false", default=None)
    for field in fields(Options):
        if field.name != "check_perf":
            kind = float if field.type == "float" else int
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=kind, metavar="N", help=f"default: {field.default}")
    options = parser.parse_args(arguments)
    given = {
        f.name: getattr(options, f.name) for f in fields(Options) if getattr(options, f.name) is not None
    }
    try:
        asked = Options(**{**(QUICK if options.quick else {}), **given})
        if options.quick and options.only:
            raise ValueError("--quick measures its own cases; leave --only out")
        options.only = select([name for name in options.only.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    return options, asked


def select(names: Sequence[str]) -> frozenset[str]:
    """The cases that these groups and cases stand for; none: all. ValueError for an unknown one."""
    cases = {case.name: {case.name} for group in GROUPS for case in group.cases}
    known = cases | {group.name: {case.name for case in group.cases} for group in GROUPS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no case {', '.join(unknown)}; there are {', '.join(known)}")
    return frozenset().union(*(known[name] for name in names or cases))


def plan_of(wanted: frozenset[str], done: frozenset[str], options: Options) -> Plan:
    """Groups with what is still to be measured in them."""
    plan = []
    for group in GROUPS:
        names = frozenset(case.name for case in group.cases) & wanted - done
        if group is scale.KEYS_GROUP:
            names = frozenset(name for name in names if int(name.rpartition("-")[2]) <= options.most_keys)
        if names:
            plan.append((group, names))
    return plan


def run(plan: Plan, options: Options, results: Results, parent: str | None) -> bool:
    """Whether all groups could be measured."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard > 0 else soft, hard))
    good = True
    with progress_bar() as (stage, advance):
        for group, names in plan:
            for name in names:
                results.forget(name)
            began = time.monotonic()
            with rig.directory(parent) as path:
                total = group.steps(options, names)
                done = [0]

                def tell(what: str, total: int = total, done: list[int] = done) -> None:
                    stage(what, total)
                    advance(done[0])

                def step(done: list[int] = done) -> None:
                    done[0] += 1
                    advance(1)

                try:
                    group.run(Context(options, path, results, tell, step), names)
                except FAILURES as error:
                    good = False
                    tell_failure(group.name, error, path)
                    continue
            for name in sorted(names):
                results.finish(name, (time.monotonic() - began) / len(names))
    return good


def tell_failure(name: str, error: BaseException, path: Path) -> None:
    """On standard error, with what the servers said last."""
    print(f"bench: {name}: {type(error).__name__}: {error}", file=sys.stderr)
    for log in sorted(path.rglob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-3:]
        print("\n".join(f"  {log.relative_to(path)}: {line}" for line in lines), file=sys.stderr)


def show(judged: Sequence[Judged], recorded: Results | None = None) -> None:
    """The goals on standard output; with the recorded values, if there are any."""
    table = Table(box=box.HORIZONTALS, padding=(0, 1))
    for column in ("case", "goal", "measured", *(["recorded"] if recorded else []), ""):
        table.add_column(column, justify="left" if column in ("case", "") else "right", no_wrap=True)
    for goal, value in judged:
        row = [goal.what, goal.wanted, "–" if value is None else goal.show(value)]
        if recorded is not None:
            before = goal.value(recorded)
            row.append("–" if before is None else goal.show(before))
        table.add_row(*row, verdict(goal, value).strip("*"))
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def as_json(judged: Sequence[Judged]) -> str:
    """[{case, what, value, goal, reached}]: reached is null where there is no goal or no value."""
    rows = [
        {
            "case": goal.case,
            "what": goal.what,
            "value": value,
            "unit": goal.unit,
            "goal": goal.wanted,
            "reached": None if value is None else goal.reached(value),
        }
        for goal, value in judged
    ]
    return json.dumps(rows, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 when a group failed or the results cannot be read; 2 for wrong arguments; 130 after Ctrl-C."""
    options, asked = parse(arguments)
    try:
        if options.list:
            for group in GROUPS:
                print(f"{group.name}\n" + "\n".join(f"  {case.name:18}{case.title}" for case in group.cases))
            return 0
        if options.render or options.record:
            results = Results.load(options.results)
            if options.record:
                RECORDED.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(options.results, RECORDED)
            render(results, options.page, options.plots)
            return 0
        with ended_by_sigterm():
            return measure(options, asked)
    except ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what is complete is kept, --resume goes on with the rest", file=sys.stderr)
        return 130


def measure(options: argparse.Namespace, asked: Options) -> int:
    """Measure, render, show."""
    wanted = frozenset(speed.FIRST_FOUR) if options.quick else options.only
    if options.quick:
        results = Results(None, machine())
    elif options.resume and options.results.exists():
        results = Results.load(options.results)
    else:
        results = Results(options.results, machine())
    results.meta["options"] = asdict(asked)
    plan = plan_of(wanted, frozenset(results.done), asked)
    if absent := missing(*sorted({program for group, _ in plan for program in group.needs})):
        print(f"bench: not installed: {', '.join(absent)}; `make bench` installs it", file=sys.stderr)
        return 1
    seconds = sum(group.seconds(asked, names) for group, names in plan)
    cases = sum(len(names) for _, names in plan)
    print(f"{cases} cases, about {seconds / 60:.0f} minutes", file=sys.stderr)
    for name in ("etcd", "etcdctl"):
        if missing(name):
            print(f"without {name}, which is not installed", file=sys.stderr)
    if speed.missing_pysyncobj():
        print("without PySyncObj: pip install -r requirements-bench.txt", file=sys.stderr)
    good = run(plan, asked, results, options.dir)
    recorded = Results.load(RECORDED) if options.quick and RECORDED.exists() else None
    if not options.quick:
        results.save()
        render(results, options.page, options.plots)
    goals = FIRST_FOUR if options.quick else [goal for goal in GOALS if goal.case in wanted]
    judged = judge(results, goals)
    if options.json:
        print(as_json(judged))
    else:
        show(judged, recorded)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
