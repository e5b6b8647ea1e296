"""`super_node.py status`: what every node says of itself, as a table for people or JSON for programs."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cli.link import Link, LinkLost, client_address, error_text, whole_number
from raft.config import Member, load_settings

TIMEOUT_S = 1.5


class NodeReport(msgspec.Struct, frozen=True):
    """What one node answered to RAFT INFO (`info`), or why it did not (`problem`)."""

    member: Member
    info: dict[str, str]
    problem: str | None = None

    def number(self, name: str) -> int | None:
        """A field as a whole number; None when it is missing or is none."""
        return whole_number(self.info.get(name, ""))


class ClusterReport(msgspec.Struct, frozen=True):
    """All nodes. leader: the id of the one with a quorum behind it; None, and `problem` says why."""

    nodes: tuple[NodeReport, ...]
    leader: int | None
    term: int | None
    problem: str | None

    @property
    def healthy(self) -> bool:
        """Whether there is a leader with a quorum."""
        return self.leader is not None


def ask_node(member: Member, timeout_s: float = TIMEOUT_S) -> NodeReport:
    """Asks one node for its RAFT INFO. Any thread; never raises for what a node does."""
    try:
        with Link(client_address(member), timeout_s) as link:
            answer = link.ask("RAFT", "INFO")
    except LinkLost as reason:
        return NodeReport(member, {}, str(reason))
    if (error := error_text(answer)) is not None:
        return NodeReport(member, {}, error)
    info = parse_info(str(answer))
    if info.get("node_id") not in (None, str(member.id)):
        return NodeReport(member, {}, f"node {info['node_id']} answers at this address")
    return NodeReport(member, info)


def ask_cluster(members: tuple[Member, ...], timeout_s: float = TIMEOUT_S) -> ClusterReport:
    """Asks all nodes at the same time and judges whether they have a leader with a quorum."""
    with ThreadPoolExecutor(max_workers=min(32, len(members))) as pool:
        reports = tuple(pool.map(lambda member: ask_node(member, timeout_s), members))
    return judge(reports)


def parse_info(text: str) -> dict[str, str]:
    """The `key:value` lines of RAFT INFO; other lines (comments, blanks) are left out."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def judge(reports: tuple[NodeReport, ...]) -> ClusterReport:
    """Whether the reachable nodes agree on a leader that is one of them, and are a majority of the voters."""
    leaders = [report for report in reports if report.info.get("role") == "leader"]
    if not leaders:
        return ClusterReport(reports, None, None, "no node says that it leads")
    # A deposed leader that has not noticed yet may say so too: the highest term counts.
    leader = max(leaders, key=lambda report: report.number("term") or 0)
    term = leader.number("term")
    listed = map(whole_number, leader.info.get("voters", "").replace(",", " ").split())
    voters = {number for number in listed if number is not None}
    voters = voters or {report.member.id for report in reports}
    behind_it = {
        report.member.id
        for report in reports
        if report.member.id in voters
        and report.number("term") == term
        and report.number("leader_id") == leader.member.id
    }
    if len(behind_it) * 2 <= len(voters):
        agree = f"only {len(behind_it)} of {len(voters)} voters agree"
        problem = f"node {leader.member.id} says that it leads, but {agree}"
        return ClusterReport(reports, None, term, problem)
    return ClusterReport(reports, leader.member.id, term, None)


def to_table(cluster: ClusterReport) -> Table:
    """The table for people."""
    verdict = (
        f"leader: node {cluster.leader}, term {cluster.term}"
        if cluster.healthy
        else f"NO LEADER: {escape(cluster.problem or '')}"
    )
    lost = [f"node {each.member.id}: {escape(each.problem)}" for each in cluster.nodes if each.problem]
    lost += [
        f"node {each.member.id} gives no vote: its log lacks entries from {each.info['recovering_from']} on"
        for each in cluster.nodes
        if each.number("recovering_from")
    ]
    table = Table(
        title="super node",
        caption="\n".join([verdict, *lost]),
        caption_style="bold green" if cluster.healthy else "bold red",
        box=box.HORIZONTALS,  # narrow: all of it fits into a terminal of 80 columns
        padding=0,
    )
    for name, justify in _COLUMNS:
        table.add_column(
            name, justify="right" if justify else "left", no_wrap=name in _WHOLE, overflow="fold"
        )
    commits = [report.number("commit_index") or 0 for report in cluster.nodes]
    for report in cluster.nodes:
        table.add_row(*_row(report, max(commits, default=0)))
    return table


_COLUMNS = (
    ("id", True),
    ("clients", False),
    ("role", False),
    ("term", True),
    ("leader", True),
    ("commit", True),
    ("behind", True),
    ("log", True),
    ("MongoDB", True),
    ("up", True),
)
_WHOLE = ("id", "clients", "role", "term", "up")  # never broken into two lines


def _row(report: NodeReport, newest_commit: int) -> list[str]:
    member, info = report.member, {name: escape(text) for name, text in report.info.items()}
    start = [str(member.id), f"{member.host}:{member.client_port}"]
    if report.problem is not None:
        return [*start, "[red]no answer[/red]"]
    role = info.get("role", "?")
    applied = report.number("applied_index")
    leader = info.get("leader_id", "")
    return [
        *start,
        f"[bold green]{role}[/bold green]" if role == "leader" else role,
        info.get("term", "?"),
        leader if leader.isdigit() and leader != "0" else "–",
        info.get("commit_index", "?"),
        "?" if applied is None else str(max(0, newest_commit - applied)),
        f"{info.get('first_log_index', '?')}–{info.get('last_log_index', '?')}",
        info.get("database_lag") or "–",
        duration(info.get("uptime_s", "")),
    ]


def duration(seconds: str) -> str:
    """3725.2 → 1 h 2 min; text that is no number comes back as ?."""
    try:
        whole = int(float(seconds))
    except (ValueError, OverflowError):
        return "?"
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def to_json(cluster: ClusterReport) -> bytes:
    """One JSON object: healthy, leader, term, problem; for each node its address and every field it gave."""
    nodes: list[dict[str, Any]] = []
    for report in cluster.nodes:
        member = report.member
        node: dict[str, Any] = {"id": member.id, "address": f"{member.host}:{member.client_port}"}
        node["reachable"] = report.problem is None
        node["problem"] = report.problem
        node["info"] = {name: _value(text) for name, text in report.info.items()}
        nodes.append(node)
    shown = {
        "healthy": cluster.healthy,
        "leader": cluster.leader,
        "term": cluster.term,
        "problem": cluster.problem,
        "nodes": nodes,
    }
    return msgspec.json.encode(shown)


def _value(text: str) -> int | str:
    number = whole_number(text)
    return text if number is None else number


def run_status(config: Path, *, as_json: bool, watch_s: int | None) -> int:
    """Prints the status once, or every watch_s seconds until Ctrl-C; 0 with leader and quorum, else 1.

    Raises ConfigError.
    """
    members = load_settings(config).cluster.nodes
    cluster = ask_cluster(members)
    if as_json:
        _print_json(cluster)
        while watch_s is not None:
            time.sleep(watch_s)
            cluster = ask_cluster(members)
            _print_json(cluster)
    elif watch_s is None:
        _console().print(to_table(cluster))
    else:
        with Live(to_table(cluster), console=_console(), auto_refresh=False) as live:
            while True:
                time.sleep(watch_s)
                live.update(to_table(ask_cluster(members)), refresh=True)
    return 0 if cluster.healthy else 1


def _console() -> Console:
    """Wide enough for the whole table where the output is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 132)


def _print_json(cluster: ClusterReport) -> None:
    sys.stdout.write(to_json(cluster).decode() + "\n")
    sys.stdout.flush()
