"""Feed: what the projector's thread may see, and when the worker hears of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from runtime_support import Bench

from ledger.rows import ProjectionBatch

DEADLINE_S = 10.0


class Projector:
    """The other thread: one call at a time, whose end the test waits for."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.batches: list[ProjectionBatch | None] = []
        self.thread: threading.Thread | None = None

    def pull(self, full: bool = False, timeout_s: float = DEADLINE_S) -> None:
        def body() -> None:
            self.batches.append(self.bench.feed.pull(full, timeout_s))

        waiting = self.bench.network.wakes
        self.thread = threading.Thread(target=body, daemon=True)
        self.thread.start()
        while self.bench.network.wakes == waiting:  # it asks before it waits
            self.thread.join(0.001)

    def result(self, turn: Callable[[], None] = lambda: None) -> ProjectionBatch | None:
        assert self.thread is not None
        turn()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        return self.batches[-1]


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.lead()
    bench.ask([b"FOLLOWER", b"JOIN", b"f", b"1.0"])
    bench.settle()
    return bench


def projected(bench: Bench) -> list[list[bytes]]:
    return [c for commands in bench.logged() for c in commands if c[0] == b"~PROJECTED"]


def test_a_leader_hands_out_what_is_pending_and_logs_what_is_written(bench: Bench) -> None:
    projector = Projector(bench)
    projector.pull()
    batch = projector.result(bench.turn)
    assert batch is not None and {row.node for row in batch.rewards} == {"f", "node-1", "node-2", "node-3"}
    assert bench.feed.applied_index() == bench.machine.applied_index
    bench.feed.written(batch.upto_index)
    bench.turn()
    assert projected(bench) == [[b"~PROJECTED", b"%d" % batch.upto_index]]
    bench.settle()
    bench.turn()
    assert bench.feed.projected_index() == batch.upto_index


def test_the_same_rows_are_not_handed_out_twice_while_their_report_is_in_the_log(bench: Bench) -> None:
    projector = Projector(bench)
    projector.pull()
    batch = projector.result(bench.turn)
    assert batch is not None
    bench.feed.written(batch.upto_index)
    projector.pull()
    bench.turn()
    bench.turn()
    assert len(projector.batches) == 1
    bench.ask([b"FOLLOWER", b"JOIN", b"g", b"1.0"])
    bench.settle()
    second = projector.result(bench.turn)
    assert second is not None and [row.node for row in second.rewards] == ["g"]


def test_a_full_batch_is_never_nothing(bench: Bench) -> None:
    projector = Projector(bench)
    projector.pull(full=True)
    batch = projector.result(bench.turn)
    assert batch is not None and batch.full and len(batch.rewards) == 4


def test_a_node_that_does_not_lead_gives_nothing() -> None:
    bench = Bench()
    bench.follow(2, term=1)
    bench.replicate([b"FOLLOWER", b"JOIN", b"f", b"1.0"])
    assert bench.feed.pull(False, 0.0) is None
    bench.turn()
    assert bench.feed.applied_index() is None


def test_a_leader_without_a_quorum_is_no_writer(bench: Bench) -> None:
    bench.turn()
    assert bench.feed.applied_index() is not None
    for _ in range(4):
        bench.turn(after_ms=100)
    assert bench.feed.applied_index() is None


def test_the_end_of_the_leadership_voids_what_was_handed_out_and_reported(bench: Bench) -> None:
    bench.feed.written(3)
    bench.follow(2, term=bench.state.term + 1)
    assert bench.feed.applied_index() is None
    assert bench.feed.serve(bench.machine.ledger, 5) is None
    assert projected(bench) == []


def test_a_batch_that_nobody_fetched_before_the_end_is_not_delivered(bench: Bench) -> None:
    """The projector's wait sees only what is there when it wakes."""
    bench.feed._wanted = False
    bench.feed.serve(bench.machine.ledger, 5)
    assert bench.feed._batch is not None
    bench.feed.reset()
    assert bench.feed._batch is None


def test_an_impatient_projector_leaves_no_wish_behind(bench: Bench) -> None:
    assert bench.feed.pull(False, 0.0) is None
    bench.turn()
    assert bench.feed._batch is None


def test_closing_lets_the_projector_go(bench: Bench) -> None:
    projector = Projector(bench)
    projector.pull()
    assert projector.result(bench.feed.close) is None
    assert bench.feed.pull(False, DEADLINE_S) is None
