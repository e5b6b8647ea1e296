"""The audit of the ledger finds each rule broken, and nothing in a ledger that is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.chaos.audit import Record, audit
from tests.chaos.books import BAN_COOLDOWN_S, BAN_THRESHOLD, PENALTY, REWARD, Book, check_book
from tests.chaos.judge import check_heard

START = datetime(2026, 1, 1, tzinfo=UTC)
MISSES = range(5, 5 + BAN_THRESHOLD)  # of `bad`, in a row; then it is banned and away for some intervals
BANNED = range(MISSES.stop, MISSES.stop + BAN_COOLDOWN_S)
LAST = BANNED.stop + 2
EXCUSED = 3  # opened in term 1, closed in term 2


def outcome(node: str, n: int, said: str, amount: int) -> dict[str, Any]:
    opened = START + timedelta(seconds=n)
    return {
        "interval": n, "node": node, "opened_at": opened, "due_at": opened + timedelta(seconds=1),
        "closed_at": opened + timedelta(seconds=0.4 if n == EXCUSED else 1), "outcome": said,
        "delta": {"hit": REWARD, "missed": -PENALTY, "excused": 0}[said], "amount": amount,
        "data": f"data of {n}" if said == "hit" else None, "leader": 1, "term": 1 if n < EXCUSED else 2,
        "applied_index": 10 * n,
    }  # fmt: skip


def sound() -> tuple[Record, list[Book], dict[tuple[str, int], tuple[str, int, int]]]:
    """`good` hits always but in the excused interval, and claims; `bad` misses until it is banned."""
    good, bad = Book("good"), Book("bad", bans=1)
    record, heard = Record([], [], []), {}
    for book in (good, bad):
        balance = 0
        for n in range(1, LAST + 1):
            book.opened[n] = (1, 1 if n <= EXCUSED else 2)
            if book is bad and n in BANNED:
                continue
            said = "excused" if n == EXCUSED else "missed" if book is bad and n in MISSES else "hit"
            if said == "hit":
                book.tried.add(n)
                book.reported.add(n)
            found = outcome(book.name, n, said, 0)
            balance += found["delta"]
            found["amount"] = balance
            book.outcomes[n] = (said, found["delta"])
            heard[book.name, n] = (said, found["delta"], balance)
            record.intervals.append(found)
        record.rewards.append({"_id": book.name, "amount": balance, "claimed": 0, "applied_index": 10 * LAST})
        record.rewards[-1]["earned"] = REWARD * len(book.reported)
        record.rewards[-1]["penalties"] = 0 if book is good else PENALTY * len(MISSES)
    for amount, accepted in ((REWARD, True), (10_000, False)):
        record.rewards[0]["amount"] -= amount if accepted else PENALTY
        record.rewards[0]["claimed" if accepted else "penalties"] += amount if accepted else PENALTY
        index = 10 * LAST + 1 + len(record.claims)
        record.rewards[0]["applied_index"] = index
        record.claims.append({
            "_id": f"claim-{index}", "node": "good", "amount": amount, "accepted": accepted,
            "balance": record.rewards[0]["amount"], "applied_index": index,
        })  # fmt: skip
    return record, [good, bad], heard


def test_a_sound_ledger_passes() -> None:
    assert audit(*sound()) == []


def of(record: Record, node: str, n: int) -> dict[str, Any]:
    return next(d for d in record.intervals if (d["node"], d["interval"]) == (node, n))


def punish(record: Record, books: list[Book]) -> None:
    """The excused interval costs a penalty, and all sums go with it."""
    for d in record.intervals:
        if d["node"] == "good" and d["interval"] >= EXCUSED:
            d["amount"] -= PENALTY
    of(record, "good", EXCUSED).update(outcome="missed", delta=-PENALTY)
    for claim in record.claims:
        claim["balance"] -= PENALTY
    record.rewards[0]["amount"] -= PENALTY
    record.rewards[0]["penalties"] += PENALTY


Break = Callable[[Record, list[Book]], Any]
BROKEN: dict[str, tuple[Break, str]] = {
    "penalty where the leader changed": (punish, "punished in interval 3"),
    "a delta of its own": (lambda r, b: of(r, "good", 4).update(delta=11), "is worth 11"),
    "an outcome counted twice": (lambda r, b: r.intervals.remove(of(r, "good", 4)), "the balance of good"),
    "earned too much": (lambda r, b: r.rewards[0].update(earned=9), "should have"),
    "a claim above the balance": (lambda r, b: r.claims[1].update(accepted=True), "a claim with a balance"),
    "a claim paid twice": (
        lambda r, b: r.claims.append({**r.claims[0], "_id": "x", "applied_index": 10 * LAST + 1}), "balance"
    ),
    "a turn in a ban": (
        lambda r, b: r.intervals.append(outcome("bad", BANNED.start, "hit", 0)), "banned until"
    ),
    "a gap": (lambda r, b: setattr(b[1], "bans", 0), "and no ban"),
    "a turn after LEAVE": (lambda r, b: b[0].absences.append((3, 5)), "a turn in interval"),
    "a turn after a ban for spam": (
        lambda r, b: b[0].banned_until.append((4, int(START.timestamp() + 6) * 1000)), "after a ban till"
    ),
    "a hit that nobody reported": (lambda r, b: b[0].tried.discard(4), "never reported: [4]"),
    "what was reported is lost": (lambda r, b: of(r, "good", 4).update(data="x"), "the data of interval 4"),
    "closed before its time": (
        lambda r, b: [d.update(due_at=START + timedelta(1)) for d in r.intervals if d["interval"] == 6],
        "was closed so",
    ),
    "opened twice": (lambda r, b: b[0].opened.update({4: (9, 9)}), "was opened by"),
    "two documents, two closings": (lambda r, b: of(r, "bad", 4).update(leader=2), "not the same for all"),
    "before the last was closed": (
        lambda r, b: [d.update(closed_at=START + timedelta(9)) for d in r.intervals if d["interval"] == 6],
        "before 6 was closed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_rule_is_found(name: str) -> None:
    record, books, heard = sound()
    put_in, told = BROKEN[name]
    put_in(record, books)
    assert any(told in text for text in audit(record, books, heard)), name


def test_what_was_published_must_be_what_is_stored() -> None:
    record, books, heard = sound()
    heard["good", 4] = ("missed", -PENALTY, 0)
    assert any("published for ('good', 4)" in text for text in audit(record, books, heard))
    assert any("published for good, interval 4" in text for text in check_heard(books, heard))
    heard["good", 4] = ("hit", REWARD, 1)  # the balance alone is wrong
    assert any("published" in text for text in audit(record, books, heard))


def test_an_acknowledged_report_must_count_whether_it_was_read_or_not() -> None:
    book = sound()[1][0]
    info = {"balance": 0, "claimed": 0, "penalties": 0, "earned": REWARD * (LAST - 1)}
    info["balance"] = info["earned"]
    assert check_book(book, info, LAST + 1, later=False) == []
    unread = copy.deepcopy(book)
    del unread.outcomes[4]
    told = "acknowledged reports that do not count: [4]"
    assert any(told in text for text in check_book(unread, info, LAST + 1, later=False))
    assert check_book(unread, info, LAST + 1, later=True) == []  # MongoDB is asked at the end
    book.outcomes[4] = ("missed", -PENALTY)
    assert any(told in text for text in check_book(book, info, LAST + 1, later=True))
