"""The request parser: good streams however they are cut, bad ones refused in Redis' words, none too big."""

from __future__ import annotations

import tracemalloc

import pytest
from clients_support import resp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raft.clients import requests
from raft.clients.requests import (
    MAX_INLINE_BYTES,
    FastReader,
    ProtocolError,
    RequestParser,
    encoded_length,
    parse_request,
    split_inline,
)

MAX = 4096


def parser(max_bytes: int = MAX) -> RequestParser:
    return RequestParser(max_bytes, FastReader())


def parse_all(data: bytes, max_bytes: int = MAX) -> tuple[list[list[bytes]], str | None]:
    """Everything in one piece: the commands, and the error's text."""
    made = parser(max_bytes)
    made.feed(data)
    commands: list[list[bytes]] = []
    while more := made.take(1024):
        commands += more
    return commands, str(made.error) if made.error is not None else None


STREAM = (
    resp(b"SET", b"k", b"v")
    + b"PING\r\n"
    + resp(b"GET", b"k")
    + b"\r\n*0\r\n*-1\r\n"
    + resp(b"SET", b"", b"\r\n*3\r\n+x")
    + b"set \"a b\" 'c'\n"
    + resp(b"MGET", *[b"x" * n for n in range(12)])
    + resp(b"ECHO", b"y" * 300)
)
COMMANDS = [
    [b"SET", b"k", b"v"],
    [b"PING"],
    [b"GET", b"k"],
    [b"SET", b"", b"\r\n*3\r\n+x"],
    [b"set", b"a b", b"c"],
    [b"MGET", *[b"x" * n for n in range(12)]],
    [b"ECHO", b"y" * 300],
]


def test_arrays_and_inline_commands_mixed() -> None:
    assert parse_all(STREAM) == (COMMANDS, None)


def test_cut_in_two_at_every_byte() -> None:
    for cut in range(1, len(STREAM)):
        made = parser()
        got = []
        for piece in (STREAM[:cut], STREAM[cut:]):
            made.feed(piece)
            got += made.take(1024)
        assert got == COMMANDS, f"cut at {cut}"
        assert made.error is None
        assert made.buffered == 0
        assert not made.ready


def test_byte_by_byte() -> None:
    made = parser()
    got = []
    for number in range(len(STREAM)):
        made.feed(STREAM[number : number + 1])
        got += made.take(1024)
    assert got == COMMANDS


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_a_limit_leaves_the_rest_for_the_next_take(limit: int) -> None:
    made = parser()
    made.feed(STREAM)
    got: list[list[bytes]] = []
    while more := made.take(limit):
        assert len(more) <= limit
        got += more
        assert made.ready == (len(got) < len(COMMANDS))
    assert got == COMMANDS


BAD = [
    (b"*x\r\n", "Protocol error: invalid multibulk length"),
    (b"*\r\n", "Protocol error: invalid multibulk length"),
    (b"*-2\r\n", "Protocol error: invalid multibulk length"),
    (b"*03\r\n", "Protocol error: invalid multibulk length"),
    (b"*+1\r\n", "Protocol error: invalid multibulk length"),
    (b"* 1\r\n", "Protocol error: invalid multibulk length"),
    (b"*1_0\r\n", "Protocol error: invalid multibulk length"),
    (b"*" + b"1" * 40, "Protocol error: invalid multibulk length"),
    (b"*1000000000\r\n", "Protocol error: invalid multibulk length: a request may have at most 4096 bytes"),
    (b"*800\r\n", "Protocol error: invalid multibulk length: a request may have at most 4096 bytes"),
    (b"*1\r\n$1000000000\r\n", "Protocol error: invalid bulk length: a request may have at most 4096 bytes"),
    (b"*1\r\n$4090\r\n", "Protocol error: invalid bulk length: a request may have at most 4096 bytes"),
    (
        b"*1\r\n$99999999999999999999999\r\n",
        "Protocol error: invalid bulk length: a request may have at most",
    ),
    (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$-5\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$a\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$" + b"0" * 40, "Protocol error: invalid bulk length"),
    (b"*1\r\n+PING\r\n", "Protocol error: expected '$', got '+'"),
    (b"*2\r\n$3\r\nGET\r\n:1\r\n", "Protocol error: expected '$', got ':'"),
    (b"*2\r\n$3\r\nGET\r\n*1\r\n$1\r\nk\r\n", "Protocol error: expected '$', got '*'"),
    (b"*2\r\n$3\r\nGET\r\n_\r\n", "Protocol error: expected '$', got '_'"),
    (b"*2\r\n$3\r\nGET\r\n#t\r\n", "Protocol error: expected '$', got '#'"),
    (b"*2\r\n$3\r\nGET\r\n#f\r\n", "Protocol error: expected '$', got '#'"),
    (b"*2\r\n$3\r\nGET\r\n,1.5\r\n", "Protocol error: expected '$', got ','"),
    (b"*2\r\n$3\r\nGET\r\n(123\r\n", "Protocol error: expected '$', got '('"),
    (b"*2\r\n$3\r\nGET\r\n-ERR x\r\n", "Protocol error: expected '$', got '-'"),
    (b"*2\r\n$3\r\nGET\r\n=5\r\ntxt:k\r\n", "Protocol error: expected '$', got '='"),
    (b"*2\r\n$3\r\nGET\r\n!3\r\nERR\r\n", "Protocol error: expected '$', got '!'"),
    (b"*2\r\n$3\r\nGET\r\n%1\r\n$1\r\na\r\n$1\r\nb\r\n", "Protocol error: expected '$', got '%'"),
    (b"*2\r\n$3\r\nGET\r\n~1\r\n$1\r\na\r\n", "Protocol error: expected '$', got '~'"),
    (b"*2\r\n$3\r\nGET\r\n>1\r\n$1\r\na\r\n", "Protocol error: expected '$', got '>'"),
    (
        b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
        "Protocol error: expected '$', got '*'",
    ),
    (b"*1\r\n\x00", "Protocol error: expected '$', got '\\x00'"),
    (b'set "a\r\n', "Protocol error: unbalanced quotes in request"),
    (b"set 'a\r\n", "Protocol error: unbalanced quotes in request"),
    (b'set "a"b\r\n', "Protocol error: unbalanced quotes in request"),
    (b"x" * 4096, "Protocol error: too big inline request"),
    (b"POST / HTTP/1.1\r\nHost: a\r\n\r\nSET a b\r\n", "Protocol error: this port does not speak HTTP"),
    (b"Host: a\r\n", "Protocol error: this port does not speak HTTP"),
]


@pytest.mark.parametrize(("data", "text"), BAD, ids=[repr(data[:30]) for data, _ in BAD])
def test_a_bad_request_is_refused_at_once_and_alone(data: bytes, text: str) -> None:
    for before in (b"", resp(b"PING") * 3, b"PING\r\n" * 3):
        commands, error = parse_all(before + data + resp(b"SET", b"never", b"run"))
        assert [[word.upper() for word in args] for args in commands] == ([[b"PING"]] * 3 if before else [])
        assert error is not None
        assert error.startswith(text)


@pytest.mark.parametrize(("data", "text"), BAD, ids=[repr(data[:30]) for data, _ in BAD])
def test_a_bad_request_is_refused_byte_by_byte_too(data: bytes, text: str) -> None:
    made = parser()
    for number in range(len(data)):
        made.feed(data[number : number + 1])
        assert made.take(10) == []
    assert made.error is not None
    assert str(made.error).startswith(text)


def test_after_an_error_nothing_is_kept() -> None:
    made = parser()
    made.feed(b"*x\r\n")
    assert made.take(1) == []
    made.feed(b"PING\r\n" * 1000)
    assert made.take(1) == []
    assert made.buffered == 0


def test_the_largest_allowed_request_and_one_byte_more() -> None:
    frame = len(resp(b"SET", b"k", b"")) - 1 + len(str(MAX))  # "$0" becomes "$40xx"
    value = b"v" * (MAX - frame)
    request = resp(b"SET", b"k", value)
    assert len(request) == MAX
    assert parse_all(request) == ([[b"SET", b"k", value]], None)
    commands, error = parse_all(resp(b"SET", b"k", value + b"v"))
    assert commands == []
    assert error is not None
    assert "at most 4096 bytes" in error


def test_an_inline_command_may_be_as_long_as_in_redis() -> None:
    word = b"x" * (MAX_INLINE_BYTES - 1)
    assert parse_all(word + b"\n", 1 << 20) == ([[word]], None)
    assert parse_all(word + b"x\n", 1 << 20) == ([], "Protocol error: too big inline request")


def test_many_requests_together_may_exceed_the_limit() -> None:
    one = resp(b"SET", b"k", b"v" * 1000)
    assert parse_all(one * 50) == ([[b"SET", b"k", b"v" * 1000]] * 50, None)


def test_declared_sizes_allocate_nothing() -> None:
    tracemalloc.start()
    try:
        for header in (b"*1000000000\r\n", b"*1\r\n$1000000000\r\n", b"*9999\r\n" * 9, b"*100000\r\n" * 3):
            parse_all(resp(b"PING") + header, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_large_value_that_trickles_in_is_joined_once() -> None:
    value = b"v" * 900_000
    request = resp(b"SET", b"k", value)
    made = parser(1 << 20)
    for start in range(0, len(request), 1000):
        assert made.take(1) == []
        made.feed(request[start : start + 1000])
        assert made.buffered <= 1 << 20
    assert made.take(1) == [[b"SET", b"k", value]]


def test_missing_bytes_are_known_exactly_for_bulk_strings() -> None:
    assert parse_request(b"*2\r\n$3\r\nGET\r\n$5\r\nab", 0, MAX) == (None, len(resp(b"GET", b"abcde")))
    assert parse_request(b"*3\r\n", 0, MAX) == (None, 4 + 1)
    long = b"*9\r\n$2000\r\n" + b"x" * 2000 + b"\r\n"
    assert parse_request(long, 0, MAX) == (None, len(long) + 8 * 6)
    assert parse_request(long[:100], 0, MAX) == (None, len(long) + 8 * 6)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b"  \t ", []),
        (b"PING", [b"PING"]),
        (b"  SET a\tb \r", [b"SET", b"a", b"b"]),
        (rb'"\x41\n\r\t\b\a\\\"\q"', [b'A\n\r\t\b\a\\"q']),
        (rb"'a\'b\n\\ '", [rb"a'b\n\\ "]),
        (b"'' \"\"", [b"", b""]),
        (b'a"b c"', [b"ab c"]),
        (b"\xff\xfe", [b"\xff\xfe"]),
    ],
)
def test_inline_words_as_redis_cuts_them(line: bytes, words: list[bytes]) -> None:
    assert split_inline(line) == words


@pytest.mark.parametrize("line", [b'"', b"'", b'a"', b'"a""b"', b"'a'b", b'"a\\"', b"'a\\'"])
def test_unbalanced_quotes(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="unbalanced quotes"):
        split_inline(line)


words = st.binary(max_size=30) | st.sampled_from([b"*1\r\n", b"\n+x", b"$3", b"\r\n*99999\r\n", b"-1", b":1"])
commands_lists = st.lists(st.lists(words, min_size=1, max_size=5), max_size=8)


@given(commands_lists, st.lists(st.integers(1, 60), max_size=30), st.integers(1, 5))
def test_any_commands_in_any_pieces(commands: list[list[bytes]], cuts: list[int], limit: int) -> None:
    data = b"".join(resp(*args) for args in commands)
    made = parser()
    got: list[list[bytes]] = []
    for size in [*cuts, len(data)]:
        made.feed(data[:size])
        data = data[size:]
        while more := made.take(limit):
            got += more
    assert made.error is None
    assert got == commands


tokens = st.sampled_from(
    b"*1\r\n|*2\r\n|*0\r\n|$1\r\na\r\n|$0\r\n\r\n|+a\r\n|:1\r\n|PING\r\n|\r\n|*-1\r\n|$-1\r\n|~1\r\n|%1\r\n|_\r\n|"
    b"#f\r\n|=5\r\ntxt:a\r\n|*99999\r\n|$|*".split(b"|")
)


@settings(max_examples=400)
@example(b"*1\r\n$1\r\na\r\n$0\r\n\r\n")
@example(b"*1\r\n$1\r\na\r\n$4\r\nPING\r\n")
@given(st.lists(tokens | st.binary(max_size=6), max_size=12).map(b"".join))
def test_the_fast_and_the_strict_reader_agree_on_anything(data: bytes) -> None:
    """The fast way may decline; what it takes must be what the strict reader takes."""
    expected, text = _strictly(data)
    assert parse_all(data) == (expected, text)
    taken, used = FastReader().read(data, 1024, MAX)
    assert taken == _strictly(data[:used])[0]


def _strictly(data: bytes) -> tuple[list[list[bytes]], str | None]:
    commands, position = [], 0
    while position < len(data):
        try:
            args, end = parse_request(data, position, MAX)
        except ProtocolError as error:
            return commands, str(error)
        if args is None:
            break
        if args:
            commands.append(args)
        position = end
    return commands, None


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_encoded_length(args: list[bytes]) -> None:
    assert encoded_length(args) == len(resp(*args))


def test_the_fast_reader_declines_what_only_looks_like_words() -> None:
    """A word with a line break shifts the pieces; a wrong length shows when it is written again."""
    fast = FastReader()
    good = resp(b"SET", b"k", b"v")
    for odd in (resp(b"SET", b"k", b"a\r\nb"), good.replace(b"$1", b"$2"), good.replace(b"$3", b"$03")):
        assert fast.read(odd, 9, MAX) == ([], 0)
        assert fast.read(good + odd, 9, MAX) == ([], 0)
    no_array = (b"*0\r\n", b"*-1\r\n", b"PING\r\n", b"\r\n", good.replace(b"*3", b"*03"))
    for odd in (*no_array, good[:-1], good[:-2]):
        assert fast.read(odd, 9, MAX) == ([], 0)
        assert fast.read(good + odd, 9, MAX) == ([[b"SET", b"k", b"v"]], len(good))
    long = resp(*([b"w"] * 128))
    assert fast.read(long, 99, MAX) == ([[b"w"] * 128], len(long))
    assert fast.read(long, 9, MAX) == ([], 0), "it looks no farther than nine usual commands reach"


def test_the_fast_reader_does_take_ordinary_pipelines() -> None:
    data = resp(b"SET", b"k", b"v") * 100
    fast = FastReader()
    for _ in range(2):
        assert fast.read(data, 1024, MAX) == ([[b"SET", b"k", b"v"]] * 100, len(data))
    assert fast.read(data + b"*3\r\n$3\r\nSE", 1024, MAX) == ([[b"SET", b"k", b"v"]] * 100, len(data))
    assert fast.read(data, 7, MAX) == ([[b"SET", b"k", b"v"]] * 7, len(data) * 7 // 100)


def test_a_long_command_lets_other_threads_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, this loop would keep the interpreter's lock for all of a large MSET: see raft/breathe.py."""
    breaths: list[None] = []
    monkeypatch.setattr(requests, "breathe", lambda: breaths.append(None))
    words = [b"MSET", *([b""] * 20_480)]
    assert parse_request(resp(*words), 0, 1 << 20)[0] == words
    assert len(breaths) >= 20
