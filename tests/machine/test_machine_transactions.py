"""~EXEC and ~VERSION in the machine: atomic, and never a change missed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_support import START_MS, Driver

from raft.machine import versions
from raft.machine.batch import BatchFormatError
from raft.machine.machine import Machine
from raft.machine.transactions import decode_transaction, encode_transaction
from raft.machine.versions import KeyVersions
from raft.replies import OK, Error, Reply


def execute(run: Driver, watched: dict[bytes, int], *commands: list[bytes]) -> Reply:
    return run.batch([b"~EXEC", encode_transaction(watched.items(), list(commands))])[0]


def version(run: Driver) -> int:
    seen = run.machine.read([b"~VERSION"], run.now_ms)
    assert isinstance(seen, int)
    return seen


def test_commands_follow_each_other_and_errors_stop_nothing(run: Driver) -> None:
    reply = execute(run, {}, [b"set", b"a", b"x"], [b"INCR", b"a"], [b"GET"], [b"GET", b"a"], [b"PING"])
    assert reply == [
        OK,
        Error("ERR value is not an integer or out of range"),
        Error("ERR wrong number of arguments for 'get' command"),
        b"x",
        "PONG",
    ]
    assert execute(run, {}) == []


def test_followers_and_rewards_may_stand_inside(run: Driver) -> None:
    (reply,) = execute(run, {}, [b"FOLLOWER", b"LEAVE", b"x"])  # type: ignore[misc]
    assert isinstance(reply, Error)
    assert reply.startswith("NOFOLLOWER")


def test_a_change_in_the_same_entry_counts(run: Driver) -> None:
    seen = version(run)
    data = encode_transaction({b"a": seen}.items(), [[b"SET", b"done", b"1"]])
    assert run.batch([b"SET", b"a", b"1"], [b"~EXEC", data]) == [OK, None]
    seen = version(run)
    data = encode_transaction({b"a": seen}.items(), [[b"SET", b"done", b"1"]])
    assert run.batch([b"~EXEC", data], [b"SET", b"a", b"1"], [b"~EXEC", data]) == [[OK], OK, None]


def test_reads_inside_see_the_logs_time(run: Driver) -> None:
    run("SET", "a", "1", "PX", "5000")
    run.now_ms += 1000
    assert execute(run, {}, [b"PTTL", b"a"], [b"TIME"]) == [4000, [b"1700000001", b"0"]]


@pytest.mark.parametrize("data", [b"", b"x", b"\x90", b"\x93\x90\x90\x90", b"\x92\x90\x91\x90"])
def test_foreign_bytes_are_no_transaction(data: bytes) -> None:
    with pytest.raises(BatchFormatError):
        decode_transaction(data)


def test_quiet_nodes_agree() -> None:
    loud, quiet = Machine("c"), Machine("c")
    data = encode_transaction([(b"a", 0)], [[b"SET", b"a", b"1"], [b"GET", b"a"], [b"TTL", b"a"]])
    for index in (1, 2):
        replies = loud.apply_commands(index, 1, START_MS, [[b"~EXEC", data]])
        assert replies == [[OK, b"1", -1] if index == 1 else None]
        assert quiet.apply_commands(index, 1, START_MS, [[b"~EXEC", data]], want_replies=False) == []
        assert loud.digest() == quiet.digest()


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
CHANGES = st.one_of(
    st.tuples(st.just(b"SET"), KEYS, st.just(b"1")),
    st.tuples(st.sampled_from([b"DEL", b"GETDEL", b"INCR", b"PERSIST", b"GET", b"GETEX"]), KEYS),
    st.tuples(st.just(b"APPEND"), KEYS, st.just(b"1")),
    st.tuples(st.just(b"EXPIRE"), KEYS, st.sampled_from([b"1", b"100", b"-1"])),
    st.tuples(st.just(b"GETEX"), KEYS, st.just(b"EX"), st.just(b"1")),
    st.tuples(st.just(b"SET"), KEYS, st.just(b"2"), st.sampled_from([b"NX", b"XX", b"KEEPTTL"])),
    st.tuples(st.just(b"MSETNX"), KEYS, st.just(b"1"), KEYS, st.just(b"2")),
    st.just((b"FLUSHALL",)),
    st.just((b"MGET", b"a", b"b", b"c", b"d")),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(CHANGES, st.integers(0, 1500)), max_size=12),
    st.integers(0, 12),
    KEYS,
    st.integers(1, 6),
    st.integers(0, 2),
)
def test_what_changed_the_key_or_its_expiry_is_never_missed(
    steps: list[tuple[tuple[bytes, ...], int]], watch_at: int, key: bytes, generation: int, few: int
) -> None:
    """With generations of a few keys too. And without forgetting nothing else makes EXEC fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions, "GENERATION_KEYS", generation)
        patch.setattr(versions, "_WEIGHED_AT_ONCE", 1)
        patch.setattr("raft.machine.keyvalue._FEW_KEYS", few)
        forgetful = Driver()
        check(forgetful, steps, watch_at, key, exact=False)
    check(Driver(), steps, watch_at, key, exact=True)


def check(
    run: Driver, steps: list[tuple[tuple[bytes, ...], int]], watch_at: int, key: bytes, exact: bool
) -> None:
    kv = run.machine.kv
    seen, changed, written = 0, False, False
    for at, (words, passed_ms) in enumerate(steps):
        if at == watch_at:
            seen, changed, written = version(run), False, False
        run.now_ms += passed_ms
        before = kv.values.get(key), kv.expiries.get(key)
        run.batch(list(words))
        changed = changed or (kv.values.get(key), kv.expiries.get(key)) != before
        written = written or words[0] not in (b"GET", b"MGET")  # SET of the same value is a change too
    reply = execute(run, {key: seen}, [b"PING"])
    assert reply is None if changed else reply is None or reply == ["PONG"]
    if exact and not changed and not written:
        assert reply == ["PONG"]


# --- what is remembered ---


def test_generations_turn_and_the_floor_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "GENERATION_KEYS", 100)
    run = Driver()
    run("SET", "old", "1")
    kv = run.machine.kv
    for number in range(99):
        run("SET", f"k{number}", "1")
    run("SET", "k0", "1")
    assert kv.versions.last_change(b"old") == 1
    assert kv.versions.last_change(b"none") == 0
    for number in range(400):
        run("SET", f"l{number % 200}", "1")
    assert kv.versions.last_change(b"old") == kv.versions.last_change(b"none") == kv.versions.floor > 100
    assert kv.versions.last_change(b"l199") == run.machine.applied_index
    assert len(kv.versions.recent) <= 100 + 64
    assert len(kv.versions.older) <= 100 + 64


def test_long_names_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "GENERATION_BYTES", 100_000)
    run = Driver()
    for number in range(1000):
        run("SET", f"{number:01000d}", "1")
        run("DEL", f"{number:01000d}")
    kept = run.machine.kv.versions
    assert sum(map(len, (*kept.recent, *kept.older))) < 2 * (100_000 + 64_000)


def test_a_restored_machine_turns_at_the_same_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "GENERATION_KEYS", 100)
    first, second = Driver(), Driver()
    for number in range(1, 700):
        first("SET", f"k{number}", "1")
        if number == 333:
            state = msgspec.msgpack.encode(first.machine.kv.versions.export())
            decoded = msgspec.msgpack.decode(
                state, type=tuple[dict[bytes, int], dict[bytes, int], int, int, int, int]
            )
            second.machine.kv.restore_versions([*decoded])
            second.machine.applied_index = 333
        elif number > 333:
            second("SET", f"k{number}", "1")
    ours, theirs = first.machine.kv.versions, second.machine.kv.versions
    assert ours.export() == theirs.export()
    assert list(ours.recent) == list(theirs.recent)
    assert ours.floor > 333


def test_flushall_of_many_keys_changes_every_key(run: Driver) -> None:
    run.batch(*[[b"SET", b"k%d" % number, b"1"] for number in range(2000)])
    seen = version(run)
    run("FLUSHALL")
    assert execute(run, {b"k7": seen}, [b"PING"]) is None
    seen = version(run)
    run("SET", "b", "1")
    assert execute(run, {b"a": seen}, [b"PING"]) == ["PONG"]
    assert execute(run, {b"b": seen}, [b"PING"]) is None


def test_the_digest_sees_versions() -> None:
    one, two = Machine("c"), Machine("c")
    one.apply_commands(1, 1, START_MS, [[b"SET", b"a", b"1"]])
    two.apply_commands(1, 1, START_MS, [[b"SET", b"a", b"1"], [b"SET", b"b", b"1"], [b"DEL", b"b"]])
    assert one.kv.values == two.kv.values
    assert one.digest() != two.digest()


def test_a_new_table_knows_nothing_and_says_so() -> None:
    assert KeyVersions().last_change(b"a") == 0
