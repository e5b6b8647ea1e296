"""`python -m tests.fuzz TARGET|all --runs 1000000 [--seed N] [--unguided]`: each target in its own process.

Ends with 1 if anything was found; the inputs are then in tests/fuzz/crashes-TARGET/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from tests.fuzz.engine import run_target


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a target's name, or all")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs per target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unguided", action="store_true", help="without coverage: several times faster")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_target(options.target, options.runs, options.seed, guided=not options.unguided)
        return 0
    from tests.fuzz.registry import TARGETS

    names = list(TARGETS) if options.target == "all" else options.target.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    results = [run_child(name, options.runs, options.seed, guided=not options.unguided) for name in names]
    print(f"{sum(each['count'] for each in results)} inputs, {len(results)} targets")
    return int(any(each["failures"] or not each.get("finished") for each in results))


def run_child(name: str, runs: int, seed: int, *, guided: bool) -> dict[str, Any]:
    """One target; shows how far it is."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--child", "--runs", str(runs), "--seed", str(seed)]
    command += [] if guided else ["--unguided"]
    last: dict[str, Any] = {"count": 0, "failures": [], "taken": 0, "seconds": 0.0}
    environment = {**os.environ, "PYTHONHASHSEED": str(seed % 2**32)}
    noisy = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noisy, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                last = json.loads(line)
                if sys.stdout.isatty():  # a progress line; elsewhere the last one of each target is enough
                    print(f"\r{_shown(name, last, runs)}", end="", flush=True)
    state = "" if last.get("finished") else f"  ENDED EARLY, exit {child.returncode}"
    print(f"{chr(13) if sys.stdout.isatty() else ''}{_shown(name, last, runs)}{state}", flush=True)
    for place in last["failures"]:
        print(f"    {place}", flush=True)
    return last


def _shown(name: str, last: dict[str, Any], runs: int) -> str:
    rate = last["count"] / last["seconds"] if last["seconds"] else 0.0
    share = 100 * last["taken"] / last["count"] if last["count"] else 0.0
    found = len(last["failures"])
    return f"{name:14} {last['count']:>8}/{runs}  {rate:7.0f}/s  {share:3.0f} % valid  {found} found"


if __name__ == "__main__":
    sys.exit(main())
