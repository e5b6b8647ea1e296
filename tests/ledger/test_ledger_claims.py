"""REWARD CLAIM: rules 6 and 8."""

from __future__ import annotations

import pytest
from ledger_driver import Driver

from ledger.ledger import InvariantError
from raft.replies import Error


@pytest.fixture
def rich(book: Driver) -> Driver:
    """Alice has 30, bob has 0."""
    book.join("alice")
    for _ in range(3):
        book.round("alice")
    book.join("bob")
    return book


def test_rule_6_a_claim_takes_its_amount_off_the_balance(rich: Driver) -> None:
    assert rich.do("REWARD CLAIM", "alice", 12, "c1") == 18
    info = rich.info("alice")
    assert (info["balance"], info["earned"], info["claimed"], info["penalties"]) == (18, 30, 12, 0)


def test_rule_6_the_whole_balance_may_be_claimed(rich: Driver) -> None:
    assert rich.do("REWARD CLAIM", "alice", 30, "c1") == 0


def test_rule_6_the_same_claim_id_gives_the_first_answer_again(rich: Driver) -> None:
    assert rich.do("REWARD CLAIM", "alice", 12, "c1") == 18
    rich.round("alice")
    before = rich.digest()
    assert rich.do("REWARD CLAIM", "alice", 12, "c1") == 18
    assert rich.digest() == before
    assert rich.info("alice")["balance"] == 28


def test_rule_6_more_than_the_balance_is_overclaim_and_one_penalty(rich: Driver) -> None:
    reply = rich.do("REWARD CLAIM", "alice", 31, "c1")
    assert isinstance(reply, Error)
    assert reply.startswith("OVERCLAIM ")
    assert "balance of 30" in reply
    info = rich.info("alice")
    assert (info["balance"], info["penalties"], info["claimed"], info["misses_in_row"]) == (25, 5, 0, 0)


def test_rule_6_overclaim_sent_again_is_the_same_answer_without_a_second_penalty(rich: Driver) -> None:
    first = rich.do("REWARD CLAIM", "alice", 31, "c1")
    for _ in range(3):
        rich.round("alice")
    before = rich.digest()
    assert rich.do("REWARD CLAIM", "alice", 31, "c1") == first
    assert rich.digest() == before


def test_rule_6_a_claim_id_used_for_another_follower_or_amount_is_an_error(rich: Driver) -> None:
    rich.do("REWARD CLAIM", "alice", 12, "c1")
    before = rich.digest()
    for words in (("alice", 13, "c1"), ("bob", 12, "c1"), ("nobody", 12, "c1")):
        assert str(rich.do("REWARD CLAIM", *words)).startswith("ERR claim-id 'c1' was used for 12 by alice")
    assert rich.digest() == before


def test_a_balance_below_zero_can_only_overclaim(book: Driver) -> None:
    book.join("a")
    book.round()
    assert str(book.do("REWARD CLAIM", "a", 1, "c")).startswith("OVERCLAIM ")
    assert book.info("a")["balance"] == -10


def test_the_biggest_claim_is_still_an_overclaim(rich: Driver) -> None:
    assert str(rich.do("REWARD CLAIM", "alice", 2**63 - 1, "c1")).startswith("OVERCLAIM ")


@pytest.mark.parametrize("amount", [b"0", b"-1", b"1.5", b"", b"x", b"9223372036854775808", b"1e3", b"007"])
def test_an_amount_that_is_not_a_positive_integer_is_an_error(rich: Driver, amount: bytes) -> None:
    before = rich.digest()
    assert str(rich.do("REWARD CLAIM", "alice", amount, "c1")).startswith("ERR amount")
    assert rich.digest() == before
    assert rich.do("REWARD CLAIM", "alice", 1, "c1") == 29


@pytest.mark.parametrize("claim_id", [b"", b"x" * 129, b"a\nb", b"\xc3\xa9", b"\x00", b"\x7f"])
def test_an_invalid_claim_id_is_an_error(rich: Driver, claim_id: bytes) -> None:
    before = rich.digest()
    reply = str(rich.do("REWARD CLAIM", "alice", 1, claim_id))
    assert reply.startswith("ERR invalid claim id")
    assert "\n" not in reply
    assert rich.digest() == before


def test_a_claim_of_nobody_is_nofollower_and_leaves_the_claim_id_free(rich: Driver) -> None:
    before = rich.digest()
    assert str(rich.do("REWARD CLAIM", "nobody", 1, "c1")).startswith("NOFOLLOWER ")
    assert rich.digest() == before
    assert rich.do("REWARD CLAIM", "alice", 1, "c1") == 29


def test_left_and_banned_followers_may_claim_what_they_earned(rich: Driver) -> None:
    rich.ok("FOLLOWER LEAVE", "alice")
    assert rich.do("REWARD CLAIM", "alice", 10, "c1") == 20
    rich.join("alice")
    for _ in range(4):
        rich.do("FOLLOWER REPORT", "alice", 99, "x")
    assert rich.info("alice")["state"] == "banned"
    assert rich.do("REWARD CLAIM", "alice", 10, "c2") == 10


def test_the_digest_covers_claims_that_are_in_mongodb_long_since() -> None:
    digests = set()
    for claim_id in ("one", "two"):
        book = Driver()
        book.take_office("node-1")
        book.round("node-1")
        book.do("REWARD CLAIM", "node-1", 4, claim_id)
        book.ok("~PROJECTED", book.index)
        digests.add(book.digest())
    assert len(digests) == 2


def test_a_member_may_claim() -> None:
    book = Driver()
    book.take_office("node-1")
    book.round("node-1")
    assert book.do("REWARD CLAIM", "node-1", 4, "c1") == 6


def test_the_overclaim_penalty_is_that_of_the_latest_policy(rich: Driver) -> None:
    rich.open(penalty=9)
    rich.do("REWARD CLAIM", "alice", 31, "c1")
    assert rich.info("alice")["balance"] == 21


def test_rule_8_a_balance_that_does_not_add_up_is_found(rich: Driver) -> None:
    rich.ledger.check()
    rich.ledger._state.followers.by_id["alice"].balance += 1
    with pytest.raises(InvariantError, match="balance of alice is 31, its sums give 30"):
        rich.ledger.check()
    with pytest.raises(InvariantError):
        rich.digest()


def test_a_wrong_count_of_states_is_found(rich: Driver) -> None:
    rich.ledger._state.followers.counts["banned"] += 1
    with pytest.raises(InvariantError, match="states are counted"):
        rich.ledger.check()
