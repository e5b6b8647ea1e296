"""Agreement: who compares what with whom, who is told to end, and what a single peer cannot do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from runtime_support import Bench

from ledger.ledger import InvariantError
from raft.core.membership import Configuration
from raft.core.state import Role
from raft.machine.machine import Machine
from raft.runtime import digesting as digesting_module
from raft.runtime.agreement import (
    ASK_MS,
    LONGEST_WAIT_MS,
    ROUNDS_KEPT,
    SHARE,
    WAIT_MS,
    Agreement,
    DivergedError,
)
from raft.runtime.digesting import INLINE_BYTES, INLINE_WEIGHT, Digesting, Taken, fork
from raft.runtime.snapshotting import ChildSnapshot, Outcome, Result
from raft.transport.codec import MessageCodec
from raft.transport.node_messages import DigestReport

A, B, C = "a" * 64, "b" * 64, "c" * 64
ME = 1


class Stub(Digesting):
    """Digests that the test decides: at once, or when it says so."""

    def __init__(self) -> None:
        self.next: Taken | None = None
        self.later: int | None = None

    @property
    def running(self) -> int | None:
        return self.later

    def begin(self) -> Taken | None:
        return self.next

    def poll(self) -> Taken | None:
        taken = None
        if self.later is not None and self.next is not None:
            taken, self.next, self.later = self.next, None, None
        return taken

    def close(self) -> None:
        pass


class One:
    """Node 1's Agreement; what it sends, and a clock. The other members are the test."""

    def __init__(
        self,
        voters: tuple[int, ...] = (1, 2, 3),
        learners: tuple[int, ...] = (),
        leader: int | None = 2,
        interval_s: float = 60,
    ) -> None:
        self.state = SimpleNamespace(
            node_id=ME, configuration=Configuration(voters, learners), leader_id=leader, term=7, now=0.0
        )
        self.machine = SimpleNamespace(applied_index=0, applied_term=7)
        self.sent: list[tuple[int, DigestReport]] = []
        self.stub = Stub()
        self.now = 0.0
        core: Any = SimpleNamespace(state=self.state)
        machine: Any = self.machine
        self.agreement = Agreement(core, machine, self._send, interval_s=interval_s, digesting=self.stub)

    def _send(self, peer: int, message: Any) -> bool:
        MessageCodec().encode(message)
        self.sent.append((peer, message))
        return True

    def poll(self, after_ms: float = 1.0) -> None:
        self.now += after_ms
        self.agreement.poll(self.now)

    def apply(self, index: int, digest: str = A, *, cost_s: float = 0.001, live: bool = True) -> None:
        """~DIGEST is applied at index, and this node's digest is there at once."""
        self.machine.applied_index = index
        self.stub.next = Taken(index, digest, cost_s)
        self.agreement.applied(live)

    def hear(self, sender: int, index: int, digest: str, *, wanted: bool = False) -> None:
        self.agreement.on_report(sender, DigestReport(index, digest, wanted))

    def asked(self) -> list[tuple[int, int]]:
        """(peer, index) of every question since the last call."""
        found = [(peer, report.index) for peer, report in self.sent if report.wanted]
        self.sent = [each for each in self.sent if not each[1].wanted]
        return found

    def diverged(self) -> str:
        with pytest.raises(DivergedError) as caught:
            self.poll()
        return str(caught.value)


# --- verdicts -----------------------------------------------------------------------------------------


def test_everybody_is_told_this_nodes_digest() -> None:
    one = One(learners=(4,))
    one.apply(10, A)
    assert one.sent == [(peer, DigestReport(10, A)) for peer in (2, 3, 4)]


def test_members_that_agree_go_on() -> None:
    one = One()
    one.apply(10, A)
    assert one.agreement.agreed_index == 0
    one.hear(2, 10, A)
    one.poll()
    assert one.agreement.agreed_index == 10
    one.hear(3, 10, A)
    one.poll(WAIT_MS * 10)
    assert one.asked() == []


def test_who_differs_from_a_majority_ends_and_says_all() -> None:
    one = One()
    one.apply(10, A)
    one.hear(2, 10, B)
    one.poll()
    one.hear(3, 10, B)
    said = one.diverged()
    for part in ("node 1", "index 10", A, B, "[2, 3]", "RAFT REMOVE 1", "RAFT ADD 1", "copy"):
        assert part in said


@pytest.mark.parametrize("leader", [ME, 2, 3, None])
def test_a_majority_counts_whoever_leads(leader: int | None) -> None:
    one = One(leader=leader)
    one.apply(10, A)
    one.hear(2, 10, B)
    one.hear(3, 10, B)
    one.diverged()


def test_the_reports_may_come_before_the_own_digest() -> None:
    one = One()
    one.hear(2, 10, B)
    one.hear(3, 10, B)
    one.poll()
    one.apply(10, A)
    one.diverged()


def test_who_agrees_with_a_majority_names_the_one_that_does_not_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = One()
    one.apply(10, A)
    one.hear(2, 10, A)
    one.poll()
    one.hear(3, 10, B)
    for _ in range(3):
        one.poll()
        one.hear(2, 11, A)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "node 3 differs: at index 10" in record.getMessage()


def test_different_indexes_are_never_compared() -> None:
    one = One()
    one.apply(10, A)
    one.hear(2, 11, B)
    one.hear(3, 9, B)
    one.hear(3, 11, B)
    one.poll()
    one.apply(11, B)
    one.poll()
    assert one.agreement.agreed_index == 11


def test_learners_do_not_count() -> None:
    one = One(learners=(4, 5))
    one.apply(10, A)
    one.hear(4, 10, B)
    one.hear(5, 10, B)
    one.hear(2, 10, B)
    one.poll(100)
    one.hear(3, 10, A)
    one.poll()
    assert one.agreement.agreed_index == 10


def test_a_learner_judges_itself() -> None:
    one = One(voters=(2, 3, 4), learners=(1,))
    one.apply(10, A)
    one.hear(2, 10, B)
    one.poll()
    one.hear(4, 10, B)
    one.diverged()


def test_who_is_no_member_any_more_does_not_count() -> None:
    one = One(voters=(1, 2, 3, 4, 5))
    one.apply(10, A)
    for sender in (2, 3):
        one.hear(sender, 10, B)
    one.state.configuration = Configuration((1, 4, 5))
    one.hear(2, 10, B)
    one.hear(4, 10, B)
    one.hear(9, 10, B)
    one.poll()
    one.hear(5, 10, B)
    one.diverged()


def test_who_is_no_member_any_more_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    one = One()
    one.apply(10, A)
    one.hear(3, 10, B)
    one.state.configuration = Configuration((1, 2))
    one.hear(2, 10, A)
    one.poll()
    assert one.agreement.agreed_index == 10 and caplog.records == []


@pytest.mark.parametrize("leader", [ME, 2])
def test_of_two_nodes_the_leader_goes_on(leader: int, caplog: pytest.LogCaptureFixture) -> None:
    one = One(voters=(1, 2), leader=leader)
    one.apply(10, A)
    one.hear(2, 10, B)
    if leader == ME:
        one.poll()
        (record,) = caplog.records
        assert record.levelno == logging.CRITICAL and "index 10" in record.getMessage()
        one.poll(WAIT_MS)
        assert len(caplog.records) == 1
        assert one.agreement.agreed_index == 0
    else:
        assert "node 2, the leader" in one.diverged()


@pytest.mark.parametrize("leader", [ME, 2])
def test_with_three_different_digests_the_leaders_counts(
    leader: int, caplog: pytest.LogCaptureFixture
) -> None:
    one = One(leader=leader)
    one.apply(10, A)
    one.hear(3, 10, C)
    one.poll()  # node 2 may agree with either
    one.hear(2, 10, B)
    if leader == ME:
        one.poll()
        assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    else:
        assert B in one.diverged()


def test_without_a_majority_who_agrees_with_the_leader_goes_on() -> None:
    one = One(voters=(1, 2, 3, 4))
    one.apply(10, A)
    one.hear(2, 10, A)
    one.hear(3, 10, B)
    one.hear(4, 10, B)
    one.poll()
    one.poll(WAIT_MS)


def test_it_is_the_leader_of_the_entrys_term_that_counts(caplog: pytest.LogCaptureFixture) -> None:
    """Two nodes that each took the other for the leader would both end."""
    one = One(voters=(1, 2), leader=ME)
    one.apply(10, A)
    one.state.leader_id, one.state.term = 2, 8
    one.hear(2, 10, B)
    one.poll()
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    one.apply(20, A)  # an entry of term 7, in term 8: who led then is not known any more
    one.hear(2, 20, B)
    one.poll()
    assert "no verdict" in caplog.records[-1].getMessage()


def test_a_voter_that_is_silent_is_asked_and_then_counts_as_absent() -> None:
    one = One()
    one.apply(10, A)
    one.hear(2, 10, B)
    one.poll()
    assert one.asked() == []
    for _ in range(4):
        one.poll(ASK_MS)
        assert one.asked() == [(3, 10)]
    assert "node 2, the leader" in diverged_within(one, WAIT_MS)


def diverged_within(one: One, ms: float) -> str:
    until = one.now + ms
    while one.now < until:
        try:
            one.poll(10)
        except DivergedError as error:
            return str(error)
    raise AssertionError("no verdict")


def test_a_lost_report_is_made_up_for() -> None:
    one = One()
    one.apply(10, A)
    one.hear(3, 10, B)
    one.poll(ASK_MS)
    assert one.asked() == [(2, 10)]
    one.hear(2, 10, A)
    one.poll(WAIT_MS)
    assert one.agreement.agreed_index == 10


def test_a_voter_that_needs_longer_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """It may be the one that makes this node's digest the majority's."""
    one = One()
    one.apply(10, A)
    one.hear(2, 10, B)
    one.hear(3, 10, "?")
    for _ in range(20):
        one.poll(WAIT_MS / 2)
    assert caplog.records == []
    one.hear(3, 10, A)
    one.poll()
    assert one.agreement.agreed_index == 10


@pytest.mark.parametrize("answer", ["", "?"])
def test_without_a_majority_a_voter_that_took_no_digest_stays_the_verdict(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = One()
    one.apply(10, A)
    one.hear(2, 10, B)
    one.hear(3, 10, answer)
    for _ in range(int(LONGEST_WAIT_MS / WAIT_MS) + 1):
        one.poll(WAIT_MS)
    (record,) = caplog.records
    assert "no verdict" in record.getMessage() and "[3]" in record.getMessage()
    one.hear(3, 10, B)  # and yet: now there is a majority
    one.diverged()


def test_a_majority_that_shows_itself_late_counts_too() -> None:
    one = One(voters=(1, 2, 3, 4, 5))
    one.apply(10, A)
    one.poll(WAIT_MS)
    one.poll(WAIT_MS)
    for sender in (3, 4, 5):
        one.hear(sender, 10, B)
    one.diverged()


def test_alone_with_its_digest_nobody_is_blamed() -> None:
    one = One()
    one.apply(10, A)
    one.poll(WAIT_MS)
    one.poll(WAIT_MS)
    one.asked()
    one.poll(WAIT_MS)
    assert one.asked() == []


# --- what a peer asks, and what it cannot do ----------------------------------------------------------


def test_who_asks_is_answered() -> None:
    one = One()
    one.apply(10, A)
    one.machine.applied_index = 30
    one.stub.later = 30
    one.sent.clear()
    for index in (10, 15, 30, 31):
        one.hear(2, index, B, wanted=True)
    assert one.sent == [
        (2, DigestReport(10, A)), (2, DigestReport(15, "")),
        (2, DigestReport(30, "?")), (2, DigestReport(31, "?")),
    ]  # fmt: skip
    one.sent.clear()
    one.hear(9, 10, B, wanted=True)
    one.hear(2, 10, A)
    assert one.sent == []


@pytest.mark.parametrize("digest", ["x", "A" * 64, "b" * 63, "b" * 10**6, B + "\n", "??", "?" + B])
def test_what_is_no_digest_is_not_kept(digest: str) -> None:
    one = One()
    one.apply(10, A)
    one.hear(2, 10, digest)
    one.hear(3, 10, digest, wanted=True)
    assert one.agreement._heard == {}
    one.poll()


@pytest.mark.parametrize("liar", [2, 3])
def test_no_single_peer_ends_anyone_by_rubbish(liar: int) -> None:
    """Node 3 leads in neither case; a leader's word alone counts only where no majority can be had."""
    one, honest = One(leader=ME), 5 - liar
    for index in range(10, 2000, 10):
        for wrong in (index - 1, index, index + 10, 2**63, 0, -index):
            for digest in (B, C, "", "?", "x", "A" * 64, "b" * 10**6, B + "\n"):
                one.hear(liar, wrong, digest, wanted=True)
        one.apply(index, A)
        one.hear(honest, index, A)
        one.poll(ASK_MS)
        assert one.agreement.agreed_index == index
    assert len(one.agreement._heard[liar]) <= ROUNDS_KEPT
    assert len(one.agreement._rounds) <= ROUNDS_KEPT
    assert all(len(digest) <= 64 for digest in one.agreement._heard[liar].values())


def test_a_peer_has_one_say_an_index() -> None:
    one = One()
    one.apply(10, A)
    one.hear(2, 10, A)
    one.hear(3, 10, A)
    one.hear(2, 10, B)
    one.hear(3, 10, B)
    one.poll()
    assert one.agreement.agreed_index == 10


def test_reports_for_old_indexes_are_dropped_and_memory_is_bounded() -> None:
    one = One()
    for index in range(10, 10 * (ROUNDS_KEPT + 5), 10):
        one.apply(index, A)
        one.hear(2, index, A)
        one.hear(3, index + 5, A)
        one.poll()
    for index in range(10, 50, 10):
        one.hear(3, index, B)
        one.hear(2, index, B)
    one.poll()
    assert min(one.agreement._rounds) == 50 and len(one.agreement._rounds) == ROUNDS_KEPT
    assert min(one.agreement._heard[2]) == 50
    one.state.configuration = Configuration((1, 2))
    one.apply(500, A)
    assert 3 not in one.agreement._heard


# --- when ---------------------------------------------------------------------------------------------


def due_after(one: One, limit_ms: float = 10**7, step_ms: float = 100) -> float:
    since = one.now
    while not one.agreement.due(one.now):
        one.poll(step_ms)
        assert one.now - since <= limit_ms
    return one.now - since


def test_it_is_due_at_intervals_when_something_was_applied() -> None:
    one = One(interval_s=60)
    one.machine.applied_index = 5
    assert due_after(one) == pytest.approx(60_000, abs=200)
    assert not one.agreement.due(one.now)
    one.apply(6)
    one.poll(10 * 60_000)
    assert not one.agreement.due(one.now), "an idle cluster rests"
    one.machine.applied_index = 7
    assert one.agreement.due(one.now)
    assert due_after(one) == pytest.approx(60_000, abs=200), "not again while it is under way"


def test_zero_is_never_and_one_node_has_nobody_to_compare_with() -> None:
    for one in (One(interval_s=0), One(voters=(1,))):
        one.machine.applied_index = 5
        one.poll(10**9)
        assert not one.agreement.due(one.now)


def test_it_costs_a_hundredth_at_most() -> None:
    one = One(interval_s=60)
    one.poll()
    one.apply(5, cost_s=2.0)
    one.machine.applied_index = 6
    assert due_after(one) == pytest.approx(2000 * SHARE, abs=200)


def test_not_while_the_last_one_still_runs() -> None:
    one = One(interval_s=1)
    one.machine.applied_index = 6
    one.stub.later = 5
    one.poll(10**6)
    assert not one.agreement.due(one.now)


def test_a_new_leader_counts_from_the_last_one_too() -> None:
    one = One(interval_s=60)
    one.poll(59_000)
    one.apply(5)
    one.machine.applied_index = 9
    assert due_after(one) == pytest.approx(60_000, abs=200)


def test_who_catches_up_takes_none() -> None:
    one = One()
    one.apply(5, live=False)
    assert one.sent == []
    one.hear(2, 5, B, wanted=True)
    assert one.sent == [(2, DigestReport(5, ""))]


# --- in the node's worker -----------------------------------------------------------------------------


def led(**options: Any) -> Bench:
    """A leader with its first interval open."""
    bench = Bench(**options)
    bench.lead()
    bench.turn()
    bench.settle()
    return bench


def pass_time(bench: Bench, ms: float, step_ms: float = 40) -> None:
    """Node 2 goes on acknowledging."""
    for _ in range(int(ms / step_ms)):
        bench.clock.now += step_ms - 1
        bench.ack()


def digests_in(bench: Bench) -> int:
    return commands(bench).count([b"~DIGEST"])


def commands(bench: Bench) -> list[list[bytes]]:
    return [command for batch in bench.logged() for command in batch]


def test_the_worker_proposes_and_compares() -> None:
    bench = led(digest_interval_s=2)
    pass_time(bench, 1200)
    assert digests_in(bench) == 0
    pass_time(bench, 600)
    assert digests_in(bench) == 1
    (report,) = bench.network.take(DigestReport, 3)
    bench.turn((3, report))
    assert bench.agreement.agreed_index == report.index
    pass_time(bench, 10_000)
    assert 4 <= digests_in(bench) <= 6
    told = {report.index for report in bench.network.take(DigestReport, 3)}
    assert digests_in(bench) == len(told) + 1, "each is told (and node 3, which says nothing, is asked)"


def test_the_worker_that_differs_ends_before_it_serves_anything() -> None:
    bench = led(digest_interval_s=2)
    pass_time(bench, 1800)
    (report,) = bench.network.take(DigestReport, 3)
    waiter = bench.submit([b"SET", b"a", b"1"])
    wrong = DigestReport(report.index, B)
    with pytest.raises(DivergedError):
        bench.turn((2, wrong), (3, wrong))
    assert waiter.answer is None and [b"SET", b"a", b"1"] not in commands(bench)


def test_not_before_the_term_is_applied() -> None:
    bench = Bench(digest_interval_s=2)
    bench.follow(2, term=1)
    bench.replicate([b"SET", b"a", b"1"])
    bench.clock.now += 2000
    bench.win()
    for _ in range(3):
        bench.turn()
    assert digests_in(bench) == 0
    for _ in range(4):
        bench.ack()
        bench.turn()
    assert digests_in(bench) == 1


def test_not_without_a_quorum() -> None:
    bench = led(digest_interval_s=2)
    pass_time(bench, 960)
    for _ in range(50):  # nobody says anything more
        bench.turn(after_ms=10)
    assert bench.state.role is Role.LEADER and digests_in(bench) == 0
    bench.ack()
    bench.turn()
    assert digests_in(bench) == 1


def test_not_during_a_transfer() -> None:
    bench = led(digest_interval_s=2)
    pass_time(bench, 1200)
    bench.state.transfer_target, bench.state.transfer_deadline_ms = 3, 1e12
    pass_time(bench, 800)
    assert bench.state.role is Role.LEADER and digests_in(bench) == 0
    bench.state.transfer_target = None
    pass_time(bench, 200)
    assert digests_in(bench) == 1


def test_leader_and_follower_take_it_at_the_end_of_the_entry() -> None:
    """The leader applies the commands it has at hand, a follower the stored entry: the same digest."""
    leader = led()
    waiters = [leader.submit([b"SET", b"before", b"1"])]
    leader.desk.take_batches()
    leader.desk.proposals.add_system([b"~DIGEST"])
    waiters.append(leader.submit([b"SET", b"after", b"1"]))
    leader.turn()
    leader.ack()
    (report,) = leader.network.take(DigestReport, 2)
    entry = leader.storage.log.stored[report.index - 1]
    assert b"before" in entry.data and b"after" in entry.data
    assert [waiter.answer for waiter in waiters] == [b"+OK\r\n"] * 2
    plain = Machine("bench")
    for stored in leader.storage.log.stored[: report.index]:
        plain.apply(stored)
    assert report.digest == plain.digest()

    follower = Bench()
    term = leader.state.term
    stored = leader.storage.log.stored[: report.index]
    follower.turn((2, follower.heartbeat(2, term, *stored)))
    assert follower.network.take(DigestReport, 2) == [report]
    assert follower.network.take(DigestReport, 3) == [report]


def test_entries_behind_it_in_the_same_turn_are_not_in_it() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    plain = Machine("bench")
    bench.replicate([b"SET", b"a", b"1"], [b"~DIGEST"])
    (first,) = bench.network.take(DigestReport, 2)
    for stored in bench.storage.log.stored:
        plain.apply(stored)
    assert first.digest == plain.digest()
    index = bench.state.log.last_index
    more = [
        entry_of(bench, index + 1, [b"~DIGEST"]),
        entry_of(bench, index + 2, [b"SET", b"a", b"2"]),
    ]
    bench.turn((2, bench.heartbeat(2, 1, *more)))
    assert bench.machine.applied_index == index + 2
    (second,) = bench.network.take(DigestReport, 2)
    plain.apply(more[0])
    assert second == DigestReport(index + 1, plain.digest())


def entry_of(bench: Bench, index: int, *commands_: list[bytes]) -> Any:
    from runtime_support import encode

    from raft.core.entry import Entry, EntryKind

    return Entry(index, 1, EntryKind.COMMANDS, encode(bench.at_ms, list(commands_)))


def test_what_was_in_the_log_at_the_start_is_not_compared() -> None:
    earlier = Bench()
    log = [entry_of(earlier, 1, [b"SET", b"a", b"1"], [b"~DIGEST"])]
    bench = Bench(log=log, term=1)
    bench.turn((2, bench.heartbeat(2, 1)))
    assert bench.machine.applied_index == 1
    assert bench.network.take(DigestReport) == []
    bench.replicate([b"~DIGEST"])
    assert len(bench.network.take(DigestReport)) == 2


def test_a_node_far_behind_does_not_compare() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    entries = [entry_of(bench, 1, [b"~DIGEST"])]
    entries += [entry_of(bench, index, [b"SET", b"a", b"1"]) for index in range(2, 1003)]
    entries += [entry_of(bench, 1003, [b"~DIGEST"])]
    bench.turn((2, bench.heartbeat(2, 1, *entries)))
    while bench.machine.applied_index < 1003:
        bench.turn()
    assert [report.index for report in bench.network.take(DigestReport, 2)] == [1003]


def test_a_report_wakes_nobody_before_its_time() -> None:
    """Messages of strangers and for the future: no effect on a worker that has no digest yet."""
    bench = Bench()
    bench.turn((2, DigestReport(5, A)), (77, DigestReport(5, A, True)), (3, DigestReport(-1, A, True)))
    assert bench.network.take(DigestReport) == []
    bench.agreement.close()


# --- taking a digest ----------------------------------------------------------------------------------


def machine_of(keys: int, size: int = 8) -> Machine:
    machine = Machine("test")
    machine.apply_commands(1, 1, 1000, [[b"SET", b"%d" % key, b"v" * size] for key in range(keys)])
    return machine


class Forks:
    """Real children, counted; and ended with the test."""

    def __init__(self) -> None:
        self.children: list[ChildSnapshot] = []

    def __call__(self, compute: Callable[[], bytes]) -> ChildSnapshot:
        child = fork(compute)
        self.children.append(child)
        return child


@pytest.fixture
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    for child in made.children:
        child.cancel()


def taken_by(digesting: Digesting, limit_s: float = 20) -> Taken | None:
    deadline = time.monotonic() + limit_s
    while digesting.running is not None:
        taken = digesting.poll()
        if taken is not None:
            return taken
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return None


def test_a_small_state_is_hashed_on_the_spot(forks: Forks) -> None:
    machine = machine_of(100)
    taken = Digesting(machine, forks).begin()
    assert taken is not None and (taken.index, taken.digest) == (1, machine.digest())
    assert 0 < taken.cost_s < 5
    assert forks.children == []


def test_a_large_state_is_hashed_by_a_child_as_it_was(forks: Forks) -> None:
    machine = machine_of(INLINE_WEIGHT)
    wanted = machine.digest()
    digesting = Digesting(machine, forks)
    assert digesting.begin() is None
    assert digesting.running == 1
    machine.apply_commands(2, 1, 1000, [[b"SET", b"more", b"1"], [b"DEL", b"7"]])
    taken = taken_by(digesting)
    assert taken is not None and (taken.index, taken.digest) == (1, wanted) and taken.cost_s > 0
    assert digesting.running is None and digesting.poll() is None
    assert machine.digest() != wanted


@pytest.mark.parametrize("what", ["values", "sessions", "versions", "ledger"])
def test_what_is_not_small(what: str, forks: Forks) -> None:
    machine = Machine("test")
    if what == "values":
        machine = machine_of(3, INLINE_BYTES // 3 + 1)
    elif what == "sessions":
        words = [[b"ONCE", b"s%d" % n, b"1", b"SET", b"k", b"1"] for n in range(INLINE_BYTES // 500)]
        machine.apply_commands(1, 1, 1000, words)
    elif what == "versions":
        gone = [[word, b"%d" % key, *rest] for key in range(INLINE_WEIGHT + 1)
                for word, rest in ((b"SET", [b"1"]), (b"DEL", []))]  # fmt: skip
        machine.apply_commands(1, 1, 1000, gone)
        assert not machine.kv.values
    else:
        policy = (b'{"interval_ms":2000,"reward":10,"penalty":5,"ban_threshold":3,"ban_cooldown_s":600,'
                  b'"max_spam":4,"follower_version":"1.0","followers_per_interval":0}')  # fmt: skip
        joins = [[b"FOLLOWER", b"JOIN", b"f%d" % n, b"1.0"] for n in range(600)]
        machine.apply_commands(1, 1, 1000, [[b"~TERM", b"1", policy, b"[]"], *joins])
    digesting = Digesting(machine, forks)
    assert digesting.begin() is None and digesting.running == 1
    taken = taken_by(digesting)
    assert taken is not None and taken.digest == machine.digest()


def test_one_child_at_a_time(forks: Forks, caplog: pytest.LogCaptureFixture) -> None:
    machine = machine_of(INLINE_WEIGHT)
    digesting = Digesting(machine, forks)
    digesting.begin()
    machine.apply_commands(2, 1, 1000, [[b"~DIGEST"]])
    assert digesting.begin() is None
    assert len(forks.children) == 1 and digesting.running == 1
    assert "no digest of the state at 2" in caplog.text
    assert (taken_by(digesting) or Taken(0, "", 0)).index == 1


def test_no_child_no_digest(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_compute: Callable[[], bytes]) -> ChildSnapshot:
        raise OSError("cannot allocate memory")

    digesting = Digesting(machine_of(INLINE_WEIGHT), refuse)
    assert digesting.begin() is None
    assert digesting.running is None and digesting.poll() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "cannot allocate memory" in record.getMessage()


def test_a_killed_child_is_a_warning(forks: Forks, caplog: pytest.LogCaptureFixture) -> None:
    digesting = Digesting(machine_of(INLINE_WEIGHT), forks)
    digesting.begin()
    outcome = Outcome(Result.KILLED, "killed by signal 9", 0.1)
    forks.children[0].cancel()
    forks.children[0]._outcome = outcome
    assert taken_by(digesting) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "killed by signal 9" in record.getMessage()
    assert digesting.begin() is None and digesting.running == 1, "the next one works again"


@pytest.mark.parametrize("large", [False, True])
def test_a_ledger_that_contradicts_itself_ends_the_node(
    large: bool, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_of(INLINE_WEIGHT if large else 3)
    monkeypatch.setattr(digesting_module.time, "process_time", lambda: 0.5)
    machine.ledger._state.followers.counts["active"] += 1
    digesting = Digesting(machine, forks)
    with pytest.raises(InvariantError, match="states are counted"):
        digesting.begin()
        taken_by(digesting)
    assert len(forks.children) == large


def test_close_ends_the_child(forks: Forks) -> None:
    digesting = Digesting(machine_of(INLINE_WEIGHT), forks)
    digesting.begin()
    digesting.close()
    outcome = forks.children[0].poll()
    assert outcome is not None and outcome.result in (Result.CANCELLED, Result.DONE)
    digesting.close()
