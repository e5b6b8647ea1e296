"""The ledger is a pure function of the log: no clock, random, I/O or hash order can get in."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "__future__",
    "bisect",
    "collections",
    "hashlib",
    "heapq",
    "itertools",
    "ledger",
    "msgspec",
    "operator",
    "raft.replies",
    "re",
    "struct",
    "typing",
}
SCRIPT = """
from ledger_driver import Driver
book = Driver()
book.take_office(*[f"node-{n}" for n in range(1, 6)])
book.join(*[f"w{n}" for n in range(40)])
for number in range(1, 13):
    book.open(followers_per_interval=(0, 7)[number % 2])
    for n in range(0, 40, number):
        book.do("FOLLOWER REPORT", f"w{n}", number, "x")
    command = book.ledger.next_system_command(
        book.at_ms + 9000, 1, frozenset(f"node-{n}" for n in range(1, 6)), False, book.ledger.policy
    )
    book.ok(*command)
    book.do("REWARD CLAIM", f"w{number}", 3, f"c{number}")
print(book.digest(), book.ledger.pull(50))
"""


@pytest.mark.parametrize("path", sorted((ROOT / "ledger").glob("*.py")), ids=lambda path: path.name)
def test_the_ledger_imports_nothing_that_could_differ_between_nodes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name in ALLOWED or name.split(".")[0] in ALLOWED, f"{path.name} imports {name}"


def test_digest_and_rows_do_not_depend_on_the_hash_seed() -> None:
    outputs = set()
    for seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/tests/ledger"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1
