"""Forwarding: one hop to the leader, and what a peer may make the leader take."""

from __future__ import annotations

import pytest
from runtime_support import TIMEOUT_MAX, Bench, Waiter, is_error, passed_on

from raft.replies import Error
from raft.runtime.passed import MAX_COMMANDS, MAX_REPLY_BYTES, TOO_LARGE, within_a_frame
from raft.transport.frames import MAX_PAYLOAD_BYTES
from raft.transport.node_messages import Forward, ForwardReply

SET = [b"SET", b"a", b"1"]


def give_up(bench: Bench, waiter: Waiter) -> None:
    """Nothing answers until the client hears INDETERMINATE."""
    due = bench.clock.now + 2 * TIMEOUT_MAX
    while waiter.answers is None:
        assert bench.clock.now <= due
        bench.turn((2, bench.heartbeat()), after_ms=20)
    assert all(is_error(answer, "INDETERMINATE") for answer in waiter.answers)


def test_a_node_that_does_not_lead_refuses_and_forwards_nothing() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    bench.turn((3, passed_on(5, SET)))
    (reply,) = bench.network.take(ForwardReply, 3)
    assert reply.request_id == 5 and reply.error is not None and reply.error.startswith("CLUSTERDOWN")
    assert bench.network.take(Forward) == []
    assert bench.desk.load.taken == 0


@pytest.mark.parametrize(
    ("protocol", "commands"),
    [
        pytest.param(2, [], id="no command"),
        pytest.param(2, [[]], id="an empty command"),
        pytest.param(2, [SET, [b"NOSUCH", b"a"]], id="unknown here"),
        pytest.param(2, [SET, [b"REWARD", b"NOSUCH"]], id="unknown subcommand"),
        pytest.param(2, [[b"REWARD"]], id="a container alone"),
        pytest.param(2, [[b"SET", b"a"]], id="too few words"),
        pytest.param(2, [[b"~OPEN", b"1", b"1", b"1", b"{}"]], id="a leader's own command"),
        pytest.param(2, [[b"PING"]], id="nothing for the machine"),
        pytest.param(2, [[b"MULTI"]], id="not supported yet"),
        pytest.param(2, [[b"RAFT", b"TRANSFER"]], id="for the leader itself"),
        pytest.param(2, [SET, [b"RAFT", b"DIGEST"]], id="what goes alone"),
        pytest.param(2, [[b"~ONCE", b"~2.peer.2", b"1", b"\x91\x91\xc4\x04PING"]], id="a lane in a lane"),
        pytest.param(2, [[b"ONCE", b"~2.peer.2", b"1", *SET]], id="a lane as a session"),
        pytest.param(2, [[b"~EXEC", b"rubbish"]], id="no transaction"),
        pytest.param(7, [SET], id="another protocol"),
        pytest.param(2, [SET] * (MAX_COMMANDS + 1), id="too many"),
    ],
)
def test_what_the_machine_does_not_know_never_gets_into_the_log(
    protocol: int, commands: list[list[bytes]]
) -> None:
    """An entry that the machine cannot apply would stop every node, at every start again."""
    bench = Bench(max_pending=10_000)
    bench.lead()
    bench.turn()
    bench.settle()
    before = len(bench.storage.log.stored)
    bench.turn((2, Forward(5, protocol, commands, b"~2.peer.1", 1)))
    (reply,) = bench.network.take(ForwardReply, 2)
    assert reply.error is not None and reply.error.startswith("ERR ")
    assert len(bench.storage.log.stored) == before
    assert bench.desk.load.taken == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_leader_answers_in_the_clients_protocol(protocol: int) -> None:
    bench = Bench()
    bench.lead()
    bench.turn(
        (2, passed_on(5, SET, [b"get", b"nothing"], [b"fOLLOWER", b"info", b"node-1"], protocol=protocol))
    )
    bench.settle()
    (reply,) = bench.network.take(ForwardReply, 2)
    assert reply.replies[0] == b"+OK\r\n"
    assert reply.replies[1] == (b"$-1\r\n" if protocol == 2 else b"_\r\n")
    assert reply.replies[2][:1] == (b"*" if protocol == 2 else b"%")


def test_a_busy_leader_says_so() -> None:
    bench = Bench(max_pending=2)
    bench.lead()
    bench.submit(SET, SET)
    bench.turn((2, passed_on(5, SET)))
    (reply,) = bench.network.take(ForwardReply, 2)
    assert reply.error is not None and reply.error.startswith("BUSY")


def test_busy_and_other_refusals_reach_the_client() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiter = bench.ask(SET, SET)
    (forward,) = bench.network.take(Forward, 2)
    bench.turn((2, ForwardReply(forward.request_id, [], "BUSY for\r\nnow")))
    assert waiter.answers == [b"-BUSY for  now\r\n"] * 2
    assert bench.desk.load.taken == 0


@pytest.mark.parametrize("replies", [[], [b"+OK\r\n"], [b"+OK\r\n"] * 3])
def test_the_wrong_number_of_replies_leaves_the_outcome_unknown(replies: list[bytes]) -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiter = bench.ask(SET, SET)
    (forward,) = bench.network.take(Forward, 2)
    bench.turn((2, ForwardReply(forward.request_id, replies)))
    assert waiter.answers is not None
    assert all(is_error(answer, "INDETERMINATE") for answer in waiter.answers)


def test_replies_of_another_node_and_late_ones_find_nobody() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiter = bench.ask(SET)
    (forward,) = bench.network.take(Forward, 2)
    bench.turn((3, ForwardReply(forward.request_id, [b"+NO\r\n"])), (2, ForwardReply(1, [b"+NO\r\n"])))
    assert waiter.answer is None
    give_up(bench, waiter)
    bench.turn((2, ForwardReply(forward.request_id, [b"+OK\r\n"])))
    assert waiter.times == 1
    assert bench.desk.load.taken == 0


def test_a_silent_leader_leaves_the_outcome_unknown_after_two_timeouts() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiter = bench.ask(SET)
    due = bench.clock.now + 2 * TIMEOUT_MAX
    assert bench.desk.next_deadline() == due
    while bench.clock.now + 20 < due:
        bench.turn((2, bench.heartbeat()), after_ms=10)
        assert waiter.answer is None
    bench.turn((2, bench.heartbeat()), after_ms=25)
    assert is_error(waiter.answer, "INDETERMINATE")
    assert bench.desk.next_deadline() == float("inf")


def test_a_forwarded_command_fails_with_the_leadership_that_took_it() -> None:
    bench = Bench()
    bench.lead()
    bench.turn((2, passed_on(5, SET)))
    bench.follow(3, term=2)
    (reply,) = bench.network.take(ForwardReply, 2)
    assert reply.error is not None and reply.error.startswith("INDETERMINATE")
    assert bench.desk.load.taken == 0


def test_what_was_not_proposed_yet_was_not_executed() -> None:
    """The command and the end of the leadership come in one turn: nothing of it gets into the log."""
    bench = Bench()
    bench.lead()
    before = len(bench.storage.log.stored)
    bench.turn((2, passed_on(5, SET)), (3, bench.heartbeat(3, 2)))
    (reply,) = bench.network.take(ForwardReply, 2)
    assert reply.error is not None and reply.error.startswith("CLUSTERDOWN")
    assert len(bench.storage.log.stored) == before
    assert bench.desk.load.taken == 0


@pytest.mark.parametrize("count", [1, 1024, MAX_COMMANDS])
@pytest.mark.parametrize("size", [0, 5, MAX_REPLY_BYTES // 1000, MAX_REPLY_BYTES + 1])
def test_answers_fit_into_a_frame(count: int, size: int) -> None:
    reply = b"x" * size
    replies = within_a_frame([reply] * count)
    assert len(replies) == count
    assert sum(len(reply) + 5 for reply in replies) < MAX_PAYLOAD_BYTES - 1024
    assert all(each is reply or each is TOO_LARGE for each in replies)
    if count * (size + len(TOO_LARGE)) <= MAX_REPLY_BYTES:
        assert TOO_LARGE not in replies


def test_a_small_answer_behind_a_large_one_still_fits() -> None:
    assert within_a_frame([b"a", b"x" * MAX_REPLY_BYTES, b"b"]) == [b"a", TOO_LARGE, b"b"]


def test_a_huge_answer_is_passed_on_as_an_error() -> None:
    bench = Bench()
    bench.lead()
    for _ in range(6):
        bench.ask([b"APPEND", b"a", b"x" * (3 << 20)])
    bench.turn((2, passed_on(5, [b"GETDEL", b"a"])))
    bench.settle()
    assert bench.network.take(ForwardReply, 2) == [ForwardReply(5, [TOO_LARGE])]
    assert Error(TOO_LARGE.decode()[1:]).startswith("ERR the command was executed")
