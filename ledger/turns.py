"""The life of an interval: opened, answered, closed (rules 1 to 4). Each step is one log entry."""

from __future__ import annotations

from collections.abc import Collection

from ledger import admission
from ledger.arguments import RefusedError
from ledger.context import Context
from ledger.followers import ACTIVE, BANNED, LEFT, MEMBER, WORKER, Follower
from ledger.history import EXCUSED, HIT, MISSED, OUTCOME_NAMES, remember
from ledger.intervals import ClosedInterval, OpenInterval
from ledger.outbox import PackedOutcome
from ledger.policy import Policy
from ledger.rewards import settle
from ledger.state import LedgerState
from raft.replies import OK, Error, Reply


def open_interval(
    state: LedgerState, context: Context, number: int, due_at: int, leader: int, policy: Policy
) -> Reply:
    """~OPEN: interval number begins now, under policy; who has a turn follows from the state."""
    intervals = state.intervals
    if intervals.open is not None:
        raise RefusedError(f"ERR interval {intervals.open.number} is still open")
    if number != intervals.last + 1:
        raise RefusedError(f"ERR interval {number} cannot follow interval {intervals.last}")
    state.policy = policy
    admission.readmit_members(state, context)
    intervals.last = number
    intervals.open = OpenInterval(
        number=number,
        opened_at=context.at_ms,
        due_at=due_at,
        leader=leader,
        term=context.term,
        policy=policy,
        turns=intervals.choose_turns(state.followers, policy.followers_per_interval),
    )
    state.events.turns(number, due_at)
    return OK


def report(state: LedgerState, context: Context, follower_id: str, number: int, data: bytes) -> Reply:
    """FOLLOWER REPORT: an answer counts once if it stands in the log between its ~OPEN and its ~CLOSE.

    A retry is OK again and changes nothing; any other answer is out of turn (NOTURN) and counts as spam.
    """
    policy = state.policy_in_force()
    follower = state.known(follower_id)
    if follower.state == BANNED:
        admission.refuse_banned(follower, context)
    if follower.state == LEFT:
        raise RefusedError(f"NOFOLLOWER {follower_id} has left; JOIN again")
    interval = state.intervals.open
    if interval is not None and interval.number == number and follower_id in interval.turns:
        if interval.turns[follower_id] is None:
            interval.turns[follower_id] = data
            interval.answered += 1
            follower.remember_answer(number)
        return OK
    if follower.has_answered(number):
        return OK
    follower.spam += 1
    refusal = f"NOTURN {follower_id} has no turn in interval {number}, "
    refusal += "none is open" if interval is None else f"open is {interval.number}"
    refusal += f"; out of turn {follower.spam} of {policy.max_spam}"
    if follower.spam >= policy.max_spam:
        admission.ban(state, context, follower, "spam", policy.ban_cooldown_s)
        refusal += f": banned for {policy.ban_cooldown_s} seconds"
    state.changed(follower, context)
    return Error(refusal)


def close_interval(
    state: LedgerState, context: Context, leader: int, excused: bool, answered_members: Collection[str]
) -> Reply:
    """~CLOSE (or ~TERM) of the open interval: judge every turn. The caller has checked which one is open.

    excused, or another term than the interval was opened in: who did not answer is not to blame. A follower
    that left or was banned meanwhile is judged like the others: it had its turn.
    """
    interval = state.intervals.open
    if interval is None:
        raise RefusedError("ERR no interval is open")
    unanswered = EXCUSED if excused or context.term != interval.term else MISSED
    outcomes: list[PackedOutcome] = []
    hits = 0
    for follower_id, data in interval.turns.items():
        follower = state.followers.by_id[follower_id]
        answered = data is not None or (follower.kind == MEMBER and follower_id in answered_members)
        outcome = HIT if answered else unanswered
        hits += answered
        delta = _judge(state, context, follower, outcome, interval)
        outcomes.append((follower_id, outcome, delta, follower.balance, data))
    state.intervals.open = None
    state.intervals.keep_closed(
        ClosedInterval(
            number=interval.number,
            opened_at=interval.opened_at,
            due_at=interval.due_at,
            closed_at=context.at_ms,
            leader=leader,
            term=context.term,
            expected=len(outcomes),
            answered=hits,
        )
    )
    if outcomes:
        _keep_for_mongodb(state, context, leader, interval, outcomes)
    return OK


def _judge(
    state: LedgerState, context: Context, follower: Follower, outcome: int, interval: OpenInterval
) -> int:
    """Book one turn's outcome, publish it, and ban who has missed too often. Returns the delta."""
    policy = interval.policy
    delta = settle(follower, outcome, policy)
    remember(
        follower.history, follower.outcomes, interval.number, context.at_ms, delta, follower.balance, outcome
    )
    follower.outcomes += 1
    state.events.outcome(follower.id, interval.number, OUTCOME_NAMES[outcome], delta, follower.balance)
    if outcome == EXCUSED:
        return delta
    # Who left during its turn is banned as well (it may not JOIN around the ban); a removed member is not.
    bannable = follower.state == ACTIVE or (follower.state == LEFT and follower.kind == WORKER)
    if outcome == MISSED and bannable and follower.misses_in_row >= policy.ban_threshold:
        admission.ban(state, context, follower, "misses", policy.ban_cooldown_s)
    state.changed(follower, context)
    return delta


def _keep_for_mongodb(
    state: LedgerState, context: Context, leader: int, interval: OpenInterval, outcomes: list[PackedOutcome]
) -> None:
    overflowed = state.outbox.add_outcomes(
        context.index,
        outcomes,
        interval=interval.number,
        opened_at=interval.opened_at,
        due_at=interval.due_at,
        closed_at=context.at_ms,
        leader=leader,
        term=context.term,
    )
    if overflowed:
        state.events.cluster(
            f"outbox full at {state.outbox.max_bytes} bytes: dropping the oldest outcomes not yet in MongoDB"
        )
