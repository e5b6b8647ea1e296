"""What is handed to MongoDB: each outcome, claim and changed follower, until ~PROJECTED."""

from __future__ import annotations

import pytest
from ledger_driver import Driver

from ledger.rows import ClaimRow, IntervalRow, ProjectionBatch


def pull(book: Driver, max_rows: int = 10**6, full: bool = False) -> ProjectionBatch:
    before = book.digest()
    batch = book.ledger.pull(max_rows, full)
    assert book.digest() == before
    assert batch is not None
    return batch


def test_nothing_pending_is_none_and_no_lag() -> None:
    book = Driver()
    assert book.ledger.pull(100) is None
    assert book.ledger.projection_lag() == 0


def test_an_interval_row_says_exactly_what_the_ledger_says(book: Driver) -> None:
    book.join("a", "b")
    opened_at = book.at_ms
    book.open()
    book.report("a", data=b"\x00\xff")
    book.close()
    common = {
        "interval": 1,
        "opened_at": opened_at,
        "due_at": opened_at + 2000,
        "closed_at": book.at_ms,
        "leader": 1,
        "term": 1,
        "applied_index": book.index,
    }
    assert pull(book).intervals == (
        IntervalRow(node="a", outcome="hit", delta=10, amount=10, data=b"\x00\xff", **common),
        IntervalRow(node="b", outcome="missed", delta=-5, amount=-5, data=None, **common),
    )


def test_interval_rows_carry_leader_and_term_of_the_close(book: Driver) -> None:
    book.join("a")
    book.open()
    book.term = 4
    book.take_office(leader=3)
    (row,) = pull(book).intervals
    assert (row.leader, row.term, row.outcome, row.delta) == (3, 4, "excused", 0)


def test_claim_rows_accepted_and_not(book: Driver) -> None:
    book.join("a")
    book.round("a")
    book.do("REWARD CLAIM", "a", 4, "yes")
    book.do("REWARD CLAIM", "a", 40, "no")
    book.do("REWARD CLAIM", "a", 40, "no")
    at = book.at_ms
    assert pull(book).claims == (
        ClaimRow("yes", "a", 4, at, True, 6, book.index - 2),
        ClaimRow("no", "a", 40, at, False, 1, book.index - 1),
    )


def test_a_reward_row_is_the_follower_as_it_stands(book: Driver) -> None:
    book.ok("FOLLOWER JOIN", "a", "1.0", "here:1")
    book.round("a")
    (row,) = pull(book).rewards
    info = book.info("a")
    info["amount"] = info.pop("balance")
    assert info.pop("turn") is None  # of the moment, not of the follower
    assert {name: getattr(row, name) for name in info} == info


def test_pull_takes_whole_entries_oldest_first_and_at_least_one(book: Driver) -> None:
    book.join("a", "b", "c")
    ends = []
    for _ in range(3):
        book.round("a")
        ends.append(book.index)
    book.do("REWARD CLAIM", "a", 1, "c1")
    ends.append(book.index)
    for max_rows, entries in ((0, 1), (1, 1), (3, 1), (5, 1), (6, 2), (9, 3)):
        batch = pull(book, max_rows)
        assert batch.upto_index == ends[entries - 1]
        assert {row.applied_index for row in batch.intervals} == set(ends[:entries])
        assert len(batch.intervals) == 3 * entries
        assert batch.claims == ()
    batch = pull(book, 10)
    assert (batch.upto_index, len(batch.claims)) == (ends[3], 1)


def test_claims_alone_are_pulled_by_max_rows_too(book: Driver) -> None:
    book.join("a")
    for number in range(4):
        book.do("REWARD CLAIM", "a", 1, f"c{number}")
    batch = pull(book, 3)
    assert [claim.claim_id for claim in batch.claims] == ["c0", "c1", "c2"]
    assert batch.upto_index == book.index - 1


def test_claims_and_outcomes_of_one_entry_are_never_parted(book: Driver) -> None:
    book.join("a", "b")
    book.round("a")
    book.do("REWARD CLAIM", "a", 1, "c1")  # begins an entry of three commands
    book.raw(book.words("REWARD CLAIM", "a", 1, "c2"))
    book.raw(book.words("~OPEN", 2, 1, 1, book.policy))
    book.raw(book.words("~CLOSE", 2, 1, 0))
    shared = book.index
    book.do("REWARD CLAIM", "a", 1, "c3")
    batch = pull(book, 3)
    assert batch.upto_index < shared
    book.ok("~PROJECTED", batch.upto_index)
    batch = pull(book, 1)
    assert batch.upto_index == shared
    assert [claim.claim_id for claim in batch.claims] == ["c1", "c2"]
    assert [row.interval for row in batch.intervals] == [2, 2]


def test_a_join_alone_is_a_batch_of_rewards_only(book: Driver) -> None:
    book.join("a", "b")
    batch = pull(book)
    assert [row.node for row in batch.rewards] == ["a", "b"]
    assert (batch.intervals, batch.claims, batch.upto_index) == ((), (), book.index)
    book.ok("~PROJECTED", batch.upto_index)
    assert book.ledger.pull(100) is None
    assert book.ledger.projection_lag() == 0


def test_projected_trims_up_to_its_index_only(book: Driver) -> None:
    book.join("a")
    book.round("a")
    first = book.index
    book.round("a")
    second = book.index
    book.do("REWARD CLAIM", "a", 5, "c")
    book.ok("~PROJECTED", first)
    assert book.ledger.projected_index == first
    batch = pull(book)
    assert [row.applied_index for row in batch.intervals] == [second]
    assert len(batch.claims) == 1


def test_projected_never_forgets_a_follower_that_changed_since(book: Driver) -> None:
    book.join("a", "b")
    book.round("a", "b")
    written = pull(book)
    book.do("FOLLOWER REPORT", "a", 99, "spam")
    book.ok("~PROJECTED", written.upto_index)
    batch = pull(book)
    assert [(row.node, row.spam) for row in batch.rewards] == [("a", 1)]
    assert batch.upto_index == book.index - 1


def test_a_partial_pull_does_not_claim_changes_beyond_it(book: Driver) -> None:
    book.join("a", "b")
    book.round("a")
    first = book.index
    book.round("a")
    book.join("c")
    batch = pull(book, 2)
    assert batch.upto_index == first
    book.ok("~PROJECTED", first)
    assert [row.node for row in pull(book).rewards] == ["a", "b", "c"]


def test_projected_never_moves_back_nor_beyond_the_log(book: Driver) -> None:
    book.join("a")
    book.round("a")
    end = book.index
    book.ok("~PROJECTED", end)
    before = book.digest()
    book.ok("~PROJECTED", end - 1)
    assert book.ledger.projected_index == end
    for wrong in (book.index + 1, book.index + 50, -1, "x"):
        assert str(book.do("~PROJECTED", wrong)).startswith("ERR index")
    assert book.digest() == before


def test_full_gives_every_follower_and_is_never_none(book: Driver) -> None:
    book.join("a", "b")
    book.ok("~PROJECTED", book.index)
    assert book.ledger.pull(10) is None
    batch = pull(book, 10, full=True)
    assert [row.node for row in batch.rewards] == ["a", "b"]
    assert batch.full
    assert batch.upto_index == book.ledger.projected_index


def test_lag_counts_what_is_pending(book: Driver) -> None:
    book.join("a", "b")
    book.round("a")
    book.round("a")
    book.do("REWARD CLAIM", "a", 1, "c")
    assert book.ledger.projection_lag() == 4 + 1 + 2
    book.ok("~PROJECTED", book.index)
    assert book.ledger.projection_lag() == 0


@pytest.fixture
def overflowing() -> Driver:
    """Room for the outcomes of a few intervals only; ten were closed, and a claim made before."""
    book = Driver(outbox_bytes=100)
    book.take_office()
    book.join("a", "b")
    book.round("a", "b")
    book.do("REWARD CLAIM", "a", 1, "old claim")
    for _ in range(9):
        book.round("a")
    return book


def test_past_its_bound_the_outbox_drops_the_oldest_outcomes_and_counts_them(overflowing: Driver) -> None:
    batch = pull(overflowing)
    kept = sorted({row.interval for row in batch.intervals})
    assert kept
    assert kept == list(range(11 - len(kept), 11))
    assert len(kept) < 10
    assert overflowing.ledger.dropped_rows == 2 * (10 - len(kept))


def test_past_its_bound_claims_and_followers_are_kept(overflowing: Driver) -> None:
    batch = pull(overflowing)
    assert [claim.claim_id for claim in batch.claims] == ["old claim"]
    assert {row.node: row.amount for row in batch.rewards} == {"a": 99, "b": 10 - 15}


def test_an_overflow_is_news_once_until_the_projection_moves_on(overflowing: Driver) -> None:
    def full_news() -> int:
        return sum("outbox full" in news for news in overflowing.events("cluster"))

    assert full_news() == 1
    overflowing.round("a")
    assert full_news() == 0
    overflowing.ok("~PROJECTED", overflowing.index)
    for _ in range(10):
        overflowing.round("a")
    assert full_news() == 1


def test_a_dropped_entry_is_still_passed_over_by_upto_index(overflowing: Driver) -> None:
    batch = pull(overflowing)
    assert batch.upto_index == overflowing.index
    overflowing.ok("~PROJECTED", batch.upto_index)
    assert overflowing.ledger.pull(10) is None
