"""What the HTTP port answers, as a function of the node's published status. Pure: no socket, no clock.

/status         JSON: this node as its worker last saw it
/health/live    200 while the process works; a monitor that gets nothing, or 503, starts it again
/health/ready   200 while this node knows of a leader (as the leader: has a quorum) and may vote, else 503
                with the reason
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from raft.status import NodeStatus

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
PATHS = ("/status", "/health/live", "/health/ready")


class Page(NamedTuple):
    """One answer. headers: beside content type and length."""

    code: int
    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def answer(method: str, target: str, status: NodeStatus, now_monotonic_s: float) -> Page:
    """The answer to a request. target: as in the request line; a query behind `?` changes nothing."""
    path = target.partition("?")[0]
    if path not in (*PATHS, "/"):
        return Page(404, TEXT, f"not found; there are {', '.join(PATHS)}\n".encode())
    if method not in ("GET", "HEAD"):
        return Page(405, TEXT, b"only GET and HEAD\n", (("Allow", "GET, HEAD"),))
    if path == "/status":
        return Page(200, JSON, msgspec.json.encode(fields(status, now_monotonic_s)) + b"\n")
    if path == "/health/live":
        return Page(200, TEXT, b"live\n")
    if path == "/health/ready":
        reason = why_not_ready(status)
        return Page(200, TEXT, b"ready\n") if reason is None else Page(503, TEXT, f"{reason}\n".encode())
    return Page(200, TEXT, "".join(f"{each}\n" for each in PATHS).encode())


def why_not_ready(status: NodeStatus) -> str | None:
    """Why clients should not be sent to this node now; None: they may."""
    if status.role == "removed":
        return f"node {status.node_id} does not belong to the cluster"
    if status.leader_id is None:
        return f"node {status.node_id} knows of no leader in term {status.term}"
    if not status.has_quorum:
        return f"node {status.node_id} leads term {status.term}, but no quorum answers it"
    if status.recovering_from:
        return f"node {status.node_id} gives no vote: its log lacks entries from {status.recovering_from} on"
    return None


def fields(status: NodeStatus, now_monotonic_s: float) -> dict[str, Any]:
    """The status as JSON has it: the fields of NodeStatus, `match` as an object, uptime, readiness."""
    shown: dict[str, Any] = msgspec.structs.asdict(status)
    del shown["started_monotonic_s"]
    return {
        **shown,
        "match": {str(peer): index for peer, index in status.match},
        "uptime_s": status.uptime_s(now_monotonic_s),
        "ready": why_not_ready(status) is None,
    }
