"""Raw results: one record for each measurement, kept as JSON so that rendering needs no measuring."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli.compiled import nodes_use_it

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1
OURS = "super node"
INTERPRETED = "super node, interpreted"  # measured beside OURS where that is compiled

Record = dict[str, Any]  # case, round, system, and figures by name


class ResultsError(Exception):
    """The file is not one of ours; the text names it."""


class Results:
    """Records of one run, or of several parts of it. Saved whenever a case is done."""

    def __init__(self, path: Path | None, meta: dict[str, Any] | None = None) -> None:
        """path None: nothing is saved."""
        self.path = path
        self.meta = meta or {}
        self.records: list[Record] = []
        self.done: dict[str, float] = {}  # case -> seconds that it took; those that share servers, equally

    @classmethod
    def load(cls, path: Path) -> Results:
        """Raises ResultsError."""
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ResultsError(f"{path}: has format {data['format']}, wanted {FORMAT}")
            made = cls(path, data["meta"])
            made.records, made.done = data["records"], data["done"]
            if not all({"case", "round", "system", "figures"} <= record.keys() for record in made.records):
                raise ResultsError(f"{path}: a record is not complete")
        except OSError as error:
            raise ResultsError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path}: holds no results of this program: {error!r}") from error
        return made

    def add(self, case: str, number: int, system: str, **figures: float | list[float]) -> None:
        """One measurement."""
        self.records.append({"case": case, "round": number, "system": system, "figures": figures})

    def forget(self, case: str) -> None:
        """The case is to be measured again."""
        self.records = [record for record in self.records if record["case"] != case]
        self.done.pop(case, None)

    def finish(self, case: str, seconds: float) -> None:
        """The case is done: it is saved."""
        self.done[case] = round(seconds, 1)
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        content = {"format": FORMAT, "meta": self.meta, "done": self.done, "records": self.records}
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path)

    # --- statistics

    def values(self, case: str, system: str, figure: str) -> dict[int, float]:
        """By round."""
        return {
            record["round"]: record["figures"][figure]
            for record in self.records
            if record["case"] == case and record["system"] == system and figure in record["figures"]
        }

    def median(self, case: str, system: str, figure: str) -> float | None:
        """Over the rounds; None when it was not measured."""
        values = self.values(case, system, figure)
        return statistics.median(values.values()) if values else None

    def series(self, case: str, figure: str, system: str = OURS) -> list[float]:
        """A figure that is a list, all rounds in order; or the values of the rounds."""
        found: list[float] = []
        for value in self.values(case, system, figure).values():
            found.extend(value if isinstance(value, list) else [value])
        return found

    def ratios(self, case: str, figure: str, other: str, other_case: str | None = None) -> list[float]:
        """Ours over the other's, within each round in which both were measured."""
        ours = self.values(case, OURS, figure)
        theirs = self.values(other_case or case, other, figure)
        return [ours[number] / theirs[number] for number in sorted(ours) if theirs.get(number)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of them do not exceed. ValueError for none."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiled": nodes_use_it(),
        "redis": _first_line("redis-server", "--version").partition(" sha")[0],
        "etcd": _first_line("etcd", "--version"),
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError:
        return "not installed"
    return done.stdout.splitlines()[0].strip() if done.stdout else "?"
