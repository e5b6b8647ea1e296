"""Put bugs back and see the search find them: python -m tests.model.hunt [BUG or SCOPE ...].

Each is put into a copy of the tree, where the search runs in a process of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.mutants.model_mutants import HUNTS, Hunt

ROOT = Path(__file__).resolve().parents[2]


class Found(NamedTuple):
    """What the search in the copy said. violation: "" if it found none."""

    states: int
    depth: int
    seconds: float
    violation: str
    output: str


def search_with(hunt: Hunt, *, states: int = 400_000) -> Found:
    """The search of the hunt's scope, in a copy of the tree with its bugs. Raises ValueError if they do not
    apply, or nothing comes of the search."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for name in ("raft", "ledger", "database", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for mutant in hunt.mutants:
            path = tree / mutant.file
            text = path.read_text(encoding="utf-8")
            if text.count(mutant.old) != 1:
                raise ValueError(f"{mutant.why}: does not apply, found {text.count(mutant.old)} times")
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-m", "tests.model", hunt.scope, "--states", str(states)],
            cwd=tree,
            capture_output=True,
            text=True,
            check=False,
        )
    line = re.search(rf"^{hunt.scope} +([\d,]+) +[\d,]+ +[\d,]+ +(\d+) +([\d.]+)  (\w+)$", run.stdout, re.M)
    if line is None:
        raise ValueError(f"{hunt.mutants[0].why}: {run.stdout[-500:]} {run.stderr[-1000:]}")
    number, depth, seconds, done = line.groups()
    violation = ""
    if done == "violated":
        violation = run.stdout.split("\n\n")[1]
    return Found(int(number.replace(",", "")), int(depth), float(seconds), violation, run.stdout)


def main(arguments: Sequence[str]) -> int:
    """Exit 1 if a bug is not found."""
    missed = 0
    for hunt in HUNTS:
        bug, why = hunt.mutants[0].bug, hunt.mutants[0].why
        if arguments and not {str(bug), hunt.scope} & set(arguments):
            continue
        try:
            found = search_with(hunt)
        except ValueError as error:
            found = Found(0, 0, 0.0, "", str(error))
        missed += not found.violation
        verdict = found.violation or "NOT FOUND" if found.states else found.output
        print(
            f"| {bug or 'own':>3} | {why} | {hunt.scope} | {found.states:,} | {found.depth} "
            f"| {found.seconds:.1f} | {verdict} |",
            flush=True,
        )
    print(f"{missed} not found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
