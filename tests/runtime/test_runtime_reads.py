"""Reads: linearizable through a read index, retried when a leader goes, careful with leases."""

from __future__ import annotations

import pytest
from runtime_support import TIMEOUT_MAX, TIMEOUT_MIN, Bench, is_error

from raft.clients.batch import Batch
from raft.core.messages import AppendEntriesResponse, ReadIndexRequest, ReadIndexResponse
from raft.core.state import Role
from raft.machine.commands import COMMANDS, SLOW_READS, Kind
from raft.runtime.desk import _may_be_special
from raft.runtime.reads import is_slow

GET = [b"GET", b"a"]


def leader(*, lease_reads: bool = False) -> Bench:
    bench = Bench(lease_reads=lease_reads)
    bench.lead()
    bench.ask([b"SET", b"a", b"1"])
    bench.settle()
    return bench


def test_a_leader_answers_only_after_a_quorum_has_confirmed_it() -> None:
    bench = leader()
    waiter = bench.ask(GET)
    bench.turn()
    assert waiter.answer is None
    bench.ack(3)
    assert waiter.answer == b"$1\r\n1\r\n"
    assert bench.desk.load.taken == 0


def test_an_answer_to_an_earlier_round_confirms_nothing() -> None:
    bench = leader()
    term, sent, last = bench.state.term, bench.state.round, bench.state.log.last_index
    waiter = bench.ask(GET)
    bench.turn((2, AppendEntriesResponse(term, True, last, sent)))
    assert waiter.answer is None


def test_a_deposed_leader_never_answers_from_its_own_state() -> None:
    bench = leader()
    waiter = bench.ask(GET)
    bench.follow(3, term=bench.state.term + 1)
    assert waiter.answer is None
    bench.turn(after_ms=21)
    (question,) = bench.network.take(ReadIndexRequest, 3)
    bench.replicate([b"SET", b"a", b"2"], leader=3)
    bench.turn(
        (3, ReadIndexResponse(bench.state.term, question.request_id, bench.state.log.last_index, True))
    )
    assert waiter.answer == b"$1\r\n2\r\n"
    assert bench.desk.load.taken == 0


def test_a_leader_without_a_quorum_refuses_in_time() -> None:
    bench = leader()
    asked_at = bench.clock.now
    waiter = bench.ask(GET)
    while waiter.answer is None:
        bench.turn(after_ms=10)
        assert bench.clock.now - asked_at < 2 * TIMEOUT_MAX
    assert is_error(waiter.answer, "CLUSTERDOWN")


def test_a_follower_waits_until_it_has_applied_the_read_index() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiter = bench.ask(GET)
    (question,) = bench.network.take(ReadIndexRequest, 2)
    bench.turn((2, ReadIndexResponse(1, question.request_id, 1, True)))
    assert waiter.answer is None
    bench.replicate([b"SET", b"a", b"1"])
    assert waiter.answer == b"$1\r\n1\r\n"


def test_a_follower_whose_machine_never_gets_there_refuses_in_time() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiter = bench.ask(GET)
    (question,) = bench.network.take(ReadIndexRequest, 2)
    bench.turn((2, ReadIndexResponse(1, question.request_id, 99, True)))
    for _ in range(70):
        bench.turn((2, bench.heartbeat()), after_ms=10)
    assert is_error(waiter.answer, "CLUSTERDOWN")
    assert bench.desk.load.taken == 0
    assert bench.desk.reads.next_deadline() == float("inf")


def test_reads_of_one_turn_share_a_read_index() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiters = [bench.submit(GET) for _ in range(20)]
    bench.turn()
    (question,) = bench.network.take(ReadIndexRequest, 2)
    bench.turn((2, ReadIndexResponse(1, question.request_id, 0, True)))
    assert [waiter.answer for waiter in waiters] == [b"$-1\r\n"] * 20


def test_a_read_index_for_nobody_changes_nothing() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    bench.turn((2, ReadIndexResponse(1, 4711, 0, True)), (2, ReadIndexResponse(1, 4711, 0, False)))
    assert bench.desk.load.taken == 0


def test_reads_in_a_pipeline_with_writes_keep_their_place() -> None:
    bench = leader()
    waiter = bench.ask(GET, [b"SET", b"a", b"2"], GET)
    bench.settle()
    assert waiter.answers == [b"$1\r\n1\r\n", b"+OK\r\n", b"$1\r\n2\r\n"]


# --- leases -------------------------------------------------------------------------------------------


def test_within_its_lease_a_leader_answers_in_the_same_turn() -> None:
    bench = leader(lease_reads=True)
    assert bench.ask(GET).answer == b"$1\r\n1\r\n"


def test_after_its_lease_a_leader_asks_its_quorum() -> None:
    bench = leader(lease_reads=True)
    waiter = bench.submit(GET)
    bench.turn(after_ms=TIMEOUT_MIN)
    assert waiter.answer is None
    bench.ack()  # of the heartbeat that this turn began with
    bench.ack()
    assert waiter.answer == b"$1\r\n1\r\n"


def test_a_pause_between_the_look_at_the_lease_and_the_read_spoils_the_read() -> None:
    """Thesis 6.4.1: the client may have sent its read after the pause, when another already led."""
    bench = leader(lease_reads=True)
    waiter = bench.submit(GET)
    serve = bench.desk.reads.serve

    def paused(wall_ms: int) -> None:
        bench.lease_wait(TIMEOUT_MIN)
        serve(wall_ms)

    bench.desk.reads.serve = paused  # type: ignore[method-assign]
    bench.turn()
    assert waiter.answer is None
    bench.desk.reads.serve = serve  # type: ignore[method-assign]
    bench.follow(3, term=bench.state.term + 1)
    bench.replicate([b"SET", b"a", b"2"], leader=3)
    bench.turn(after_ms=21)
    questions = bench.network.take(ReadIndexRequest, 3)
    index = bench.state.log.last_index
    bench.turn(*[(3, ReadIndexResponse(2, question.request_id, index, True)) for question in questions])
    assert waiter.answer == b"$1\r\n2\r\n"


@pytest.mark.parametrize("lease_reads", [True, False])
def test_a_lease_that_confirmed_a_read_ends_with_its_leadership(lease_reads: bool) -> None:
    """Confirmed by the lease, not yet applied, then deposed: the look at the lease would find none to end."""
    bench = leader(lease_reads=lease_reads)
    bench.desk.reads.serve = lambda _wall_ms: None  # type: ignore[method-assign]  # the machine is behind
    waiter = bench.ask(GET)
    bench.ack()
    assert bench.desk.reads._confirmed
    del bench.desk.reads.serve
    bench.follow(3, term=bench.state.term + 1)
    assert bench.state.role is Role.FOLLOWER
    assert waiter.answer == (None if lease_reads else b"$1\r\n1\r\n")


def test_a_leader_whose_transfer_failed_goes_on_serving_reads() -> None:
    """Its lease is void for the rest of the term: a quorum confirms each read, and none is thrown away."""
    bench = leader(lease_reads=True)
    assert bench.core.transfer(2, bench.clock.now) is None
    bench.turn()
    bench.turn(after_ms=TIMEOUT_MAX / 2)
    bench.ack()
    bench.turn(after_ms=TIMEOUT_MAX / 2 + 1)
    assert bench.state.role is Role.LEADER and bench.state.transfer_target is None and bench.state.lease_void
    bench.ack()
    waiter = bench.ask(GET)
    bench.ack()
    bench.ack()
    assert waiter.answer == b"$1\r\n1\r\n"


def test_a_transfer_spoils_what_the_lease_had_confirmed() -> None:
    """The target may have won, and taken writes, before the machine is there to be read (openraft 1749)."""
    bench = leader(lease_reads=True)
    serve = bench.desk.reads.serve
    bench.desk.reads.serve = lambda _wall_ms: None  # type: ignore[method-assign]  # the machine is behind
    waiter = bench.ask(GET)
    assert bench.desk.reads._confirmed
    assert bench.core.transfer(2, bench.clock.now) is None
    assert bench.state.lease_void
    bench.desk.reads.serve = serve  # type: ignore[method-assign]
    bench.turn()
    assert waiter.answer is None


def test_slow_reads_are_answered_one_a_turn_so_that_heartbeats_come_between() -> None:
    bench = leader()
    waiters = [bench.submit([b"KEYS", b"*"]) for _ in range(3)]
    plain = bench.submit(GET)
    bench.turn()
    bench.ack(3)
    assert [waiter.answer is not None for waiter in waiters] == [True, False, False]
    assert bench.desk.reads.unfinished
    bench.turn()
    assert [waiter.answer is not None for waiter in waiters] == [True, True, False]
    bench.turn()
    assert all(waiter.answer for waiter in waiters)
    bench.turn()
    assert plain.answer == b"$1\r\n1\r\n"
    assert not bench.desk.reads.unfinished
    assert bench.desk.load.taken == 0


def test_what_is_slow_or_goes_round_the_log_is_known_by_its_first_letter() -> None:
    """The short looks of is_slow and Desk._route: a command added to the tables must not slip past them."""
    done: list[list[bytes]] = []
    for name in (word for each in SLOW_READS for word in (each, each.lower(), each.title())):
        assert is_slow(Batch.of_commands([[name, b"x"]], 0, 2, done.append))
    for spec in COMMANDS.values():
        words = spec.name.split()
        special = spec.kind is Kind.CONTROL
        for args in (words, [word.lower() for word in words]):
            if special:
                assert _may_be_special(Batch.of_commands([args], 1, 2, done.append))
