"""ONCE: at most one execution and the first answer again, whatever the order, the bounds or the time."""

from __future__ import annotations

import copy
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_support import START_MS, Driver

from raft.machine.arguments import RefusedError
from raft.machine.batch import BatchFormatError, encode_commands
from raft.machine.machine import Machine
from raft.machine.sessions import (
    IDLE_MS,
    KEPT,
    MAX_ANSWER_BYTES,
    MAX_LANE_BYTES,
    Limits,
    SessionTable,
    fingerprint,
    pack,
    unpack,
)
from raft.machine.transactions import encode_transaction
from raft.replies import OK, Error, Reply, Simple

EXPIRED = "ERR session expired"
TOO_OLD = "ERR this sequence number is below"
HOUR = 3_600_000


def refused(reply: Reply, beginning: str) -> bool:
    return isinstance(reply, Error) and reply.startswith(beginning)


# --- the promise ---

COMMANDS = st.sampled_from(
    [("INCR", "n"), ("APPEND", "s", "x"), ("SET", "n", "x", "GET"), ("DEL", "n"), ("INCR", "s"),
     ("GET", "n"), ("MGET", "n", "s"), ("GET",), ("FOLLOWER", "LEAVE", "w"), ("TYPE", "n"), ("PTTL", "n"),
     ("INCR", "n", "n")]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(COMMANDS, min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 1), st.integers(1, 3)), max_size=60),
    st.booleans(),
)
def test_any_interleaving_of_retries_gives_the_first_answer(
    commands: list[tuple[str, ...]], sent: list[tuple[int, int, int]], together: bool
) -> None:
    """Against a model that carries out each (session, number) when it first comes, and never again."""
    once, plain = Driver(), Driver()
    first: dict[tuple[int, int], Reply] = {}
    for number, session, copies in sent:
        command = commands[number % len(commands)]
        words = [str(word).encode() for word in ("ONCE", f"s{session}", number + 1, *command)]
        if (session, number) not in first:
            first[session, number] = plain(*command)
        if together:  # in one entry
            replies = once.batch(*[words] * copies)
        else:
            replies = [once.batch(words)[0] for _ in range(copies)]
        assert replies == [first[session, number]] * copies
        assert [type(reply) for reply in replies] == [type(first[session, number])] * copies
    assert once.machine.kv.values == plain.machine.kv.values


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3 * KEPT))
def test_at_most_one_execution_in_any_order_beyond_the_window_too(
    shuffle: random.Random, highest: int
) -> None:
    run = Driver()
    numbers = [number for number in range(1, highest + 1) for _ in range(3)]
    shuffle.shuffle(numbers)
    answers: dict[int, set[Reply]] = {}
    for number in numbers:
        reply = run("ONCE", "s", number, "INCR", f"n{number}")
        if not refused(reply, TOO_OLD):
            answers.setdefault(number, set()).add(reply)  # type: ignore[arg-type]
    assert all(given == {1} for given in answers.values())
    assert set(run.machine.kv.values) == {b"n%d" % number for number in answers}
    assert set(run.machine.kv.values.values()) <= {b"1"}
    # What a client keeps to, it can rely on.
    assert {*range(max(1, highest - KEPT + 1), highest + 1)} <= set(answers)


def test_numbers_may_begin_anywhere_and_come_in_any_order(run: Driver) -> None:
    assert run("ONCE", "s", 1000, "INCR", "n") == 1
    assert run("ONCE", "s", 990, "INCR", "n") == 2
    assert run("ONCE", "s", 1000, "INCR", "n") == 1
    assert run("ONCE", "s", 2**63 - 1, "INCR", "n") == 3
    assert run("ONCE", "t", 990, "INCR", "n") == 4


def test_a_number_below_the_window_is_not_carried_out(run: Driver) -> None:
    for number in range(2, KEPT + 2):
        run("ONCE", "s", number, "INCR", "n")
    assert refused(run("ONCE", "s", 1, "INCR", "n"), TOO_OLD)
    assert run("ONCE", "s", 2, "INCR", "n") == 1
    assert run("ONCE", "s", KEPT + 2, "INCR", "n") == KEPT + 1
    assert refused(run("ONCE", "s", 2, "INCR", "n"), TOO_OLD)
    assert run("GET", "n") == b"%d" % (KEPT + 1)


@pytest.mark.parametrize(
    ("first", "again", "same"),
    [
        (("SET", "a", "1"), ("set", "a", "1"), True),
        (("FOLLOWER", "LEAVE", "w"), ("follower", "leave", "w"), True),
        (("SET", "a", "1"), ("SET", "a", "2"), False),
        (("SET", "a", "1"), ("SET", "A", "1"), False),
        (("SET", "a", "1"), ("SET", "a", "1", "NX"), False),
        (("SET", "a", "1"), ("GET", "a"), False),
        (("MGET", "ab", "c"), ("MGET", "a", "bc"), False),
    ],
)
def test_the_same_number_with_another_command_is_an_error(
    run: Driver, first: tuple[str, ...], again: tuple[str, ...], same: bool
) -> None:
    answer = run("ONCE", "s", 1, *first)
    reply = run("ONCE", "s", 1, *again)
    assert reply == answer if same else refused(reply, "ERR this sequence number of the session was used")
    assert run("ONCE", "s", 1, *first) == answer


def test_a_large_answer_is_given_once_and_never_carried_out_again(run: Driver) -> None:
    value = "x" * (MAX_ANSWER_BYTES + 1)
    run("SET", "k", value)
    assert run("ONCE", "s", 1, "GETDEL", "k") == value.encode()
    run("SET", "k", "new")
    assert refused(run("ONCE", "s", 1, "GETDEL", "k"), "ERR the command was carried out before")
    assert run("GET", "k") == b"new"
    run("SET", "k", "y" * (MAX_ANSWER_BYTES - 3))
    assert run("ONCE", "s", 2, "GETDEL", "k") == run("ONCE", "s", 2, "GETDEL", "k")


@pytest.mark.parametrize(
    "words",
    [
        ("ONCE", "", 1, "INCR", "n"),
        ("ONCE", "s" * 129, 1, "INCR", "n"),
        ("ONCE", "s", 0, "INCR", "n"),
        ("ONCE", "s", "01", "INCR", "n"),
        ("ONCE", "s", 1),
    ],
)
def test_bad_words_are_refused_and_leave_no_session(run: Driver, words: tuple[str | int, ...]) -> None:
    assert refused(run(*words), "ERR ")
    assert run("EXISTS", "n") == 0
    assert len(run.machine.sessions) == 0


# --- the end of sessions ---


def test_an_idle_session_expires_by_log_time(run: Driver) -> None:
    run("ONCE", "s", 1, "INCR", "n")
    run.now_ms += IDLE_MS - 1
    assert run("ONCE", "s", 1, "INCR", "n") == 1  # and is used again with that
    run.now_ms += IDLE_MS - 1
    assert run("ONCE", "s", 2, "INCR", "n") == 2
    run.now_ms += IDLE_MS
    assert refused(run("ONCE", "s", 2, "INCR", "n"), EXPIRED)
    assert refused(run("ONCE", "s", 3, "INCR", "n"), EXPIRED)
    assert run("ONCE", "t", 3, "INCR", "n") == 3
    run.now_ms += 29 * 24 * HOUR
    assert refused(run("ONCE", "s", 2, "INCR", "n"), EXPIRED)
    run.now_ms += 2 * 24 * HOUR
    run("ONCE", "u", 1, "GET", "n")  # tombstones are looked through when a session is
    assert run("ONCE", "s", 2, "INCR", "n") == 4  # the promise is over: see the module


def use(sessions: SessionTable, name: str, number: int, now_ms: int = START_MS, reply: Reply = OK) -> str:
    """One ONCE: "new", "again" or "expired"."""
    mark = fingerprint([b"SET", b"a", b"b"])
    try:
        known = sessions.recall(name.encode(), number, mark, now_ms)
    except RefusedError as refusal:
        assert refused(refusal.error, EXPIRED)
        return "expired"
    if known is not None:
        assert known == (reply,)
        return "again"
    sessions.keep(name.encode(), number, mark, reply, now_ms)
    return "new"


def test_the_session_not_used_for_longest_makes_room() -> None:
    sessions = SessionTable(Limits(sessions=3))
    assert [use(sessions, name, 1) for name in "abcab"] == ["new"] * 3 + ["again"] * 2
    assert use(sessions, "d", 1) == "new"
    assert [use(sessions, name, 1) for name in "abcd"] == ["again", "again", "expired", "again"]
    assert (len(sessions), sessions.tombstones) == (3, 1)


def test_many_bytes_make_sessions_expire_but_never_the_one_in_use() -> None:
    sessions = SessionTable(Limits(table_bytes=20_000))
    for number in range(1, 30):
        assert use(sessions, "a", number, reply=b"x" * 3000) == "new"
    assert len(sessions) == 1
    for name in "bcdefghi":
        assert use(sessions, name, 1, reply=b"x" * 3000) == "new"
        assert sessions.taken_bytes <= 20_000
    assert [use(sessions, name, 1, reply=b"x" * 3000) for name in "abcd"] == ["expired"] * 4
    assert use(sessions, "i", 1, reply=b"x" * 3000) == "again"


def test_tombstones_are_bounded_by_number() -> None:
    sessions = SessionTable(Limits(sessions=1, tombstones=5))
    for number in range(10):
        assert use(sessions, f"s{number}", 1) == "new"
    assert sessions.tombstones == 5
    assert [use(sessions, f"s{number}", 1) for number in range(4, 10)] == ["expired"] * 5 + ["again"]
    assert use(sessions, "s0", 1) == "new"


def test_a_crowd_expires_a_few_at_a_time_and_none_is_used_again() -> None:
    sessions = SessionTable()
    for number in range(200):
        use(sessions, f"s{number}", 1)
    later = START_MS + IDLE_MS
    assert use(sessions, "s150", 1, later) == "expired"
    assert len(sessions) > 150
    for number in range(20):
        use(sessions, "t", number + 1, later)
    assert (len(sessions), sessions.tombstones) == (1, 200)
    assert {use(sessions, f"s{number}", 1, later) for number in range(200)} == {"expired"}
    for number in range(20):
        use(sessions, "u", number + 1, later + 31 * 24 * HOUR)
    assert sessions.tombstones == 1  # that of "t"


# --- state ---


def rows(sessions: SessionTable) -> list[object]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(list(sessions.export())))  # type: ignore[no-any-return]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 100), st.integers(0, HOUR)), max_size=150)
)
def test_a_restored_table_is_the_same_and_stays_so(uses: list[tuple[str, int, int]]) -> None:
    limits = Limits(sessions=4, table_bytes=6000, tombstones=3, idle_ms=8 * HOUR, tombstone_ms=10 * HOUR)
    first, now_ms = SessionTable(limits), START_MS
    second = SessionTable(limits)
    for at, (name, number, passed_ms) in enumerate(uses):
        now_ms += passed_ms
        use(first, name, number, now_ms)
        if at == len(uses) // 2:
            second.restore(rows(first))  # type: ignore[arg-type]
        elif at > len(uses) // 2:
            use(second, name, number, now_ms)
            assert second.taken_bytes == first.taken_bytes
    if uses:
        assert rows(first) == rows(second)
    assert first.tombstones == len({*first._hashes}) == sum(count for _, count in first._hours) <= 3
    assert first._dead == {*first._hashes}


def test_the_digest_sees_sessions_and_quiet_nodes_agree() -> None:
    loud, quiet, other = Machine("c"), Machine("c"), Machine("c")
    commands = [
        [b"ONCE", b"s", b"1", b"SET", b"a", b"1"],
        [b"ONCE", b"s", b"2", b"GET", b"a"],
        [b"ONCE", b"s", b"3", b"INTERVAL", b"CURRENT"],
    ]
    loud.apply_commands(1, 1, START_MS, commands)
    assert quiet.apply_commands(1, 1, START_MS, commands, want_replies=False) == []
    other.apply_commands(1, 1, START_MS, [[b"SET", b"a", b"1"]])
    assert loud.digest() == quiet.digest() != other.digest()
    again = copy.deepcopy(quiet.sessions)
    commands = [[b"SET", b"a", b"2"], [b"ONCE", b"s", b"2", b"GET", b"a"]]
    assert quiet.apply_commands(2, 1, START_MS, commands) == [OK, b"1"]
    assert rows(again) == rows(quiet.sessions)


REPLIES: st.SearchStrategy[Reply] = st.recursive(
    st.one_of(
        st.none(),
        st.integers(-(2**63), 2**63 - 1),
        st.binary(max_size=20),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.sampled_from([OK, Simple("string"), Simple("é"), Error("ERR x"), Error("WRONGTYPE \n é")]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(REPLIES)
def test_answers_survive_being_packed(reply: Reply) -> None:
    def typed(reply: Reply) -> object:
        if isinstance(reply, list):
            return [typed(item) for item in reply]
        if isinstance(reply, dict):
            return {key: typed(value) for key, value in reply.items()}
        return type(reply), reply

    assert typed(unpack(pack(reply))) == typed(reply)
    assert (unpack(pack(reply)) is OK) == (reply is OK)


# --- lanes: what nodes pass on ---


def lane(number: int, *commands: tuple[str, ...], name: bytes = b"~1.run.1") -> list[bytes]:
    return [b"~ONCE", name, b"%d" % number, encode_commands([[w.encode() for w in c] for c in commands])]


def test_a_lane_carries_out_all_or_nothing_and_answers_the_same_again(run: Driver) -> None:
    batch = lane(1, ("INCR", "n"), ("GET", "n"), ("INCR", "n", "x"), ("SET", "a", "b"))
    first = run.batch(batch)[0]
    assert first == [1, b"1", Error("ERR wrong number of arguments for 'incr' command"), OK]
    assert run.batch(batch, batch) == [first, first]
    assert run("GET", "n") == b"1"
    assert refused(run.batch(lane(1, ("INCR", "n")))[0], "ERR this sequence number of the session was used")


def test_a_lane_keeps_its_last_answer_only_and_takes_no_lower_number(run: Driver) -> None:
    for number in (1, 2, 5):
        run.batch(lane(number, ("INCR", "n")))
    for number in (1, 2, 3, 4):
        assert refused(run.batch(lane(number, ("INCR", "n")))[0], TOO_OLD)
    assert run.batch(lane(5, ("INCR", "n"))) == [[3]]
    assert run("GET", "n") == b"3"
    (row,) = rows(run.machine.sessions)
    assert len(row[2]) == 1  # type: ignore[index]


def test_once_and_transactions_stand_in_a_lane(run: Driver) -> None:
    inner = ("ONCE", "s", "1", "INCR", "n")
    assert run.batch(lane(1, inner, inner)) == [[1, 1]]
    assert run.batch(lane(2, inner), lane(1, inner, name=b"~2.run.1")) == [[1], [1]]
    data = encode_transaction([], [[b"INCR", b"n"], [b"PING"]])
    words = [b"~ONCE", b"~1.run.1", b"3", encode_commands([[b"~EXEC", data]])]
    assert run.batch(words, words) == [[[2, "PONG"]]] * 2
    assert run("GET", "n") == b"2"


def test_a_clients_session_cannot_be_a_lane(run: Driver) -> None:
    run.batch(lane(1, ("INCR", "n")))
    assert refused(run("ONCE", "~1.run.1", 1, "INCR", "n"), "ERR a session's name must not begin with '~'")
    assert run("GET", "n") == b"1"
    assert len(run.machine.sessions) == 1


def test_of_large_answers_a_lane_keeps_what_fits(run: Driver) -> None:
    for key, size in (("small", 10), ("large", MAX_LANE_BYTES), ("half", MAX_LANE_BYTES // 2)):
        run("SET", key, "x" * size)
    batch = lane(1, ("GETDEL", "small"), ("GETDEL", "large"), ("GETDEL", "half"), ("GETDEL", "none"))
    first = run.batch(batch)[0]
    assert isinstance(first, list) and [len(value) if value else value for value in first] == [  # type: ignore[arg-type]
        10, MAX_LANE_BYTES, MAX_LANE_BYTES // 2, None,
    ]  # fmt: skip
    again = run.batch(batch)[0]
    assert isinstance(again, list) and [again[0], again[2], again[3]] == [first[0], first[2], None]
    assert refused(again[1], "ERR the command was carried out before, but its answer was too large")
    many = lane(2, *[("GET", "small")] * 4096)
    assert run.batch(many) == run.batch(many)
    (row,) = rows(run.machine.sessions)
    assert len(row[2][0][1]) <= MAX_LANE_BYTES + 8  # type: ignore[index]


def test_a_lane_survives_a_restart_and_a_snapshot(run: Driver) -> None:
    """BUGS 52: what was carried out is known to whoever has the log or a snapshot of it."""
    batches = [lane(1, ("INCR", "n")), lane(2, ("APPEND", "s", "x" * 100_000), ("GETDEL", "s"))]
    loud, quiet = Machine("c"), Machine("c")
    for index, words in enumerate(batches, 1):
        loud.apply_commands(index, 1, START_MS, [words])
        quiet.apply_commands(index, 1, START_MS, [words], want_replies=False)
    loaded = Machine.load("c", list(quiet.dump()))
    assert loud.digest() == quiet.digest() == loaded.digest()
    for machine in (loud, quiet, loaded):
        (again,) = machine.apply_commands(3, 1, START_MS, [batches[1]])
        assert isinstance(again, list) and again[0] == 100_000
        assert refused(again[1], "ERR the command was carried out before")
        assert machine.kv.values == {b"n": b"1"}
    assert loud.digest() == quiet.digest() == loaded.digest()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x91\x90", b"\x91\xc4\x01x"])
def test_what_is_no_array_of_commands_stops_the_node(run: Driver, data: bytes) -> None:
    with pytest.raises(BatchFormatError):
        run.batch([b"~ONCE", b"~1.run.1", b"1", data])


# --- followers ---

POLICY = msgspec.json.encode(
    {
        "interval_ms": 2000, "reward": 10, "penalty": 5, "ban_threshold": 3, "ban_cooldown_s": 600,
        "max_spam": 3, "follower_version": "1.0", "followers_per_interval": 0,
    }
)  # fmt: skip


def test_a_followers_refusals_are_repeated_and_counted_once(run: Driver) -> None:
    """NOTURN counts as spam and BANNED says the time left: each is the first answer again."""
    run.batch([b"~TERM", b"1", POLICY, b"[]"])
    assert run("ONCE", "w.1", 1, "FOLLOWER", "JOIN", "w", "1.0") == OK
    answers = []
    for number in range(2, 6):
        words = ("ONCE", "w.1", number, "FOLLOWER", "REPORT", "w", "99", "x")
        answer = run(*words)
        answers.append(answer)
        for _ in range(5):
            run.now_ms += 1000
            assert run(*words) == answer
    assert [str(answer).split()[0] for answer in answers] == ["NOTURN", "NOTURN", "NOTURN", "BANNED"]
    join = ("ONCE", "w.1", 6, "FOLLOWER", "JOIN", "w", "1.0")
    banned = run(*join)
    assert refused(banned, "BANNED")
    run.now_ms += 600_000
    assert run(*join) == banned
    assert run("ONCE", "w.1", 7, "FOLLOWER", "JOIN", "w", "1.0") == OK
