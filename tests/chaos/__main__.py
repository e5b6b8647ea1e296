"""Faults on a real cluster: python -m tests.chaos --minutes 5 [--nodes 3|5] [--seed S] [--faults disk,…]."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.chaos.nemesis import GROUPS, KINDS, NEEDS, kinds_of
from tests.chaos.run import Options, Report, Run


def main() -> int:
    """Exit 0 if nothing was wrong, 1 if something was, 2 for wrong arguments."""
    options, keep = _arguments()
    began = time.monotonic()

    def progress(text: str) -> None:
        spent, whole = time.monotonic() - began, options.seconds
        if sys.stderr.isatty():
            share = min(1.0, spent / whole)
            bar = ("#" * int(share * 20)).ljust(20, ".")
            print(
                f"\r\x1b[K[{bar}] {spent:4.0f}/{whole:.0f} s  {text}"[:170],
                end="",
                file=sys.stderr,
                flush=True,
            )

    report = Run(options, progress).run()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(told(options, report, time.monotonic() - began))
    (options.directory / "report.json").write_text(json.dumps(asdict(report), indent=1))
    if report.violations or keep:
        print(f"everything is in {options.directory} (look at timeline.html first)")
    else:
        shutil.rmtree(options.directory, ignore_errors=True)
    return 1 if report.violations else 0


def _arguments() -> tuple[Options, bool]:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--nodes", type=int, choices=(3, 5), default=3)
    parser.add_argument("--seed", type=int, default=None, help="decides the schedule; default: drawn anew")
    parser.add_argument(
        "--faults",
        default="all",
        help=f"comma between them; groups {', '.join(GROUPS)}; kinds {', '.join(KINDS)}",
    )
    parser.add_argument("--round", type=float, default=20.0, metavar="S", help="seconds of faults in a round")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--no-mongo", action="store_true", help="without MongoDB")
    parser.add_argument("--loopback", action="store_true", help="proxies instead of network namespaces")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="keep everything there")
    parser.add_argument("--lease-reads", action="store_true", help="raft.lease_reads: true")
    given = parser.parse_args()
    try:
        kinds = kinds_of(given.faults.split(","))
    except ValueError as error:
        parser.error(str(error))
    for kind in [kind for kind in kinds if kind in NEEDS and shutil.which(NEEDS[kind]) is None]:
        print(f"without {kind}: {NEEDS[kind]} is not installed", file=sys.stderr)
        kinds.remove(kind)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    directory = given.keep or Path(tempfile.mkdtemp(prefix=f"super-node-chaos-{seed}-"))
    options = Options(
        directory=directory.resolve(), seconds=given.minutes * 60, seed=seed, nodes=given.nodes,
        kinds=tuple(kinds), clients=given.clients, round_s=given.round, mongo=not given.no_mongo,
        loopback=given.loopback, lease_reads=given.lease_reads,
    )  # fmt: skip
    print(f"seed {seed}, {given.nodes} nodes, {given.minutes:g} minutes: {', '.join(kinds)}", flush=True)
    return options, given.keep is not None


def told(options: Options, report: Report, seconds: float) -> str:
    """The report for people."""
    recoveries = sorted(report.recoveries_s)
    lines = [
        f"{seconds:.0f} s, seed {options.seed}, {options.nodes} nodes, {report.rounds} rounds",
        "operations: " + ", ".join(f"{count} {outcome}" for outcome, count in report.operations.items()),
        "faults: " + ", ".join(f"{count} {kind}" for kind, count in report.faults.items()),
        f"keys judged: {report.keys}, longest search {report.longest_search} steps",
        f"reward intervals: {report.intervals}; requests without an answer: {report.silences}",
        f"slowest answer of a node that no fault held: {report.slowest_s:.2f} s",
    ]
    if recoveries:
        middle, worst = recoveries[len(recoveries) // 2], recoveries[-1]
        lines.append(f"first write acknowledged after healing: median {middle:.2f} s, longest {worst:.2f} s")
    lines += [f"node {n}: at most {usage}" for n, usage in report.usage.items()]
    lines.append(f"VIOLATIONS: {len(report.violations)}" if report.violations else "violations: none")
    lines += [f"  {text}" for text in report.violations[:20]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
