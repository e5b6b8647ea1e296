"""Intervals from ~OPEN to ~CLOSE, reports, outcomes: rules 1 to 4 and 7."""

from __future__ import annotations

import pytest
from ledger_driver import Driver, members_json, policy_json

from ledger.history import latest, remember


def turns_of(book: Driver) -> list[str]:
    """Who has a turn in the open interval, closing it (all outcomes excused)."""
    book.events()
    book.close(excused=1)
    return [
        channel.removeprefix("rewards:") for channel, _ in book.events() if channel.startswith("rewards:")
    ]


def test_rule_1_open_gives_every_active_follower_a_turn_and_tells_turns() -> None:
    book = Driver()
    book.take_office("node-1")
    book.join("a", "b")
    book.ok("FOLLOWER LEAVE", "b")
    book.open()
    assert book.events("turns") == [f"1 {book.at_ms + 2000}"]
    assert turns_of(book) == ["node-1", "a"]


def test_rule_1_the_policy_in_force_for_a_turn_is_the_one_of_its_open(book: Driver) -> None:
    book.join("a", "b")
    book.open(reward=7, penalty=3)
    book.report("a")
    book.close()
    assert (book.info("a")["balance"], book.info("b")["balance"]) == (7, -3)
    book.open(reward=100, penalty=100)
    book.close()
    assert book.info("a")["balance"] == 7 - 100


def test_open_out_of_sequence_or_twice_is_ignored(book: Driver) -> None:
    def try_open(number: int) -> str:
        before = book.digest()
        reply = str(book.do("~OPEN", number, 1, 1, policy_json(reward=99)))
        assert book.digest() == before
        return reply

    assert try_open(2).startswith("ERR ")
    book.open()
    assert try_open(1).startswith("ERR ")
    assert try_open(2).startswith("ERR ")
    book.close()
    assert try_open(1).startswith("ERR ")
    assert try_open(3).startswith("ERR ")


def test_close_of_another_interval_is_ignored(book: Driver) -> None:
    book.join("a")
    assert str(book.do("~CLOSE", 1, 1, 0)).startswith("ERR ")
    book.open()
    before = book.digest()
    assert str(book.do("~CLOSE", 2, 1, 0)).startswith("ERR ")
    assert book.digest() == before
    book.close()
    before = book.digest()
    assert str(book.do("~CLOSE", 1, 1, 0)).startswith("ERR ")
    assert book.digest() == before


def test_one_who_joins_during_an_interval_has_no_turn_in_it(book: Driver) -> None:
    book.open()
    book.join("late")
    assert str(book.do("FOLLOWER REPORT", "late", 1, "x")).startswith("NOTURN ")
    book.close()
    assert book.info("late")["balance"] == 0


def test_rotation_gives_k_turns_an_interval_in_join_order_round_and_round(book: Driver) -> None:
    book.join("d", "a", "c", "b", "e")
    seen = []
    for _ in range(5):
        book.open(followers_per_interval=2)
        seen.append(turns_of(book))
    assert seen == [["d", "a"], ["c", "b"], ["e", "d"], ["a", "c"], ["b", "e"]]


def test_rotation_goes_on_after_the_last_one_chosen_when_some_leave_and_join(book: Driver) -> None:
    book.join("a", "b", "c", "d")
    book.open(followers_per_interval=2)
    assert turns_of(book) == ["a", "b"]
    book.ok("FOLLOWER LEAVE", "b")
    book.ok("FOLLOWER LEAVE", "c")
    book.join("e")
    book.open()
    assert turns_of(book) == ["d", "e"]
    book.open()
    assert turns_of(book) == ["a", "d"]


def test_rotation_takes_members_and_workers_alike_and_all_if_k_is_not_less() -> None:
    book = Driver()
    book.take_office("node-1", "node-2", followers_per_interval=3)
    book.join("a")
    book.open()
    assert turns_of(book) == ["node-1", "node-2", "a"]
    book.open(followers_per_interval=2)
    assert turns_of(book) == ["node-1", "node-2"]
    book.open()
    assert turns_of(book) == ["a", "node-1"]


def test_rule_2_an_answer_counts_and_its_first_data_is_kept(book: Driver) -> None:
    book.join("a")
    book.open()
    book.report("a", data=b"first")
    book.report("a", data=b"second")
    book.close()
    batch = book.ledger.pull(10)
    assert batch is not None
    assert [(row.outcome, row.delta, row.data) for row in batch.intervals] == [("hit", 10, b"first")]
    assert book.info("a")["earned"] == 10


def test_rule_2_an_empty_answer_is_an_answer(book: Driver) -> None:
    book.join("a")
    book.open()
    book.report("a", data=b"")
    book.close()
    assert book.info("a")["balance"] == 10


def test_rule_2_a_retry_after_the_close_is_ok_and_no_spam(book: Driver) -> None:
    book.join("a")
    book.round("a")
    before = book.digest()
    book.report("a")
    book.open()
    assert book.do("FOLLOWER REPORT", "a", 1, "x") == "OK"
    assert book.info("a")["spam"] == 0
    assert book.info("a")["balance"] == 10
    assert book.digest() != before  # only for the open interval
    book.close()


def test_rule_2_retries_are_remembered_for_64_intervals(book: Driver) -> None:
    book.join("a")
    for number in range(1, 71):
        book.round(*(["a"] if number % 2 else []))
    assert book.interval == 70
    newest_answered = 69
    for number in range(newest_answered - 63, 70):
        reply = str(book.do("FOLLOWER REPORT", "a", number, "x"))
        book.do("FOLLOWER PARDON", "a", "test")
        assert reply.startswith("OK" if number % 2 else "NOTURN"), number
    assert str(book.do("FOLLOWER REPORT", "a", newest_answered - 64, "x")).startswith("NOTURN")


def test_remembered_answers_survive_a_gap_of_more_than_64_intervals(book: Driver) -> None:
    book.join("a")
    book.round("a")
    book.ok("FOLLOWER LEAVE", "a")
    for _ in range(100):
        book.round()
    book.join("a")
    book.round("a")
    book.report("a")
    assert str(book.do("FOLLOWER REPORT", "a", 1, "x")).startswith("NOTURN")


def test_a_report_counts_until_the_close_whatever_the_clock_says(book: Driver) -> None:
    book.join("a")
    book.open()
    book.at_ms += 3_600_000
    book.report("a")
    book.close()
    assert book.info("a")["balance"] == 10


def test_rule_3_hit_and_missed(book: Driver) -> None:
    book.join("good", "bad")
    book.round("good")
    good, bad = book.info("good"), book.info("bad")
    assert (good["balance"], good["earned"], good["penalties"], good["misses_in_row"]) == (10, 10, 0, 0)
    assert (bad["balance"], bad["earned"], bad["penalties"], bad["misses_in_row"]) == (-5, 0, 5, 1)
    assert good["updated_at"] == bad["updated_at"] == book.at_ms
    assert good["applied_index"] == book.index


def test_rule_3_excused_by_the_leader_costs_nothing_and_answers_still_pay(book: Driver) -> None:
    book.join("good", "bad")
    book.round("good")
    book.round("good", excused=1)
    good, bad = book.info("good"), book.info("bad")
    assert good["balance"] == 20
    assert (bad["balance"], bad["misses_in_row"]) == (-5, 1)


def test_rule_3_a_leader_change_excuses_the_open_turns() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    book.join("good", "bad")
    book.open()
    book.report("good")
    book.term = 2
    book.ok("~TERM", 2, policy_json(), members_json("node-1", "node-2"))
    balances = {name: book.info(name)["balance"] for name in ("node-1", "node-2", "good", "bad")}
    assert balances == {"node-1": 0, "node-2": 0, "good": 10, "bad": 0}
    current = book.read("INTERVAL CURRENT")
    assert (current["leader"], current["term"], current["answered"]) == (2, 2, 1)
    assert current["closed_at"] == book.at_ms
    assert book.open() == 2


def test_rule_3_taking_office_again_in_the_same_term_excuses_too(book: Driver) -> None:
    book.join("bad")
    book.open()
    book.take_office(penalty=99)
    assert book.info("bad")["balance"] == 0


def test_rule_3_a_close_in_another_term_than_the_open_excuses(book: Driver) -> None:
    book.join("bad")
    book.open()
    book.term = 2
    book.close()
    assert book.info("bad")["balance"] == 0
    assert book.read("REWARD HISTORY", "bad")[0][1] == "excused"


def test_rule_3_excused_neither_breaks_nor_lengthens_a_row_of_misses(book: Driver) -> None:
    book.join("a")
    book.round()
    book.round()
    for _ in range(5):
        book.round(excused=1)
    assert (book.info("a")["state"], book.info("a")["misses_in_row"]) == ("active", 2)
    book.round()
    assert book.info("a")["state"] == "banned"


def test_rule_3_a_members_turn_is_answered_if_the_close_lists_it() -> None:
    book = Driver()
    book.take_office("node-1", "node-2", "node-3")
    book.join("worker")
    book.open()
    book.close("node-3", "node-1", "worker", "node-77")
    balances = {name: book.info(name)["balance"] for name in ("node-1", "node-2", "node-3", "worker")}
    assert balances == {"node-1": 10, "node-2": -5, "node-3": 10, "worker": -5}


def test_one_who_left_or_was_banned_during_its_turn_is_judged_for_it(book: Driver) -> None:
    book.join("left", "spammer", "answered")
    book.open()
    book.report("answered")
    book.ok("FOLLOWER LEAVE", "left")
    book.ok("FOLLOWER LEAVE", "answered")
    for _ in range(4):
        book.do("FOLLOWER REPORT", "spammer", 99, "x")
    book.close()
    assert {name: book.info(name)["balance"] for name in ("left", "spammer", "answered")} == {
        "left": -5,
        "spammer": -5,
        "answered": 10,
    }
    assert book.info("left")["state"] == "left"
    assert book.info("spammer")["state"] == "banned"


def test_a_ban_is_not_made_longer_by_the_turn_it_fell_in(book: Driver) -> None:
    book.join("a")
    book.round()
    book.round()
    book.open()
    for _ in range(4):
        book.do("FOLLOWER REPORT", "a", 99, "x")
    until = book.info("a")["banned_until"]
    book.close()
    assert book.info("a")["banned_until"] == until


@pytest.mark.parametrize("number", [0, -1, 2, 4, 5, 2**62])
def test_rule_4_an_answer_out_of_turn_is_noturn_and_spam(book: Driver, number: int) -> None:
    book.join("a")
    for _ in range(2):
        book.round("a")
    book.ok("FOLLOWER LEAVE", "a")
    book.open()
    book.join("a")
    if number == 2:
        number = 3  # open, but without a turn
    reply = str(book.do("FOLLOWER REPORT", "a", number, "x"))
    assert reply.startswith("NOTURN ")
    info = book.info("a")
    assert (info["spam"], info["applied_index"], info["balance"]) == (1, book.index, 20)


def test_rule_4_an_answer_too_late_is_noturn(book: Driver) -> None:
    book.join("a")
    book.round()
    assert str(book.do("FOLLOWER REPORT", "a", 1, "x")).startswith("NOTURN ")
    assert book.info("a")["balance"] == -5


def test_rule_4_max_spam_answers_out_of_turn_ban(book: Driver) -> None:
    book.join("a")
    book.events()
    for count in range(1, 4):
        assert f"{count} of 4" in str(book.do("FOLLOWER REPORT", "a", 7, "x"))
    assert book.info("a")["state"] == "active"
    reply = str(book.do("FOLLOWER REPORT", "a", 7, "x"))
    assert reply.startswith("NOTURN ")
    assert "banned for 600 seconds" in reply
    assert book.info("a")["state"] == "banned"
    assert book.events("cluster") == [f"banned a until {book.at_ms + 600_000} spam"]
    assert str(book.do("FOLLOWER REPORT", "a", 7, "x")).startswith("BANNED 600 ")
    assert book.info("a")["spam"] == 4
    book.at_ms += 600_000
    book.join("a")
    assert book.info("a")["spam"] == 0


def test_report_of_unknown_or_left_is_nofollower(book: Driver) -> None:
    book.open()
    assert str(book.do("FOLLOWER REPORT", "a", 1, "x")).startswith("NOFOLLOWER a has never joined")
    book.join("a")
    book.ok("FOLLOWER LEAVE", "a")
    before = book.digest()
    assert str(book.do("FOLLOWER REPORT", "a", 1, "x")).startswith("NOFOLLOWER a has left")
    assert book.digest() == before


@pytest.mark.parametrize(
    "number", [b"", b"x", b"1.0", b"+1", b" 1", b"01", b"1_0", b"-0", b"9" * 40, b"\xd9\xa1"]
)
def test_a_report_with_a_wrong_interval_is_an_error_and_no_spam(book: Driver, number: bytes) -> None:
    book.join("a")
    before = book.digest()
    assert str(book.do("FOLLOWER REPORT", "a", number, "x")).startswith("ERR interval is not an integer")
    assert book.digest() == before


def test_report_data_is_bounded(book: Driver) -> None:
    book.join("a")
    book.open()
    before = book.digest()
    assert str(book.do("FOLLOWER REPORT", "a", 1, b"x" * 1025)).startswith("ERR data is longer")
    assert book.digest() == before
    book.report("a", data=bytes(range(256)) * 4)


def test_rule_7_each_outcome_is_published(book: Driver) -> None:
    book.join("a", "b")
    book.round("a")
    assert ("rewards:a", "1 hit 10 10") in (taken := book.events())
    assert ("rewards:b", "1 missed -5 -5") in taken
    book.round("a", excused=1)
    taken = book.events()
    assert ("rewards:a", "2 hit 10 20") in taken
    assert ("rewards:b", "2 excused 0 -5") in taken


def test_an_interval_without_followers_opens_and_closes(book: Driver) -> None:
    book.round()
    assert book.read("INTERVAL CURRENT")["expected"] == 0
    assert book.ledger.pull(10) is None


@pytest.mark.parametrize("so_far", [0, 1, 31, 32, 33, 64, 100])
def test_history_ring_keeps_the_last_32(so_far: int) -> None:
    ring = bytearray()
    for number in range(so_far):
        remember(ring, number, number, 1000 + number, -5, -number, number % 3)
    kept = latest(ring, so_far, 99)
    assert [outcome.interval for outcome in kept] == list(range(so_far))[::-1][:32]
    assert all(outcome.closed_at == 1000 + outcome.interval for outcome in kept)
    assert [outcome.interval for outcome in latest(ring, so_far, 2)] == list(range(so_far))[::-1][:2]
