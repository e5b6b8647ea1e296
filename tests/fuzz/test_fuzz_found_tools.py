"""What servers that are none of ours could do to the tools, found by fuzzing (docs/proof-fuzz.md)."""

from __future__ import annotations

import io
from unittest.mock import patch

import msgspec
import pytest
from rich.console import Console

from cli.follower import ban_seconds
from cli.link import LinkLost, whole_number
from cli.status import NodeReport, ask_node, duration, judge, parse_info, to_json, to_table
from database.client import DatabaseConfigError, new_client, redact
from tests.fuzz.target import Feed, piece
from tests.fuzz.tool_targets import MEMBERS, ScriptedLink, _Address, scripted


def reported(lines: str) -> NodeReport:
    return NodeReport(MEMBERS[0], parse_info(f"node_id:1\r\nrole:leader\r\nterm:3\r\nleader_id:1\r\n{lines}"))


@pytest.mark.parametrize(
    "lines",
    [
        *("term:--3", "term:²", f"term:{'9' * 5000}", "voters:1,²,3", "commit_index:--", "uptime_s:inf"),
        *("role:[/bold]", "term:[/]", "database_lag:[/x]", "first_log_index:[/y]", f"x:{10**30}"),
    ],
)
def test_status_shows_whatever_a_node_says_of_itself(lines: str) -> None:
    cluster = judge((reported(lines),))
    out = io.StringIO()
    Console(file=out, width=132).print(to_table(cluster))
    shown = msgspec.json.decode(to_json(cluster))
    name, _, value = lines.partition(":")
    assert shown["nodes"][0]["info"][name] == value
    if value.startswith("["):
        assert value in out.getvalue().replace("\n", "")


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("-1", -1), ("--1", None), ("²", None), ("1" * 19, None), ("", None), ("1\n", None)],
)
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number


def test_an_uptime_without_end_is_shown() -> None:
    assert duration("inf") == duration("nan") == "?"


@pytest.mark.parametrize("digits", [1, 400, 5000])
def test_a_ban_of_any_length_is_a_number(digits: int) -> None:
    assert 0 < ban_seconds(f"BANNED {'9' * digits} s left") <= 1e9
    assert 0 < ban_seconds(f"BANNED {'9' * digits} ms left") <= 1e9


def script(*pieces: bytes) -> Feed:
    return Feed(b"".join(map(piece, pieces)))


def test_text_that_is_no_utf8_is_read_nevertheless() -> None:
    with scripted(script(b"$8\r\nrole:\xff\xfe\xfd\r\n")), patch("cli.status.Link", ScriptedLink):
        report = ask_node(MEMBERS[0])
    assert report.problem is None and set(report.info["role"]) == {"\ufffd"}


CONFIRMED = b"*3\r\n$9\r\nsubscribe\r\n$5\r\nturns\r\n:1\r\n"


@pytest.mark.parametrize(
    "sent", [b"+\r\n", b":5\r\n", b"*0\r\n", b"*1\r\n$7\r\nmessage\r\n", b"*1\r\n*0\r\n"]
)
def test_what_confirms_no_subscription_ends_it(sent: bytes) -> None:
    with scripted(script(sent)), ScriptedLink(("127.0.0.1", 1), 1.0) as link, pytest.raises(LinkLost):
        link.subscribe(["turns"])


@pytest.mark.parametrize("sent", [b"+x\r\n", b":5\r\n", b"*1\r\n$7\r\nmessage\r\n", b"*1\r\n*0\r\n"])
def test_what_is_no_message_ends_the_subscription(sent: bytes) -> None:
    with scripted(script(CONFIRMED + sent)), ScriptedLink(("127.0.0.1", 1), 1.0) as link:
        link.subscribe(["turns"])
        with pytest.raises(LinkLost):
            for _ in range(2):
                link.next_message(0.0)


def test_what_is_wrong_with_a_mongodb_address_fits_in_a_line() -> None:
    with pytest.raises(DatabaseConfigError) as told:
        new_client(_Address("mongodb://h/?tls=true&*0\r\nauth\x1bSource=admin"))
    assert str(told.value).isprintable()
    assert redact("mongodb://u:p@h\n/") == r"mongodb://u:***@h\n/"
