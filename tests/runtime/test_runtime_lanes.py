"""Lanes: what was passed on may be sent again, is carried out once, and its clients hear the first answer."""

from __future__ import annotations

import random

import pytest
from runtime_support import TIMEOUT_MAX, Bench, Waiter, is_error, passed_on

from raft.core.messages import RequestVoteResponse
from raft.core.state import Role
from raft.machine.batch import encode_commands
from raft.machine.machine import Machine
from raft.machine.sessions import KEPT
from raft.runtime.errors import BUSY, NOT_LEADER, NOT_TAKEN, UNKNOWN, UNKNOWN_COMMAND
from raft.runtime.lanes import LANES, MAX_JOINED_BYTES, RETRY_MS
from raft.transport.node_messages import Forward, ForwardReply

INCR = [b"INCR", b"n"]


def following(leader: int = 2, **options: int) -> Bench:
    bench = Bench(**options)  # type: ignore[arg-type]
    bench.follow(leader, term=1)
    return bench


def sent(bench: Bench, peer: int = 2) -> Forward:
    (forward,) = bench.network.take(Forward, peer)
    return forward


def refuse(bench: Bench, forward: Forward, error: str, peer: int = 2) -> None:
    bench.turn((peer, ForwardReply(forward.request_id, [], error)))


def logged(forward: Forward) -> list[bytes]:
    """What the leader's log holds of it."""
    return [b"~ONCE", forward.lane, b"%d" % forward.number, encode_commands(forward.commands)]


# --- the usual way ------------------------------------------------------------------------------------


def test_what_arrives_in_a_turn_goes_in_one_message_and_each_client_gets_its_own_answers() -> None:
    bench = following()
    waiters = [bench.submit(*[INCR] * count) for count in (1, 3, 2)]
    bench.turn()
    forward = sent(bench)
    assert forward.commands == [INCR] * 6
    bench.turn((2, ForwardReply(forward.request_id, [b":%d\r\n" % n for n in range(1, 7)])))
    assert [waiter.answers for waiter in waiters] == [
        [b":1\r\n"], [b":2\r\n", b":3\r\n", b":4\r\n"], [b":5\r\n", b":6\r\n"],
    ]  # fmt: skip
    assert bench.desk.load.taken == 0
    assert bench.desk.next_deadline() == float("inf")


def test_clients_of_two_protocols_share_no_message() -> None:
    bench = following()
    for protocol in (2, 2, 3, 2):
        assert bench.desk.submit(bench.client(INCR, protocol=protocol).batch)
    bench.turn()
    forwards = bench.network.take(Forward, 2)
    assert [(forward.protocol, len(forward.commands)) for forward in forwards] == [(2, 2), (3, 1), (2, 1)]
    assert len({forward.lane for forward in forwards}) == 3


def test_large_commands_share_no_message() -> None:
    bench = following()
    for _ in range(3):
        bench.submit([b"SET", b"k", b"v" * MAX_JOINED_BYTES])
    bench.turn()
    assert [len(forward.commands) for forward in bench.network.take(Forward, 2)] == [1, 1, 1]


def test_a_client_alone_uses_one_lane_with_rising_numbers() -> None:
    bench = following()
    used = []
    for _ in range(5):
        bench.ask(INCR)
        forward = sent(bench)
        used.append((forward.lane, forward.number))
        bench.turn((2, ForwardReply(forward.request_id, [b":1\r\n"])))
    assert used == [(used[0][0], number) for number in range(1, 6)]
    assert used[0][0].startswith(b"~1.bench.")


def test_with_all_lanes_busy_the_rest_goes_together_when_one_is_free() -> None:
    bench = following()
    for _ in range(LANES):
        bench.ask(INCR)
    forwards = bench.network.take(Forward, 2)
    assert len({forward.lane for forward in forwards}) == LANES
    late = [bench.ask(INCR) for _ in range(10)]
    assert bench.network.take(Forward) == []
    bench.turn((2, ForwardReply(forwards[3].request_id, [b":1\r\n"])))
    joined = sent(bench)
    assert (joined.lane, joined.number) == (forwards[3].lane, forwards[3].number + 1)
    assert joined.commands == [INCR] * 10
    bench.turn((2, ForwardReply(joined.request_id, [b":1\r\n"] * 10)))
    assert all(waiter.answer == b":1\r\n" for waiter in late)


def test_what_never_left_for_want_of_a_lane_was_certainly_not_executed() -> None:
    bench = following(max_pending=10_000)
    large = [b"SET", b"k", b"v" * MAX_JOINED_BYTES]
    waiters = [bench.submit(large) for _ in range(LANES + 1)]
    while waiters[-1].answer is None:
        bench.turn((2, bench.heartbeat()), after_ms=10)
    assert all(is_error(waiter.answer, "INDETERMINATE") for waiter in waiters[:-1])
    assert waiters[-1].answer == b"-" + NOT_TAKEN.encode() + b"\r\n"
    assert len(bench.network.take(Forward, 2)) == LANES
    assert bench.desk.load.taken == 0


def test_lanes_that_were_given_up_go_on_with_the_next_number() -> None:
    bench = following()
    first = [bench.ask(INCR) for _ in range(LANES)]
    bench.turn(after_ms=300)
    late = bench.ask(INCR)
    forwards = bench.network.take(Forward, 2)
    while first[-1].answer is None:
        bench.turn((2, bench.heartbeat()), after_ms=10)
    assert late.answer is None
    assert bench.desk.next_deadline() <= bench.clock.now
    bench.turn()
    following_up = sent(bench)
    (same,) = [forward for forward in forwards if forward.lane == following_up.lane]
    assert following_up.number == same.number + 1
    bench.turn((2, ForwardReply(following_up.request_id, [b":9\r\n"])))
    assert late.answer == b":9\r\n"


# --- the leader is lost -------------------------------------------------------------------------------


def test_the_next_leader_gets_the_same_again_and_the_client_the_real_answer() -> None:
    """BUGS 53 from the other side: same lane and number, so that it is one execution."""
    bench = following()
    waiter = bench.ask(INCR)
    first = sent(bench)
    bench.follow(3, term=2)
    again = sent(bench, 3)
    assert (again.lane, again.number, again.commands) == (first.lane, first.number, first.commands)
    assert waiter.answer is None
    bench.turn((3, ForwardReply(again.request_id, [b":7\r\n"])))
    assert waiter.answer == b":7\r\n"
    assert bench.desk.load.taken == 0


def test_the_answer_of_the_first_leader_counts_as_long_as_the_client_waits() -> None:
    bench = following()
    waiter = bench.ask(INCR)
    first = sent(bench)
    bench.follow(3, term=2)
    again = sent(bench, 3)
    bench.turn((2, ForwardReply(first.request_id, [b":7\r\n"])))
    assert waiter.answer == b":7\r\n"
    bench.turn((3, ForwardReply(again.request_id, [b":7\r\n"])))
    assert waiter.times == 1


def test_a_broken_connection_is_no_loss_if_the_leader_is_back_in_time() -> None:
    bench = following()
    waiter = bench.ask(INCR)
    first = sent(bench)
    bench.network.disconnects, bench.network.away = [3], {3}
    bench.turn()
    assert bench.network.take(Forward) == []  # not its leader
    bench.network.disconnects, bench.network.away = [2], {2}
    for _ in range(5):
        bench.turn(after_ms=RETRY_MS)
    assert bench.network.take(Forward) == []
    bench.network.away = set()
    bench.turn(after_ms=RETRY_MS + 1)
    again = sent(bench)
    assert (again.lane, again.number) == (first.lane, first.number)
    bench.turn((2, ForwardReply(again.request_id, [b":1\r\n"])))
    assert waiter.answer == b":1\r\n"


def win(bench: Bench) -> None:
    """Elected in time: a killed leader is found out by its broken connection."""
    bench.turn(after_ms=bench.state.election_deadline_ms - bench.clock.now)
    bench.turn((3, RequestVoteResponse(bench.state.term + 1, True, True)))
    bench.turn((3, RequestVoteResponse(bench.state.term, True)))
    assert bench.state.role is Role.LEADER


@pytest.mark.parametrize("in_the_log", [False, True])
def test_the_node_that_passed_it_on_may_be_the_next_leader(in_the_log: bool) -> None:
    bench = following()
    bench.replicate([b"SET", b"n", b"40"])
    waiter = bench.ask(INCR, [b"GET", b"n"])
    forward = sent(bench)
    if in_the_log:
        bench.replicate(logged(forward))
    win(bench)
    assert waiter.answers is None
    bench.settle()
    assert waiter.answers == [b":41\r\n", b"$2\r\n41\r\n"]
    assert bench.machine.kv.values[b"n"] == b"41"
    assert sum(logged(forward) in commands for commands in bench.logged()) == 1 + in_the_log
    assert bench.desk.load.taken == 0


def test_a_repeat_whose_first_copy_is_in_the_same_log_is_proposed_again_and_both_get_one_answer() -> None:
    bench = Bench()
    bench.lead()
    bench.turn((2, passed_on(1, INCR)), (2, passed_on(2, INCR)))
    copies = [Forward(number, 2, [INCR], b"~2.peer.1", 1) for number in (3, 4)]
    bench.turn((2, copies[0]))
    bench.turn((2, copies[1]))
    bench.settle()
    assert [reply.replies for reply in bench.network.take(ForwardReply, 2)] == [
        [b":1\r\n"], [b":2\r\n"], [b":1\r\n"], [b":1\r\n"],
    ]  # fmt: skip
    assert bench.machine.kv.values[b"n"] == b"2"
    assert bench.desk.load.taken == 0


def test_leadership_that_comes_and_goes_leaves_it_open_until_the_deadline() -> None:
    bench = following()
    waiter = bench.ask(INCR)
    first = sent(bench)
    win(bench)
    bench.follow(3, term=9)
    again = sent(bench, 3)
    assert (again.lane, again.number) == (first.lane, first.number)
    refuse(bench, again, str(NOT_LEADER), 3)
    while waiter.answer is None:
        bench.turn((3, bench.heartbeat(3)), after_ms=10)
    assert is_error(waiter.answer, "INDETERMINATE")
    assert bench.desk.load.taken == 0


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NOT_LEADER, BUSY, UNKNOWN_COMMAND])
def test_a_refusal_is_never_passed_on_while_another_copy_is_open(error: str) -> None:
    bench = following()
    waiter = bench.ask(INCR)
    bench.follow(3, term=2)
    bench.network.take(Forward, 2)
    times = 0
    while waiter.answer is None:
        for forward in bench.network.take(Forward, 3):
            times += 1
            refuse(bench, forward, str(error), 3)
        bench.turn((3, bench.heartbeat(3)), after_ms=5)
    assert is_error(waiter.answer, "INDETERMINATE")
    assert 10 < times <= 2 * TIMEOUT_MAX / RETRY_MS + 1
    assert bench.desk.load.taken == 0


def test_a_leader_that_lost_its_office_leaves_the_copy_open_and_is_asked_again() -> None:
    bench = following()
    waiter = bench.ask(INCR)
    first = sent(bench)
    refuse(bench, first, str(UNKNOWN))
    bench.turn((2, bench.heartbeat()), after_ms=RETRY_MS + 1)
    again = sent(bench)
    assert (again.lane, again.number) == (first.lane, first.number)
    bench.turn((2, ForwardReply(again.request_id, [b":1\r\n"])))
    assert waiter.answer == b":1\r\n"


def test_what_the_leader_does_not_know_takes_no_other_client_with_it() -> None:
    bench = following()
    waiters = [bench.submit(INCR), bench.submit([b"SET", b"new", b"command"]), bench.submit(INCR)]
    bench.turn()
    refuse(bench, sent(bench), str(UNKNOWN_COMMAND))
    for forward in bench.network.take(Forward, 2):
        if forward.commands == [INCR]:
            bench.turn((2, ForwardReply(forward.request_id, [b":1\r\n"])))
        else:
            assert len(forward.commands) == 1
            refuse(bench, forward, str(UNKNOWN_COMMAND))
    assert [is_error(waiter.answer, "ERR") for waiter in waiters] == [False, True, False]
    assert bench.desk.load.taken == 0


def test_an_expired_lane_is_replaced_and_nothing_is_lost() -> None:
    bench = following()
    waiter = bench.ask(INCR)
    first = sent(bench)
    refuse(bench, first, "LANE ERR session expired")
    again = sent(bench)
    assert again.lane != first.lane and again.number == 1 and again.commands == [INCR]
    bench.turn((2, ForwardReply(again.request_id, [b":1\r\n"])))
    assert waiter.answer == b":1\r\n"


def test_an_expired_lane_says_nothing_of_an_earlier_copy() -> None:
    bench = following()
    waiter = bench.ask(INCR)
    bench.follow(3, term=2)
    refuse(bench, sent(bench, 3), "LANE ERR session expired", 3)
    assert is_error(waiter.answer, "INDETERMINATE")
    assert bench.desk.load.taken == 0


def test_the_table_of_the_leader_really_expires_a_lane() -> None:
    """From the machine's refusal to the word on the wire."""
    bench = Bench()
    bench.lead()
    bench.turn((2, Forward(1, 2, [INCR], b"~2.peer.1", 5)))
    bench.settle()
    bench.turn((2, Forward(2, 2, [INCR], b"~2.peer.1", 4)))
    bench.settle()
    first, second = bench.network.take(ForwardReply, 2)
    assert first.replies == [b":1\r\n"]
    assert second.error is not None and second.error.startswith("LANE ERR")
    assert bench.machine.kv.values[b"n"] == b"1"
    assert bench.desk.load.taken == 0


# --- exactly once, through anything -------------------------------------------------------------------


class Peers:
    """Nodes 2 and 3 as one log and one machine: whoever leads appends what it is passed, and answers, loses
    the answer, or is lost itself before or after."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bench = following()
        self.machine = Machine("peers")
        self.leader, self.index, self.at_ms = 2, 0, 0
        self.late: list[tuple[int, Forward]] = []  # copies that are still on their way
        self.keys: list[bytes] = []
        self.waiters: dict[bytes, Waiter] = {}

    def run(self) -> None:
        for step in range(300):
            if self.rng.random() < 0.7:
                key = b"k%d" % step
                self.keys.append(key)
                self.waiters[key] = self.bench.submit([b"INCR", key])
            if self.rng.random() < 0.15:
                self.leader = 5 - self.leader
                self.bench.follow(self.leader)
            for peer in (2, 3):
                self.late += [(peer, forward) for forward in self.bench.network.take(Forward, peer)]
            for peer, forward in list(self.late):
                if self.rng.random() < 0.5:
                    self.late.remove((peer, forward))
                    self.take(peer, forward)
            beat = self.bench.heartbeat(self.leader)
            self.bench.turn((self.leader, beat), after_ms=self.rng.choice((1, 9)))

    def take(self, peer: int, forward: Forward) -> None:
        if peer != self.leader:
            if self.rng.random() < 0.5:
                refuse(self.bench, forward, str(NOT_LEADER), peer)
            return
        self.index += 1
        self.at_ms += self.rng.choice((1, 1000))
        (replies,) = self.machine.apply_commands(self.index, 1, self.at_ms, [logged(forward)])
        if self.rng.random() < 0.3:
            return
        if isinstance(replies, list):
            self.bench.turn((peer, ForwardReply(forward.request_id, [b":%d\r\n" % n for n in replies])))  # type: ignore[str-format]
        else:
            refuse(self.bench, forward, f"LANE {replies!s}", peer)

    def check(self) -> None:
        self.bench.desk.close()
        answered = 0
        for key in self.keys:
            value, answer = self.machine.kv.values.get(key), self.waiters[key].answer
            assert value in (None, b"1"), f"{key!r} ran {value!r} times"
            if answer == b":1\r\n":
                answered += 1
                assert value == b"1"
            elif is_error(answer, "CLUSTERDOWN"):
                assert value is None
            else:
                assert is_error(answer, "INDETERMINATE"), answer
        assert answered > len(self.keys) / 2
        assert self.bench.desk.load.taken == 0
        assert len(self.machine.sessions) <= 2 * LANES < KEPT


@pytest.mark.parametrize("seed", range(30))
def test_no_command_runs_twice_whatever_happens_to_leaders_and_answers(seed: int) -> None:
    peers = Peers(seed)
    peers.run()
    peers.check()


def test_two_nodes_that_take_each_other_for_the_leader_do_not_send_for_ever() -> None:
    """BUGS 53: a forwarded command is never forwarded again, and refusals are asked after with patience."""
    bench = following()
    waiter = bench.ask(INCR)
    mine = others = 0
    while waiter.answer is None:
        for forward in bench.network.take(Forward, 2):
            mine += 1
            bench.turn((2, passed_on(10_000 + mine, *forward.commands)))
            (reply,) = bench.network.take(ForwardReply, 2)
            assert reply.error is not None
            others += 1
            refuse(bench, forward, reply.error)
        bench.turn((2, bench.heartbeat()), after_ms=1)
    assert is_error(waiter.answer, "CLUSTERDOWN")
    assert mine == others <= TIMEOUT_MAX / RETRY_MS + 1
    assert bench.logged() == []
