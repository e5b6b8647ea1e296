"""What followers know for sure, and what must be true of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REWARD, PENALTY = 10, 5
BAN_THRESHOLD, BAN_COOLDOWN_S, MAX_SPAM = 8, 3, 300
REWARDS = {
    "interval_ms": 700,
    "reward": REWARD,
    "penalty": PENALTY,
    "ban_threshold": BAN_THRESHOLD,
    "ban_cooldown_s": BAN_COOLDOWN_S,
    "max_spam": MAX_SPAM,
}


@dataclass
class Book:
    """One follower's. reported: acknowledged; tried: sent, with or without an answer; opened: what INTERVAL
    CURRENT told of an interval while it was open. Nothing of it may be judged while its thread works."""

    name: str
    reported: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)
    outcomes: dict[int, tuple[str, int]] = field(default_factory=dict)  # interval -> (outcome, delta)
    opened: dict[int, tuple[int, int]] = field(default_factory=dict)  # interval -> (leader, term)
    claimed: int = 0
    refused_claims: int = 0
    claims: int = 0
    leaves: bool = False  # it is away now and then by its own will
    bans: int = 0  # answers BANNED
    spam_bans: int = 0
    absences: list[tuple[int, int]] = field(default_factory=list)  # no turn after the one, before the other
    banned_until: list[tuple[int, int]] = field(default_factory=list)  # no turn after that one opened before


def check_book(book: Book, info: dict[str, Any], current: int, *, later: bool) -> list[str]:
    """What is wrong between a follower's book and FOLLOWER INFO. current: the interval now open. later:
    whether MongoDB will be asked for outcomes that were not read in time (the ledger keeps 32)."""
    wrong = []
    hits = {n for n, (outcome, _) in book.outcomes.items() if outcome == "hit"}
    closed = {n for n in book.reported if n < current}
    if later:
        closed &= book.outcomes.keys()
    if lost := closed - hits:
        wrong.append(f"acknowledged reports that do not count: {sorted(lost)[:5]}")
    if ghosts := hits - book.tried:
        wrong.append(f"hits that were never reported: {sorted(ghosts)[:5]}")
    expected = {"hit": REWARD, "missed": -PENALTY, "excused": 0}
    wrong += [f"interval {n}: {told}" for n, told in book.outcomes.items() if expected[told[0]] != told[1]]
    if info["balance"] != info["earned"] - info["penalties"] - info["claimed"]:
        wrong.append(f"the balance does not add up: {info}")
    if info["claimed"] != book.claimed:
        wrong.append(f"claimed {info['claimed']}, answered {book.claimed}")
    numbers = sorted(book.outcomes)
    if numbers and numbers[-1] - numbers[0] + 1 == len(numbers) and not book.bans:  # none missed in looking
        misses = sum(outcome == "missed" for outcome, _ in book.outcomes.values())
        if info["earned"] != REWARD * len(hits):
            wrong.append(f"earned {info['earned']} with {len(hits)} hits")
        if info["penalties"] != PENALTY * (misses + book.refused_claims):
            wrong.append(f"penalties {info['penalties']} for {misses} misses, {book.refused_claims} claims")
    return [f"follower {book.name}: {text}" for text in wrong]
