"""What a command answers, independent of RESP version: the machine and the ledger return these.

bytes and str are bulk strings, int an integer, None the null, list an array, dict a map (in RESP2 a flat
field, value array), Simple a status line, Error an error whose first word is its code. Any thread may build
and read them; they are never changed once returned.
"""

from __future__ import annotations

from typing import TypeAlias


class Simple(str):
    """A status reply such as +OK."""

    __slots__ = ()


class Error(str):
    """An error reply, without the leading dash: 'ERR unknown command'."""

    __slots__ = ()


Reply: TypeAlias = int | bytes | str | Simple | Error | list["Reply"] | dict[str, "Reply"] | None

OK = Simple("OK")


def size_of(reply: Reply) -> int:
    """What a reply takes, about."""
    if isinstance(reply, bytes | str):
        return len(reply)
    if isinstance(reply, list):
        return 8 * len(reply) + sum(map(size_of, reply))
    return 8
