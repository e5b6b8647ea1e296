"""Expiry happens in log time only: at the start of an entry, the same on every node."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_support import START_MS, Driver

from raft.machine import expiry, versions
from raft.machine.expiry import ExpiryTimes
from raft.machine.machine import Machine


def test_a_key_is_there_until_an_entry_reaches_its_time(run: Driver) -> None:
    run("SET", "k", "v", "PX", 100)
    run.now_ms += 99
    assert run("GET", "k") == b"v"
    run.now_ms += 1
    assert run("GET", "k") is None
    assert run("DBSIZE") == 0


def test_reads_expire_nothing_even_when_the_readers_clock_is_ahead(run: Driver) -> None:
    run("SET", "k", "v", "PX", 100)
    later = START_MS + 10_000
    assert run.machine.read([b"GET", b"k"], later) == b"v"
    assert run.machine.read([b"PTTL", b"k"], later) == 1
    assert run.machine.read([b"TTL", b"k"], later) == 0
    assert run.machine.read([b"PTTL", b"k"], START_MS + 40) == 60
    assert run.machine.read([b"PTTL", b"k"], 0) == 100


def test_a_system_expiry_removes_what_is_due_and_nothing_else(run: Driver) -> None:
    run("MSET", "a", 1, "b", 2, "c", 3)
    run("PEXPIRE", "a", 10)
    run("PEXPIRE", "b", 20)
    assert run.machine.next_expiry_ms() == START_MS + 10
    run.now_ms += 10
    assert run("~EXPIRE") == "OK"
    assert run("KEYS", "*") == [b"b", b"c"]
    assert run.machine.next_expiry_ms() == START_MS + 20
    run.now_ms += 10
    run("~EXPIRE")
    assert run.machine.next_expiry_ms() is None


def test_log_time_never_goes_back(run: Driver) -> None:
    run("SET", "k", "v", "PX", 100)
    run.now_ms += 50
    run("SET", "other", "v")
    run.now_ms -= 1000
    assert run("PTTL", "k") == 50
    run("SET", "late", "v", "PX", 10)
    assert run("PTTL", "late") == 10
    assert run.machine.at_ms == START_MS + 50


def test_time_passes_between_entries_not_within_one(run: Driver) -> None:
    replies = run.batch([b"SET", b"k", b"v", b"PX", b"1"], [b"GET", b"k"], [b"PTTL", b"k"])
    assert replies == ["OK", b"v", 1]


def test_a_key_set_anew_does_not_die_of_its_old_time(run: Driver) -> None:
    run("SET", "k", "v", "PX", 10)
    run("SET", "k", "w")
    run("SET", "l", "v", "PX", 10)
    run("DEL", "l")
    run("SET", "l", "w", "PX", 1000)
    run.now_ms += 500
    assert run("MGET", "k", "l") == [b"w", b"w"]
    assert run("PTTL", "l") == 500


def test_refreshing_or_replacing_times_does_not_fill_the_queue() -> None:
    times = ExpiryTimes()
    for at in range(100_000):
        times.set(b"refreshed", 10**9 + at)
        times.set(b"earlier", 10**9 - at)
    for at in range(20_000):
        times.set(b"lock", 2 * 10**9 + at)
        times.at_ms.pop(b"lock")
    assert len(times._queue) <= 2 * 2 + 1024
    assert times.next_ms() == 10**9 - 99_999


def with_stale_queue() -> Driver:
    """ "a" expires after "b", but the queue of times still has it before."""
    run = Driver()
    run("SET", "a", 1, "PX", 1000)
    run("SET", "b", 1, "PX", 1500)
    run("PEXPIRE", "a", 2000)
    for number in range(300):  # a and b are in no generation of versions any more
        run("SET", f"k{number}", 1)
    return run


@pytest.mark.parametrize("how", ["asks for the next time", "was restored"])
def test_a_leader_and_a_restored_node_agree_with_the_others_on_what_expires_together(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a leader asks when the next key is due, which puts its queue right; so does loading a snapshot.
    The order in which keys go is that of their versions: a difference would end a healthy node."""
    monkeypatch.setattr(versions, "GENERATION_KEYS", 100)
    run, other = with_stale_queue(), with_stale_queue()
    if how == "was restored":
        other.machine = Machine.load("test", list(other.machine.dump()))
    else:
        assert other.machine.next_expiry_ms() == START_MS + 1500
    for driver in (run, other):
        driver.now_ms = START_MS + 3000
        driver("~EXPIRE")
    assert run.machine.digest() == other.machine.digest()


ACTIONS = st.sampled_from(["set", "drop", "due", "next", "clear"])


@settings(max_examples=100)
@given(st.lists(st.tuples(ACTIONS, st.integers(0, 5), st.integers(0, 60))))
def test_the_queue_agrees_with_a_plain_dict(steps: list[tuple[str, int, int]]) -> None:
    times, plain, now = ExpiryTimes(), dict[bytes, int](), 0
    for action, number, amount in steps:
        key = b"%d" % number
        if action == "set":
            times.set(key, now + amount)
            plain[key] = now + amount
        elif action == "drop":
            assert times.at_ms.pop(key, None) == plain.pop(key, None)
        elif action == "due":
            now += amount
            due = sorted((at, each) for each, at in plain.items() if at <= now)
            assert times.take_due(now) == [each for _, each in due]
            plain = {each: at for each, at in plain.items() if at > now}
        elif action == "clear":
            times.clear()
            plain.clear()
        assert times.at_ms == plain
        assert times.next_ms() == min(plain.values(), default=None)


def test_many_keys_at_once_let_other_threads_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a long command does."""
    breaths: list[None] = []
    monkeypatch.setattr(expiry, "breathe", lambda: breaths.append(None))
    times = ExpiryTimes()
    for number in range(5000):
        times.set(b"%d" % number, number % 7)
    assert len(times.take_due(10)) == 5000
    assert len(breaths) == 4
