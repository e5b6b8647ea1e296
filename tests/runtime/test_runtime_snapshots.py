"""Snapshots in the worker: when they begin, how they fail, what compaction leaves, what a restart finds.

The data directory is real, the children are forked; who wins elections and what time it is decides the test.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from runtime_support import Bench, Waiter, encode, is_error

from raft.config import load_settings
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server, decode_configuration, encode_configuration
from raft.core.messages import AppendEntries, RequestVote, RequestVoteResponse
from raft.machine.machine import Machine
from raft.runtime import snapshots as snapshots_module
from raft.runtime.snapshots import RETRY_MS
from raft.runtime.snapshotting import ChildSnapshot, Outcome, Report, Result, fork_snapshot
from raft.runtime.status_board import EVERY_MS, StatusBoard
from raft.storage.errors import CompactedError, StorageError
from raft.storage.snapshots import SnapshotStore
from raft.transport.node_messages import Forward

CONFIG = Path(__file__).resolve().parents[2] / "config.yaml"
ASK = [b"RAFT", b"SNAPSHOT"]
benches: list[Bench] = []


@pytest.fixture(autouse=True)
def everything_is_closed() -> Iterator[None]:
    yield
    for bench in benches:
        bench.snapshots.close()
        bench.storage.close()
    benches.clear()


def open_bench(directory: Path, **options: object) -> Bench:
    bench = Bench(directory=directory, **{"voters": 1, **options})  # type: ignore[arg-type]
    benches.append(bench)
    return bench


def leading(directory: Path, **options: object) -> Bench:
    bench = open_bench(directory, **options)
    bench.win()
    bench.turn()
    return bench


def reopened(bench: Bench, **options: object) -> Bench:
    """The node was killed and starts again."""
    bench.snapshots.close()
    bench.storage.close()
    benches.remove(bench)
    return open_bench(bench.storage.log._directory, **options)


def until(bench: Bench, condition: Callable[[], bool], after_ms: float = 1.0) -> None:
    """Turn until it is so. A child takes real time: it is waited for, so that it costs one turn, not many
    (in which intervals would open and close)."""
    deadline = time.monotonic() + 30
    while not condition():
        child = bench.snapshots._child
        while isinstance(child, ChildSnapshot) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert time.monotonic() < deadline
        bench.turn(after_ms=after_ms)


def write(bench: Bench, count: int, size: int = 10) -> None:
    """So many entries with a SET each."""
    for _ in range(count):
        number = bench.machine.applied_index
        bench.ask([b"SET", b"key %d" % number, b"%d" % (number % 10) * size])
        bench.turn()


def take(bench: Bench) -> int:
    """RAFT SNAPSHOT; returns its index."""
    waiter = bench.submit(ASK)
    until(bench, lambda: waiter.answer is not None, after_ms=25)
    assert waiter.answer == b"+OK\r\n"
    return bench.snapshots.index


def names(bench: Bench, of: str = "snapshot-") -> list[str]:
    return sorted(path.name for path in bench.storage.log._directory.iterdir() if path.name.startswith(of))


class Script:
    """Stands in for take_snapshot: children that end as the test says, and leave half a file behind."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.configurations: list[bytes] = []
        self.outcome: Outcome | None = None
        self.error: OSError | None = None
        self.check: Callable[[], None] = lambda: None

    def __call__(self, machine: Machine, store: SnapshotStore, configuration: bytes) -> ChildSnapshot:
        self.check()
        if self.error is not None:
            raise self.error
        self.begun.append(machine.applied_index)
        self.configurations.append(configuration)
        script = self

        class Child:
            def __init__(self) -> None:
                self.pause_s = 0.001
                self._writer = store.writer(machine.applied_index, machine.applied_term, configuration)
                self._data = list(machine.dump())
                self._writer.write(self._data[0])

            def poll(self) -> Outcome | None:
                if script.outcome is not None and script.outcome.result is Result.DONE:
                    latest = store.latest()
                    for piece in self._data[1:]:
                        self._writer.write(piece)
                    self._writer.commit()
                    store._latest = latest  # a child's own copy of the store knows; the parent's does not
                return script.outcome

            def cancel(self) -> Outcome:
                return Outcome(Result.CANCELLED, "cancelled", 0.0)

        child: Any = Child()
        return child


DONE = Outcome(Result.DONE, "", 0.1)


# --- when -----------------------------------------------------------------------------------------------


def test_one_begins_after_so_many_entries(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench = leading(tmp_path, every_entries=10)
    while bench.machine.applied_index < 9:
        write(bench, 1)
    assert not bench.snapshots.running and bench.snapshots.index == 0
    write(bench, 1)
    until(bench, lambda: bench.snapshots.index == 10, after_ms=25)
    assert not bench.snapshots.running
    assert names(bench) == ["snapshot-0000000000000010.snap"]
    said = [record.getMessage() for record in caplog.records if "snapshot of entry" in record.getMessage()]
    assert said[0] == "snapshot of entry 10 begun: 10 entries since the last one"
    assert said[1].startswith("snapshot of entry 10 done: ") and "keys" in said[1] and "fork" in said[1]
    write(bench, 9)
    assert not bench.snapshots.running
    write(bench, 30)
    until(bench, lambda: not bench.snapshots.running and bench.snapshots.index >= 40, after_ms=25)
    assert len(names(bench)) == 2, "the last two are kept"


def test_a_fork_finds_all_effects_carried_out(tmp_path: Path) -> None:
    script = Script()
    bench = leading(tmp_path, every_entries=3, fork=script)

    def check() -> None:
        assert bench.state.log.operations == []
        assert bench.storage.log.durable_index == bench.state.log.last_index
        assert bench.machine.applied_index == bench.state.commit_index
        assert [waiter.answer is None for waiter in waiters].count(True) == 0

    script.check, script.outcome = check, DONE
    waiters: list[Waiter] = []
    for _ in range(20):
        waiters.append(bench.submit([b"SET", b"a", b"1"]))
        bench.turn(after_ms=25)
    assert len(script.begun) >= 3


# --- RAFT SNAPSHOT --------------------------------------------------------------------------------------


def test_a_client_asks_the_leader(tmp_path: Path) -> None:
    bench = leading(tmp_path)
    write(bench, 5)
    applied = bench.machine.applied_index
    assert take(bench) == applied
    assert bench.desk.load.taken == 0
    log_before = bench.storage.log.last_index
    assert bench.ask(ASK).answer == b"+OK\r\n", "nothing was applied since: at once"
    assert bench.storage.log.last_index == log_before, "it is no entry"


def test_who_hears_that_it_is_done_sees_it_in_the_status(tmp_path: Path) -> None:
    script = Script()
    bench = leading(tmp_path, fork=script)
    board = StatusBoard(load_settings(str(CONFIG)), "run", bench.core, bench.worker, bench.pings)
    bench.publish_status = lambda: board.publish(bench.clock.now)  # type: ignore[method-assign]
    write(bench, 1)
    waiter = bench.ask(ASK)
    index = bench.machine.applied_index
    bench.turn(after_ms=EVERY_MS + 1)  # published just now: the rest is not due
    script.outcome = DONE
    bench.turn(after_ms=EVERY_MS - 1)
    assert waiter.answer == b"+OK\r\n"
    assert board.current is not None and board.current.snapshot_index == index


def test_a_follower_takes_its_own(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, voters=3)
    bench.follow(2, term=1)
    bench.replicate([b"SET", b"a", b"1"])
    assert take(bench) == 1
    assert bench.network.take(Forward) == []


def test_without_a_leader_too(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, voters=3)
    assert bench.ask(ASK).answer == b"+OK\r\n", "there is nothing to save"
    bench.follow(2, term=1)
    bench.replicate([b"SET", b"a", b"1"])
    bench.turn(after_ms=5000)
    assert bench.state.leader_id is None
    assert take(bench) == 1


def test_who_asks_during_one_gets_the_next_if_anything_changed(tmp_path: Path) -> None:
    script = Script()
    bench = leading(tmp_path, fork=script)
    write(bench, 1)
    first, same = bench.ask(ASK), bench.ask(ASK)
    index = bench.machine.applied_index
    assert script.begun == [index]
    write(bench, 1)
    later = bench.ask(ASK)
    script.outcome = DONE
    bench.turn(after_ms=25)
    assert first.answer == same.answer == b"+OK\r\n"
    assert later.answer is None
    assert script.begun == [index, index + 1], "the next begins at once"
    bench.turn(after_ms=25)
    assert later.answer == b"+OK\r\n"
    assert bench.snapshots.index == index + 1
    assert bench.desk.load.taken == 0


def test_the_answer_comes_after_the_status(tmp_path: Path) -> None:
    """Who hears OK and asks for RAFT INFO sees the new snapshot there."""
    bench = leading(tmp_path, fork=(script := Script()))
    write(bench, 1)
    script.outcome = DONE
    waiter = bench.submit(ASK)
    seen: list[tuple[int, bytes | None]] = []
    bench.publish_status = lambda: seen.append((bench.snapshots.index, waiter.answer))  # type: ignore[method-assign]
    until(bench, lambda: waiter.answer is not None, after_ms=25)
    assert seen[-1] == (bench.machine.applied_index, None)


def test_a_peer_cannot_ask_for_one(tmp_path: Path) -> None:
    bench = leading(tmp_path, voters=1, fork=(script := Script()))
    bench.turn((2, Forward(1, 2, [ASK])))
    bench.turn()
    assert script.begun == []
    assert bench.machine.applied_index == bench.state.log.last_index


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "message", "advice"),
    [
        (Result.DISK_FULL, "x: the disk is full", "free some space"),
        (Result.KILLED, "killed by signal 9", "memory"),
        (Result.TIMEOUT, "took too long", "overloaded"),
    ],
)
def test_a_failure_to_outlive(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, result: Result, message: str, advice: str
) -> None:
    script = Script()
    bench = leading(tmp_path, every_entries=3, fork=script)
    write(bench, 4)
    index = script.begun[-1]
    assert names(bench) == [f"snapshot-{index:016}.taking.tmp"]
    script.outcome = Outcome(result, message, 0.1)
    bench.turn(after_ms=25)
    began = len(script.begun)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert message in warning.getMessage() and advice in warning.getMessage()
    assert names(bench) == [], "what the child has left is removed"
    for _ in range(30):
        bench.turn(after_ms=RETRY_MS / 60)
        write(bench, 1)
    assert len(script.begun) == began, "not before its time"
    script.outcome = DONE
    until(bench, lambda: bench.snapshots.index > 0, after_ms=RETRY_MS / 60)
    assert len(script.begun) == began + 1
    assert bench.desk.load.taken == 0


def test_a_client_need_not_wait_for_the_next_try(tmp_path: Path) -> None:
    bench = leading(tmp_path, every_entries=3, fork=(script := Script()))
    write(bench, 4)
    script.outcome = Outcome(Result.DISK_FULL, "x: the disk is full", 0.1)
    bench.turn(after_ms=25)
    script.outcome = DONE
    take(bench)


def test_an_error_is_told_to_those_who_asked(tmp_path: Path) -> None:
    bench = leading(tmp_path, fork=(script := Script()))
    write(bench, 1)
    waiter = bench.ask(ASK)
    write(bench, 1)
    later = bench.ask(ASK)
    script.outcome = Outcome(Result.DISK_FULL, "x: the disk is full", 0.1)
    bench.turn(after_ms=25)
    index = script.begun[0]
    assert waiter.answer == b"-ERR no snapshot of entry %d: x: the disk is full\r\n" % index
    assert later.answer is None and script.begun == [index, index + 1]


def test_a_failure_not_to_outlive(tmp_path: Path) -> None:
    bench = leading(tmp_path, every_entries=3, fork=(script := Script()))
    write(bench, 4)
    script.outcome = Outcome(Result.FAILED, "StorageError: cannot write: Input/output error", 0.1)
    with pytest.raises(StorageError, match=r"snapshot of entry .* failed: .* Input/output error"):
        bench.turn(after_ms=25)


def test_no_child_can_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = Script()
    script.error = OSError(12, "Cannot allocate memory")
    bench = leading(tmp_path, every_entries=3, fork=script)
    write(bench, 9)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "Cannot allocate memory" in warning
    assert is_error(bench.ask(ASK).answer, "ERR")
    script.error, script.outcome = None, DONE
    until(bench, lambda: bench.snapshots.index > 0, after_ms=RETRY_MS / 10)


def test_a_real_child_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """BUGS 44: half a snapshot is left, and nobody takes it for a whole one, this node nor its next start."""
    pids: list[int] = []

    def slow(machine: Machine, store: SnapshotStore, configuration: bytes) -> ChildSnapshot:
        index, term = machine.applied_index, machine.applied_term

        def writing(report: Report) -> None:
            writer = store.writer(index, term, configuration)
            writer.write(next(machine.dump()))
            report(1, 2)
            signal.pause()

        child = fork_snapshot(writing)
        pids.append(child.pid)
        return child

    bench = leading(tmp_path)
    write(bench, 3)
    good = take(bench)
    write(bench, 3)
    bench.snapshots._fork = slow
    waiter = bench.ask(ASK)
    child = bench.snapshots._child
    assert child is not None
    deadline = time.monotonic() + 30
    while child.progress is None:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    left = next(path for path in tmp_path.iterdir() if path.name.endswith(".taking.tmp"))
    content = left.read_bytes()
    os.kill(pids[0], signal.SIGKILL)
    until(bench, lambda: waiter.answer is not None, after_ms=25)
    assert is_error(waiter.answer, "ERR")
    assert names(bench) == [f"snapshot-{good:016}.snap"]
    assert bench.snapshots.index == good
    digest = bench.machine.digest()
    left.write_bytes(content)  # as if the whole node had been killed at that moment
    again = reopened(bench)
    assert names(again) == [f"snapshot-{good:016}.snap"]
    again.win()
    until(again, lambda: again.machine.applied_index >= good + 3)
    assert again.machine.kv.values == bench.machine.kv.values
    assert digest == bench.machine.digest()


def test_the_node_stops_during_one(tmp_path: Path) -> None:
    bench = leading(tmp_path)
    bench.snapshots._fork = lambda *_: fork_snapshot(lambda _report: signal.pause())
    write(bench, 1)
    waiter = bench.ask(ASK)
    child = bench.snapshots._child
    assert child is not None
    bench.worker.stopping = True
    bench.worker.run()
    assert is_error(waiter.answer, "CLUSTERDOWN")
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    bench.snapshots.close()
    assert bench.desk.load.taken == 0


# --- compaction -----------------------------------------------------------------------------------------


def test_the_log_goes_as_far_as_the_snapshot_before(tmp_path: Path) -> None:
    bench = leading(tmp_path)
    write(bench, 30, size=500)  # about 7 entries to a file of 4 KB
    first = take(bench)
    until(bench, lambda: bench.snapshots.next_deadline() == float("inf"), after_ms=25)
    assert bench.storage.log.first_index == 1, "only one snapshot: the log could have to stand in for it"
    write(bench, 30, size=500)
    files = len(names(bench, "log-"))
    take(bench)
    counts = []
    while bench.snapshots.next_deadline() < float("inf"):
        bench.turn(after_ms=snapshots_module.COMPACT_EVERY_MS)
        counts.append(len(names(bench, "log-")))
    assert files - counts[0] <= 2 and all(a - b <= 1 for a, b in pairwise(counts))
    begins = bench.storage.log.first_index
    assert first - 8 <= begins <= first + 1, "nothing that the snapshot before does not cover"
    assert bench.state.log.first_index == begins


def test_compaction_stops_at_what_is_being_streamed(tmp_path: Path) -> None:
    bench = leading(tmp_path)
    write(bench, 30, size=500)
    pinned = take(bench)
    bench.snapshots.pinned = lambda: pinned
    for _ in range(3):
        write(bench, 30, size=500)
        take(bench)
    for _ in range(50):
        bench.turn(after_ms=25)
    assert pinned - 8 <= bench.storage.log.first_index <= pinned + 1
    bench.snapshots.pinned = lambda: None
    until(bench, lambda: bench.snapshots.next_deadline() == float("inf"), after_ms=25)
    assert bench.storage.log.first_index > pinned + 30


def test_terms_before_the_log_are_not_read_as_zero(tmp_path: Path) -> None:
    """BUGS 24: after compaction, and after a restart, the entry before the log keeps its term."""
    bench = open_bench(tmp_path, voters=3)
    bench.follow(2, term=7)
    for _ in range(3):
        for _ in range(30):
            bench.replicate([b"SET", b"a", b"x" * 500])
        take(bench)
    until(bench, lambda: bench.snapshots.next_deadline() == float("inf"), after_ms=25)
    term = bench.state.term
    for restart in (False, True):
        each = reopened(bench) if restart else bench
        log, before = each.state.log, each.storage.log.first_index - 1
        assert before > 30 and term == 7
        assert log.term(before) == term
        assert log.matches(before, term) and not log.matches(before, 0)
        assert not log.matches(before - 1, 0)
        with pytest.raises((CompactedError, IndexError)):
            each.storage.log.term(before - 1)
    # A leader whose entry there has another term is refused; a right one is believed.
    each.turn((2, AppendEntries(term + 1, 2, before, term, (), before)))
    assert each.network.sent[-1][1].success  # type: ignore[union-attr]


# --- configuration --------------------------------------------------------------------------------------


def configuration_of(port: int) -> Configuration:
    servers = tuple(Server(n, "127.0.0.1", port + n, port + 10 + n, port + 20 + n) for n in (1, 2, 3))
    return Configuration((1, 2, 3), (), servers, "cluster id")


def test_a_snapshot_has_the_applied_configuration_and_never_a_later_one(tmp_path: Path) -> None:
    """BUGS 39, 40."""
    bench = open_bench(tmp_path, voters=3)
    bench.follow(2, term=1)
    old, new = configuration_of(1000), configuration_of(2000)
    bench.replicate([b"SET", b"a", b"1"])
    take(bench)
    info = bench.storage.snapshots.latest()
    assert decode_configuration(info.configuration) == Configuration((1, 2, 3)), "the founding one"
    entry = Entry(2, 1, EntryKind.CONFIGURATION, encode_configuration(old))
    bench.turn((2, bench.heartbeat(2, 1, entry)))
    committed = Entry(3, 1, EntryKind.COMMANDS, encode(bench.at_ms, [[b"SET", b"a", b"2"]]))
    uncommitted = Entry(4, 1, EntryKind.CONFIGURATION, encode_configuration(new))
    bench.turn((2, AppendEntries(1, 2, 2, 1, (committed, uncommitted), 3)))
    assert (bench.state.log.last_index, bench.machine.applied_index) == (4, 3)
    assert take(bench) == 3
    info = bench.storage.snapshots.latest()
    assert decode_configuration(info.configuration) == old
    for _ in range(2):  # the entry itself goes
        for _ in range(30):
            bench.replicate([b"SET", b"a", b"x" * 500])
        take(bench)
    until(bench, lambda: bench.snapshots.next_deadline() == float("inf"), after_ms=25)
    assert bench.storage.log.first_index > 5
    info = bench.storage.snapshots.latest()
    assert decode_configuration(info.configuration) == new, "applied by now"
    again = reopened(bench, voters=2)
    assert again.state.configuration == new
    assert again.state.configuration_index == info.index
    assert again.applier.configuration == encode_configuration(new)


# --- restart --------------------------------------------------------------------------------------------


def eventful(bench: Bench) -> None:
    """A bit of everything that is state."""
    bench.ask([b"ONCE", b"s", b"1", b"INCR", b"n"])
    bench.turn()
    for command in (
        [b"SET", b"fleeting", b"1", b"PX", b"50000"],
        [b"FOLLOWER", b"JOIN", b"f", b"1.0"],
        [b"SET", b"kept", b"yes"],
    ):
        bench.ask(command)
        bench.turn()


@pytest.mark.parametrize("more", [0, 5])
def test_a_restart_goes_on_from_the_snapshot(tmp_path: Path, more: int) -> None:
    bench = leading(tmp_path)
    eventful(bench)
    index = take(bench)
    write(bench, more)
    digest, applied = bench.machine.digest(), bench.machine.applied_index
    at_snapshot = bench.state.commit_index - more
    again = reopened(bench)
    assert again.machine.applied_index == again.state.commit_index == index == at_snapshot
    assert again.snapshots.index == index
    if not more:
        assert again.machine.digest() == digest
    again.published.clear()
    again.win()
    until(again, lambda: again.machine.applied_index >= applied)
    news = [payload for channel, payload in again.published if channel == "cluster"]
    assert not any("joined" in payload for payload in news), "told already, before the restart"
    again.turn()
    assert again.ask([b"ONCE", b"s", b"1", b"INCR", b"n"]).answer == b":1\r\n", "not a second time"
    assert again.machine.kv.values[b"n"] == b"1"
    again.turn(after_ms=60_000)
    until(again, lambda: b"fleeting" not in again.machine.kv.values)
    assert again.machine.kv.values[b"kept"] == b"yes"
    again.machine.ledger.check()
    assert again.machine.ledger.row_count() > 0


def test_the_log_may_be_gone_or_shorter(tmp_path: Path) -> None:
    """A crash after a leader's snapshot was put in place, before the log was emptied or written on."""
    bench = leading(tmp_path)
    eventful(bench)
    index, term = take(bench), bench.state.term
    digest = bench.machine.digest()
    again = reopened(bench)
    again.storage.log.reset(2, 1)  # shorter than the snapshot
    again = reopened(again)
    assert (again.storage.log.first_index, again.state.log.last_index) == (index + 1, index)
    assert again.machine.digest() == digest
    assert again.state.commit_index == index
    assert again.state.log.term(index) == term
    again.win()
    write(again, 2)
    assert again.machine.applied_index == again.storage.log.last_index > index + 2
    assert again.machine.kv.values[b"kept"] == b"yes"


def test_a_restarted_voter_judges_logs_by_its_snapshot(tmp_path: Path) -> None:
    """With an empty log behind its snapshot it must not take a shorter log for up to date."""
    bench = open_bench(tmp_path, voters=3)
    bench.follow(2, term=7)
    for _ in range(5):
        bench.replicate([b"SET", b"a", b"1"])
    index, term = take(bench), bench.state.term
    bench.storage.log.reset(index, term)
    again = reopened(bench)
    again.turn((2, RequestVote(term + 1, 2, index - 1, term)))
    assert again.network.take(RequestVoteResponse, 2)[-1].vote_granted is False
    again.turn((2, RequestVote(term + 2, 2, index, term)))
    assert again.network.take(RequestVoteResponse, 2)[-1].vote_granted is True


def test_a_snapshot_whose_content_is_another_entrys_is_refused(tmp_path: Path) -> None:
    bench = leading(tmp_path)
    write(bench, 3)
    writer = bench.storage.snapshots.writer(2, 1, encode_configuration(Configuration((1,))))
    for chunk in bench.machine.dump():
        writer.write(chunk)
    writer.commit()
    with pytest.raises(StorageError, match=r"snapshot-.*2\.snap: its header says entry 2"):
        reopened(bench)


def test_a_snapshot_without_a_sound_machine_names_its_file(tmp_path: Path) -> None:
    bench = leading(tmp_path)
    write(bench, 3)
    writer = bench.storage.snapshots.writer(2, 1, encode_configuration(Configuration((1,))))
    writer.write(b"what is it")
    writer.commit()
    with pytest.raises(StorageError, match=r"snapshot-.*2\.snap: "):
        reopened(bench)
