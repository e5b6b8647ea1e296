"""Redis' glob patterns, for PSUBSCRIBE and CONFIG GET: * ? [abc] [^abc] [a-z] and backslash.

A pattern is cut at its stars; each piece matches a fixed number of bytes, so taking the leftmost place for
each piece in turn is right. No pattern, however written, can make matching slow (a plain translation to one
regular expression could).
"""

from __future__ import annotations

import re


class Glob:
    """A compiled pattern. Immutable; any thread may use it."""

    __slots__ = ("_pieces",)

    def __init__(self, pattern: bytes, ignore_case: bool = False) -> None:
        flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
        self._pieces = [(re.compile(piece, flags), length) for piece, length in _cut(pattern)]

    def matches(self, text: bytes) -> bool:
        """Whether the whole of `text` matches."""
        first, length = self._pieces[0]
        if len(self._pieces) == 1:
            return first.fullmatch(text) is not None
        last, last_length = self._pieces[-1]
        end = len(text) - last_length
        if end < length or first.match(text) is None or last.match(text, end) is None:
            return False
        position = length
        for piece, _ in self._pieces[1:-1]:
            found = piece.search(text, position, end)
            if found is None:
                return False
            position = found.end()
        return True


def _cut(pattern: bytes) -> list[tuple[bytes, int]]:
    """The pieces between stars, as (regular expression, number of bytes it matches)."""
    pieces: list[tuple[bytes, int]] = []
    expression, length, position = b"", 0, 0
    while position < len(pattern):
        letter = pattern[position : position + 1]
        position += 1
        if letter == b"*":
            if length or not pieces:  # several stars in a row are one
                pieces.append((expression, length))
            expression, length = b"", 0
            continue
        if letter == b"?":
            letter = b"."
        elif letter == b"[":
            letter, position = _letter_class(pattern, position)
        else:
            if letter == b"\\" and position < len(pattern):
                letter = pattern[position : position + 1]
                position += 1
            letter = re.escape(letter)
        expression += letter
        length += 1
    pieces.append((expression, length))
    return pieces


def _letter_class(pattern: bytes, position: int) -> tuple[bytes, int]:
    """The expression for a [class] whose "[" stands before `position`, and where the pattern goes on."""
    negated = pattern[position : position + 1] == b"^"
    position += negated
    ranges: list[tuple[int, int]] = []
    while position < len(pattern) and pattern[position] != ord("]"):
        if pattern[position] == ord("\\") and position + 1 < len(pattern):
            position += 1
        low = high = pattern[position]
        if pattern[position + 1 : position + 2] == b"-" and position + 2 < len(pattern):
            high = pattern[position + 2]
            position += 2
        ranges.append((min(low, high), max(low, high)))
        position += 1
    inside = b"".join(b"\\x%02x-\\x%02x" % pair for pair in ranges)
    position += 1  # the "]", or beyond the end as in Redis
    if not inside:
        return (b"." if negated else b"(?!)."), position
    return (b"[^" if negated else b"[") + inside + b"]", position
