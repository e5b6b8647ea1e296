"""Turns: ~TERM first, one system command at a time, and whom silence is blamed on."""

from __future__ import annotations

import json

import pytest
from runtime_support import INTERVAL_MS, TIMEOUT_MIN, Bench, passed_on

from raft.config import Member
from raft.runtime.proposals import GATHER_MS, MAX_ENTRY_BYTES
from raft.transport.node_messages import Pong


def system(bench: Bench) -> list[tuple[bytes, ...]]:
    """The leader's own commands in the log, without JSON."""
    return [
        tuple(word for word in command if not word.startswith((b"{", b"[")))
        for commands in bench.logged()
        for command in commands
        if command[0].startswith(b"~")
    ]


def run_interval(bench: Bench, *, pongs: tuple[int, ...] = (2, 3), step_ms: float = 50) -> None:
    """Time passes until an interval is closed; the peers acknowledge, and answer pings if named."""
    before = len(closes(bench))
    for _ in range(int(INTERVAL_MS / step_ms) + 5):
        bench.clock.now += step_ms
        for peer in (2, 3):
            bench.ack(peer, pongs=peer in pongs)
            if len(closes(bench)) > before:
                return bench.settle()
    raise AssertionError("the interval was not closed")


def closes(bench: Bench) -> list[tuple[bytes, ...]]:
    return [command for command in system(bench) if command[0] == b"~CLOSE"]


def test_term_is_the_first_command_of_every_leadership() -> None:
    bench = Bench()
    bench.submit([b"SET", b"a", b"1"])
    bench.win()
    assert bench.logged()[0][0][0] == b"~TERM"
    bench.settle()
    bench.follow(2, term=bench.state.term + 1)
    before = len(bench.logged())
    bench.win()
    assert bench.logged()[before][0][0] == b"~TERM"


@pytest.mark.parametrize("size", [1, MAX_ENTRY_BYTES])
def test_term_comes_before_a_command_forwarded_in_the_turn_of_the_election(size: int) -> None:
    bench = Bench()
    bench.win((3, passed_on(7, [b"SET", b"a", b"v" * size])))
    bench.turn(after_ms=GATHER_MS)
    names = [command[0] for commands in bench.written() for command in commands]
    assert names == [b"~TERM", b"SET"]
    bench.settle()
    assert bench.machine.kv.values[b"a"] == b"v" * size
    assert bench.desk.load.taken == 0


def test_nothing_is_opened_before_term_is_applied() -> None:
    bench = Bench()
    bench.win()
    for _ in range(5):
        bench.turn()
    assert [command[0] for command in system(bench)] == [b"~TERM"]
    bench.ack()
    bench.turn()
    assert [command[0] for command in system(bench)] == [b"~TERM", b"~OPEN"]


def test_one_command_is_in_the_log_at_a_time() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.clock.now += INTERVAL_MS
    for _ in range(10):
        bench.turn(after_ms=20)
        assert [command[0] for command in system(bench)].count(b"~CLOSE") == 0  # ~OPEN is not applied yet


def test_intervals_follow_each_other_and_name_who_answered() -> None:
    bench = Bench()
    bench.lead()
    run_interval(bench)
    run_interval(bench, pongs=(2,))
    assert closes(bench)[:2] == [
        (b"~CLOSE", b"1", b"1", b"0", b"node-1", b"node-2", b"node-3"),
        (b"~CLOSE", b"2", b"1", b"0", b"node-1", b"node-2"),
    ]
    numbers = [command[1] for command in system(bench) if command[0] == b"~OPEN"]
    assert numbers == [b"1", b"2"]
    assert ("rewards:node-3", "2 missed -5 5") in bench.published


def test_an_answer_to_a_ping_of_the_former_interval_does_not_count() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    late = bench.pings.sent(3, bench.clock.now)
    run_interval(bench, pongs=(2,))
    bench.turn()
    bench.settle()
    assert bench.machine.ledger.open_interval == 2
    bench.turn((3, Pong(late, 0)))
    run_interval(bench, pongs=(2,))
    assert closes(bench)[1] == (b"~CLOSE", b"2", b"1", b"0", b"node-1", b"node-2")


@pytest.mark.parametrize(("pause_ms", "excused"), [(TIMEOUT_MIN - 100, b"0"), (TIMEOUT_MIN + 1, b"1")])
def test_a_pause_of_the_leader_excuses_the_interval(pause_ms: float, excused: bytes) -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    bench.clock.now += pause_ms
    run_interval(bench, pongs=(2,))
    run_interval(bench, pongs=(2,))
    assert [close[3] for close in closes(bench)[:2]] == [excused, b"0"]


def test_a_lost_quorum_excuses_the_interval() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    for _ in range(8):
        bench.turn(after_ms=50)
    run_interval(bench, pongs=(2,))
    assert closes(bench)[0][3] == b"1"


def test_a_new_leader_excuses_what_is_open() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    bench.follow(2, term=bench.state.term + 1)
    bench.lead()
    assert ("rewards:node-2", "1 excused 0 0") in bench.published
    assert bench.machine.ledger.open_interval is None
    bench.turn()
    bench.settle()
    assert bench.machine.ledger.open_interval == 2


def test_keys_expire_through_the_log() -> None:
    bench = Bench()
    bench.lead()
    bench.ask([b"SET", b"a", b"1", b"PX", b"500"])
    bench.settle()
    expires = [command for command in system(bench) if command[0] == b"~EXPIRE"]
    assert not expires
    for _ in range(12):
        bench.clock.now += 50
        bench.ack()
    assert [command for command in system(bench) if command[0] == b"~EXPIRE"] == [(b"~EXPIRE",)]
    assert b"a" not in bench.machine.kv.values
    assert bench.machine.next_expiry_ms() is None


def test_the_worker_sleeps_until_something_is_due() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    due = bench.worker.turns.next_due_ms()
    assert bench.published[-1] == ("turns", f"1 {due}")
    bench.clock.now += due - bench.at_ms - 100
    assert bench.worker._wait_s() == pytest.approx(0.1, abs=0.002)


def members_of(bench: Bench, name: bytes) -> list[str]:
    """The members that the latest command of that name tells of."""
    found = [command for commands in bench.logged() for command in commands if command[0] == name]
    return [member["id"] for member in json.loads(found[-1][-1])]


MORE = (Member(1, "h", 1, 11, 21), Member(2, "h", 2, 12, 22), Member(4, "other", 4, 14, 24))


def test_members_that_changed_are_told_to_the_ledger() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    opened = system(bench)[-1]
    bench.worker.turns.members_changed(MORE[:2])
    bench.worker.turns.members_changed(MORE)
    assert bench.worker._wait_s() <= 0.001
    bench.turn()
    assert not bench.worker.turns.established, "it is in flight"
    bench.settle()
    assert system(bench)[-2:] == [opened, (b"~MEMBERS",)], "once, and nothing is opened or closed"
    assert members_of(bench, b"~MEMBERS") == ["node-1", "node-2", "node-4"]
    counts = bench.machine.ledger.counts()
    assert (counts["active"], counts["left"]) == (3, 1)
    assert bench.machine.ledger.open_interval == 1
    bench.turn()
    bench.turn()
    assert system(bench).count((b"~MEMBERS",)) == 1
    assert bench.worker._wait_s() > 0.01


def test_members_that_change_while_something_is_in_flight_wait() -> None:
    bench = Bench()
    bench.win()
    bench.worker.turns.members_changed(MORE)
    for _ in range(3):
        bench.turn()
    assert [command[0] for command in system(bench)] == [b"~TERM"]
    bench.ack()
    bench.turn()
    assert members_of(bench, b"~MEMBERS") == ["node-1", "node-2", "node-4"]


def test_a_new_term_tells_the_members_of_its_time_and_nothing_older() -> None:
    bench = Bench()
    bench.lead()
    bench.worker.turns.members_changed(MORE)
    bench.follow(2, term=bench.state.term + 1)
    bench.worker.turns._members = lambda: MORE[1:]
    bench.lead()
    bench.turn()
    bench.settle()
    assert members_of(bench, b"~TERM") == ["node-2", "node-4"]
    assert (b"~MEMBERS",) not in system(bench)


def test_a_leader_alone_opens_and_closes_too() -> None:
    bench = Bench(voters=1)
    bench.win()
    for _ in range(60):
        bench.turn(after_ms=50)
    assert closes(bench)[0] == (b"~CLOSE", b"1", b"1", b"0", b"node-1")
