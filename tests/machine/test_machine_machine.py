"""The machine as a whole: order, determinism, mixed batches, the ledger behind it."""

from __future__ import annotations

import copy
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_support import START_MS, Driver

from raft.core.entry import Entry, EntryKind
from raft.machine.batch import BatchFormatError, encode_batch
from raft.machine.commands import COMMANDS, Kind
from raft.machine.machine import Machine, OutOfOrderError, UnknownCommandError
from raft.machine.transactions import encode_transaction
from raft.replies import Error

POLICY = msgspec.json.encode(
    {
        "interval_ms": 2000,
        "reward": 10,
        "penalty": 5,
        "ban_threshold": 10,
        "ban_cooldown_s": 600,
        "max_spam": 10,
        "follower_version": "1.0",
        "followers_per_interval": 0,
    }
)
MEMBERS = msgspec.json.encode([{"id": "node-1", "address": "127.0.0.1:7201"}])


def entry(index: int, *commands: list[bytes], at_ms: int = START_MS, term: int = 1) -> Entry:
    return Entry(index, term, EntryKind.COMMANDS, encode_batch(at_ms, list(commands)))


# --- the order of entries ---


def test_entries_are_applied_one_after_the_other() -> None:
    machine = Machine("c")
    assert machine.apply(Entry(1, 1, EntryKind.NOOP, b"")) == []
    assert machine.apply(entry(2, [b"SET", b"k", b"v"], [b"GET", b"k"])) == ["OK", b"v"]
    assert machine.apply(Entry(3, 4, EntryKind.CONFIGURATION, b"whatever")) == []
    assert (machine.applied_index, machine.applied_term, machine.at_ms) == (3, 4, START_MS)


@pytest.mark.parametrize("index", [0, 1, 3, 4])
@pytest.mark.parametrize("kind", [EntryKind.NOOP, EntryKind.COMMANDS])
def test_an_entry_out_of_order_is_refused(index: int, kind: EntryKind) -> None:
    machine = Machine("c")
    machine.apply(entry(1, [b"SET", b"k", b"v"]))
    before = machine.digest()
    with pytest.raises(OutOfOrderError):
        machine.apply(Entry(index, 1, kind, encode_batch(START_MS, [[b"SET", b"k", b"w"]])))
    assert machine.digest() == before


@pytest.mark.parametrize(
    "words",
    [
        [b"RENAME", b"a", b"b"],
        [b""],
        [b"~NEW"],
        [b"PING"],
        [b"FOLLOWER", b"FOO"],
        [b"REWARD", b"HELP", b"x"],
        [b"RAFT", b"SNAPSHOT"],
        [b"RAFT", b"FOO"],
        [b"MULTI"],
        [b"~VERSION"],
        [b"ONCE", b"s", b"1", b"NEW"],
        [b"ONCE", b"s", b"1", b"PING"],
        [b"ONCE", b"s", b"1", b"~EXPIRE"],
        [b"ONCE", b"s", b"1", b"~DIGEST"],
        [b"ONCE", b"s", b"1", b"ONCE", b"s", b"2", b"GET", b"a"],
        [b"ONCE", b"s", b"1", b"RAFT", b"DIGEST"],
        [b"ONCE", b"s", b"1", b"FOLLOWER", b"FOO"],
        [b"~EXEC", encode_transaction([], [[b"NEW"]])],
        [b"~EXEC", encode_transaction([], [[b"ONCE", b"s", b"1", b"GET", b"a"]])],
        [b"~EXEC", encode_transaction([], [[b"RAFT", b"DIGEST"]])],
        [b"~EXEC", encode_transaction([], [[b"~EXPIRE"]])],
        [b"~EXEC", encode_transaction([], [[b"~DIGEST"]])],
    ],
)
@pytest.mark.parametrize("want_replies", [True, False])
def test_a_command_from_a_newer_version_stops_the_node(words: list[bytes], want_replies: bool) -> None:
    machine = Machine("c")
    known = [[b"SET", b"k", b"v"]]
    if words == [b"REWARD", b"HELP", b"x"]:
        assert b"REWARD HELP" in COMMANDS  # known to handlers, but nothing for a log
    with pytest.raises(UnknownCommandError):
        machine.apply(entry(1, *known, words), want_replies)


def test_an_entry_of_an_unknown_kind_or_with_garbage_stops_the_node() -> None:
    with pytest.raises(UnknownCommandError):
        Machine("c").apply(Entry(1, 1, 99, b""))
    with pytest.raises(BatchFormatError):
        Machine("c").apply(Entry(1, 1, EntryKind.COMMANDS, b"garbage"))


@pytest.mark.parametrize("want_replies", [True, False])
def test_a_comparison_of_digests_changes_nothing_and_is_told_once(want_replies: bool) -> None:
    machine, other = Machine("c"), Machine("c")
    assert not machine.take_digest_due()
    replies = machine.apply(entry(1, [b"SET", b"k", b"v"], [b"~DIGEST"]), want_replies)
    assert replies == (["OK", "OK"] if want_replies else [])
    other.apply(entry(1, [b"SET", b"k", b"v"]))
    assert machine.digest() == other.digest()
    assert machine.take_digest_due()
    assert not machine.take_digest_due()
    machine.apply(entry(2, [b"~DIGEST", b"x"]), want_replies)
    assert not machine.take_digest_due(), "it takes no argument"
    machine.apply(entry(3, [b"~DIGEST"]), want_replies)
    machine.become(Machine("c"))
    assert not machine.take_digest_due()


# --- reads ---


def test_every_read_of_the_table_is_answered_and_changes_nothing(run: Driver) -> None:
    run("~TERM", 1, POLICY, MEMBERS)
    run("SET", "k", "v")
    before = run.machine.digest()
    for spec in COMMANDS.values():
        if spec.kind is not Kind.READ:
            continue
        words = spec.name.split()
        words += [b"0"] * (abs(spec.arity) - len(words))
        for spelling in (words, [word.lower() for word in words], [word.title() for word in words]):
            assert run.machine.read(spelling, run.now_ms) == run.machine.read(words, run.now_ms)
        assert run.machine.digest() == before


def test_a_read_with_too_many_words_is_refused(run: Driver) -> None:
    wrong = Error("ERR wrong number of arguments for 'get' command")
    assert run.machine.read([b"GET", b"a", b"b"], 0) == wrong
    assert run.machine.read([b"KEYS", b"x" * 5000], 0) == Error("ERR pattern is longer than 4096 bytes")


def test_nothing_but_reads_is_read(run: Driver) -> None:
    before = run.machine.digest()
    for spec in COMMANDS.values():
        words = spec.name.split()
        words += [b"1"] * (abs(spec.arity) - len(words))
        if spec.kind is not Kind.READ:
            with pytest.raises(UnknownCommandError):
                run.machine.read(words, run.now_ms)
    for name in (b"~EXPIRE", b"~TERM", b"nothing"):
        with pytest.raises(UnknownCommandError):
            run.machine.read([name], run.now_ms)
    assert run.machine.digest() == before


def test_a_mixed_batch_is_executed_in_its_order(run: Driver) -> None:
    batch = [
        [b"GET", b"k"],
        [b"INCR", b"k"],
        [b"get", b"k"],
        [b"Del", b"k"],
        [b"EXISTS", b"k"],
        [b"INCR", b"k", b"x"],
    ]
    assert run.batch(*batch) == [
        None,
        1,
        b"1",
        1,
        0,
        Error("ERR wrong number of arguments for 'incr' command"),
    ]


def test_a_digest_inside_an_entry_is_that_of_its_end(run: Driver) -> None:
    replies = run.batch(
        [b"SET", b"a", b"1"], [b"RAFT", b"DIGEST"], [b"SET", b"a", b"2"], [b"raft", b"digest"]
    )
    assert replies == ["OK", [1, run.machine.digest()], "OK", [1, run.machine.digest()]]
    assert run.machine.read([b"RAFT", b"DIGEST"], 0) == [1, run.machine.digest()]
    assert run("GET", "a") == b"2"


def test_without_replies_the_state_is_the_same_and_reads_are_left_out() -> None:
    commands = [
        [b"SET", b"k", b"v", b"GET"],
        [b"GET", b"k"],
        [b"KEYS", b"*"],
        [b"INCR", b"k"],
        [b"RAFT", b"DIGEST"],
    ]
    commands += [
        [b"FOLLOWER", b"JOIN", b"f", b"1.0"],
        [b"FOLLOWER", b"INFO", b"f"],
        [b"GETEX", b"k", b"EX", b"9"],
    ]
    loud, quiet = Machine("c"), Machine("c")
    for machine in (loud, quiet):
        machine.apply(entry(1, [b"~TERM", b"1", POLICY, MEMBERS]))
    assert len(loud.apply(entry(2, *commands))) == len(commands)
    assert quiet.apply(entry(2, *commands), want_replies=False) == []
    assert loud.digest() == quiet.digest()
    assert quiet.apply(entry(3, [b"FOLLOWER", b"INFO", b"f"])) == loud.apply(
        entry(3, [b"FOLLOWER", b"INFO", b"f"])
    )


# --- the ledger ---


def test_ledger_commands_events_and_reads_go_through(run: Driver) -> None:
    assert run("~TERM", 1, POLICY, MEMBERS) == "OK"
    assert run("follower", "join", "f", "1.0") == "OK"
    run("~OPEN", 1, run.now_ms + 2000, 1, POLICY)
    assert ("turns", f"1 {run.now_ms + 2000}") in run.machine.take_events()
    assert run("FOLLOWER", "REPORT", "f", 1, "data") == "OK"
    run.now_ms += 2000
    run("~CLOSE", 1, 1, 0, "node-1")
    assert ("rewards:f", "1 hit 10 10") in run.machine.take_events()
    assert run.machine.take_events() == []
    assert run.machine.read([b"REWARD", b"BALANCE", b"f"], 0) == 10
    assert run("FLUSHALL") == "OK"
    assert run("REWARD", "BALANCE", "f") == 10


# --- determinism ---


def random_log(seed: int, length: int) -> list[Entry]:
    """Entries of values, ledger and system commands, some wrong; time jumps back at times."""
    chance = random.Random(seed)
    at_ms, log, interval = START_MS, [Entry(1, 1, EntryKind.NOOP, b"")], 0
    log.append(entry(2, [b"~TERM", b"1", POLICY, MEMBERS], at_ms=at_ms))
    while len(log) < length:
        at_ms += chance.choice([0, 1, 7, 50, 2000, -500])
        if chance.random() < 0.1:
            interval += 1
            log.append(entry(len(log) + 1, [b"~CLOSE", b"%d" % (interval - 1), b"1", b"0"], at_ms=at_ms))
            opened = [b"~OPEN", b"%d" % interval, b"%d" % (at_ms + 2000), b"1", POLICY]
            log.append(entry(len(log) + 1, opened, at_ms=at_ms))
        batch = [random_command(chance, interval) for _ in range(chance.randrange(1, 8))]
        log.append(entry(len(log) + 1, *batch, at_ms=at_ms))
    return log


def random_command(chance: random.Random, interval: int) -> list[bytes]:
    key, follower = b"k%d" % chance.randrange(30), b"f%d" % chance.randrange(4)
    number = b"%d" % chance.randrange(-5, 100)
    return chance.choice(
        [
            [b"SET", key, number],
            [b"SET", key, number, b"PX", number],
            [b"set", key, b"text", b"NX", b"EX", b"1"],
            [b"DEL", key, b"k1"],
            [b"INCR", key],
            [b"INCRBY", key, number],
            [b"APPEND", key, number],
            [b"PEXPIRE", key, number],
            [b"PERSIST", key],
            [b"GETEX", key, b"PX", b"30"],
            [b"MSET", key, b"1", b"k2", b"2"],
            [b"GET", key],
            [b"KEYS", b"*"],
            [b"~EXPIRE"],
            [b"FLUSHALL"] if chance.random() < 0.02 else [b"DBSIZE"],
            [b"FOLLOWER", b"JOIN", follower, b"1.0"],
            [b"FOLLOWER", b"REPORT", follower, b"%d" % interval, b"data"],
            [b"FOLLOWER", b"LEAVE", follower] if chance.random() < 0.1 else [b"REWARD", b"TOP"],
            [b"REWARD", b"CLAIM", follower, b"3", b"claim-%d" % chance.randrange(50)],
        ]
    )


@pytest.mark.parametrize("seed", range(10))
def test_equal_logs_make_equal_states_and_replies(seed: int) -> None:
    """One machine lives through the log and is read between entries; the other replays it without replies."""
    log = random_log(seed, 300)
    lived, again, replayed = Machine("c"), Machine("c"), Machine("c")
    for each in log:
        assert lived.apply(each) == again.apply(copy.deepcopy(each))
        lived.read([b"PTTL", b"k1"], each.index)
        lived.read([b"SCAN", b"0"], START_MS * 2)
        lived.next_expiry_ms()
        lived.take_events()
        replayed.apply(each, want_replies=False)
        if each.index % 20 == 0:
            assert lived.digest() == again.digest() == replayed.digest()
    assert lived.digest() == again.digest() == replayed.digest()
    assert lived.read([b"SCAN", b"0", b"COUNT", b"100"], 0) == replayed.read(
        [b"SCAN", b"0", b"COUNT", b"100"], 0
    )


@pytest.mark.parametrize("seed", range(3))
def test_expiry_leaves_no_trace_in_any_part(seed: int) -> None:
    machine = Machine("c")
    for each in random_log(seed, 300):
        machine.apply(each)
        values, expiries = machine.kv.values, machine.kv.expiries
        assert set(expiries) <= set(values)
        assert all(at > machine.at_ms for at in expiries.values())
        assert machine.next_expiry_ms() == min(expiries.values(), default=None)
        assert len(machine.kv._index) == len(values)
    _, keys = machine.kv._index.page(0, 10_000)
    assert sorted(keys) == sorted(machine.kv.values)


DIFFERENCES = [
    [b"SET", b"k", b"w"],
    [b"SET", b"other", b"v"],
    [b"DEL", b"k"],
    [b"EXPIRE", b"k", b"10"],
    [b"APPEND", b"k", b"x"],
    [b"FOLLOWER", b"JOIN", b"f", b"1.0"],
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda words: words[0].decode())
def test_a_difference_in_any_part_shows_in_the_digest(difference: list[bytes]) -> None:
    digests = set()
    for last in (difference, [b"~EXPIRE"]):
        machine = Machine("c")
        machine.apply(entry(1, [b"~TERM", b"1", POLICY, MEMBERS], [b"SET", b"k", b"v"]))
        machine.apply(entry(2, last))
        digests.add(machine.digest())
    assert len(digests) == 2


def test_the_digest_tells_time_index_and_cluster() -> None:
    def digest(cluster: str, at_ms: int, entries: int) -> str:
        machine = Machine(cluster)
        for index in range(1, entries + 1):
            machine.apply(entry(index, [b"~EXPIRE"], at_ms=at_ms))
        return machine.digest()

    assert digest("c", 5, 1) == digest("c", 5, 1)
    assert len({digest("c", 5, 1), digest("d", 5, 1), digest("c", 6, 1), digest("c", 5, 2)}) == 4


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(COMMANDS)),
    st.lists(st.binary(max_size=12), max_size=6),
    st.booleans(),
    st.sampled_from(["plain", "once", "exec"]),
)
def test_whatever_a_client_sends_gets_a_reply(
    name: bytes, arguments: list[bytes], numeric: bool, inside: str
) -> None:
    """No words after a name make apply raise: such an entry would stop the whole cluster for ever."""
    if COMMANDS[name].kind not in (Kind.READ, Kind.WRITE):
        return
    words = name.split() + [b"%d" % len(word) if numeric else word for word in arguments]
    if name == b"ONCE":  # handlers let only commands that they know stand inside
        words = [*words[:3], *[b"x"] * (3 - len(words)), b"INCR", b"1"]
    elif name != b"RAFT DIGEST":
        if inside == "once":
            words = [b"ONCE", b"s", b"1", *words]
        elif inside == "exec":
            words = [b"~EXEC", encode_transaction([], [words])]
    run = Driver()
    run.batch([b"~TERM", b"1", POLICY, MEMBERS], [b"SET", b"1", b"1"])
    assert len(run.batch(words, words, [b"GET", b"1"])) == 3
