"""Changes to inputs: of bytes, and of the values that msgpack stands for."""

from __future__ import annotations

import random
from typing import Any

import msgspec

INTEGERS = (
    *(0, 1, -1, 2, 3, 4, 5, 9, 10, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**40, 2**48, 2**53, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1),
    *(-2, -5, -(2**31), -(2**53), -(2**63)),
)
WORDS = (
    *(
        b"",
        b"a",
        b"0",
        b"-1",
        b"1",
        b"9223372036854775807",
        b"-9223372036854775808",
        b"18446744073709551615",
        b"1e5",
    ),
    *(
        b"\x00",
        b"\xff",
        b"\r\n",
        b"~",
        b"~EXEC",
        b"~ONCE",
        b"ONCE",
        b"RAFT",
        b"DIGEST",
        b"GET",
        b"SET",
        b"KEYS",
    ),
    *(
        b"node-1",
        b"f1",
        b"COUNT",
        b"MATCH",
        b"EX",
        b"NX",
        b"*",
        b"[",
        b"\\",
        b"$-1",
        b"*0\r\n",
        b"$0\r\n\r\n",
        b"'",
    ),
    *(b"1.0", b"nan", b"[[[[", b"{}", b"\xc3\x28", b"\xed\xa0\x80", b"A" * 70),
)


def mutate_bytes(data: bytes, rng: random.Random, longest: int) -> bytes:
    """One to four small changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(8)
        if what == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif what == 1 and out:
            out[at % len(out)] = rng.randrange(256)
        elif what == 2:
            del out[at : at + rng.randint(1, 16)]
        elif what == 3:
            out[at:at] = rng.choice(WORDS)
        elif what == 4:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        elif what == 5:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTEGERS) % (1 << 8 * size)
            out[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif what == 6:
            out[at : at + 4] = rng.randbytes(4)
        else:
            del out[at:]
    return bytes(out[:longest])


def mutate_packed(data: bytes, rng: random.Random, longest: int) -> bytes:
    """A change of one of the values in a msgpack; of the bytes if they are none."""
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return mutate_bytes(data, rng, longest)
    for _ in range(rng.randint(1, 3)):
        value = _mutated(value, rng, longest)
    try:
        return msgspec.msgpack.encode(value)[:longest]
    except (OverflowError, TypeError, RecursionError):
        return mutate_bytes(data, rng, longest)


def _mutated(value: Any, rng: random.Random, longest: int) -> Any:
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        copy = list(value)
        what = rng.random()
        if what < 0.8:
            copy[at] = _mutated(copy[at], rng, longest)
        elif what < 0.88:
            del copy[at]
        elif what < 0.95:
            copy.insert(at, rng.choice(copy))
        else:
            copy[at] = copy[at - 1]
        return copy
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        return {**value, key: _mutated(value[key], rng, longest)}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, rng.choice(INTEGERS), rng.choice(INTEGERS)))
    if isinstance(value, bytes) and rng.random() < 0.9:
        if rng.random() < 0.3:
            return mutate_packed(value, rng, longest)
        return rng.choice((rng.choice(WORDS), mutate_bytes(value, rng, longest)))
    if isinstance(value, str) and rng.random() < 0.9:
        return rng.choice(("", "x" * 300, "\x00", "a\r\nb", value + "\x7f", value[:-1], "é\U0001f600"))
    return rng.choice(
        (0, "", b"", None, [], {}, True, 1.5, [[]], rng.choice(INTEGERS), [value], [value, value])
    )
