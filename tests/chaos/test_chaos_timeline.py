"""The picture of a run: what logs say becomes rows, faults become bands, operations become ticks."""

from __future__ import annotations

import xml.etree.ElementTree
from datetime import datetime
from pathlib import Path

from tests.chaos.history import FAILED, OK, UNKNOWN, History, Operation
from tests.chaos.nemesis import Strike
from tests.chaos.timeline import OUTCOME_COLOURS, ROLE_COLOURS, draw, phases

LOG = """\
2026-01-01T00:00:00.000Z INFO    node-1 MainThread: node 1 of 'x' is up: clients on h:1, peers on port 2, term 4, log up to 8
2026-01-01T00:00:01.000Z INFO    node-1 raft-worker: no leader known in term 4: asking for pre-votes
2026-01-01T00:00:01.100Z INFO    node-1 raft-worker: candidate in term 5: asking for votes
2026-01-01T00:00:01.200Z INFO    node-1 raft-worker: leader of term 5, votes from [1, 3]
Traceback (most recent call last):
2026-01-01T00:00:03.000Z CRITICAL node-1 raft-worker: fatal in thread raft-worker, stopping: <disk> & "more"
"""  # noqa: E501


def test_the_roles_of_a_node_are_read_from_its_log() -> None:
    assert [(p.role, p.term) for p in phases(LOG)] == [
        ("follower", "4"), ("searching", "4"), ("candidate", "5"), ("leader", "5"), ("down", ""),
    ]  # fmt: skip


def test_the_picture_has_everything_and_is_well_formed(tmp_path: Path) -> None:
    start = datetime.fromisoformat("2026-01-01T00:00:00Z").timestamp()
    history = History(tmp_path / "history.jsonl")
    for number, outcome in enumerate((OK, FAILED, UNKNOWN)):
        began = number * 10**9
        history.add(Operation("<k>", "set", "v", began, began + 10**8, outcome, None, "c1", 1))
    history.close()
    strikes = [Strike("kill", "node 1", 1, 10**9, 2 * 10**9), Strike("halves", "[1] | [2, 3]", 0, 10**9)]
    page = draw(tmp_path / "history.jsonl", {1: LOG, 2: ""}, strikes, start, ["something & <else>"])
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    root = xml.etree.ElementTree.fromstring(svg)
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("<k>" in title for title in titles) == 3
    assert any("kill: node 1" in title for title in titles) and any("halves: [1]" in t for t in titles)
    assert any("fatal in thread" in title for title in titles)
    assert all(colour in page for colour in (*ROLE_COLOURS.values(), *OUTCOME_COLOURS.values()))
    assert "something &amp; &lt;else&gt;" in page
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")
