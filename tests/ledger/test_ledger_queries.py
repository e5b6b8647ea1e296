"""What may be read, and that reading changes nothing (Driver.read compares digests)."""

from __future__ import annotations

import pytest
from ledger_driver import Driver


def test_unknown_followers_are_nofollower(book: Driver) -> None:
    for words in (("FOLLOWER INFO", "a"), ("REWARD BALANCE", "a"), ("REWARD HISTORY", "a")):
        assert str(book.read(*words)).startswith("NOFOLLOWER ")


def test_command_words_are_case_insensitive(book: Driver) -> None:
    book.join("a")
    assert book.read("reward balance", "a") == 0
    assert book.read("Follower List", "0", "count", "5", "state", "ACTIVE") == [b"0", ["a"]]
    assert book.read("reward history", "a", "Count", "5") == []


def test_balance(book: Driver) -> None:
    book.join("a")
    book.round("a")
    assert book.read("REWARD BALANCE", "a") == 10


def test_top_is_flat_highest_first_ties_by_id(book: Driver) -> None:
    book.join("c", "b", "a", "rich")
    book.round("rich")
    assert book.read("REWARD TOP") == ["rich", 10, "a", -5, "b", -5, "c", -5]
    assert book.read("REWARD TOP", 2) == ["rich", 10, "a", -5]


def test_top_is_ten_unless_told_and_at_most_1000(book: Driver) -> None:
    book.join(*[f"w{number}" for number in range(1005)])
    assert len(book.read("REWARD TOP")) == 20
    assert len(book.read("REWARD TOP", 5000)) == 2000


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", ""])
def test_a_wrong_count_is_an_error(book: Driver, count: str) -> None:
    book.join("a")
    for words in (
        ("REWARD TOP", count),
        ("REWARD HISTORY", "a", "COUNT", count),
        ("FOLLOWER LIST", "0", "COUNT", count),
    ):
        assert str(book.read(*words)).startswith("ERR count is not an integer or out of range")


def test_history_is_newest_first_ten_unless_told_and_at_most_32(book: Driver) -> None:
    book.join("a")
    closed_at = {}
    for number in range(1, 41):
        book.round("a")
        closed_at[number] = book.at_ms
    history = book.read("REWARD HISTORY", "a")
    assert history[0] == [40, "hit", 10, 400, closed_at[40]]
    assert [outcome[0] for outcome in history] == list(range(40, 30, -1))
    assert [outcome[0] for outcome in book.read("REWARD HISTORY", "a", "COUNT", 999)] == list(
        range(40, 8, -1)
    )
    assert len(book.read("REWARD HISTORY", "a", "COUNT", 3)) == 3


def test_list_goes_through_all_in_join_order(book: Driver) -> None:
    names = [f"w{number}" for number in range(250)]
    book.join(*names)
    cursor, found = b"0", []
    pages = 0
    while True:
        cursor, page = book.read("FOLLOWER LIST", cursor)
        found += page
        pages += 1
        if cursor == b"0":
            break
    assert (found, pages) == (names, 3)


def test_list_skips_nobody_while_followers_join_and_leave(book: Driver) -> None:
    book.join("a", "b", "c", "d", "e")
    cursor, first = book.read("FOLLOWER LIST", 0, "COUNT", 2)
    book.ok("FOLLOWER LEAVE", "a")
    book.join("0-new")
    cursor, second = book.read("FOLLOWER LIST", cursor, "COUNT", 2)
    cursor, third = book.read("FOLLOWER LIST", cursor, "COUNT", 2)
    assert first + second + third == ["a", "b", "c", "d", "e", "0-new"]
    assert cursor == b"0"


def test_list_by_state(book: Driver) -> None:
    book.join("a", "b", "c")
    book.ok("FOLLOWER LEAVE", "b")
    assert book.read("FOLLOWER LIST", 0, "STATE", "left") == [b"0", ["b"]]
    assert book.read("FOLLOWER LIST", 0, "STATE", "active") == [b"0", ["a", "c"]]
    assert book.read("FOLLOWER LIST", 0, "STATE", "banned", "COUNT", 1) == [b"0", []]


def test_list_without_words_and_beyond_the_end(book: Driver) -> None:
    assert book.read("FOLLOWER LIST") == [b"0", []]
    book.join("a")
    assert book.read("FOLLOWER LIST") == [b"0", ["a"]]
    assert book.read("FOLLOWER LIST", 99) == [b"0", []]


def test_list_examines_a_bounded_number_at_once(book: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.queries._MAX_EXAMINED", 3)
    book.join("a", "b", "c", "d")
    book.ok("FOLLOWER LEAVE", "d")
    assert book.read("FOLLOWER LIST", 0, "STATE", "left") == [b"3", []]
    assert book.read("FOLLOWER LIST", 3, "STATE", "left") == [b"0", ["d"]]


@pytest.mark.parametrize(
    "words", [("0", "COUNT"), ("0", "STATE", "happy"), ("0", "WHAT", "1"), ("x",), ("-1",)]
)
def test_list_with_wrong_words_is_an_error(book: Driver, words: tuple[str, ...]) -> None:
    reply = str(book.read("FOLLOWER LIST", *words))
    assert reply.startswith(("ERR syntax error", "ERR invalid cursor"))


def test_current_interval_is_null_before_the_first(book: Driver) -> None:
    assert book.read("INTERVAL CURRENT") is None


def test_current_interval_open_and_closed(book: Driver) -> None:
    book.join("a", "b")
    opened_at = book.at_ms
    book.open()
    book.report("a")
    expected = {
        "interval": 1,
        "opened_at": opened_at,
        "due_at": opened_at + 2000,
        "closed_at": None,
        "leader": 1,
        "term": 1,
        "expected": 2,
        "answered": 1,
    }
    assert book.read("INTERVAL CURRENT") == book.read("INTERVAL SHOW", 1) == expected
    assert list(book.read("INTERVAL CURRENT")) == list(expected)
    book.close()
    expected["closed_at"] = book.at_ms
    assert book.read("INTERVAL CURRENT") == book.read("INTERVAL SHOW", 1) == expected


def test_info_tells_the_turn_until_it_is_answered_or_over(book: Driver) -> None:
    book.join("a", "b")
    assert book.read("FOLLOWER INFO", "a")["turn"] is None
    assert book.open() == 1
    assert [book.read("FOLLOWER INFO", each)["turn"] for each in "ab"] == [1, 1]
    book.report("a")
    assert [book.read("FOLLOWER INFO", each)["turn"] for each in "ab"] == [None, 1]
    book.close()
    assert [book.read("FOLLOWER INFO", each)["turn"] for each in "ab"] == [None, None]


def test_info_tells_who_has_a_turn_in_rotation(book: Driver) -> None:
    book.join("a", "b", "c", "d", "e")
    seen = []
    for _ in range(5):
        number = book.open(followers_per_interval=2)
        turns = {each: book.read("FOLLOWER INFO", each)["turn"] for each in "abcde"}
        seen.append("".join(each for each, turn in turns.items() if turn == number))
        assert set(turns.values()) == {number, None}
        book.close()
    assert seen == ["ab", "cd", "ae", "bc", "de"]


@pytest.mark.parametrize("way_out", ["LEAVE", "spam", "late JOIN"])
def test_info_tells_no_turn_that_a_report_would_not_get(book: Driver, way_out: str) -> None:
    book.join("a")
    book.open()
    name = "a"
    if way_out == "LEAVE":
        book.ok("FOLLOWER LEAVE", "a")
    elif way_out == "spam":
        for _ in range(4):
            book.do("FOLLOWER REPORT", "a", 99, b"")
        assert book.info("a")["state"] == "banned"
    else:
        name = "late"
        book.join("late")
    assert book.read("FOLLOWER INFO", name)["turn"] is None


def test_the_last_1000_intervals_are_kept(book: Driver) -> None:
    for _ in range(1001):
        book.round()
    assert str(book.read("INTERVAL SHOW", 1)).startswith("ERR no such interval 1")
    assert book.read("INTERVAL SHOW", 2)["interval"] == 2
    assert book.read("INTERVAL SHOW", 1001)["interval"] == 1001
    for number in (1002, 0, -1):
        assert str(book.read("INTERVAL SHOW", number)).startswith("ERR no such interval")


@pytest.mark.parametrize(
    "words",
    [
        "FOLLOWER JOIN a",
        "FOLLOWER JOIN a 1 b c",
        "FOLLOWER REPORT a 1",
        "FOLLOWER LEAVE",
        "FOLLOWER INFO a b",
        "FOLLOWER PARDON a",
        "REWARD BALANCE",
        "REWARD CLAIM a 1",
        "REWARD TOP 1 2",
        "REWARD HISTORY",
        "INTERVAL CURRENT 1",
        "INTERVAL SHOW",
        "~TERM 1",
        "~OPEN 1",
        "~CLOSE 1",
        "~PROJECTED",
    ],
)
def test_a_wrong_number_of_words_is_an_error(book: Driver, words: str) -> None:
    name = " ".join(words.split()[: 1 if words.startswith("~") else 2]).lower()
    assert book.read(words) == f"ERR wrong number of arguments for '{name}' command"


@pytest.mark.parametrize("args", [[], [b""], [b"FOLLOWER"], [b"FOLLOWER", b"DANCE"], [b"\r\n\xff"], [b"SET"]])
def test_unknown_commands_are_an_error(book: Driver, args: list[bytes]) -> None:
    reply = str(book.raw(args))
    assert reply.startswith("ERR unknown command")
    assert "\r" not in reply
