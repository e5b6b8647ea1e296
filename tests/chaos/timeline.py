"""A run as one picture: who led when, which faults there were, what became of the clients' operations.

One self-contained HTML file with an SVG in it, no script, no outside assets. Time goes from left to right;
pointing at anything tells what it is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.history import Operation, read_history

if TYPE_CHECKING:  # the simulation draws without all that it takes to strike real processes
    from tests.chaos.nemesis import Strike

PER_SECOND, ROW, LEFT = 40, 26, 120
SHOWN_OPERATIONS = 60_000
ROLE_COLOURS = {
    "leader": "#2b6cb0", "follower": "#bee3f8", "candidate": "#f6ad55", "searching": "#fbd38d",
    "down": "#2d3748", "starting": "#e2e8f0",
}  # fmt: skip
OUTCOME_COLOURS = {"ok": "#38a169", "failed": "#dd6b20", "unknown": "#c53030"}
_LINE = re.compile(r"^(\S+Z) (\w+)\s+node-\d+ \S+: (.*)")
_ROLES = (
    (re.compile(r"^node \d+ of .* is up: .* term (\d+)"), "follower"),
    (re.compile(r"^leader of term (\d+)"), "leader"),
    (re.compile(r"^following leader \d+ in term (\d+)"), "follower"),
    (re.compile(r"^candidate in term (\d+)"), "candidate"),
    (re.compile(r"^term (\d+) seen at"), "follower"),
    (re.compile(r"^stepped down in term (\d+)"), "follower"),
    (re.compile(r"in term (\d+): asking for pre-votes"), "searching"),
    (re.compile(r"^(?:fatal in thread|stopped|cannot start)()"), "down"),
)


@dataclass(frozen=True)
class Phase:
    """A node was this from then (seconds of the wall clock) on."""

    at_s: float
    role: str
    term: str
    line: str


def phases(log: str) -> list[Phase]:
    """What a node's log says it was, one after the other."""
    found: list[Phase] = []
    for line in log.splitlines():
        if not (match := _LINE.match(line)):
            continue
        for pattern, role in _ROLES:
            if told := pattern.search(match[3]):
                at = datetime.fromisoformat(match[1]).timestamp()
                found.append(Phase(at, role, told[1], match[3]))
                break
    return found


def draw(
    history: Path,
    logs: dict[int, str],
    strikes: Sequence[Strike],
    wall_offset_s: float,
    violations: Sequence[str],
) -> str:
    """The page. wall_offset_s: what the wall clock shows more than the monotonic one."""
    operations = list(read_history(history))
    stories = {n: phases(log) for n, log in logs.items()}
    starts = [o.began / 1e9 + wall_offset_s for o in operations[:1]]
    starts += [story[0].at_s for story in stories.values() if story]
    ends = [o.ended / 1e9 + wall_offset_s for o in operations[-1:]]
    ends += [story[-1].at_s for story in stories.values() if story]
    picture = Picture(min(starts, default=0.0), max(ends, default=1.0) + 1.0, wall_offset_s)
    for n, story in sorted(stories.items()):
        picture.node(n, story, [s for s in strikes if s.node == n])
    picture.faults(strikes)
    picture.clients(operations)
    told = "".join(f"<pre>{shown(text)}</pre>" for text in violations) or "<p>No violations.</p>"
    return picture.page("A run of faults", told)


def shown(text: str) -> str:
    """text for HTML and XML; what cannot be printed (a key's odd bytes, say) as Python writes it."""
    printable = "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
    return escape(printable)


class Picture:
    """Rows over time, from start_s to end_s of the wall clock. per_second, row: pixels."""

    def __init__(
        self,
        start_s: float,
        end_s: float,
        wall_offset_s: float,
        *,
        per_second: int = PER_SECOND,
        row: int = ROW,
    ) -> None:
        self.start_s, self.end_s, self._offset_s = start_s, end_s, wall_offset_s
        self._per_second, self._row = per_second, row
        self._parts: list[str] = []
        self._y = 20

    def _x(self, wall_s: float) -> float:
        return LEFT + (min(max(wall_s, self.start_s), self.end_s) - self.start_s) * self._per_second

    def _wall(self, nanoseconds: int) -> float:
        return nanoseconds / 1e9 + self._offset_s

    def bar(
        self, a: float, b: float, y: float, height: float, colour: str, title: str, more: str = ""
    ) -> None:
        """From the times a to b, at least a pixel; title is shown when one points at it."""
        width = max(self._x(b) - self._x(a), 1.0)
        self._parts.append(
            f'<rect x="{self._x(a):.1f}" y="{y}" width="{width:.1f}" height="{height}" '
            f'fill="{colour}" {more}>'
            f"<title>{shown(title)}</title></rect>"
        )

    def _label(self, text: str) -> None:
        self._parts.append(f'<text x="4" y="{self._y + 15}">{shown(text)}</text>')

    def node(self, n: int, story: Sequence[Phase], strikes: Sequence[Strike]) -> None:
        """A row: role and term over time, and what struck this node alone."""
        self._label(f"node {n}")
        for phase, following in itertools.pairwise([*story, None]):
            assert phase is not None
            until = following.at_s if following else self.end_s
            told = f"{phase.at_s - self.start_s:.3f} s: {phase.line}"
            self.bar(phase.at_s, until, self._y, self._row - 6, ROLE_COLOURS[phase.role], told)
            if phase.role == "leader":
                x = self._x(phase.at_s) + 2
                self._parts.append(f'<text x="{x:.1f}" y="{self._y + 14}" fill="#fff">{phase.term}</text>')
        for strike in strikes:
            a, b = self._wall(strike.began), self._wall(strike.ended or strike.began)
            self.bar(a, b, self._y + self._row - 6, 4, "#9b2c2c", f"{strike.kind}: {strike.told}")
        self._y += self._row

    def faults(self, strikes: Sequence[Strike]) -> None:
        """Bands, as many rows as overlap."""
        self._y += 6
        free: list[float] = []
        top = self._y
        for strike in sorted(strikes, key=lambda s: s.began):
            a, b = self._wall(strike.began), self._wall(strike.ended or strike.began + 10**8)
            row = next((i for i, until in enumerate(free) if until <= a), len(free))
            free[row : row + 1] = [max(b, a + len(strike.kind) * 7 / self._per_second)]
            y = top + row * 18
            title = f"{a - self.start_s:.3f}–{b - self.start_s:.3f} s {strike.kind}: {strike.told}"
            self.bar(a, b, y, 15, "#e9d8fd", title, 'stroke="#805ad5"')
            self._parts.append(f'<text x="{self._x(a) + 2:.1f}" y="{y + 12}">{shown(strike.kind)}</text>')
        self._label("faults")
        self._y = top + max(1, len(free)) * 18 + 8

    def clients(self, operations: Sequence[Operation]) -> None:
        """A row for each client, a tick for each operation. Of very many answered ones only some."""
        step = max(1, len(operations) // SHOWN_OPERATIONS)
        rows: dict[str, list[Operation]] = {}
        for number, o in enumerate(operations):
            if o.outcome != "ok" or number % step == 0:
                rows.setdefault(o.client, []).append(o)
        for name, mine in sorted(rows.items()):
            self._label(name)
            for o in mine:
                a, b = self._wall(o.began), self._wall(o.ended)
                told = f"{a - self.start_s:.3f} s {o.what} {o.key} {o.argument} → {o.result} {o.error}"
                self.bar(a, b, self._y, 14, OUTCOME_COLOURS[o.outcome], f"{told} (node {o.node})")
            self._y += 18

    def line(self, a: tuple[float, float], b: tuple[float, float], colour: str, title: str) -> None:
        """Something went from a to b: seconds, and pixels from the top."""
        self._parts.append(
            f'<line x1="{self._x(a[0]):.1f}" y1="{a[1]}" x2="{self._x(b[0]):.1f}" y2="{b[1]}" '
            f'stroke="{colour}">'
            f"<title>{shown(title)}</title></line>"
        )

    def bands(self, moments: Sequence[tuple[float, str]]) -> None:
        """Words, each at its moment, as many rows as they need."""
        self._y += 10
        free: list[float] = []
        for at_s, told in moments:
            x = self._x(at_s)
            row = next((i for i, until in enumerate(free) if until <= x), len(free))
            free[row : row + 1] = [x + len(told) * 6 + 8]
            y = self._y + row * 16
            self._parts.append(f'<rect x="{x:.1f}" y="{y}" width="2" height="13" fill="#805ad5"/>')
            self._parts.append(f'<text x="{x + 4:.1f}" y="{y + 11}">{shown(told)}</text>')
        self._y += len(free) * 16 + 8

    def page(self, title: str, head: str) -> str:
        """The whole document. head: HTML above the picture."""
        return _PAGE.format(title=shown(title), legend=_legend(), violations=head, svg=self.svg())

    def svg(self) -> str:
        """Everything, with a scale of seconds."""
        width, height = self._x(self.end_s) + 20, self._y + 10
        lines = []
        for second in range(int(self.end_s - self.start_s) + 1):
            x = LEFT + second * self._per_second
            lines.append(f'<line x1="{x}" y1="14" x2="{x}" y2="{height}" stroke="#edf2f7"/>')
            if second % 5 == 0:
                lines.append(f'<text x="{x}" y="11">{second} s</text>')
        body = "".join([*lines, *self._parts])
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}">{body}</svg>'


def _legend() -> str:
    def swatches(colours: Iterable[tuple[str, str]]) -> str:
        return "".join(f'<span><i style="background:{c}"></i>{name}</span>' for name, c in colours)

    return swatches([*ROLE_COLOURS.items(), *OUTCOME_COLOURS.items()])


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:12px sans-serif;margin:12px}}svg text{{font:11px sans-serif}}div{{overflow-x:auto}}
span{{margin-right:14px}}i{{display:inline-block;width:12px;height:12px;margin-right:4px}}
pre{{background:#fff5f5;white-space:pre-wrap}}</style>
<p>{legend}</p>{violations}<div>{svg}</div></html>
"""
