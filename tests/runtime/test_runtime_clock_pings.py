"""LogClock, PingBoard and Load: small, and everything leans on them."""

from __future__ import annotations

import threading

from runtime_support import FakeClock

from raft.runtime.clock import LogClock, SystemClock
from raft.runtime.load import Load
from raft.runtime.pings import REMEMBERED_PINGS, PingBoard


def stamps(clock: FakeClock, log_clock: LogClock, count: int, applied: int = 0) -> list[int]:
    found = []
    for _ in range(count):
        clock.now += 100
        found.append(log_clock.stamp(clock.now, applied))
    return found


def test_the_logs_time_is_the_wall_clock() -> None:
    clock = FakeClock()
    log_clock = LogClock(clock)
    for _ in range(10):
        clock.now += 100
        assert log_clock.stamp(clock.now, 0) == clock.wall_ms()


def test_a_wall_clock_set_back_slows_the_logs_time_and_never_turns_it_back() -> None:
    clock = FakeClock()
    log_clock = LogClock(clock)
    (before,) = stamps(clock, log_clock, 1)
    clock.wall_offset_ms = -10_000
    found = stamps(clock, log_clock, 150)
    assert found[:3] == [before + 50, before + 100, before + 150]
    assert found == sorted(found)
    clock.now += 100_000
    assert log_clock.stamp(clock.now, 0) == clock.wall_ms(), "it has been caught up with"


def test_a_wall_clock_that_leapt_ahead_for_a_moment_does_not_shift_the_logs_time_for_good() -> None:
    clock = FakeClock()
    log_clock = LogClock(clock)
    clock.wall_offset_ms = 60_000
    (ahead,) = stamps(clock, log_clock, 1)
    clock.wall_offset_ms = 0
    found = stamps(clock, log_clock, 1300)
    assert found[0] == ahead + 50
    assert found[-1] == clock.wall_ms()


def test_a_leaders_time_begins_where_the_log_is() -> None:
    clock = FakeClock()
    log_clock = LogClock(clock)
    applied = clock.wall_ms() + 5000
    found = stamps(clock, log_clock, 3, applied)
    assert found == [applied, applied + 50, applied + 100]


def test_the_machines_clocks() -> None:
    clock = SystemClock()
    assert clock.monotonic_ms() <= clock.monotonic_ms()
    assert clock.wall_ms() > 1_700_000_000_000


# --- pings --------------------------------------------------------------------------------------------


def test_a_peer_is_silent_after_three_unanswered_pings_and_no_more_after_an_answer() -> None:
    board = PingBoard()
    nonces = []
    for at in range(3):
        assert not board.silent(2)
        nonces.append(board.sent(2, at))
    assert board.silent(2) and not board.responded(2)
    board.answered(2, nonces[2], 10)
    assert not board.silent(2) and board.responded(2)


def test_a_late_answer_to_an_old_ping_does_not_make_a_peer_silent_again() -> None:
    board = PingBoard()
    nonces = [board.sent(2, at) for at in range(5)]
    board.answered(2, nonces[4], 10)
    board.answered(2, nonces[0], 11)
    assert not board.silent(2)


def test_answers_to_nothing_change_nothing() -> None:
    board = PingBoard()
    board.answered(3, 1, 5)
    assert not board.responded(3)
    nonce = board.sent(2, 0)
    board.answered(2, nonce + 1, 5)
    assert not board.responded(2)
    board.answered(2, nonce, 5)
    board.answered(2, nonce, 500)
    assert board.answered_since(0) == {2}


def test_what_counts_is_when_the_ping_was_sent_not_when_it_was_answered() -> None:
    board = PingBoard()
    early = board.sent(2, 100)
    late = board.sent(3, 200)
    board.answered(2, early, 300)
    board.answered(3, late, 300)
    assert board.answered_since(200) == {3}
    assert board.answered_since(100) == {2, 3}


def test_a_new_leader_begins_with_a_clean_sheet() -> None:
    board = PingBoard()
    for at in range(4):
        board.sent(2, at)
    board.forgive(2)
    board.forgive(9)
    assert not board.silent(2)


def test_unanswered_pings_are_forgotten() -> None:
    board = PingBoard()
    for at in range(10 * REMEMBERED_PINGS):
        board.sent(2, at)
    assert len(board._peers[2].sent_ms) == REMEMBERED_PINGS
    board.answered(2, 1, 5)
    assert board.silent(2)


# --- load ---------------------------------------------------------------------------------------------


def test_load_is_counted_right_by_many_threads() -> None:
    load = Load(10)

    def body() -> None:
        for _ in range(2000):
            if load.take(3):
                load.give_back(3)

    threads = [threading.Thread(target=body) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load.taken == 0


def test_load_takes_up_to_its_limit() -> None:
    load = Load(10)
    assert load.take(9)
    assert not load.take(2)
    assert load.take(1)
    assert not load.take(1)
    load.give_back(10)
    assert load.take(11), "alone, a batch may be larger than the limit: else it could never run"
    assert not load.take(1)
