"""Glob patterns: by table, against redis-server, and never slow."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_support import RealRedis

from raft.machine.glob import LONGEST_PATTERN, PatternTooLongError, glob_matcher


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (b"*", [b"", b"a", b"\n", b"a\xff"], []),
        (b"", [b""], [b"a"]),
        (b"h?llo", [b"hello", b"h\nllo", b"h*llo"], [b"hllo", b"heello"]),
        (b"h*llo", [b"hllo", b"heeeello"], [b"hllo!", b"xhllo"]),
        (b"h[ae]llo", [b"hello", b"hallo"], [b"hillo", b"h[llo"]),
        (b"h[^e]llo", [b"hallo", b"h^llo"], [b"hello"]),
        (b"h[a-c]llo", [b"hallo", b"hcllo"], [b"hdllo", b"h-llo"]),
        (b"h[c-a]llo", [b"hbllo"], [b"hdllo"]),
        (b"h\\*llo", [b"h*llo"], [b"hello"]),
        (b"h\\[a]", [b"h[a]"], [b"ha"]),
        (b"[\\]]", [b"]"], [b"\\"]),
        (b"[a", [b"a"], [b"[a"]),
        (b"[", [], [b"[", b""]),
        (b"[]", [], [b"]", b"[]", b""]),
        (b"[^]", [b"x", b"\n"], [b"", b"xx"]),
        (b"[^", [b"x"], [b""]),
        (b"a\\", [b"a\\"], [b"a"]),
        (b"[a-]", [b"^", b"]", b"a"], [b"-", b"b"]),
        (b"a.b|c(d)$", [b"a.b|c(d)$"], [b"axb|c(d)$"]),
        (b"\xff*\x00", [b"\xff\x00", b"\xffabc\x00"], [b"\xff"]),
        (b"**a**", [b"a", b"bab"], [b"", b"b"]),
        (b"a*a", [b"aa", b"aba"], [b"a"]),
        (b"*a*ab", [b"aab", b"aabab"], [b"ab"]),
        (b"*a*b*", [b"xxaxxbxx", b"ab"], [b"xxbxxaxx"]),
        (b"rewards:*", [b"rewards:node-1", b"rewards:"], [b"reward:node-1"]),
        (b"[-a]", [b"-", b"a"], [b"b"]),
    ],
)
def test_patterns(pattern: bytes, matching: list[bytes], others: list[bytes]) -> None:
    matcher = glob_matcher(pattern)
    assert [word for word in matching if not matcher(word)] == []
    assert [word for word in others if matcher(word)] == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", [b"a*", b"*a", b"?*a", b"[a-b]*", b"*a?"])
def test_no_pattern_takes_exponential_time(piece: bytes) -> None:
    matcher = glob_matcher(piece * 40 + b"c")
    for _ in range(20):
        assert not matcher(b"a" * 2000 + b"b")


def _slowly(pattern: bytes, text: bytes) -> bool:
    """The plain definition, for stars and question marks."""
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
    assert bool(glob_matcher(pattern)(text)) is _slowly(pattern, text)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_any_bytes_are_a_pattern(pattern: bytes, text: bytes) -> None:
    glob_matcher(pattern)(text)


def test_a_pattern_has_a_longest_length() -> None:
    assert glob_matcher(b"x" * LONGEST_PATTERN)(b"x" * LONGEST_PATTERN)
    with pytest.raises(PatternTooLongError):
        glob_matcher(b"x" * (LONGEST_PATTERN + 1))


ALPHABET = b"ab-]^[\\*?"
WORDS = st.lists(st.sampled_from(b"ab-]^[\\*?"), min_size=1, max_size=4).map(bytes)
PATTERNS = st.lists(st.sampled_from(b"ab-]^[\\*?[]**a"), min_size=1, max_size=9).map(bytes)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATTERNS, st.sets(WORDS, min_size=1, max_size=12))
def test_matches_are_those_of_redis(real_redis: RealRedis, pattern: bytes, words: set[bytes]) -> None:
    real_redis("FLUSHALL")
    real_redis("MSET", *[part for word in words for part in (word, b"v")])
    matched = real_redis("KEYS", pattern)
    assert isinstance(matched, list)
    assert {word for word in words if glob_matcher(pattern)(word)} == set(matched)
