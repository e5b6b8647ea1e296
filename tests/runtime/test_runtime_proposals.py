"""Proposals and Applier: what gathers becomes bounded entries, applied in bounded pieces, then answered."""

from __future__ import annotations

import random

import pytest
from runtime_support import Bench, encode, is_error, passed_on

from raft.core.entry import Entry, EntryKind
from raft.core.messages import AppendEntries, AppendEntriesResponse
from raft.runtime import proposals as proposals_module
from raft.runtime.applier import COMMANDS_PER_TURN
from raft.runtime.proposals import GATHER_MS, MAX_ENTRY_BYTES, MAX_ENTRY_COMMANDS
from raft.transport.node_messages import Forward, ForwardReply


def test_all_that_arrives_in_a_turn_is_one_entry_and_one_sync() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    before, bench.events[:] = len(bench.logged()), []
    waiters = [bench.submit([b"INCR", b"n"], [b"INCR", b"n"]) for _ in range(10)]
    bench.turn((2, passed_on(1, [b"INCR", b"n"])))
    assert len(bench.logged()) == before + 1
    assert bench.events.count("sync") == 1
    bench.settle()
    assert sorted(waiter.answers[1] for waiter in waiters if waiter.answers) == sorted(
        b":%d\r\n" % (3 + 2 * i) for i in range(10)
    )


def led() -> Bench:
    """It leads, and nothing of it is on its way."""
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    return bench


def test_while_an_entry_is_on_its_way_commands_gather() -> None:
    """Those whom it answers join them; two entries would cost twice the syncs and messages."""
    bench = led()
    first = bench.ask([b"INCR", b"n"])
    before = len(bench.logged())
    assert bench.worker._wait_s() > 0.001
    second = bench.ask([b"INCR", b"n"])
    assert len(bench.logged()) == before and bench.worker._wait_s() == 0.001
    bench.ack()
    assert (first.answer, second.answer, len(bench.logged())) == (b":1\r\n", None, before)
    third = bench.ask([b"INCR", b"n"])
    assert bench.logged()[before:] == [[[b"INCR", b"n"], [b"INCR", b"n"]]]
    bench.settle()
    assert (second.answer, third.answer) == (b":2\r\n", b":3\r\n")


def test_they_gather_for_a_moment_only() -> None:
    """So that a client of a leader with distant peers does not wait for two round trips."""
    bench = led()
    bench.ask([b"INCR", b"n"])
    before = len(bench.logged())
    bench.ask([b"INCR", b"n"])
    bench.turn(after_ms=GATHER_MS / 2)
    assert len(bench.logged()) == before
    bench.turn(after_ms=GATHER_MS / 2)
    assert len(bench.logged()) == before + 1


def test_commands_of_the_leader_itself_do_not_wait_and_take_along_who_does() -> None:
    bench = led()
    bench.ask([b"INCR", b"n"])
    before = len(bench.logged())
    bench.ask([b"INCR", b"n"])
    bench.desk.proposals.add_system([b"~PROJECTED", b"0"])
    bench.turn()
    assert bench.logged()[before:] == [[[b"INCR", b"n"], [b"~PROJECTED", b"0"]]]


def test_what_gathered_goes_to_the_next_leader() -> None:
    """Of what no entry holds nobody needs to hear CLUSTERDOWN; who forwarded it offers it again himself."""
    bench = led()
    logged = bench.ask([b"INCR", b"n"])
    bench.turn((3, passed_on(5, [b"INCR", b"n"])))
    gathered = bench.ask([b"SET", b"a", b"1"], [b"GET", b"a"])
    bench.network.take(Forward, 2)
    bench.follow(2, term=bench.state.term + 1)
    assert is_error(logged.answer, "INDETERMINATE") and gathered.answers is None
    (refused,) = bench.network.take(ForwardReply, 3)
    assert refused.error is not None and refused.error.startswith("CLUSTERDOWN")
    bench.turn(after_ms=1)
    (forward,) = bench.network.take(Forward, 2)
    assert forward.commands == [[b"SET", b"a", b"1"], [b"GET", b"a"]]
    bench.turn((2, ForwardReply(forward.request_id, [b"+OK\r\n", b"$1\r\n1\r\n"])))
    assert gathered.answers == [b"+OK\r\n", b"$1\r\n1\r\n"]
    assert bench.desk.load.taken == 0


def test_what_gathered_before_a_transfer_goes_to_its_target() -> None:
    bench = led()
    bench.ask([b"INCR", b"n"])
    gathered = bench.ask([b"INCR", b"n"])
    before = len(bench.logged())
    assert bench.core.transfer(2, bench.clock.now) is None
    bench.turn(after_ms=GATHER_MS)
    assert len(bench.logged()) == before and gathered.answer is None
    bench.follow(2, term=bench.state.term + 1)
    bench.turn(after_ms=1)
    (forward,) = bench.network.take(Forward, 2)
    assert forward.commands == [[b"INCR", b"n"]]


def test_what_is_left_of_a_turn_that_filled_an_entry_shares_its_sync() -> None:
    bench = led()
    before, bench.events[:] = len(bench.logged()), []
    bench.ask([b"SET", b"a", b"v" * MAX_ENTRY_BYTES], [b"SET", b"b", b"1"])
    assert len(bench.logged()) == before + 2 and bench.events.count("sync") == 1
    bench.turn()
    bench.ask([b"INCR", b"n"])
    assert len(bench.logged()) == before + 2, "the next turn gathers again"


def test_acknowledgements_without_news_do_not_put_off_what_has_gathered_long_enough() -> None:
    bench = led()
    bench.ask([b"INCR", b"n"])
    before = len(bench.logged())
    bench.ask([b"INCR", b"n"])
    for _ in range(5):
        stale = AppendEntriesResponse(bench.state.term, True, 1, 0)
        bench.turn((3, stale), after_ms=GATHER_MS / 4)
    assert len(bench.logged()) == before + 1


def test_a_batch_across_two_entries_is_not_offered_again() -> None:
    bench = led()
    half = b"v" * (MAX_ENTRY_BYTES - 100)
    waiter = bench.ask([b"SET", b"a", half], [b"SET", b"b", half], [b"GET", b"a"])
    bench.follow(2, term=bench.state.term + 1)
    assert waiter.answers is not None and all(is_error(each, "INDETERMINATE") for each in waiter.answers)
    assert bench.desk.load.taken == 0


@pytest.mark.parametrize(
    ("command", "count"),
    [
        pytest.param([b"SET", b"k", b"v" * 1000], 2000, id="values"),
        pytest.param([b"INCR", b"n"], 3 * MAX_ENTRY_COMMANDS, id="short ones"),
        pytest.param([b"DEL", *[b""] * 50_000], 40, id="many empty words"),
        pytest.param([b"DEL", *[b"a"] * 50_000], 40, id="many short words"),
        pytest.param([b"SET", b"k", b"v" * (MAX_ENTRY_BYTES + 1)], 3, id="each larger than an entry"),
    ],
)
def test_entries_stay_within_their_bound(command: list[bytes], count: int) -> None:
    """An entry that no frame can carry would end the leader, and the next one that takes the commands."""
    bench = Bench(max_pending=10**6)
    bench.lead()
    waiters = [bench.submit(*[command] * 10) for _ in range(count // 10 + 1)]
    bench.turn()
    largest = len(encode(0, [command]))
    for entry in bench.storage.log.stored:
        assert len(entry.data) <= MAX_ENTRY_BYTES + largest
    assert all(len(commands) <= MAX_ENTRY_COMMANDS for commands in bench.logged())
    for _ in range(3):
        bench.settle()
    assert all(waiter.times == 1 for waiter in waiters)
    assert bench.desk.load.taken == 0


def test_a_batch_across_two_entries_is_answered_when_both_are_applied() -> None:
    bench = Bench()
    bench.lead()
    half = b"v" * (MAX_ENTRY_BYTES - 100)
    waiter = bench.ask([b"SET", b"a", half], [b"SET", b"b", half], [b"GET", b"a"])
    assert waiter.answers is None
    bench.settle()
    assert waiter.answers is not None and len(waiter.answers) == 3
    assert bench.desk.load.taken == 0


def test_a_failed_command_of_the_leader_itself_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.lead()
    bench.desk.proposals.add_system([b"~PROJECTED", b"99999"])
    bench.turn()
    bench.settle()
    assert "a command of the leader itself failed" in caplog.text


def test_replies_are_errors_of_the_machine_word_for_word() -> None:
    bench = Bench()
    bench.lead()
    waiter = bench.ask([b"SET", b"a", b"x"], [b"INCR", b"a"])
    bench.settle()
    assert waiter.answers == [b"+OK\r\n", b"-ERR value is not an integer or out of range\r\n"]


# --- applying -----------------------------------------------------------------------------------------


def stored(entries: int, commands: int, *, size: int = 1) -> list[Entry]:
    return [
        Entry(
            i + 1,
            1,
            EntryKind.COMMANDS,
            encode(1000 + i, [[b"SET", b"%d" % j, b"v" * size] for j in range(commands)]),
        )
        for i in range(entries)
    ]


@pytest.mark.parametrize(("entries", "commands", "size"), [(60, 1000, 1), (9000, 1, 1), (40, 1, 200_000)])
def test_a_restarted_node_applies_a_bounded_piece_per_turn(entries: int, commands: int, size: int) -> None:
    """Counted in commands and bytes, not in entries: an entry may hold thousands of commands."""
    bench = Bench(log=stored(entries, commands, size=size), term=1)
    turns = 0
    beat = AppendEntries(1, 2, entries, 1, (), entries, 1)
    before = 0
    while bench.machine.applied_index < entries:
        bench.turn((2, beat))
        applied = bench.machine.applied_index - before
        assert applied
        assert applied * commands <= 2 * COMMANDS_PER_TURN
        assert applied == 1 or applied * size <= 1 << 20
        before += applied
        turns += 1
        assert bench.worker._wait_s() == 0.0 or before == entries
    assert turns > 1


def test_a_leader_applies_what_came_before_it_and_then_answers() -> None:
    bench = Bench(log=stored(30, 1000), term=1)
    bench.win()
    waiter = bench.ask([b"GET", b"999"], [b"SET", b"x", b"y"])
    for _ in range(40):
        bench.ack()
    assert waiter.answers == [b"$1\r\nv\r\n", b"+OK\r\n"]
    assert bench.desk.load.taken == 0


def test_what_a_restart_applies_again_is_not_published_again() -> None:
    first = Bench()
    first.lead()
    first.turn()
    first.settle()
    old = [news for news in first.published if news[0] == "turns"]
    again = Bench(log=first.storage.log.stored, term=first.state.term)
    again.follow(2, term=again.state.term)
    assert again.machine.applied_index == first.machine.applied_index
    assert old and again.published == []
    again.replicate([b"FOLLOWER", b"JOIN", b"f", b"1.0"])
    assert again.published == [("cluster", "joined f")]


def test_followers_and_leader_reach_the_same_state() -> None:
    leader = Bench()
    leader.lead()
    for i in range(5):
        leader.ask([b"SET", b"k%d" % i, b"v", b"PX", b"100000"], [b"FOLLOWER", b"JOIN", b"f%d" % i, b"1.0"])
        leader.settle()
    follower = Bench(log=leader.storage.log.stored, term=leader.state.term)
    follower.follow(2, term=follower.state.term)
    assert follower.machine.applied_index == leader.machine.applied_index
    assert follower.machine.digest() == leader.machine.digest()


@pytest.mark.parametrize("seed", range(30))
def test_batches_cut_into_entries_are_answered_in_order_as_far_as_they_came(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leadership ends with some of the entries committed: each command has its own answer, or none knows."""
    monkeypatch.setattr(proposals_module, "MAX_ENTRY_COMMANDS", 8)
    rng = random.Random(seed)
    bench = Bench()
    bench.lead()
    sizes = [rng.choice((1, 1, 2, 3, 7, 8, 9, 20)) for _ in range(8)]
    first = bench.state.log.last_index + 1
    waiters = [bench.submit(*[[b"APPEND", b"%d" % n, b"x"]] * size) for n, size in enumerate(sizes)]
    bench.turn()
    last = bench.state.log.last_index
    assert all(len(commands) <= 8 for commands in bench.logged(first))
    match = rng.randint(first - 1, last)
    committed = sum(len(commands) for commands in bench.logged(first)[: match - first + 1])
    bench.turn((2, AppendEntriesResponse(bench.state.term, True, match, bench.state.round)))
    bench.follow(2)
    for size, waiter in zip(sizes, waiters, strict=True):
        assert waiter.times == 1 and waiter.answers is not None
        known, committed = min(size, committed), committed - min(size, committed)
        assert waiter.answers[:known] == [b":%d\r\n" % (1 + n) for n in range(known)]
        assert len(waiter.answers) == size
        assert all(is_error(answer, "INDETERMINATE") for answer in waiter.answers[known:])
    assert bench.desk.load.taken == 0
