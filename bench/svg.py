"""Two kinds of charts as SVG: bars, and lines over a number. Text, rectangles and polylines, nothing else.

A plotting library would bring numpy and megabytes for a dozen of these (docs/dependencies.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2563a8", "#c8553d", "#5b8c3a", "#8a5aa8", "#b08820")
_TEXT, _FAINT = "#222222", "#d5d8dc"
_FONT = "font-family='system-ui, sans-serif'"
Point = tuple[float, float]


def bars(title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Horizontal bars: a row is a label and a value for each system that has one."""
    systems = list(dict.fromkeys(system for _, values in rows for system in values))
    greatest = max((value for _, values in rows for value in values.values()), default=0) or 1.0
    left, width, height, y = 230, 760, 15, 66
    parts = [_legend(systems, left)]
    for label, values in rows:
        parts.append(_text(left - 10, y + height * len(values) / 2 + 4, label, "end"))
        for system, value in values.items():
            long = (width - left - 90) * value / greatest
            colour = COLOURS[systems.index(system) % len(COLOURS)]
            parts.append(
                f"<rect x='{left}' y='{y}' width='{max(long, 1):.1f}' height='{height - 3}' fill='{colour}'/>"
            )
            parts.append(_text(left + long + 6, y + height - 5, number(value), size=11))
            y += height
        y += 10
    return _document(f"{title} ({unit})", width, y + 10, parts)


def lines(
    title: str,
    x_name: str,
    y_name: str,
    series: Mapping[str, Sequence[Point]],
    *,
    log_x: bool = False,
    goal: float | None = None,
) -> str:
    """Lines with a dot for each point; y begins at 0. goal: a dashed line at that height."""
    width, height, left, top, right, bottom = 760, 360, 80, 70, 30, 56
    points = [point for each in series.values() for point in each]
    xs = [x for x, _ in points] or [0.0, 1.0]
    y_most = nice(max([y for _, y in points] + ([goal] if goal is not None else [])) if points else 1.0)
    low, high = min(xs), max(xs)

    def across(x: float) -> float:
        a, b, c = (math.log10(v) for v in (x, low, high)) if log_x else (x, low, high)
        return left + (width - left - right) * ((a - b) / (c - b) if c > b else 0.5)

    def up(y: float) -> float:
        return height - bottom - (height - top - bottom) * y / y_most

    parts = [_legend(list(series), left)]
    for n in range(5):
        y = up(y_most * n / 4)
        parts.append(f"<path d='M{left} {y:.1f}H{width - right}' stroke='{_FAINT}'/>")
        parts.append(_text(left - 8, y + 4, number(y_most * n / 4), "end", 11))
    marks = sorted(set(xs)) if len(set(xs)) <= 8 else [low + (high - low) * n / 5 for n in range(6)]
    parts += [_text(across(x), height - bottom + 18, number(x), "middle", 11) for x in marks]
    parts.append(_text((left + width - right) / 2, height - 12, x_name, "middle"))
    parts.append(_text(left, top - 10, y_name))
    if goal is not None:
        y = up(goal)
        parts.append(
            f"<path d='M{left} {y:.1f}H{width - right}' stroke='{COLOURS[1]}' stroke-dasharray='6 4'/>"
        )
        parts.append(_text(width - right, y - 5, f"goal {number(goal)}", "end", 11))
    for n, each in enumerate(series.values()):
        colour = COLOURS[n % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in each)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{across(x):.1f}' cy='{up(y):.1f}' r='2.5' fill='{colour}'/>" for x, y in each]
    return _document(title, width, height, parts)


def number(value: float) -> str:
    """Short, as people write it."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def nice(value: float) -> float:
    """The next greater of 1, 2, 2.5, 4, 5, 8 times a power of ten; 1.0 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10, 20) if step * power >= value)


def _legend(names: Sequence[str], left: float) -> str:
    parts, x = [], left
    for n, name in enumerate(names):
        colour = COLOURS[n % len(COLOURS)]
        parts.append(f"<rect x='{x:.0f}' y='38' width='11' height='11' fill='{colour}'/>")
        parts.append(_text(x + 16, 48, name, size=12))
        x += 34 + 7.2 * len(name)
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}'"
    return f"<text {place} fill='{_TEXT}'>{escape(text)}</text>"


def _document(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' {_FONT}>"
    ground = f"<rect width='{width:.0f}' height='{height:.0f}' fill='#ffffff'/>"
    title = f"<text x='16' y='24' font-size='15' font-weight='600' fill='{_TEXT}'>{escape(title)}</text>"
    return "\n".join([head, ground, title, *parts, "</svg>\n"])
