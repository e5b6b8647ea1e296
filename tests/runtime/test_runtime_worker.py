"""Worker.turn: effects in their order, changes of role, a full disk, and messages that must not kill it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from runtime_support import TIMEOUT_MAX, Bench, encode, is_error, passed_on

from raft.core.entry import Entry, EntryKind
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)
from raft.core.state import Progress, Role
from raft.runtime import worker as worker_module
from raft.runtime.desk import RETRY_MS
from raft.runtime.proposals import GATHER_MS
from raft.runtime.worker import DISK_FULL_RETRY_S, EXPIRY_STEP_MS, LONGEST_WAIT_S, MAX_POSTED
from raft.storage.errors import DiskFullError, StorageError
from raft.transport.node_messages import Forward, ForwardReply, PeerMessage, Ping, Pong

SET = [b"SET", b"a", b"1"]


# --- the order of effects (raft/core/effects.py) ------------------------------------------------------


def test_a_vote_leaves_after_it_is_on_disk() -> None:
    bench = Bench()
    bench.turn((2, RequestVote(1, 2, 0, 0)))
    assert bench.events == ["hard state 1 2", "RequestVoteResponse to 2"]


def test_a_candidate_votes_for_itself_on_disk_first() -> None:
    bench = Bench()
    bench.turn(after_ms=TIMEOUT_MAX + 1)
    bench.events.clear()
    bench.turn((2, RequestVoteResponse(1, True, True)))
    assert bench.events == ["reset election", "hard state 1 1", "RequestVote to 2", "RequestVote to 3"]


def test_a_follower_acknowledges_after_its_fsync() -> None:
    bench = Bench()
    entry = Entry(1, 1, EntryKind.COMMANDS, encode(1, [SET]))
    bench.turn((2, AppendEntries(1, 2, 0, 0, (entry,), 0)))
    assert bench.events == ["reset election", "hard state 1 None", "append 1-1", "sync",
                            "AppendEntriesResponse to 2"]  # fmt: skip
    assert bench.machine.applied_index == 0


def test_a_follower_truncates_before_it_appends() -> None:
    bench = Bench(log=[Entry(1, 1, EntryKind.NOOP, b""), Entry(2, 1, EntryKind.NOOP, b"")], term=1)
    entry = Entry(2, 2, EntryKind.NOOP, b"")
    bench.turn((2, AppendEntries(2, 2, 1, 1, (entry,), 0)))
    assert bench.events[2:] == ["truncate 2", "append 2-2", "sync", "AppendEntriesResponse to 2"]


def test_a_leader_sends_while_it_writes_and_counts_itself_after_its_fsync() -> None:
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    bench.ack(3)
    bench.events.clear()
    waiter = bench.ask(SET)
    assert bench.events == ["AppendEntries to 2", "AppendEntries to 3", "append 4-4", "sync"]
    assert waiter.answer is None


def test_a_leader_answers_what_is_committed_before_it_waits_for_the_next_entrys_fsync() -> None:
    """And a follower writes and acknowledges first: its leader waits for that."""
    bench = Bench()
    bench.lead()
    first, second = bench.ask(SET), bench.submit(SET)
    heard: list[bytes | None] = []
    bench.storage.log.on_append = lambda: heard.append(first.answer)
    bench.turn()
    bench.clock.now += GATHER_MS  # the second has waited long enough for others to join it
    bench.ack()
    assert heard == [b"+OK\r\n"]
    assert second.answer is None

    follower = Bench()
    follower.follow()
    applied: list[int] = []
    follower.storage.log.on_sync = lambda: applied.append(follower.machine.applied_index)
    follower.replicate(SET)
    follower.replicate(SET)
    assert applied == [0, 1]
    assert follower.machine.applied_index == 2


def test_a_single_node_answers_after_its_fsync() -> None:
    """BUGS 29."""
    bench = Bench(voters=1)
    bench.win()
    bench.turn()
    seen: list[bytes | None] = []
    waiter = bench.submit(SET)
    bench.storage.log.on_append = lambda: seen.append(waiter.answer)
    bench.turn()
    assert seen == [None]
    assert waiter.answer == b"+OK\r\n"


# --- roles --------------------------------------------------------------------------------------------


def test_leadership_lost_and_regained_within_one_turn() -> None:
    """A single voter hears of a higher term and is elected again at once: what the old leadership took is
    answered, ~TERM comes again, nothing is proposed twice."""
    bench = Bench(voters=1)
    bench.win()
    bench.turn()
    waiter = bench.submit(SET)
    old_term = bench.state.term
    bench.worker.post(lambda now: bench.core.receive(9, AppendEntriesResponse(old_term + 1, False, 0), now))
    bench.turn(after_ms=1)
    bench.turn(after_ms=TIMEOUT_MAX + 1)
    assert bench.state.role is Role.LEADER and bench.state.term > old_term
    bench.turn()
    assert waiter.answer == b"+OK\r\n"
    assert waiter.times == 1
    names = [command[0] for commands in bench.logged() for command in commands]
    assert names.count(b"SET") == 1 and names.count(b"~TERM") == 2
    assert names.index(b"SET") > len(names) - 1 - names[::-1].index(b"~TERM")


def test_lost_and_regained_before_the_worker_looks() -> None:
    bench = Bench(voters=1)
    bench.win()
    bench.turn()
    old_term = bench.state.term

    def lose_and_win(now: float) -> None:
        bench.core.receive(9, AppendEntriesResponse(old_term + 1, False, 0), now)
        bench.state.election_deadline_ms = now
        bench.core.tick(now)

    gathered = bench.client([b"SET", b"b", b"1"])
    bench.desk.load.take(1)
    bench.worker.post(lambda now: bench.desk.proposals.add(gathered.batch, now, bench.at_ms))
    bench.worker.post(lose_and_win)
    waiter = bench.submit(SET)
    bench.turn()
    assert bench.state.role is Role.LEADER and bench.state.term == old_term + 2
    assert gathered.answer is None, "nothing of it is in the log: the new leadership takes it"
    assert [b"SET", b"b", b"1"] not in [c for commands in bench.logged() for c in commands]
    bench.turn(after_ms=RETRY_MS)
    bench.turn(after_ms=GATHER_MS)
    assert waiter.answer == gathered.answer == b"+OK\r\n"
    assert bench.desk.load.taken == 0


def test_a_leader_without_a_quorum_steps_down_and_says_what_is_unknown() -> None:
    bench = Bench()
    bench.lead()
    waiter = bench.ask(SET)
    asked_at = bench.clock.now
    while waiter.answer is None:
        bench.turn(after_ms=10)
        assert bench.clock.now <= asked_at + 2 * TIMEOUT_MAX
    assert is_error(waiter.answer, "INDETERMINATE")
    assert bench.state.role is not Role.LEADER
    assert bench.desk.load.taken == 0


def test_a_first_turn_long_after_the_start() -> None:
    bench = Bench()
    bench.turn((2, passed_on(1, SET)), after_ms=10**7)
    assert bench.network.take(ForwardReply, 2)


def test_a_fault_in_another_thread_of_the_log_ends_a_worker_that_writes_nothing() -> None:
    """Found by chaos: a node without a leader went on for 5 s after its disk had failed a sync."""
    bench = Bench()
    bench.turn()

    def fail() -> None:
        raise StorageError("the segment preparer failed")

    bench.storage.log.check_alive = fail
    with pytest.raises(StorageError):
        bench.turn()


# --- a full disk --------------------------------------------------------------------------------------


class FullDisk:
    """Time runs while the worker sleeps; there is space again after so many tries."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
        self.bench, self.tries, self.slept = bench, tries, 0
        bench.storage.log.on_append = self.fail
        monkeypatch.setattr(worker_module.time, "sleep", self.sleep)
        self.while_waiting = lambda: None

    def fail(self) -> None:
        self.tries -= 1
        if self.tries >= 0:
            raise DiskFullError("log: no space left")

    def sleep(self, seconds: float) -> None:
        assert not self.bench.worker.disk_wait.number, "waiting is not hanging"
        assert seconds == DISK_FULL_RETRY_S
        self.slept += 1
        self.bench.clock.now += seconds * 1000
        self.while_waiting()


def test_a_full_disk_is_waited_out_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """BUGS 46, 47."""
    bench = Bench(voters=1)
    bench.win()
    bench.turn()
    FullDisk(bench, monkeypatch, tries=2)
    waits: list[int] = []
    bench.storage.log.on_sync = lambda: waits.append(bench.worker.disk_wait.number)
    waiter = bench.ask(SET)
    assert waiter.answer == b"+OK\r\n"
    assert bench.machine.kv.values == {b"a": b"1"}
    assert all(waits) and len(waits) == 1, "what comes after the wait may hang again"
    assert not bench.worker.disk_wait.number


def test_who_gathers_does_not_hang_while_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another entry is written meanwhile, such as a change of the members."""
    bench = Bench()
    bench.lead()
    bench.turn()
    bench.settle()
    bench.ask(SET)
    gathering = bench.submit([b"SET", b"b", b"1"])
    disk = FullDisk(bench, monkeypatch, tries=20)
    assert bench.core.propose([encode(bench.at_ms, [SET])], bench.clock.now) is not None
    told_at: list[float] = []

    def look() -> None:
        if gathering.answer is not None:
            told_at.append(bench.clock.now)

    disk.while_waiting = look
    started_at = bench.clock.now
    bench.turn()
    assert is_error(gathering.answer, "CLUSTERDOWN")
    assert told_at[0] <= started_at + TIMEOUT_MAX + 3 * DISK_FULL_RETRY_S * 1000


def test_clients_do_not_hang_while_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.lead()
    reading = bench.submit([b"GET", b"a"])
    bench.turn()
    writing = bench.submit(SET)
    disk = FullDisk(bench, monkeypatch, tries=20)
    arrived = bench.client([b"SET", b"b", b"1"])
    told_at: list[float] = []

    def look() -> None:
        if disk.slept == 1:
            assert bench.desk.submit(arrived.batch)
        if arrived.answer is not None and writing.answer is not None:
            told_at.append(bench.clock.now)

    disk.while_waiting = look
    started_at = bench.clock.now
    bench.turn()
    bench.turn(after_ms=GATHER_MS)
    assert is_error(reading.answer, "CLUSTERDOWN")
    assert is_error(arrived.answer, "CLUSTERDOWN")
    assert is_error(writing.answer, "INDETERMINATE")
    assert told_at[0] <= started_at + 2 * TIMEOUT_MAX + 3 * DISK_FULL_RETRY_S * 1000
    assert bench.desk.load.taken == 0
    bench.turn()
    assert bench.logged()[-1][-1] == SET
    assert [b"SET", b"b", b"1"] not in bench.logged()[-1]
    assert writing.times == arrived.times == reading.times == 1


def test_an_entry_whose_clients_were_told_still_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(voters=1)
    bench.win()
    bench.turn()
    FullDisk(bench, monkeypatch, tries=20)
    waiter = bench.ask(SET)
    assert is_error(waiter.answer, "INDETERMINATE")
    assert bench.machine.kv.values == {b"a": b"1"}
    assert bench.ask([b"GET", b"a"]).answer == b"$1\r\n1\r\n"


def test_what_the_timers_post_meanwhile_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(voters=1)
    bench.win()
    disk = FullDisk(bench, monkeypatch, tries=3)
    ran: list[float] = []

    def timers() -> None:
        for _ in range(MAX_POSTED):
            bench.worker.post(ran.append)

    disk.while_waiting = timers
    bench.ask(SET)
    bench.turn()
    assert len(ran) == MAX_POSTED


def test_a_node_that_stops_does_not_wait_for_space(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(voters=1)
    bench.win()
    disk = FullDisk(bench, monkeypatch, tries=10**9)
    disk.while_waiting = bench.worker.stop
    bench.submit(SET)
    with pytest.raises(DiskFullError):
        bench.turn()


def test_other_disk_errors_end_the_worker_at_once() -> None:
    bench = Bench(voters=1)
    bench.win()

    def fail() -> None:
        raise StorageError("log: input/output error")

    bench.storage.log.on_append = fail
    waiter = bench.submit(SET)
    with pytest.raises(StorageError):
        bench.turn()
    assert waiter.answer is None


# --- odd messages -------------------------------------------------------------------------------------

ODD: list[PeerMessage] = [
    AppendEntries(9, 3, 0, 0, (), 0),  # in the name of another is judged by RaftNode; here: a term ahead
    AppendEntries(9, 2, 5, 1, (), 99),
    AppendEntries(9, 2, 0, 0, (Entry(2, 1, 0, b""),), 0),
    AppendEntries(9, 2, 0, 0, (Entry(1, 99, 0, b""),), 0),
    AppendEntries(9, 2, -3, 0, (), 0),
    AppendEntriesResponse(1, True, 10**9, 0),
    AppendEntriesResponse(1, True, 0, 10**9),
    AppendEntriesResponse(1, False, 0, 0, 10**9, -5, 10**9),
    AppendEntriesResponse(1, True, -1, -1),
    RequestVote(0, 3, 0, 0),
    RequestVote(99, 2, 10**12, 98, True),
    RequestVoteResponse(1, True),
    RequestVoteResponse(2, True, True),
    ReadIndexRequest(0, -1),
    ReadIndexResponse(1, 10**15, 10**15, True),
    Forward(-1, 0, []),
    Forward(1, 2, [[b"SET", b"k", b"v"]]),
    Forward(1, 2, [[b"SET", b"k", b"v"]], b"lane", 1),
    Forward(1, 2, [[b"SET", b"k", b"v"]], b"~lane", 0),
    Forward(1, 2, [[b"SET", b"k", b"v"]], b"~lane" * 100, 1),
    Forward(1, 2, [[b"SET", b"k", b"v"]], b"~lane", 2**63),
    Forward(1, 2, [[b"RAFT", b"TRANSFER"]], b"~lane", 1),
    Forward(1, 2, [[b"RAFT", b"DIGEST"]], b"~lane", 1),
    Forward(2**63, 2, [[b""]]),
    Forward(1, 3, [[b"SET", b"k", b"v"], [b"~TERM", b"1"]]),
    ForwardReply(0, [b"+OK\r\n"] * 5),
    ForwardReply(0, [], ""),
    Ping(2**63, -1),
    Pong(-1, 2**63),
    Pong(10**15, 0),
]


@pytest.mark.parametrize("message", ODD, ids=lambda m: f"{type(m).__name__}{ODD.index(m)}")
@pytest.mark.parametrize("role", ["leader", "follower", "candidate"])
def test_no_odd_message_ends_the_worker(role: str, message: PeerMessage) -> None:
    bench = Bench()
    if role == "leader":
        bench.lead()
    elif role == "follower":
        bench.follow(2, term=1)
    else:
        bench.turn(after_ms=TIMEOUT_MAX + 1)
    waiters = [bench.submit(SET), bench.submit([b"GET", b"a"])]
    bench.turn((2, message), (3, message), (77, message))
    for _ in range(300):
        bench.turn(after_ms=10)
    bench.desk.close()
    assert all(waiter.times == 1 for waiter in waiters)
    assert bench.desk.load.taken == 0


def test_an_elected_leader_outlives_the_word_of_a_second_one(caplog: pytest.LogCaptureFixture) -> None:
    """A quorum has voted for this node: the other is wrong, and must not end it (BUGS 5)."""
    bench = Bench()
    bench.lead()
    for _ in range(5):
        bench.turn((2, AppendEntries(bench.state.term, 2, 0, 0, (), 0)))
    assert bench.state.role is Role.LEADER
    assert caplog.text.count("two leaders in term") == 1, "a peer that goes on must not fill the log"


def test_pings_are_answered_by_the_worker() -> None:
    bench = Bench()
    bench.turn((2, Ping(7, 123)))
    assert bench.network.take(Pong, 2) == [Pong(7, 123)]


def test_a_refused_connection_brings_the_election_forward() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    bench.network.refused = [2]
    bench.turn()
    assert bench.state.election_deadline_ms - bench.clock.now <= 60


# --- the end ------------------------------------------------------------------------------------------


def test_run_ends_with_an_answer_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    waiters = [bench.submit(SET), bench.submit([b"GET", b"a"])]
    waits: list[float] = []

    def poll(timeout_s: float) -> list[tuple[int, PeerMessage]]:
        waits.append(timeout_s)
        if len(waits) == 3:
            bench.worker.stop()
        return []

    bench.network.poll = poll  # type: ignore[attr-defined]
    bench.worker.run()
    assert [is_error(waiter.answer, "CLUSTERDOWN") for waiter in waiters] == [True, True]
    assert len(waits) == 3 and all(0 <= wait <= 0.5 for wait in waits)


# --- snapshots for peers ------------------------------------------------------------------------------


def wants(bench: Bench) -> list[int]:
    """Whom the node begins to send a snapshot; node 1 leads, and its log begins behind what node 3 needs."""
    bench.lead()
    bench.state.log.floor = bench.state.log.last_index + 1
    asked: list[int] = []
    bench.installs._sender.want = lambda peer, _term, _now: asked.append(peer)  # type: ignore[method-assign]
    return asked


def test_a_leader_streams_to_whose_next_entry_is_compacted_away() -> None:
    bench = Bench()
    asked = wants(bench)
    bench.turn((3, AppendEntriesResponse(1, True, 0)))
    assert set(asked) == {3}


def test_a_leader_deposed_in_the_same_turn_streams_to_nobody() -> None:
    """Its chunks would bear the new term: whoever leads that would find two leaders in it, and stop."""
    bench = Bench()
    asked = wants(bench)
    bench.turn((3, AppendEntriesResponse(1, True, 0)), (2, RequestVote(2, 2, 99, 1, transfer=True)))
    assert (bench.state.role, bench.state.term) == (Role.FOLLOWER, 2)
    assert asked == []


def test_nobody_streams_to_a_peer_that_parted_in_the_same_turn() -> None:
    bench = Bench()
    asked = wants(bench)
    bench.state.progress[4] = Progress(1)  # on its way out: in no configuration any more
    bench.core.receive(4, AppendEntriesResponse(1, True, 0), bench.worker.now)
    del bench.state.progress[4]
    bench.turn()
    assert 4 not in asked


def test_the_worker_does_not_spin_while_a_received_snapshot_is_loaded() -> None:
    """Snapshots are left alone meanwhile, so that their deadline may long have passed."""
    bench = Bench()
    bench.turn()
    bench.snapshots._compact_to, bench.snapshots._compact_at = 1, bench.clock.now
    assert bench.worker._wait_s() <= 0.001
    bench.installs._receiver._load = cast(Any, object())
    assert bench.worker._wait_s() == LONGEST_WAIT_S


def test_an_acknowledgement_that_brings_nothing_costs_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.lead()
    waiter = bench.ask([b"SET", b"k", b"v"])
    bench.ack(2)
    assert waiter.answer == b"+OK\r\n"
    served: list[float] = []
    monkeypatch.setattr(bench.desk, "take_batches", lambda: served.append(bench.clock.now))
    bench.worker._next_expiry_check_ms = bench.clock.now + EXPIRY_STEP_MS
    bench.ack(3, pongs=False)
    assert not served and bench.state.progress[3].match_index == bench.state.log.last_index
    assert bench.worker._wait_s() * 1000 <= EXPIRY_STEP_MS, "what else there is to do waits no longer"
    for _ in range(20):  # nor do acknowledgements that go on for ever keep it off
        bench.ack(3, pongs=False)
    assert served


@pytest.mark.parametrize("news", ["client", "posted", "read", "commit"])
def test_an_acknowledgement_hides_nothing_else(news: str) -> None:
    bench = Bench()
    bench.lead()
    bench.worker._next_expiry_check_ms = bench.clock.now + EXPIRY_STEP_MS
    posted: list[float] = []
    if news == "client":
        bench.submit([b"SET", b"k", b"v"])
    elif news == "posted":
        bench.worker.post(posted.append)
    elif news == "read":
        waiter = bench.ask([b"GET", b"k"])
    else:
        waiter = bench.ask([b"SET", b"k", b"v"])
    last = bench.state.log.last_index
    bench.ack(3, pongs=False)
    if news == "client":
        assert bench.state.log.last_index == last + 1
    elif news == "posted":
        assert posted
    else:
        assert waiter.answer is not None
