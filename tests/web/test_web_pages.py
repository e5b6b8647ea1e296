"""What the HTTP port answers, without sockets."""

from __future__ import annotations

import json

import pytest

from raft.config import Member
from raft.status import NodeStatus
from web.exchange import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_UNSENT_BYTES, Exchange
from web.pages import Page, answer

MEMBERS = tuple(Member(id=n, host="h", raft_port=1, client_port=2, http_port=3) for n in (1, 2, 3))


def status(**changes: object) -> NodeStatus:
    fields: dict[str, object] = {
        "node_id": 1,
        "cluster_name": "c",
        "run_id": "ab",
        "started_monotonic_s": 100.0,
        "role": "follower",
        "term": 7,
        "leader_id": 2,
        "voted_for": None,
        "commit_index": 5,
        "applied_index": 5,
        "last_log_index": 6,
        "first_log_index": 1,
        "members": MEMBERS,
        "voters": (1, 2, 3),
        "match": ((2, 6),),
        **changes,
    }
    return NodeStatus(**fields)  # type: ignore[arg-type]


def ask(target: str, method: str = "GET", **changes: object) -> Page:
    return answer(method, target, status(**changes), 160.5)


def test_status_is_json_with_the_published_fields() -> None:
    page = ask("/status?pretty=1")
    shown = json.loads(page.body)
    assert page.code == 200 and page.kind == "application/json"
    assert shown["term"] == 7 and shown["leader_id"] == 2 and shown["uptime_s"] == 60
    assert shown["match"] == {"2": 6} and shown["ready"] is True
    assert shown["members"][1] == {"id": 2, "host": "h", "raft_port": 1, "client_port": 2, "http_port": 3}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"leader_id": None}, b"node 1 knows of no leader in term 7\n"),
        ({"role": "removed"}, b"node 1 does not belong to the cluster\n"),
        ({"role": "leader", "leader_id": 1, "has_quorum": False}, b"no quorum answers"),
        ({"recovering_from": 4}, b"node 1 gives no vote: its log lacks entries from 4 on\n"),
    ],
)
def test_not_ready_says_why_but_is_alive(changes: dict[str, object], reason: bytes) -> None:
    page = ask("/health/ready", **changes)
    assert page.code == 503 and reason in page.body
    assert ask("/health/live", **changes) == Page(200, page.kind, b"live\n")
    assert json.loads(ask("/status", **changes).body)["ready"] is False


def test_ready_with_a_leader() -> None:
    assert ask("/health/ready").code == 200
    assert ask("/health/ready", role="leader", leader_id=1).code == 200


def test_others_are_told_what_there_is() -> None:
    assert ask("/nope").code == 404 and b"/health/ready" in ask("/nope").body
    assert ask("/status", "POST").code == 405 and ("Allow", "GET, HEAD") in ask("/status", "POST").headers
    assert ask("/").body == b"/status\n/health/live\n/health/ready\n"


def exchange() -> Exchange:
    return Exchange(lambda method, target: answer(method, target, status(), 160.5))


def test_requests_may_come_in_pieces_and_follow_each_other() -> None:
    talk = exchange()
    for byte in b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 2:
        talk.receive(bytes([byte]))
    assert talk.answered == 2 and not talk.closing
    assert bytes(talk.unsent).count(b"HTTP/1.1 200") == 2 and bytes(talk.unsent).endswith(b"\r\n\r\nlive\n")


def test_head_has_the_length_but_no_body() -> None:
    talk = exchange()
    talk.receive(b"HEAD /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"content-length: 5" in bytes(talk.unsent).lower() and bytes(talk.unsent).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x00\xff\x00\r\n\r\n", b" 400 "),
        (b"GET /status HTTP/1.1\r\n\r\n", b" 400 "),  # without Host
        (b"GET /" + b"a" * (MAX_HEAD_BYTES + 10), b" 431 "),
        (b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b""),
        (
            b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
            + b"b" * (MAX_BODY_BYTES + 1),
            b" 413 ",
        ),
    ],
)
def test_what_breaks_the_protocol_or_a_bound_ends_the_connection(data: bytes, code: bytes) -> None:
    talk = exchange()
    talk.receive(data)
    assert code in bytes(talk.unsent)
    assert talk.closing == bool(code)
    assert talk.answered == 0
    before = bytes(talk.unsent)
    if talk.closing:
        talk.receive(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert bytes(talk.unsent) == before


def test_answers_that_nobody_reads_are_bounded() -> None:
    talk = exchange()
    talk.receive(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
    assert talk.closing and talk.answered < 10_000
    assert MAX_UNSENT_BYTES < len(talk.unsent) < MAX_UNSENT_BYTES + 10_000


def test_the_client_ends_first() -> None:
    talk = exchange()
    talk.receive(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    talk.receive(b"")
    assert talk.closing and talk.answered == 1
