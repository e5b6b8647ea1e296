"""A follower's latest outcomes, packed: 32 slots in a ring, so that 10,000 followers stay cheap to keep.

The bytes are part of the replicated state: they are hashed and will be stored as they are.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

KEPT = 32
MISSED, HIT, EXCUSED = 0, 1, 2
OUTCOME_NAMES = ("missed", "hit", "excused")

_SLOT = struct.Struct("<qqqqB")
_SIZE = _SLOT.size
_FULL = KEPT * _SIZE


class PastOutcome(NamedTuple):
    """One outcome as REWARD HISTORY shows it. balance: after it."""

    interval: int
    outcome: str
    delta: int
    balance: int
    closed_at: int


def remember(
    ring: bytearray, so_far: int, interval: int, closed_at: int, delta: int, balance: int, outcome: int
) -> None:
    """Write outcome number so_far (counted from 0) into the ring, over the oldest when it is full."""
    if len(ring) < _FULL:
        ring += _SLOT.pack(interval, closed_at, delta, balance, outcome)
    else:
        _SLOT.pack_into(ring, so_far % KEPT * _SIZE, interval, closed_at, delta, balance, outcome)


def sound(ring: bytearray, so_far: int) -> bool:
    """Whether the ring holds what it should after so_far outcomes."""
    wanted = min(so_far, KEPT) * _SIZE
    return len(ring) == wanted and all(code < len(OUTCOME_NAMES) for code in ring[_SIZE - 1 :: _SIZE])


def latest(ring: bytearray, so_far: int, count: int) -> list[PastOutcome]:
    """Up to count of the outcomes in the ring, newest first. so_far: how many were ever remembered."""
    found = []
    for number in range(so_far - 1, max(so_far - 1 - min(count, KEPT), -1), -1):
        interval, closed_at, delta, balance, outcome = _SLOT.unpack_from(ring, number % KEPT * _SIZE)
        found.append(PastOutcome(interval, OUTCOME_NAMES[outcome], delta, balance, closed_at))
    return found
