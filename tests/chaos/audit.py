"""The ledger done over again from what MongoDB has of it: every rule, for every follower and interval.

Nothing of the product's own arithmetic is used here. The documents of one follower, outcomes and claims, in
the order of their log index, must give each balance that stands in them and the sums of its `rewards`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tests.chaos.books import BAN_COOLDOWN_S, BAN_THRESHOLD, PENALTY, REWARD, Book

Document = dict[str, Any]
DELTAS = {"hit": REWARD, "missed": -PENALTY, "excused": 0}
OF_ALL = ("opened_at", "due_at", "closed_at", "leader", "term", "applied_index")


@dataclass
class Record:
    """Everything from MongoDB, read in this order: rewards, intervals, claims."""

    rewards: list[Document]
    intervals: list[Document]
    claims: list[Document]


def audit(
    record: Record, books: Sequence[Book], heard: dict[tuple[str, int], tuple[str, int, int]]
) -> list[str]:
    """What is wrong. heard: what was published, by (follower, interval)."""
    numbers: dict[int, Document] = {}
    wrong: list[str] = []
    for document in record.intervals:
        first = numbers.setdefault(document["interval"], document)
        if any(document[field] != first[field] for field in OF_ALL):
            wrong.append(f"interval {document['interval']} is not the same for all: {document}, {first}")
    wrong += _check_intervals(numbers, _openings(books, wrong))
    wrong += _check_excuses(record.intervals, books)
    nodes = {document["_id"]: document for document in record.rewards}
    for node, reward in nodes.items():
        wrong += _replay(
            reward,
            [d for d in record.intervals if d["node"] == node],
            [d for d in record.claims if d["node"] == node],
        )
    if strangers := {d["node"] for d in record.intervals} - nodes.keys():
        wrong.append(f"outcomes of followers without a document: {strangers}")
    for book in books:
        wrong += _check_book(book, [d for d in record.intervals if d["node"] == book.name])
    stored = {(d["node"], d["interval"]): (d["outcome"], d["delta"], d["amount"]) for d in record.intervals}
    newest = max(numbers, default=0)
    lies = [key for key, told in heard.items() if key[1] <= newest and stored.get(key) != told]
    wrong += [f"published for {key}: {heard[key]}, MongoDB has {stored.get(key)}" for key in lies[:3]]
    return [f"audit: {text}" for text in wrong]


def _openings(books: Sequence[Book], wrong: list[str]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for number, opener in itertools.chain.from_iterable(book.opened.items() for book in books):
        if found.setdefault(number, opener) != opener:
            wrong.append(f"interval {number} was opened by {opener} and by {found[number]}")
    return found


def _check_intervals(numbers: dict[int, Document], opened: dict[int, tuple[int, int]]) -> list[str]:
    """Rules 1 and 3: one after the other, none closed before its time but by the next leader."""
    wrong = []
    for a, b in itertools.pairwise(sorted(numbers)):
        before, after = numbers[a], numbers[b]
        if not before["applied_index"] < after["applied_index"] or after["opened_at"] < before["closed_at"]:
            wrong.append(f"interval {b} was opened before {a} was closed: {after}, {before}")
        if after["term"] < before["term"]:
            wrong.append(f"interval {b} was closed in term {after['term']}, {a} in {before['term']}")
    for number in opened.keys() & numbers.keys():
        document, term = numbers[number], opened[number][1]
        early = document["closed_at"] < document["due_at"]
        if term > document["term"] or (early and term == document["term"]):
            wrong.append(f"interval {number}, opened by {opened[number]}, was closed so: {document}")
    return wrong


def _check_excuses(documents: Iterable[Document], books: Sequence[Book]) -> list[str]:
    """Rule 3: a miss is excused where the leader changed."""
    opened = {number: opener for book in books for number, opener in book.opened.items()}
    return [
        f"{d['node']} was punished in interval {d['interval']}, which {opened[d['interval']]} opened and "
        f"{d['leader']}, {d['term']} closed"
        for d in documents
        if d["outcome"] == "missed" and opened.get(d["interval"], (0, d["term"]))[1] != d["term"]
    ][:3]


def _replay(reward: Document, outcomes: list[Document], claims: list[Document]) -> list[str]:
    """Rules 3, 6 and 8. Outcomes and claims after what `rewards` was written for are left out."""
    until = reward["applied_index"]
    balance = earned = penalties = claimed = 0
    steps = sorted([*outcomes, *claims], key=lambda d: (d["applied_index"], d.get("interval", 0)))
    for d in (d for d in steps if d["applied_index"] <= until):
        if "outcome" in d:
            delta, stands = DELTAS[d["outcome"]], d["amount"]
            earned += max(delta, 0)
            penalties += max(-delta, 0)
            if d["delta"] != delta:
                return [f"{d['outcome']} is worth {d['delta']}: {d}"]
        else:
            stands = d["balance"]
            if d["accepted"] != (d["amount"] <= balance):
                return [f"a claim with a balance of {balance} was answered so: {d}"]
            delta = -d["amount"] if d["accepted"] else -PENALTY
            claimed += d["amount"] if d["accepted"] else 0
            penalties += 0 if d["accepted"] else PENALTY
        balance += delta
        if stands != balance:
            return [f"the balance of {reward['_id']} is {balance}, but {d} says {stands}"]
    told = tuple(reward[field] for field in ("amount", "earned", "penalties", "claimed"))
    if told != (balance, earned, penalties, claimed):
        return [f"{reward} should have {(balance, earned, penalties, claimed)}"]
    return []


def _check_book(book: Book, outcomes: list[Document]) -> list[str]:
    """Rules 2, 4 and 5, and what the follower itself knows."""
    found = {d["interval"]: d for d in outcomes}
    numbers = sorted(found)
    wrong = [
        f"the data of interval {n} is {d['data']!r}"
        for n, d in found.items()
        if d["data"] != (f"data of {n}" if d["outcome"] == "hit" else None)
    ][:3]
    if ghosts := [n for n, d in found.items() if d["outcome"] == "hit" and n not in book.tried]:
        wrong.append(f"hits that were never reported: {ghosts[:5]}")
    for gone, back in book.absences:
        wrong += [
            f"a turn in interval {n}, absent from {gone} to {back}" for n in numbers if gone < n <= back
        ]
    for current, until in book.banned_until:
        wrong += [
            f"a turn in interval {n}, opened at {_ms(found[n]['opened_at'])}, after a ban till {until}"
            for n in numbers
            if n > current and _ms(found[n]["opened_at"]) < until
        ]
    if not book.spam_bans:
        wrong += _check_bans(found)
    gaps = [b for a, b in itertools.pairwise(numbers) if b != a + 1]
    if gaps and not book.bans and not book.leaves:
        wrong.append(f"no turn before intervals {gaps[:5]}, and no ban")
    return [f"{book.name}: {text}" for text in wrong]


def _check_bans(found: dict[int, Document]) -> list[str]:
    """Rule 4: so many misses in a row, and no turn for so long; never more in a row than that."""
    streak, free_at = 0, None
    for n in sorted(found):
        d = found[n]
        if free_at is not None and d["opened_at"] < free_at:
            return [f"a turn in interval {n}, opened at {d['opened_at']}, banned until {free_at}"]
        streak = {"hit": 0, "missed": streak + 1}.get(d["outcome"], streak)
        if streak >= BAN_THRESHOLD:
            streak, free_at = 0, d["closed_at"] + timedelta(seconds=BAN_COOLDOWN_S)
    return []


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
