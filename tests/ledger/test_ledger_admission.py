"""JOIN, LEAVE, bans, PARDON, members: rules 2, 4 and 5."""

from __future__ import annotations

import pytest
from ledger_driver import POLICY, Driver, members_json, policy_json

from ledger.followers import Followers
from ledger.policy import Policy


def test_before_any_policy_commands_that_need_one_say_so() -> None:
    book = Driver()
    for words in (
        ("FOLLOWER JOIN", "a", "1.0"),
        ("FOLLOWER REPORT", "a", 1, "x"),
        ("REWARD CLAIM", "a", 1, "c"),
    ):
        assert str(book.do(*words)).startswith("ERR the ledger has no policy yet")
    assert book.ledger.counts() == {"active": 0, "banned": 0, "left": 0}


def test_join_admits_an_active_worker(book: Driver) -> None:
    book.ok("FOLLOWER JOIN", "alice", "1.0", "10.0.0.7:99")
    assert book.info("alice") == {
        "node": "alice",
        "kind": "worker",
        "address": "10.0.0.7:99",
        "state": "active",
        "balance": 0,
        "earned": 0,
        "penalties": 0,
        "claimed": 0,
        "misses_in_row": 0,
        "spam": 0,
        "banned_until": None,
        "joined_at": book.at_ms,
        "updated_at": book.at_ms,
        "applied_index": book.index,
        "pardon_reason": None,
        "turn": None,
    }
    assert book.events("cluster") == ["joined alice"]


def test_rule_2_join_sent_again_is_ok_again_and_changes_nothing(book: Driver) -> None:
    book.join("alice")
    book.events()
    before = book.digest()
    book.join("alice")
    assert book.digest() == before
    assert book.events() == []


def test_join_again_with_another_address_updates_it(book: Driver) -> None:
    book.ok("FOLLOWER JOIN", "alice", "1.0", "here:1")
    book.ok("FOLLOWER JOIN", "alice", "1.0")
    assert book.info("alice")["address"] == "here:1"
    book.ok("FOLLOWER JOIN", "alice", "1.0", "there:2")
    assert book.info("alice")["address"] == "there:2"
    assert book.info("alice")["applied_index"] == book.index


def test_rule_5_join_with_another_version_is_refused_and_not_admitted(book: Driver) -> None:
    before = book.digest()
    reply = str(book.do("FOLLOWER JOIN", "alice", "0.9", "a:1"))
    assert reply.startswith("VERSION ")
    assert "0.9" in reply
    assert "1.0" in reply
    assert book.digest() == before


def test_rule_5_holds_for_an_active_and_a_left_follower_too(book: Driver) -> None:
    book.join("alice", "bob")
    book.ok("FOLLOWER LEAVE", "bob")
    before = book.digest()
    assert str(book.do("FOLLOWER JOIN", "alice", "2", "new:1")).startswith("VERSION ")
    assert str(book.do("FOLLOWER JOIN", "bob", "2")).startswith("VERSION ")
    assert book.digest() == before


def test_the_version_wanted_is_that_of_the_latest_policy(book: Driver) -> None:
    book.open(follower_version="2.0")
    assert str(book.do("FOLLOWER JOIN", "alice", "1.0")).startswith("VERSION ")
    book.ok("FOLLOWER JOIN", "alice", "2.0")


@pytest.mark.parametrize("bad", [b"", b"a b", b"a" * 65, b"caf\xc3\xa9", b"a\n", b"a/b", b"\x00", b"*"])
@pytest.mark.parametrize(
    "command",
    [
        "FOLLOWER JOIN {} 1.0",
        "FOLLOWER LEAVE {}",
        "FOLLOWER REPORT {} 1 x",
        "FOLLOWER INFO {}",
        "FOLLOWER PARDON {} why",
        "REWARD CLAIM {} 1 c",
        "REWARD BALANCE {}",
        "REWARD HISTORY {}",
    ],
)
def test_an_invalid_follower_id_is_an_error_and_changes_nothing(
    book: Driver, command: str, bad: bytes
) -> None:
    before = book.digest()
    reply = str(book.raw([bad if word == "{}" else word.encode() for word in command.split()]))
    assert reply.startswith("ERR invalid follower id")
    assert "\n" not in reply
    assert book.digest() == before


@pytest.mark.parametrize("good", ["a", "A-1", "x" * 64, "10.0.0.1:7000", "under_score", "nodes", "Node-1"])
def test_valid_follower_ids_are_admitted(book: Driver, good: str) -> None:
    book.join(good)
    assert book.info(good)["node"] == good


@pytest.mark.parametrize("words", [("JOIN", "1.0"), ("LEAVE",), ("REPORT", "1", "x")])
def test_member_ids_are_reserved(words: tuple[str, ...]) -> None:
    book = Driver()
    book.take_office("node-1")
    before = book.digest()
    for name in ("node-1", "node-9", "node-"):
        reply = str(book.do(f"FOLLOWER {words[0]}", name, *words[1:]))
        assert reply.startswith("ERR invalid follower id")
    assert book.digest() == before


@pytest.mark.parametrize("address", [b"x" * 256, b"\xff", b"a\r\nb", b"\x7f"])
def test_an_invalid_address_is_an_error_and_nobody_is_admitted(book: Driver, address: bytes) -> None:
    assert str(book.do("FOLLOWER JOIN", "alice", "1.0", address)).startswith("ERR address")
    assert book.ledger.counts()["active"] == 0


def test_leave_ends_the_turns_and_keeps_the_balance(book: Driver) -> None:
    book.join("alice")
    book.round("alice")
    book.ok("FOLLOWER LEAVE", "alice")
    assert book.info("alice")["state"] == "left"
    assert book.events("cluster") == ["joined alice", "left alice"]
    book.round()
    assert book.info("alice")["balance"] == 10
    assert book.read("INTERVAL CURRENT")["expected"] == 0


def test_leave_again_is_ok_again_and_unknown_is_nofollower(book: Driver) -> None:
    book.join("alice")
    book.ok("FOLLOWER LEAVE", "alice")
    before = book.digest()
    book.ok("FOLLOWER LEAVE", "alice")
    assert book.digest() == before
    assert str(book.do("FOLLOWER LEAVE", "bob")).startswith("NOFOLLOWER ")


def test_leave_and_join_keep_the_misses_in_a_row(book: Driver) -> None:
    book.join("alice")
    book.round()
    book.round()
    book.ok("FOLLOWER LEAVE", "alice")
    book.join("alice")
    assert book.info("alice")["misses_in_row"] == 2
    book.round()
    assert book.info("alice")["state"] == "banned"


def test_leaving_in_each_turn_and_joining_again_does_not_dodge_the_ban(book: Driver) -> None:
    book.join("alice")
    for _ in range(3):
        book.open()
        book.ok("FOLLOWER LEAVE", "alice")
        book.close()
        last = book.do("FOLLOWER JOIN", "alice", "1.0")
    assert str(last).startswith("BANNED 600 seconds")
    assert book.info("alice")["misses_in_row"] == 3


def ban_for_misses(book: Driver, follower_id: str = "alice") -> None:
    book.join(follower_id)
    for _ in range(POLICY["ban_threshold"]):
        book.round()
    assert book.info(follower_id)["state"] == "banned"


def test_rule_4_misses_in_a_row_ban_for_the_cooldown(book: Driver) -> None:
    book.join("alice")
    book.round()
    book.round()
    assert book.info("alice")["state"] == "active"
    book.events()
    book.round()
    info = book.info("alice")
    assert (info["state"], info["misses_in_row"]) == ("banned", 3)
    assert info["banned_until"] == book.at_ms + 600_000
    assert book.events("cluster") == [f"banned alice until {book.at_ms + 600_000} misses"]
    book.round()
    assert book.read("INTERVAL CURRENT")["expected"] == 0


def test_rule_4_a_hit_between_begins_a_new_row(book: Driver) -> None:
    book.join("alice")
    for _ in range(5):
        book.round()
        book.round()
        book.round("alice")
    assert book.info("alice")["state"] == "active"


@pytest.mark.parametrize(
    ("after_ms", "seconds"), [(0, 600), (1, 600), (999, 600), (1000, 599), (599_000, 1), (599_999, 1)]
)
def test_rule_4_join_and_report_of_a_banned_one_name_the_time_left(
    book: Driver, after_ms: int, seconds: int
) -> None:
    ban_for_misses(book)
    book.at_ms += after_ms
    before = book.digest()
    for words in (("JOIN", "alice", "1.0"), ("JOIN", "alice", "wrong"), ("REPORT", "alice", 1, "x")):
        assert str(book.do(f"FOLLOWER {words[0]}", *words[1:])).startswith(f"BANNED {seconds} seconds left")
    assert book.digest() == before


def test_rule_4_after_the_ban_join_admits_with_a_clean_streak(book: Driver) -> None:
    ban_for_misses(book)
    book.at_ms += 600_000
    assert str(book.do("FOLLOWER REPORT", "alice", 1, "x")).startswith("BANNED 0 seconds left")
    assert str(book.do("FOLLOWER JOIN", "alice", "0.9")).startswith("VERSION ")
    assert book.info("alice")["state"] == "banned"
    book.join("alice")
    info = book.info("alice")
    assert (info["state"], info["misses_in_row"], info["spam"]) == ("active", 0, 0)
    assert info["banned_until"] is None
    assert info["joined_at"] == book.at_ms


def test_leave_during_a_ban_is_ok_but_the_ban_stands(book: Driver) -> None:
    ban_for_misses(book)
    book.ok("FOLLOWER LEAVE", "alice")
    assert book.info("alice")["state"] == "banned"
    assert str(book.do("FOLLOWER JOIN", "alice", "1.0")).startswith("BANNED 600 ")


def test_leave_after_the_time_of_a_ban_leaves(book: Driver) -> None:
    ban_for_misses(book)
    book.at_ms += 600_000
    book.ok("FOLLOWER LEAVE", "alice")
    assert book.info("alice")["state"] == "left"
    book.join("alice")
    assert book.info("alice")["misses_in_row"] == 0


def test_pardon_ends_a_ban_early_and_keeps_the_reason(book: Driver) -> None:
    ban_for_misses(book)
    book.events()
    book.ok("FOLLOWER PARDON", "alice", "the switch was down")
    info = book.info("alice")
    assert (info["state"], info["misses_in_row"], info["spam"]) == ("active", 0, 0)
    assert (info["banned_until"], info["pardon_reason"]) == (None, "the switch was down")
    assert book.events("cluster") == ["pardoned alice the switch was down"]
    book.round("alice")
    assert book.info("alice")["pardon_reason"] == "the switch was down"


def test_pardon_of_one_that_left_meanwhile_leaves_it_left(book: Driver) -> None:
    ban_for_misses(book)
    book.ok("FOLLOWER LEAVE", "alice")
    book.ok("FOLLOWER PARDON", "alice", "why not")
    assert book.info("alice")["state"] == "left"


def test_pardon_of_one_not_banned_or_unknown_is_an_error(book: Driver) -> None:
    book.join("alice")
    assert book.do("FOLLOWER PARDON", "alice", "x") == "ERR follower alice is not banned"
    assert str(book.do("FOLLOWER PARDON", "bob", "x")).startswith("NOFOLLOWER ")


@pytest.mark.parametrize("reason", [b"x" * 257, b"\xff\xfe", b"two\nlines"])
def test_an_invalid_pardon_reason_is_an_error_and_the_ban_stands(book: Driver, reason: bytes) -> None:
    ban_for_misses(book)
    assert str(book.do("FOLLOWER PARDON", "alice", reason)).startswith("ERR reason")
    assert book.info("alice")["state"] == "banned"


def test_a_full_register_refuses_new_followers(book: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.admission.MAX_FOLLOWERS", 2)
    book.join("a", "b")
    assert str(book.do("FOLLOWER JOIN", "c", "1.0")).startswith("ERR the ledger is full")
    book.join("a")


def test_the_members_are_followers_too() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    info = book.info("node-2")
    assert (info["kind"], info["state"]) == ("member", "active")
    assert info["address"] == "node-2.example:7201"
    assert book.events("cluster") == ["joined node-1", "joined node-2"]
    book.round("node-1")
    assert book.info("node-1")["balance"] == 10
    assert book.info("node-2")["balance"] == -5


def test_a_member_no_longer_listed_has_left_and_may_return() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    book.round("node-1", "node-2")
    book.take_office("node-1")
    assert book.info("node-2")["state"] == "left"
    book.round("node-1")
    assert book.read("INTERVAL CURRENT")["expected"] == 1
    book.take_office("node-1", "node-2")
    assert (book.info("node-2")["state"], book.info("node-2")["balance"]) == ("active", 10)


def test_a_new_term_with_the_same_members_changes_none_of_them() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    book.term += 1
    before = book.digest()
    book.take_office("node-1", "node-2", leader=2)
    assert book.digest() == before


def test_a_banned_member_is_readmitted_at_the_first_open_after_its_ban() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    for _ in range(3):
        book.round("node-1")
    assert book.info("node-2")["state"] == "banned"
    book.round("node-1")
    assert book.info("node-2")["state"] == "banned"
    book.at_ms = book.info("node-2")["banned_until"]
    book.open()
    info = book.info("node-2")
    assert (info["state"], info["misses_in_row"], info["banned_until"]) == ("active", 0, None)
    assert book.read("INTERVAL CURRENT")["expected"] == 2


def test_a_member_may_be_pardoned() -> None:
    book = Driver()
    book.take_office("node-1")
    for _ in range(3):
        book.round()
    book.ok("FOLLOWER PARDON", "node-1", "new disk")
    assert book.info("node-1")["state"] == "active"


def test_removing_and_adding_a_member_does_not_end_its_ban() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    for _ in range(3):
        book.round("node-1")
    book.take_office("node-1")
    assert book.info("node-2")["state"] == "left"
    book.take_office("node-1", "node-2")
    assert book.info("node-2")["state"] == "banned"
    book.take_office("node-1")
    book.at_ms += 600_000
    book.take_office("node-1", "node-2")
    assert (book.info("node-2")["state"], book.info("node-2")["misses_in_row"]) == ("active", 0)


def test_members_that_change_in_office_come_and_go_without_a_new_term() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    book.open()
    book.events()
    book.ok("~MEMBERS", members_json("node-1", "node-3"))
    assert book.events("cluster") == ["left node-2", "joined node-3"]
    assert book.read("INTERVAL CURRENT")["closed_at"] is None
    assert (book.info("node-2")["state"], book.info("node-3")["state"]) == ("left", "active")
    assert book.info("node-3")["turn"] is None, "its first turn is in the next interval"
    book.close("node-1")
    book.round("node-1", "node-3")
    assert [book.info(f"node-{n}")["balance"] for n in (1, 2, 3)] == [20, -5, 10]
    book.ok("~MEMBERS", members_json("node-1", "node-2", "node-3"))
    assert (book.info("node-2")["state"], book.info("node-2")["misses_in_row"]) == ("active", 1)


def test_a_member_that_was_removed_in_its_turn_is_judged_like_a_worker_that_left() -> None:
    book = Driver()
    book.take_office("node-1", "node-2", "node-3")
    book.join("alice", "bob")
    book.open()
    book.report("alice")
    book.ok("FOLLOWER LEAVE", "alice")
    book.ok("FOLLOWER LEAVE", "bob")
    book.ok("~MEMBERS", members_json("node-1"))
    book.at_ms += 2000
    command = book.ledger.next_system_command(
        book.at_ms, 1, {"node-1", "node-2", "node-9"}, False, Policy.decode(policy_json())
    )
    assert command == [b"~CLOSE", b"1", b"1", b"0", b"node-1", b"node-2"]
    book.ok(*command)
    names = ("node-1", "node-2", "node-3", "alice", "bob")
    assert [book.info(name)["balance"] for name in names] == [10, 10, -5, 10, -5]
    assert [book.info(name)["state"] for name in names[1:]] == ["left"] * 4


def test_a_removed_member_is_never_banned() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    for _ in range(2):
        book.round("node-1")
    book.open()
    book.ok("~MEMBERS", members_json("node-1"))
    book.close("node-1")
    assert (book.info("node-2")["state"], book.info("node-2")["misses_in_row"]) == ("left", 3)


def test_the_same_members_again_change_nothing() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    before = book.digest()
    book.ok("~MEMBERS", members_json("node-1", "node-2"))
    assert book.digest() == before


def test_mongodb_hears_of_members_that_come_and_go() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    book.ok("~PROJECTED", book.index)
    book.ok("~MEMBERS", members_json("node-1", "node-3"))
    batch = book.ledger.pull(100)
    assert batch is not None and batch.upto_index == book.index
    assert {row.node: (row.state, row.applied_index) for row in batch.rewards} == {
        "node-2": ("left", book.index),
        "node-3": ("active", book.index),
    }


@pytest.mark.parametrize(
    "members",
    [
        b"",
        b"{}",
        b'[{"id": "alice", "address": "x"}]',
        b'[{"id": "node-1"}]',
        b'[{"id": "node-1", "address": "a\\n"}]',
        b'[{"id": "node-1", "address": "\\ud800"}]',
        b'[{"id": "node-\\u00e9", "address": "x"}]',
        members_json("node-1", "node-1"),
    ],
)
def test_a_term_with_invalid_members_changes_nothing(book: Driver, members: bytes) -> None:
    before = book.digest()
    reply = str(book.do("~TERM", 1, policy_json(reward=77), members))
    assert reply.startswith("ERR ")
    assert str(book.do("~MEMBERS", members)).startswith("ERR ")
    assert book.digest() == before


@pytest.mark.parametrize(
    "change",
    [
        {"interval_ms": 0},
        {"reward": -1},
        {"penalty": 1.5},
        {"ban_threshold": 0},
        {"ban_cooldown_s": "600"},
        {"max_spam": None},
        {"follower_version": ""},
        {"follower_version": "1\n"},
        {"followers_per_interval": -1},
        {"reward": 10**30},
    ],
)
def test_an_invalid_policy_changes_nothing(book: Driver, change: dict[str, object]) -> None:
    before = book.digest()
    assert str(book.do("~TERM", 1, policy_json(**change), b"[]")).startswith("ERR invalid policy")
    assert str(book.do("~OPEN", 1, 5, 1, policy_json(**change))).startswith("ERR invalid policy")
    assert book.digest() == before


def test_states_are_counted() -> None:
    book = Driver()
    book.take_office("node-1")
    book.join("a", "b", "c")
    book.ok("FOLLOWER LEAVE", "c")
    for _ in range(3):
        book.round("node-1", "a")
    assert book.ledger.counts() == {"active": 2, "banned": 1, "left": 1}


def test_active_followers_come_in_join_order() -> None:
    followers = Followers()
    for name in ("z", "a", "m"):
        followers.add(name, "worker", "", 0, 1)
    assert [each.id for each in followers.active()] == ["z", "a", "m"]
