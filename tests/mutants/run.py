"""Put each mutant into a copy of the tree and expect the tests to fail: python -m tests.mutants.run [BUG ...]

Exit 1 if a mutant lives, if it does not apply any more, or if the tests are red without any. Each line names
the first test that killed it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutants import core_mutants, repair_mutants
from tests.mutants.core_mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
# What is quick, and tells most, comes first; -x stops at the first failure.
STAGES = (
    ("tests/core/test_core_scripts.py", "tests/core"),
    ("tests/simulation",),
)
STORAGE_STAGES = (("tests/storage/test_storage_repair.py", "tests/storage"),)
MUTANTS = (*core_mutants.MUTANTS, *repair_mutants.MUTANTS)


def killed_by(mutant: Mutant, tree: Path, stages: Sequence[Sequence[str]] = STAGES) -> str | None:
    """The first test that fails with the mutant in the tree, which is whole again afterwards."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return first_failure(tree, stages)
    finally:
        path.write_text(text, encoding="utf-8")


def first_failure(tree: Path, stages: Sequence[Sequence[str]] = STAGES) -> str | None:
    """The first test that fails in the tree as it is."""
    for paths in stages:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", *paths],
            cwd=tree,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if run.returncode:
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
            return failed.group(1) if failed else run.stdout[-300:] or run.stderr[-300:]
    return None


def main(arguments: Sequence[str]) -> int:
    """Try all mutants, or those of the given bugs."""
    lived = 0
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for name in ("raft", "ledger", "database", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", tree)
        red = first_failure(tree)
        if red is not None:
            print(f"{red} fails without any mutant: nothing would be proved")
            return 1
        for mutant in MUTANTS:
            if arguments and str(mutant.bug) not in arguments:
                continue
            count = (tree / mutant.file).read_text(encoding="utf-8").count(mutant.old)
            stages = STORAGE_STAGES if mutant.file.startswith("raft/storage/") else STAGES
            killer = killed_by(mutant, tree, stages) if count == 1 else None
            lived += killer is None
            verdict = killer or ("LIVES" if count == 1 else f"DOES NOT APPLY: found {count} times")
            print(f"{mutant.bug or 'own':>3}  {mutant.why}\n     {verdict}", flush=True)
    print(f"{lived} mutants live")
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
