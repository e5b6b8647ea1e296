"""The short way for one plain command: never another result than the long way's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clients_support import Harness, Wire, resp
from hypothesis import example, given
from hypothesis import strategies as st

from raft.clients.requests import FastReader, RequestParser
from raft.clients.single import single_command

WORDS = st.lists(st.binary(max_size=20), min_size=1, max_size=5)
PIECES = st.sampled_from([b"\r\n", b"$3", b"*2", b"*3", b"$03", b"$1", b"a", b"GET", b"", b"\n", b"$-1"])


def long_way(data: bytes) -> list[list[bytes]]:
    parser = RequestParser(1 << 20, FastReader())
    parser.feed(data)
    commands = parser.take(100)
    return commands if parser.empty else []


@given(WORDS)
@example([b"SET", b"k", b"\r\n"])
@example([b"GET", b""])
def test_a_whole_command_is_what_the_parser_makes_of_it(words: list[bytes]) -> None:
    found = single_command(resp(*words))
    assert found in (None, words)
    if len(words) in (2, 3) and not any(b"\r\n" in word for word in words):
        assert found == words
    if len(words) not in (2, 3):
        assert found is None


@given(st.lists(PIECES, max_size=14).map(b"\r\n".join) | st.lists(PIECES, max_size=30).map(b"".join))
@example(resp(b"GET", b"k") * 2)
@example(resp(b"GET", b"k")[:-1])
@example(b"*2\r\n$3\r\nGET\r\n$01\r\nk\r\n")
@example(b"*3\r\n$3\r\nGET\r\n$1\r\nk\r\n")
def test_odd_bytes_are_left_to_the_parser(data: bytes) -> None:
    found = single_command(data)
    assert found is None or [found] == long_way(data)


def test_one_larger_than_the_limit_is_refused(make_harness: Callable[..., Harness]) -> None:
    wire = make_harness(max_request_bytes=1024).connect()
    fits = b"v" * (1024 - len(resp(b"SET", b"k", b"")) - 2)  # its length has two digits more
    wire.send(resp(b"SET", b"k", fits))
    wire.expect(b"+OK\r\n")
    wire.send(resp(b"SET", b"k", fits + b"v"))
    assert wire.until_closed().startswith(b"-ERR Protocol error: invalid ")


@pytest.mark.parametrize("first", [b"GET", b"get", b"Get", b"PING", b"NOSUCH"])
def test_whatever_comes_one_at_a_time_is_answered_in_order(
    harness: Harness, wire: Wire, first: bytes
) -> None:
    wire.send(resp(b"SET", b"k", b"v"))
    wire.expect(b"+OK\r\n")
    wire.send(resp(first, b"k") + resp(b"ECHO", b"after"))
    lines = [wire.line() for _ in range(4 if first.upper() in (b"GET", b"PING") else 3)]
    assert lines[-1] == b"after\r\n"
    wire.send(resp(b"GET", b"k")[:5])
    wire.send(resp(b"GET", b"k")[5:])
    wire.expect(b"$1\r\nv\r\n")
