"""The fault mixes by name, run one after the other, each in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.summary import tables


@dataclass(frozen=True)
class Mix:
    """One. faults: kinds and groups of tests.chaos.nemesis; lease_reads, power: see Options."""

    nodes: int
    faults: str
    lease_reads: bool = False
    power: bool = False


MIXES = {
    "all-5": Mix(5, "all"),
    "all-3": Mix(3, "all", power=True),
    "process-network": Mix(5, "process,network"),
    "disk": Mix(3, "disk,kill,blackout,pause,alone,snapshot,transfer", power=True),
    "clock-lease": Mix(3, "clock,drift,kill,pause,partition,delay,loss,transfer", lease_reads=True),
    "members": Mix(5, "members,rot,kill,blackout,halves,alone,snapshot", power=True),
    "mongo": Mix(3, "mongo,kill,blackout,pause,alone,oneway,transfer,snapshot", power=True),
}


def names_of(words: str) -> list[str]:
    """The mixes that a list names; `all`: each. ValueError names what is unknown."""
    names = list(MIXES) if words == "all" else words.split(",")
    if unknown := [name for name in names if name not in MIXES]:
        raise ValueError(f"no mix {unknown[0]!r}; there are {', '.join(MIXES)}")
    return names


def run_mixes(names: Sequence[str], minutes: float, seed: int, out: Path, more: Sequence[str] = ()) -> int:
    """Run them; number n gets seed + n. Leaves NAME.json of each, tables.md of all, and the directory NAME of
    those in which anything was wrong. Exit code 0 if nothing was."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    began = time.monotonic()
    for number, name in enumerate(names):
        mix = MIXES[name]
        spent = (time.monotonic() - began) / 60
        print(f"=== mix {number + 1} of {len(names)}: {name}, after {spent:.0f} min", flush=True)
        command = [
            sys.executable, "-m", "tests.chaos", "--minutes", f"{minutes:g}", "--nodes", f"{mix.nodes}",
            "--faults", mix.faults, "--seed", f"{seed + number}", "--mix", name, "--keep", str(out / name),
            *["--lease-reads"] * mix.lease_reads, *["--power"] * mix.power, *more,
        ]  # fmt: skip
        shutil.rmtree(out / name, ignore_errors=True)
        code = _run(command)
        report = out / name / "report.json"
        if report.exists():
            shutil.copy(report, out / f"{name}.json")
        if code:
            failed.append(name)
        else:
            shutil.rmtree(out / name, ignore_errors=True)
        merge(out)
    print((out / "tables.md").read_text())
    print(f"reports and tables are in {out}; wrong: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


def _run(command: Sequence[str]) -> int:
    """Its exit code. Whoever stops us stops it, and gives it the time to put everything away."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait(60)
            raise


def merge(out: Path) -> None:
    """tables.md from the reports that are there."""
    found = {name: out / f"{name}.json" for name in MIXES}
    reports = [json.loads(path.read_text()) for path in found.values() if path.exists()]
    if reports:
        (out / "tables.md").write_text(tables(reports))
