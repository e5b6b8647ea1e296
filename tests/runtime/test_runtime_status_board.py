"""What a node publishes: who leads at once, how far it is every few milliseconds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from runtime_support import Bench

from raft.config import Settings, load_settings
from raft.core.state import Role
from raft.node import RaftNode
from raft.runtime.status_board import EVERY_MS, StatusBoard

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings() -> Settings:
    return load_settings(str(ROOT / "config.yaml"))


def test_progress_is_published_every_few_milliseconds_and_roles_at_once(settings: Settings) -> None:
    bench = Bench()
    board = StatusBoard(settings, "run", bench.core, bench.worker, bench.pings)
    assert board.publish(bench.clock.now) == float("inf")
    bench.lead()
    assert board.publish(bench.clock.now) == float("inf")
    assert board.current is not None and board.current.role == "leader"
    before = board.current
    bench.submit([b"SET", b"k", b"v"])
    bench.turn(after_ms=EVERY_MS / 4)
    due = board.publish(bench.clock.now)
    assert board.current is before, "so soon after the last one"
    assert bench.clock.now < due <= bench.clock.now + EVERY_MS
    bench.clock.now = due
    assert board.publish(due) == float("inf")
    assert board.current.last_log_index == bench.state.log.last_index > before.last_log_index


def test_the_worker_comes_back_for_what_is_not_published_yet(settings: Settings) -> None:
    bench = Bench()
    board = StatusBoard(settings, "run", bench.core, bench.worker, bench.pings)
    bench.publish_status = lambda: board.publish(bench.clock.now)  # type: ignore[method-assign]
    bench.lead()
    bench.turn(after_ms=EVERY_MS)
    bench.submit([b"SET", b"k", b"v"])
    bench.turn(after_ms=1.0)
    assert 0 < bench.worker._wait_s() * 1000 <= EVERY_MS
    bench.ack(2)
    bench.turn(after_ms=EVERY_MS + 1)
    assert board.current is not None and board.current.applied_index == bench.machine.applied_index
    assert bench.worker._wait_s() * 1000 > EVERY_MS


def test_the_election_thread_is_woken_only_if_it_would_sleep_too_long(settings: Settings) -> None:
    node = RaftNode(1, settings=settings)
    state = SimpleNamespace(role=Role.FOLLOWER, election_deadline_ms=500.0, heartbeat_due_ms=0.0)
    node._core = SimpleNamespace(state=state)  # type: ignore[assignment]
    node._election_wakes_ms = 400.0
    node.reset_election_timeout()
    assert not node._election_moved.is_set() and node._election_deadline_ms == 500.0
    state.election_deadline_ms = 450.0  # nearer, but it looks before
    node.reset_election_timeout()
    assert not node._election_moved.is_set() and node._election_deadline_ms == 450.0
    state.election_deadline_ms = 399.0
    node.reset_election_timeout()
    assert node._election_moved.is_set()
