"""Redis' glob patterns, against examples and against a plain recursive definition."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.clients.glob import Glob


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (b"", b"", True),
        (b"", b"a", False),
        (b"*", b"", True),
        (b"*", b"a\nb\xff", True),
        (b"rewards:*", b"rewards:node-1", True),
        (b"rewards:*", b"reward:node-1", False),
        (b"h?llo", b"hello", True),
        (b"h?llo", b"hllo", False),
        (b"h[ae]llo", b"hallo", True),
        (b"h[ae]llo", b"hillo", False),
        (b"h[^e]llo", b"hallo", True),
        (b"h[^e]llo", b"hello", False),
        (b"h[a-b]llo", b"hbllo", True),
        (b"h[b-a]llo", b"hallo", True),
        (b"h[a-b]llo", b"hcllo", False),
        (b"a\\*b", b"a*b", True),
        (b"a\\*b", b"axb", False),
        (b"[\\]]", b"]", True),
        (b"[]", b"", False),
        (b"[]a", b"a", False),
        (b"[^]", b"x", True),
        (b"a[b", b"ab", True),
        (b"a\\", b"a\\", True),
        (b"a*a", b"a", False),
        (b"a*a", b"aa", True),
        (b"*a*b*", b"xxaxxbxx", True),
        (b"*a*b*", b"xxbxxaxx", False),
        (b"a.c", b"abc", False),
        (b"**a", b"a", True),
        (b"a**", b"a", True),
        (b"[.]", b".", True),
        (b"[-a]", b"-", True),
    ],
)
def test_examples(pattern: bytes, text: bytes, expected: bool) -> None:
    assert Glob(pattern).matches(text) is expected


def test_case_can_be_ignored() -> None:
    assert Glob(b"MaxC*", ignore_case=True).matches(b"maxclients")
    assert not Glob(b"MaxC*").matches(b"maxclients")


def _slowly(pattern: bytes, text: bytes) -> bool:
    if not pattern:
        return not text
    if pattern[:1] == b"*":
        return any(_slowly(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    return bool(text) and pattern[:1] in (b"?", text[:1]) and _slowly(pattern[1:], text[1:])


@given(
    st.lists(st.sampled_from([b"a", b"b", b"*", b"?"]), max_size=7).map(b"".join),
    st.lists(st.sampled_from([b"a", b"b"]), max_size=8).map(b"".join),
)
def test_stars_against_the_plain_definition(pattern: bytes, text: bytes) -> None:
    assert Glob(pattern).matches(text) is _slowly(pattern, text)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_no_pattern_fails(pattern: bytes, text: bytes) -> None:
    Glob(pattern).matches(text)


def test_no_pattern_is_slow() -> None:
    started = time.process_time()
    assert not Glob(b"*a" * 200 + b"*b").matches(b"a" * 4000)
    assert time.process_time() - started < 0.5
