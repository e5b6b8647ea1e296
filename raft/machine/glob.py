"""Redis' glob patterns: * ? [a-z] [^a] and backslash, as KEYS, SCAN MATCH, CONFIG GET and PSUBSCRIBE have
them.

A pattern becomes a regular expression over bytes. Between two stars everything has a fixed length, so the
leftmost place where a piece fits is always good enough: atomic groups keep matching from going back over
earlier stars, and no pattern can make it take exponential time. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

LONGEST_PATTERN = 4096  # bytes; compiling takes about a microsecond a byte


class PatternTooLongError(ValueError):
    """The pattern is longer than LONGEST_PATTERN bytes."""


Matcher = Callable[[bytes], object]  # true when the whole word matches


@lru_cache(maxsize=128)
def glob_matcher(pattern: bytes) -> Matcher:
    """A function that says whether a whole word matches. Raises PatternTooLongError."""
    if len(pattern) > LONGEST_PATTERN:
        raise PatternTooLongError(f"pattern is longer than {LONGEST_PATTERN} bytes")
    return re.compile(_regular_expression(pattern), re.DOTALL).fullmatch


def _regular_expression(pattern: bytes) -> bytes:
    """The same for `re`: the first piece, (?>.*?piece) for each further one, the last at the end."""
    first, *rest = _pieces(pattern)
    if not rest:
        return first
    middle = b"".join(b"(?>.*?" + piece + b")" for piece in rest[:-1] if piece)
    return first + middle + b".*" + rest[-1]


def _pieces(pattern: bytes) -> list[bytes]:
    """What stands before, between and after the stars, each as a regular expression of fixed length."""
    pieces = [b""]
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        if char == b"*":
            pieces.append(b"")
        elif char == b"?":
            pieces[-1] += b"."
        elif char == b"[":
            at, expression = _character_class(pattern, at + 1)
            pieces[-1] += expression
        else:
            if char == b"\\" and at + 1 < len(pattern):
                at += 1
            pieces[-1] += re.escape(pattern[at : at + 1])
        at += 1
    return pieces


def _character_class(pattern: bytes, at: int) -> tuple[int, bytes]:
    """One [...], `at` behind its bracket. Returns where it ends (its ] or the last byte) and its expression.

    As in Redis: a class may lack its ], a range may run backwards, and "]" may end a range ("[a-]").
    """
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at] != ord("]"):
        left = len(pattern) - at
        if pattern[at] == ord("\\") and left >= 2:
            at += 1
            members.add(pattern[at])
        elif left >= 3 and pattern[at + 1] == ord("-"):
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.update(range(low, high + 1))
            at += 2
        else:
            members.add(pattern[at])
        at += 1
    if not members:
        return at, b"." if negated else b"(?!)"
    listed = b"".join(b"\\x%02x" % member for member in sorted(members))
    return at, (b"[^" if negated else b"[") + listed + b"]"
