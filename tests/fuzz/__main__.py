"""`python -m tests.fuzz TARGET[,TARGET]|all --runs 1000000 [--guided 200000] [--seed N]`: every input of a
target in processes of its own, the first of them guided by coverage. `python -m tests.fuzz live --minutes 5`:
strangers at the ports of a real cluster under load.

Ends with 1 if anything was found; the inputs are then in tests/fuzz/crashes-TARGET/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.engine import BlackBox, keep, run_target

_SAYS_EVERY_S = 30.0  # where the output is no terminal


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="targets' names, all, or live")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs per target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", type=int, default=200_000, help="how many of them by coverage (slower)")
    parser.add_argument("--minutes", type=float, default=5, help="of live")
    parser.add_argument("--max-clients", type=int, default=2000, help="of a node under live")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target == "live":
        from tests.fuzz.live import run_for

        return run_for(options.minutes, options.max_clients)
    if options.child:
        run_target(
            options.target, options.runs, options.seed, guided=options.guided > 0, directory=options.child
        )
        return 0
    from tests.fuzz.registry import TARGETS

    names = list(TARGETS) if options.target == "all" else options.target.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    results = []
    for name in names:
        guided = min(options.guided, options.runs)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
            for runs, by_coverage in ((guided, True), (options.runs - guided, False)):
                if runs > 0:
                    results.append(run_child(name, runs, options.seed, by_coverage, Path(directory)))
    print(f"{sum(each['count'] for each in results)} inputs, {len(names)} targets")
    return int(any(each["failures"] or not each.get("finished") for each in results))


def run_child(name: str, runs: int, seed: int, guided: bool, directory: Path) -> dict[str, Any]:
    """One target, guided or not; shows how far it is. What ended the process is kept."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--child", str(directory), "--runs", str(runs)]
    command += ["--seed", str(seed), "--guided", str(runs if guided else 0)]
    last: dict[str, Any] = {"count": 0, "failures": [], "taken": 0, "seconds": 0.0}
    environment = {**os.environ, "PYTHONHASHSEED": str(seed % 2**32)}
    shown = _Shown(name, "guided" if guided else "unguided", runs)
    with (directory / "stderr").open("w") as noise:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True, env=environment)
        with child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):
                    last = json.loads(line)
                    shown.progress(last)
    shown.end(last)
    for place in last["failures"]:
        print(f"    {place}", flush=True)
    if not last.get("finished"):
        why = f"ended early, exit {child.returncode}\n{(directory / 'stderr').read_text()[-4000:]}"
        box = directory / "running"
        stem = keep(name, BlackBox.read(box), why) if box.exists() else "before the first input"
        print(f"    ENDED EARLY, exit {child.returncode}: {stem}\n{why}", flush=True)
    return last


class _Shown:
    """Progress in one line of a terminal, or a line now and then elsewhere."""

    def __init__(self, name: str, how: str, runs: int) -> None:
        self._name, self._how, self._runs = name, how, runs
        self._next_s = time.monotonic() + _SAYS_EVERY_S

    def progress(self, state: dict[str, Any]) -> None:
        if sys.stdout.isatty():
            print(f"\r{self._line(state)}", end="", flush=True)
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _SAYS_EVERY_S
            print(f"  {self._line(state)}", flush=True)

    def end(self, state: dict[str, Any]) -> None:
        print(f"{chr(13) if sys.stdout.isatty() else ''}{self._line(state)}", flush=True)

    def _line(self, state: dict[str, Any]) -> str:
        rate = state["count"] / state["seconds"] if state["seconds"] else 0.0
        share = 100 * state["taken"] / state["count"] if state["count"] else 0.0
        return (
            f"{self._name:14} {self._how:8} {state['count']:>8}/{self._runs}  {rate:7.0f}/s  "
            f"{share:3.0f} % valid  {len(state['failures'])} found"
        )


if __name__ == "__main__":
    sys.exit(main())
