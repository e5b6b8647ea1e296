"""bench/restart.py, which measures a restart, restores what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "restart.py"


def run(*arguments: str) -> str:
    command = [sys.executable, str(BENCH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(("keys", "entries"), [(1500, 2500), (10, 0), (0, 10)])
def test_it_measures(keys: int, entries: int) -> None:
    told = json.loads(run("--keys", str(keys), "--entries", str(entries), "--json"))
    assert told["keys"] == (keys or 1)
    assert told["entries"] == entries
    assert min(told[step] for step in ("open_s", "load_s", "apply_s", "disk_mb", "memory_mb")) >= 0
    assert told["total_s"] == pytest.approx(told["open_s"] + told["load_s"] + told["apply_s"])


def test_the_table() -> None:
    assert "load the snapshot" in run("--keys", "10", "--entries", "10")
