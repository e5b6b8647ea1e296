"""Desk: every batch is answered exactly once, in time, and CLUSTERDOWN is only said of what never runs."""

from __future__ import annotations

import random

import pytest
from runtime_support import TIMEOUT_MAX, Bench, Waiter, encode, is_error, passed_on

from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, encode_configuration
from raft.core.messages import AppendEntries, AppendEntriesResponse, RequestVoteResponse
from raft.core.state import Role
from raft.runtime.desk import RETRY_MS
from raft.runtime.errors import NOT_LEADER
from raft.runtime.proposals import MAX_ENTRY_BYTES
from raft.transport.node_messages import Forward, ForwardReply


def test_a_large_forwarded_command_in_the_first_turn_after_idleness() -> None:
    """The desk had the former turn's time then, and the core takes no time that goes back."""
    bench = Bench()
    bench.lead()
    taken = len(bench.logged())
    large = [b"SET", b"k", b"v" * (MAX_ENTRY_BYTES + 1)]
    beat = AppendEntriesResponse(bench.state.term, True, bench.state.log.last_index, bench.state.round)
    bench.turn((3, beat), (2, passed_on(7, large)), after_ms=250)
    assert large in bench.written()[taken]
    bench.settle()
    assert bench.network.take(ForwardReply, 2) == [ForwardReply(7, [b"+OK\r\n"])]


def test_the_stamp_of_a_large_forwarded_command_is_this_turns() -> None:
    bench = Bench()
    bench.lead()
    bench.turn((2, passed_on(7, [b"SET", b"k", b"v" * MAX_ENTRY_BYTES, b"PX", b"5000"])), after_ms=200)
    stamped_at = bench.at_ms
    bench.settle()
    assert bench.machine.next_expiry_ms() == stamped_at + 5000


@pytest.mark.parametrize("command", [[b"SET", b"a", b"1"], [b"GET", b"a"]])
def test_without_a_leader_a_batch_is_held_for_one_election_timeout(command: list[bytes]) -> None:
    bench = Bench()
    waiter = bench.ask(command)
    for _ in range(59):
        bench.turn(after_ms=10)
        assert waiter.answer is None
    bench.turn(after_ms=11)
    assert is_error(waiter.answer, "CLUSTERDOWN")
    assert bench.desk.load.taken == 0
    assert bench.logged() == []


def test_what_is_held_goes_to_a_new_leader_in_the_turn_that_finds_it() -> None:
    bench = Bench()
    waiter = bench.ask([b"SET", b"a", b"1"])
    bench.follow(2, term=1)
    (forward,) = bench.network.take(Forward, 2)
    assert forward.commands == [[b"SET", b"a", b"1"]]
    bench.turn((2, ForwardReply(forward.request_id, [b"+OK\r\n"])))
    assert waiter.answer == b"+OK\r\n"
    assert bench.desk.load.taken == 0


def test_what_is_held_is_proposed_after_this_nodes_own_election() -> None:
    bench = Bench()
    waiter = bench.ask([b"SET", b"a", b"1"])
    bench.turn(after_ms=bench.state.election_deadline_ms - bench.clock.now)
    bench.turn((2, RequestVoteResponse(1, True, True)))
    bench.turn((2, RequestVoteResponse(1, True)))
    bench.settle()
    assert waiter.answer == b"+OK\r\n"


def test_batches_that_are_refused_later_do_not_put_off_the_retry() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    bench.submit([b"SET", b"a", b"1"])
    asked = []
    for i in range(25):
        bench.submit([b"SET", b"other-%d" % i, b"2"])
        bench.turn()
        forwards = bench.network.take(Forward, 2)
        asked += [words[1] for forward in forwards for words in forward.commands]
        replies = [(2, ForwardReply(forward.request_id, [], str(NOT_LEADER))) for forward in forwards]
        bench.turn(*replies, after_ms=2)
    assert asked.count(b"a") >= 3


def test_busy_turns_do_not_put_off_the_retry() -> None:
    """A leader that could not be reached for a moment is tried again soon, whatever else goes on."""
    bench = Bench()
    bench.follow(2, term=1)
    bench.network.away = {2}
    waiter = bench.ask([b"SET", b"a", b"1"])
    for _ in range(int(RETRY_MS)):
        bench.turn(after_ms=3)
    bench.network.away.clear()
    for _ in range(int(RETRY_MS)):
        bench.turn(after_ms=3)
    assert [b"SET", b"a", b"1"] in [c for f in bench.network.take(Forward, 2) for c in f.commands]
    assert waiter.answer is None


def test_the_worker_wakes_for_the_retry_and_for_the_deadline() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    bench.network.away = {2}
    bench.ask([b"SET", b"a", b"1"])
    asked_at = bench.clock.now
    assert bench.desk.next_deadline() == asked_at + RETRY_MS
    waiter = bench.submit([b"SET", b"b", b"1"])
    while waiter.answer is None:
        bench.clock.now = max(bench.clock.now, bench.desk.next_deadline())
        assert bench.clock.now <= asked_at + 2 * TIMEOUT_MAX
        bench.follow()
    assert is_error(waiter.answer, "CLUSTERDOWN")


def test_a_leader_that_refuses_is_asked_again_until_the_deadline() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    waiter = bench.ask([b"SET", b"a", b"1"])
    asked = 0
    while waiter.answer is None:
        for forward in bench.network.take(Forward, 2):
            asked += 1
            bench.turn((2, ForwardReply(forward.request_id, [], str(NOT_LEADER))))
        bench.turn((2, bench.heartbeat()), after_ms=5)
        assert asked < 100
    assert is_error(waiter.answer, "CLUSTERDOWN")
    assert asked > 5
    assert bench.desk.load.taken == 0


def test_beyond_the_limit_a_batch_is_refused_and_nothing_is_reserved() -> None:
    bench = Bench(max_pending=3)
    bench.submit([b"SET", b"a", b"1"], [b"SET", b"b", b"1"])
    assert not bench.desk.submit(bench.client([b"GET", b"a"], [b"GET", b"b"]).batch)
    assert bench.desk.load.taken == 2
    assert bench.desk.submit(bench.client([b"GET", b"a"]).batch)


def test_a_batch_larger_than_the_limit_runs_alone() -> None:
    bench = Bench(max_pending=3)
    bench.lead()
    waiter = bench.submit(*[[b"INCR", b"n"]] * 10)
    assert not bench.desk.submit(bench.client([b"GET", b"a"]).batch)
    bench.turn()
    bench.settle()
    assert waiter.answers is not None and waiter.answers[-1] == b":10\r\n"
    assert bench.desk.load.taken == 0


def test_the_end_answers_everybody() -> None:
    bench = Bench()
    bench.lead()
    proposed = bench.ask([b"SET", b"a", b"1"])
    reading = bench.ask([b"GET", b"a"])
    waiting = bench.submit([b"SET", b"b", b"1"])
    bench.desk.close()
    assert is_error(proposed.answer, "INDETERMINATE")
    assert is_error(reading.answer, "CLUSTERDOWN")
    assert is_error(waiting.answer, "CLUSTERDOWN")
    assert bench.desk.load.taken == 0
    assert not bench.desk.submit(bench.client([b"GET", b"a"]).batch)


def test_the_end_answers_what_was_forwarded_or_held() -> None:
    bench = Bench()
    held = bench.ask([b"GET", b"a"])
    bench.follow(2, term=1)
    forwarded = bench.ask([b"SET", b"a", b"1"])
    bench.desk.close()
    assert is_error(held.answer, "CLUSTERDOWN")
    assert is_error(forwarded.answer, "INDETERMINATE")
    assert bench.desk.load.taken == 0


class Storm:
    """Random events against one node; peers 2 and 3 lead at times and take, refuse or forget forwards."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bench = Bench(lease_reads=seed % 2 == 0, max_pending=40)
        self.executed: set[bytes] = set()  # keys written by peers for us; our own log is looked at at the end
        self.sent: dict[bytes, Waiter] = {}
        self.forwarded: list[Waiter] = []  # by a peer to this node
        self.keys = 0

    def run(self) -> None:
        steps = [self.ask, self.ask, self.peer_asks, self.quiet, self.ack, self.ack, self.answer_forwards]
        steps += [self.other_leads, self.win, self.break_link, self.heal, self.higher_term]
        for _ in range(150):
            self.rng.choice(steps)()

    def ask(self) -> None:
        for _ in range(self.rng.randrange(4)):
            commands = [self.write() for _ in range(self.rng.randrange(3))]
            commands += [[b"GET", b"x"]] * self.rng.randrange(0 if commands else 1, 3)
            waiter = self.bench.client(*commands)
            if self.bench.desk.submit(waiter.batch):
                self.sent |= {words[1]: waiter for words in commands if words[0] == b"SET"}
            else:
                self.bench.waiters.remove(waiter)

    def write(self) -> list[bytes]:
        self.keys += 1
        size = MAX_ENTRY_BYTES if self.rng.random() < 0.05 else 1
        return [b"SET", b"key-%d" % self.keys, b"v" * size]

    def peer_asks(self) -> None:
        self.bench.turn((2, passed_on(self.keys, self.write(), [b"GET", b"x"])), after_ms=self.pause())

    def pause(self) -> float:
        return self.rng.choice((1, 1, 5, 30, 400))

    def quiet(self) -> None:
        self.bench.turn(after_ms=self.pause())

    def ack(self) -> None:
        if self.bench.state.role is Role.LEADER:
            self.bench.ack(self.rng.choice((2, 3)))

    def answer_forwards(self) -> None:
        for peer in (2, 3):
            for forward in self.bench.network.take(Forward, peer):
                what = self.rng.random()
                if what < 0.3:
                    self.bench.turn((peer, ForwardReply(forward.request_id, [], str(NOT_LEADER))))
                    continue
                self.executed |= {words[1] for words in forward.commands if words[0] == b"SET"}
                if what < 0.8:
                    replies = [b"+OK\r\n"] * len(forward.commands)
                    self.bench.turn((peer, ForwardReply(forward.request_id, replies)))

    def other_leads(self) -> None:
        if self.bench.state.role is not Role.LEADER:
            leader = self.rng.choice((2, 3))
            self.bench.turn((leader, self.bench.heartbeat(leader)), after_ms=self.pause())

    def win(self) -> None:
        if self.bench.state.role is not Role.LEADER:
            self.bench.win()

    def higher_term(self) -> None:
        self.bench.turn((3, RequestVoteResponse(self.bench.state.term + 1, False)), after_ms=self.pause())

    def break_link(self) -> None:
        peer = self.rng.choice((2, 3))
        self.bench.network.disconnects.append(peer)
        self.bench.network.away.add(peer)
        self.quiet()

    def heal(self) -> None:
        self.bench.network.away.clear()

    def check(self) -> None:
        bench = self.bench
        bench.desk.close()
        for entry in bench.written():
            self.executed |= {words[1] for words in entry if words[0] == b"SET"}
        assert all(waiter.times == 1 for waiter in bench.waiters)
        assert bench.desk.load.taken == 0
        refused = 0
        for key, waiter in self.sent.items():
            slot = next(slot for slot, args in waiter.batch.operations if args[1] == key)
            assert waiter.answers is not None
            if is_error(waiter.answers[slot], "CLUSTERDOWN"):
                refused += 1
                assert key not in self.executed, f"{key!r} was refused and executed"
            elif not is_error(waiter.answers[slot], "INDETERMINATE"):
                assert waiter.answers[slot] == b"+OK\r\n"
                assert key in self.executed
        assert refused or len(self.sent) < 30


@pytest.mark.parametrize("seed", range(40))
def test_in_a_storm_everybody_is_answered_once_and_truthfully(seed: int) -> None:
    storm = Storm(seed)
    storm.run()
    storm.check()


def test_an_uncommitted_entry_of_ours_that_a_new_leader_replaces_is_indeterminate() -> None:
    bench = Bench()
    bench.lead()
    waiter = bench.ask([b"SET", b"a", b"1"])
    index = bench.state.log.last_index
    entry = Entry(index, 2, EntryKind.COMMANDS, encode(bench.at_ms, [[b"SET", b"a", b"2"]]))
    prev = bench.storage.log.stored[index - 2]
    message = bench.heartbeat(3, 2, entry)
    bench.turn((3, type(message)(2, 3, prev.index, prev.term, (entry,), index, 1)))
    assert is_error(waiter.answer, "INDETERMINATE")
    assert bench.machine.kv.values[b"a"] == b"2"
    assert bench.desk.load.taken == 0


@pytest.mark.parametrize("command", [[b"SET", b"a", b"1"], [b"GET", b"a"]])
def test_a_removed_node_sends_its_clients_elsewhere_at_once(command: list[bytes]) -> None:
    """No leader will ever answer here: whoever waits for one waits in vain."""
    bench = Bench(voters=4)
    bench.follow(2, term=1)
    under_way = bench.ask(command)
    last = bench.state.log.last_index
    removed = Entry(
        last + 1, 1, EntryKind.CONFIGURATION.value, encode_configuration(Configuration((2, 3, 4)))
    )
    prev_term = bench.state.log.term(last)
    bench.turn((2, AppendEntries(1, 2, last, prev_term, (removed,), last)))
    bench.network.disconnects.append(2)
    bench.network.away.add(2)
    bench.turn()
    assert under_way.answer is None, "not committed: the change may yet be taken back"
    bench.network.away.clear()
    bench.turn((2, AppendEntries(1, 2, last + 1, 1, (), last + 1)), after_ms=RETRY_MS)
    bench.network.disconnects.append(2)
    bench.network.away.add(2)
    bench.turn()
    if command[0] == b"SET":  # the leader has had it
        assert is_error(under_way.answer, "INDETERMINATE")
    late = bench.ask(command)
    bench.turn()
    if command[0] == b"SET":
        assert is_error(late.answer, "CLUSTERDOWN this node is not a member")
    bench.turn(after_ms=TIMEOUT_MAX)  # the leader is silent: now a read knows, too
    bench.turn()
    assert is_error(bench.ask(command).answer, "CLUSTERDOWN this node is not a member")
    assert bench.desk.load.taken == 0
