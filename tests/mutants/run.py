"""Put each mutant into a copy of the tree and expect the tests to fail: python -m tests.mutants.run [BUG ...]

    --jobs N     so many at a time (default: the cores)
    --seeds N    simulation schedules at the most for each (default 400; 0: the tests alone)
    --write      the table into docs/proof.md, and the results into tests/mutants/results.json, where those
                 of mutants that were not tried this time stay

Exit 1 if a mutant lives, if one does not apply any more, or if the tests are red without any.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from rich.progress import Progress

from tests.mutants.catalogue import all_mutants
from tests.mutants.core_mutants import Mutant
from tests.mutants.table import write_table

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("raft", "ledger", "database", "cli", "web", "tests")
# Where a bug of these files should show, quickest first.
STAGES = {
    "raft/core": (("tests/core/test_core_scripts.py", "tests/core"), ("tests/runtime",)),
    "raft/storage": (("tests/storage",), ("tests/node/test_node_disk.py",)),
    "raft/runtime": (("tests/runtime",), ("tests/node/test_node_disk.py", "tests/node/test_node_ledger.py")),
    "raft/machine": (("tests/machine",), ("tests/runtime",)),
    "raft/clients": (("tests/clients",), ("tests/runtime",)),
    "raft/transport": (("tests/transport",),),
    "raft/node.py": (("tests/node/test_node_spec.py", "tests/node/test_node_disk.py"),),
    "ledger": (("tests/ledger",), ("tests/machine",)),
    "database": (("tests/database",),),
}
SIMULATED = ("raft/core", "raft/storage", "raft/machine", "ledger", "raft/runtime")
RESULTS = ROOT / "tests/mutants/results.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant. test: the first that failed. seeds: how many schedules the simulation
    needed; None: it did not notice within `tried`. reason: what the simulation said."""

    bug: int
    why: str
    file: str
    test: str | None
    seeds: int | None
    tried: int
    reason: str
    applies: bool = True

    @property
    def lives(self) -> bool:
        """Nothing noticed it."""
        return self.test is None and self.seeds is None


def judge(mutant: Mutant, tree: Path, seeds: int) -> Verdict:
    """Try one mutant in a tree, which is whole again afterwards."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return Verdict(mutant.bug, mutant.why, mutant.file, None, None, 0, "", applies=False)
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        stages = next((found for area, found in STAGES.items() if mutant.file.startswith(area)), ())
        test = first_failure(tree, stages)
        red, tried, reason = None, 0, ""
        if seeds and mutant.file.startswith(SIMULATED):
            red, tried, reason = first_red_seed(tree, seeds)
        return Verdict(mutant.bug, mutant.why, mutant.file, test, red, tried, reason)
    finally:
        path.write_text(text, encoding="utf-8")


def first_failure(tree: Path, stages: Sequence[Sequence[str]]) -> str | None:
    """The first test that fails in the tree as it is."""
    for paths in stages:
        there = [each for each in paths if (tree / each).exists()]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", *there],
            **_quietly(tree, 900),
        )
        if run.returncode:
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
            return failed.group(1) if failed else (run.stdout or run.stderr).strip()[-200:]
    return None


def first_red_seed(tree: Path, most: int) -> tuple[int | None, int, str]:
    """How many schedules it took until one failed (None: none did), how many were run, what was said."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.mutants.seeds", "--most", str(most)], **_quietly(tree, 900)
    )
    words = run.stdout.strip().split(" ", 3)
    if words[0] == "red":
        return int(words[2]), int(words[2]), words[3] if len(words) > 3 else ""
    if words[0] == "green":
        return None, int(words[1]), ""
    return 1, 1, run.stderr.strip()[-200:]  # it does not even start


def _quietly(tree: Path, timeout_s: float) -> dict[str, object]:
    return {"cwd": tree, "capture_output": True, "text": True, "timeout": timeout_s, "check": False}


def copy_tree(directory: Path) -> Path:
    """What the tests need of this checkout."""
    for name in COPIED:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "super_node.py", "config.yaml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, directory)
    return directory


def run_all(mutants: Sequence[Mutant], jobs: int, seeds: int) -> list[Verdict]:
    """Judge them, `jobs` at a time, each job in a tree of its own; a line for each as it ends."""
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            trees.put(copy_tree(Path(directory) / f"tree{number}"))

        def one(mutant: Mutant) -> Verdict:
            tree = trees.get()
            try:
                return judge(mutant, tree, seeds)
            finally:
                trees.put(tree)

        verdicts = []
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("mutants", total=len(mutants))
            for verdict in pool.map(one, mutants):
                verdicts.append(verdict)
                progress.advance(task)
                progress.console.print(told(verdict), markup=False, highlight=False, soft_wrap=True)
    return verdicts


def merged(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """These, and what is known of the other mutants that there still are, in the order of the catalogue."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    latest = {(each.file, each.why): each for each in (*(Verdict(**row) for row in known), *verdicts)}
    return [latest[key] for each in all_mutants() if (key := (each.file, each.why)) in latest]


def told(verdict: Verdict) -> str:
    """Two lines for people."""
    if not verdict.applies:
        fate = "DOES NOT APPLY"
    elif verdict.lives:
        fate = "LIVES"
    else:
        simulated = f"{verdict.seeds} seeds" if verdict.seeds else f"no seed of {verdict.tried}"
        fate = f"{verdict.test or 'no test'}; {simulated} {verdict.reason[:80]}"
    return f"{verdict.bug or 'own':>3}  {verdict.why}\n     {fate}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all mutants, or those of the given bugs."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument("bugs", nargs="*", type=int)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    mutants = [each for each in all_mutants() if not options.bugs or each.bug in options.bugs]
    verdicts = run_all(mutants, options.jobs, options.seeds)
    bad = [each for each in verdicts if each.lives or not each.applies]
    print(f"{len(verdicts)} mutants, {len(bad)} of them live or do not apply")
    if options.write:
        everything = merged(verdicts)
        RESULTS.write_text(json.dumps([asdict(each) for each in everything], indent=1) + "\n")
        write_table(ROOT / "docs/proof.md", everything)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
