"""A cluster's story as text, one column per node, and as a picture.

        ms  step  1                          2                          3
     208.4    31  |                          candidate t1               |
     210.9    36  <2 vote? t1 0.0            :                          |

Between its marks a node's column shows what it is: | follower, : candidate, # leader, nothing: it is down.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.chaos.timeline import Phase, Picture, shown
from tests.simulation.recorder import EVERYBODY, Mark, RecordedSimulation, record, visible
from tests.simulation.schedule import Outcome, Schedule, command_of, describe

WIDTH = 30
QUIET = {"LEADER": "#", "follower": "|", "candidate": ":", "pre-candidate": ":"}
ROLES = {"LEADER": "leader", "follower": "follower", "candidate": "candidate", "pre-candidate": "searching"}
PER_SECOND = 400  # pixels
SHOWN_MESSAGES = 5000


def text(marks: list[Mark], nodes: list[int], verbosity: int = 0, width: int = WIDTH) -> str:
    """The table. verbosity: 1 also reads, fsyncs, pre-votes and acknowledgements, 2 also heartbeats."""
    lines = ["       ms   step  " + "".join(f"{node:<{width}}" for node in nodes).rstrip()]
    quiet = dict.fromkeys(nodes, " ")
    for mark in visible(marks, verbosity):
        head = f"{mark.at_ms:9.1f} {mark.step:6}  "
        if mark.node_id == EVERYBODY:
            sign = "!" if mark.kind == "violation" else "-"
            lines.append(head + f"{sign * 3} {mark.text} ".ljust(width * len(nodes), sign))
            continue
        _follow(quiet, mark)
        cells = [mark.text if node == mark.node_id else quiet[node] for node in nodes]
        lines.append(head + "".join(f"{cell[: width - 1]:<{width}}" for cell in cells).rstrip())
    return "\n".join(lines)


def _follow(quiet: dict[int, str], mark: Mark) -> None:
    if mark.kind == "crash":
        quiet[mark.node_id] = " "
    elif mark.kind == "start":
        quiet[mark.node_id] = "|"
    elif mark.kind == "role":
        quiet[mark.node_id] = QUIET.get(mark.text.split(" ")[0], quiet[mark.node_id])


def picture(marks: list[Mark], nodes: list[int], head: str) -> str:
    """An HTML page with an SVG: roles and terms over time, faults, messages that mattered as lines."""
    end_s = max((mark.at_ms for mark in marks), default=0.0) / 1000 + 0.05
    drawn = Picture(0.0, end_s, 0.0, per_second=PER_SECOND, row=40)
    for node in nodes:
        drawn.node(node, list(phases(marks, node)), [])
    _draw_marks(drawn, marks, nodes)
    drawn.bands([(m.at_ms / 1000, m.text) for m in marks if m.node_id == EVERYBODY])
    return drawn.page("A simulated schedule", f"<pre>{shown(head)}</pre>")


def _draw_marks(drawn: Picture, marks: list[Mark], nodes: list[int]) -> None:
    rows = {node: 20 + 40 * number for number, node in enumerate(nodes)}
    shown = [m for m in visible(marks, 0) if m.node_id in rows][-SHOWN_MESSAGES:]
    for mark in shown:
        told = f"{mark.at_ms:.1f} ms, node {mark.node_id}: {mark.text}"
        top = rows[mark.node_id]
        if mark.kind == "message" and mark.peer in rows:
            sent = (mark.sent_ms / 1000, rows[mark.peer] + 17)
            drawn.line(sent, (mark.at_ms / 1000, top + 17), "#718096", told)
        elif mark.kind not in ("role", "start"):
            colour = {"commit": "#38a169", "crash": "#c53030", "client": "#805ad5"}.get(mark.kind, "#4a5568")
            drawn.bar(mark.at_ms / 1000, mark.at_ms / 1000, top + 34, 5, colour, told)


def phases(marks: list[Mark], node: int) -> Iterator[Phase]:
    """What the node was, one after the other."""
    for mark in marks:
        if mark.node_id != node or mark.kind not in ("start", "crash", "role"):
            continue
        word, _, rest = mark.text.partition(" ")
        if mark.kind == "crash":
            yield Phase(mark.at_ms / 1000, "down", "", mark.text)
        elif mark.kind == "start":
            yield Phase(mark.at_ms / 1000, "follower", rest.split(",")[0][1:], mark.text)
        elif word in ROLES:
            yield Phase(mark.at_ms / 1000, ROLES[word], rest[1:], mark.text)


def write(
    schedule: Schedule, directory: Path, verbosity: int = 0
) -> tuple[Outcome, RecordedSimulation | None, Path]:
    """Run the schedule and leave in the directory: itself (.json), its timeline (.txt) and picture (.html).
    Returns the text's path."""
    directory.mkdir(parents=True, exist_ok=True)
    base = directory / f"seed-{schedule.seed}"
    base.with_suffix(".json").write_bytes(schedule.encode())
    outcome, simulation = record(schedule)
    story = base.with_suffix(".txt")
    told = outcome.failure or f"no failure in {outcome.steps} steps"
    command = command_of(schedule, base.with_suffix(".json"))
    head = f"{describe(schedule, outcome.events)}\n\n{told}\n{command}\n"
    if simulation is None:
        story.write_text(f"{head}\n{outcome.trace}")
        return outcome, None, story
    nodes = sorted(simulation.nodes)
    trace = f"\n{outcome.trace}" if outcome.failure else ""
    story.write_text(f"{head}\n{text(simulation.marks, nodes, verbosity)}\n{trace}")
    base.with_suffix(".html").write_text(picture(simulation.marks, nodes, head))
    return outcome, simulation, story
