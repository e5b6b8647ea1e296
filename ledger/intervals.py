"""Intervals: the open one with its turns and answers, and a short memory of the closed ones."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from ledger.followers import Followers
from ledger.policy import Policy

KEPT_CLOSED = 1000


class OpenInterval(msgspec.Struct, array_like=True):
    """The interval between its ~OPEN and its ~CLOSE. turns: follower id -> its answer, None before it."""

    number: int
    opened_at: int
    due_at: int
    leader: int
    term: int
    policy: Policy  # in force for these turns, whatever is set later
    turns: dict[str, bytes | None]
    answered: int = 0


class ClosedInterval(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What INTERVAL SHOW tells of a closed interval. leader, term: who closed it."""

    number: int
    opened_at: int
    due_at: int
    closed_at: int
    leader: int
    term: int
    expected: int
    answered: int


class Intervals:
    """last: number of the newest interval ever opened. cursor: ordinal of the last follower given a turn."""

    def __init__(self) -> None:
        self.open: OpenInterval | None = None
        self.closed: dict[int, ClosedInterval] = {}  # the last KEPT_CLOSED, in order
        self.last = 0
        self.cursor = -1

    def keep_closed(self, interval: ClosedInterval) -> None:
        """Remember a closed interval and forget what is too old."""
        self.closed[interval.number] = interval
        self.closed.pop(interval.number - KEPT_CLOSED, None)

    def choose_turns(self, followers: Followers, per_interval: int) -> dict[str, bytes | None]:
        """Who has a turn now: all active followers, or per_interval of them after the last one chosen.

        The order is join order, round and round, so that everyone's turn comes equally often.
        """
        active = list(followers.active())
        if per_interval and per_interval < len(active):
            start = bisect_right(active, self.cursor, key=lambda follower: follower.ordinal)
            active = (active[start:] + active[:start])[:per_interval]
        if active:
            self.cursor = active[-1].ordinal
        return dict.fromkeys(follower.id for follower in active)
