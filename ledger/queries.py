"""What may be read: followers, balances, histories, intervals. Nothing here changes the ledger."""

from __future__ import annotations

import msgspec

from ledger.arguments import RefusedError
from ledger.followers import ACTIVE, Follower
from ledger.history import latest
from ledger.intervals import ClosedInterval, OpenInterval
from ledger.state import LedgerState
from raft.replies import Reply

_MAX_EXAMINED = 10_000  # followers looked at in one FOLLOWER LIST, however few of them match


def follower_info(state: LedgerState, follower_id: str) -> Reply:
    """FOLLOWER INFO: the fields of the `rewards` document, with balance for amount; and turn."""
    follower = state.known(follower_id)
    fields: dict[str, Reply] = msgspec.structs.asdict(follower.row())
    described = {("balance" if name == "amount" else name): value for name, value in fields.items()}
    return {**described, "turn": _turn_of(state, follower)}


def _turn_of(state: LedgerState, follower: Follower) -> int | None:
    """The interval that the follower may answer now: open, with a turn for it that it has not answered.

    With followers_per_interval > 0 this is how a follower finds out, since asking by REPORT would be spam.
    """
    interval = state.intervals.open
    if interval is None or follower.state != ACTIVE:
        return None
    waiting = follower.id in interval.turns and interval.turns[follower.id] is None
    return interval.number if waiting else None


def list_followers(state: LedgerState, cursor: int, count: int, wanted_state: str | None) -> Reply:
    """FOLLOWER LIST: [next cursor, ids], as SCAN; cursor 0 begins, next cursor 0 is the end.

    The cursor is a place in join order: nobody is skipped or told twice, whoever joins meanwhile.
    """
    order, by_id = state.followers.order, state.followers.by_id
    found: list[Reply] = []
    end = min(len(order), cursor + _MAX_EXAMINED)
    while cursor < end and len(found) < count:
        follower_id = order[cursor]
        if wanted_state is None or by_id[follower_id].state == wanted_state:
            found.append(follower_id)
        cursor += 1
    next_cursor = cursor if cursor < len(order) else 0
    return [str(next_cursor).encode(), found]


def balance(state: LedgerState, follower_id: str) -> Reply:
    """REWARD BALANCE."""
    return state.known(follower_id).balance


def history(state: LedgerState, follower_id: str, count: int) -> Reply:
    """REWARD HISTORY: [interval, outcome, delta, balance, closed_at] each, newest first."""
    follower = state.known(follower_id)
    return [list(outcome) for outcome in latest(follower.history, follower.outcomes, count)]


def current_interval(state: LedgerState) -> Reply:
    """INTERVAL CURRENT: the open interval, else the last one, None before the first."""
    intervals = state.intervals
    if intervals.last == 0:
        return None
    return _describe(intervals.open or intervals.closed[intervals.last])


def show_interval(state: LedgerState, number: int) -> Reply:
    """INTERVAL SHOW. Raises RefusedError if number is not open and not among those remembered."""
    intervals = state.intervals
    if intervals.open is not None and intervals.open.number == number:
        return _describe(intervals.open)
    closed = intervals.closed.get(number)
    if closed is None:
        raise RefusedError(
            f"ERR no such interval {number}: the last 1000 are kept, the newest is {intervals.last}"
        )
    return _describe(closed)


def _describe(interval: OpenInterval | ClosedInterval) -> Reply:
    closed_at: int | None = None
    if isinstance(interval, OpenInterval):
        expected = len(interval.turns)
    else:
        closed_at, expected = interval.closed_at, interval.expected
    return {
        "interval": interval.number,
        "opened_at": interval.opened_at,
        "due_at": interval.due_at,
        "closed_at": closed_at,
        "leader": interval.leader,
        "term": interval.term,
        "expected": expected,
        "answered": interval.answered,
    }
