"""The table of mutants in docs/proof.md, between two marks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tests.mutants.catalogue import ABSENT, BUGS

BEGIN, END = "<!-- mutants: made by make mutants -->", "<!-- end of mutants -->"


class Judged(Protocol):
    """See tests.mutants.run.Verdict."""

    @property
    def bug(self) -> int: ...
    @property
    def why(self) -> str: ...
    @property
    def test(self) -> str | None: ...
    @property
    def seeds(self) -> int | None: ...
    @property
    def tried(self) -> int: ...


def write_table(path: Path, verdicts: Iterable[Judged]) -> None:
    """Replace what stands between the marks."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{table(verdicts)}{END}{after}", encoding="utf-8")


def table(verdicts: Iterable[Judged]) -> str:
    """One row a mutant, in the order of the catalogue; then what cannot exist here."""
    rows = [
        "| bug | put back as | test that goes red | schedules until the simulation does |",
        "| --- " * 4 + "|",
    ]
    by_bug: dict[int, list[Judged]] = {}
    for verdict in verdicts:
        by_bug.setdefault(verdict.bug, []).append(verdict)
    for bug in (*BUGS, 0):
        name = f"{bug} {BUGS[bug]}" if bug else "own"
        if bug in ABSENT:
            rows.append(f"| {name} | cannot exist: {ABSENT[bug]} | | |")
        rows += [
            f"| {name} | {verdict.why} | {_test(verdict)} | {_seeds(verdict)} |"
            for verdict in by_bug.get(bug, ())
        ]
    return "\n".join(rows) + "\n"


def _test(verdict: Judged) -> str:
    if verdict.test is None:
        return "none"
    return f"`{verdict.test.rsplit('/', 1)[-1].removesuffix('.py')}`"


def _seeds(verdict: Judged) -> str:
    if verdict.seeds is not None:
        return str(verdict.seeds)
    return f"not in {verdict.tried}" if verdict.tried else "–"
