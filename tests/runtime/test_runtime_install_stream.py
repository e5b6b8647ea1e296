"""Sender and receiver over links that break: whatever happens, in the end the follower has the machine.

Every seed is a history of its own: leaders come and go, links lose the end of what is on the way and repeat
the end of what had arrived, the follower restarts, its disk is full for a while, newer snapshots are taken.
"""

from __future__ import annotations

import errno
import functools
import random
from pathlib import Path

import pytest
from install_support import CHUNK, Follower, Leader, make_machine

from raft.core.messages import AppendEntriesResponse, InstallSnapshot
from raft.runtime import install_send
from raft.runtime.install_send import WINDOW
from raft.storage.disk import Disk


@functools.cache
def digest_of(entries: int) -> str:
    return make_machine(entries).digest()


class History:
    """Two nodes that may lead, 2 and 3, and the follower, 1."""

    def __init__(self, seed: int, directory: Path | None = None) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.term = 1
        if directory is None:
            self.follower = Follower()
            self.leaders = {2: Leader(2), 3: Leader(3)}
        else:
            paths = {n: directory / str(n) for n in (1, 2, 3)}
            for path in paths.values():
                path.mkdir()
            self.follower = Follower(Disk(), paths[1])
            self.leaders = {n: Leader(n, Disk(), paths[n]) for n in (2, 3)}
        self.newest = 8
        for leader in self.leaders.values():
            leader.take_snapshot(8, cut=(1000 * leader.node_id,))
        self.leader = self.leaders[2]
        self.heard: list[InstallSnapshot] = []

    def pass_time(self, ms: float) -> None:
        self.now += ms
        self.leader.heartbeat(self.now)
        for acked, total in self.leader.sender.progress().values():
            assert 0 <= acked <= total

    def deliver(self, count: int) -> None:
        """Up to so many messages in each direction, in order."""
        wire = self.leader.wire
        for _ in range(count):
            if wire.to_follower:
                message = wire.to_follower.popleft()
                assert isinstance(message, InstallSnapshot)
                self.heard = [*self.heard, message][-3:]
                self.follower.receive(self.leader.node_id, message, self.now)
                answers, self.follower.answers = self.follower.answers, []
                wire.to_leader.extend(answer for peer, answer in answers if peer == self.leader.node_id)
            if wire.to_leader:
                self.leader.receive(wire.to_leader.popleft(), self.now)

    def take_in(self) -> None:
        installed = self.follower.install()
        if installed is not None:
            assert self.follower.machine.digest() == digest_of(self.follower.commit_index)
            match = AppendEntriesResponse(self.term, True, self.follower.commit_index)
            self.leader.wire.to_leader.append(match)  # as the core says it; it may get lost

    def break_link(self) -> None:
        """The end of what is on the way is lost; the end of what had arrived may come again."""
        wire = self.leader.wire
        for queue in (wire.to_follower, wire.to_leader):
            for _ in range(self.rng.randint(0, len(queue))):
                queue.pop()
        self.deliver(WINDOW)
        wire.to_follower.clear()
        if self.rng.random() < 0.5:
            wire.to_follower.extend(m for m in self.heard if m.term == self.term)
        self.leader.sender.disconnected(1)

    def lose_everything(self) -> None:
        self.leader.wire.to_follower.clear()
        self.leader.wire.to_leader.clear()
        self.heard = []

    def restart_follower(self) -> None:
        self.lose_everything()
        self.leader.sender.disconnected(1)
        self.follower.restart()
        self.follower.receiver._paused_until_ms = 0.0
        self.leader.needed = True

    def change_leader(self) -> None:
        self.leader.sender.stop()
        self.lose_everything()
        self.term += 1
        self.leader = self.rng.choice(list(self.leaders.values()))
        self.leader.term = self.term
        self.leader.needed = True

    def take_newer(self) -> None:
        if self.newest < 40:
            self.newest += 4
            self.leader.take_snapshot(self.newest)
            if self.follower.commit_index < self.newest:
                self.leader.needed = True

    def fill_disk(self) -> None:
        disk = self.follower.disk
        if isinstance(disk, Disk) and hasattr(disk, "fail"):
            call = self.rng.choice(["pwrite", "fsync", "create", "rename"])
            times = self.rng.randint(1, 2)
            disk.fail(call, errno.ENOSPC, name="snapshot-", skip=self.rng.randint(0, 5), times=times)

    def step(self) -> None:
        rng = self.rng
        self.pass_time(rng.choice([1, 10, 60, 300]))
        self.deliver(rng.randint(0, 4))
        if rng.random() < 0.3:
            self.take_in()
        fault = rng.random()
        if fault < 0.06:
            self.break_link()
        elif fault < 0.07:
            self.restart_follower()
        elif fault < 0.08:
            self.change_leader()
        elif fault < 0.10:
            self.take_newer()
        elif fault < 0.11:
            self.fill_disk()
        elif fault < 0.13:
            self.leader.wire.up = not self.leader.wire.up

    def settle(self) -> float:
        """No more faults. How long it takes until the leader is content, in ms."""
        getattr(self.follower.disk, "faults", []).clear()
        for leader in self.leaders.values():
            leader.wire.up = True
        began = self.now
        while self.leader.needed:
            assert self.now - began < 60_000, "wedged"
            self.pass_time(60)
            self.deliver(8)
            self.take_in()
        return self.now - began


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_send, "CHUNK", CHUNK)


@pytest.mark.parametrize("seed", range(40))
def test_a_follower_ends_with_the_machine_whatever_happens(seed: int) -> None:
    history = History(seed)
    for _ in range(250):
        history.step()
    history.newest += 4
    history.leader.take_snapshot(history.newest)
    follower = history.follower
    for _ in range(2):  # the second time for one that goes on with an older snapshot
        history.leader.needed = follower.commit_index < history.newest
        history.settle()
    assert follower.commit_index == history.newest
    assert follower.machine.digest() == digest_of(follower.commit_index)
    for leader in history.leaders.values():
        leader.sender.stop()
        assert leader.disk.open_files == []
    follower.restart()
    assert follower.machine.digest() == digest_of(follower.commit_index)
    assert follower.disk.open_files == []


@pytest.mark.parametrize("seed", range(3))
def test_the_same_on_a_real_disk(seed: int, tmp_path: Path) -> None:
    history = History(seed, tmp_path)
    for _ in range(100):
        history.step()
    history.leader.needed = True
    history.settle()
    assert history.follower.machine.digest() == digest_of(history.follower.commit_index)


def test_without_faults_the_follower_is_served_once_and_at_once() -> None:
    history = History(0)
    assert history.settle() <= 600
    assert history.follower.installs == 1
    assert history.leader.sender.pinned_index() is None


def test_what_had_arrived_before_a_break_is_not_sent_again() -> None:
    history = History(0)
    history.pass_time(1)
    for _ in range(4):
        history.deliver(1)
    history.leader.wire.to_follower.clear()
    history.leader.wire.to_leader.clear()
    received = history.follower.receiver.progress()
    assert received is not None
    assert received[0] == 4 * CHUNK
    history.leader.sender.disconnected(1)
    history.pass_time(1)
    (message,) = history.leader.wire.to_follower
    assert isinstance(message, InstallSnapshot)
    assert message.offset in (3 * CHUNK, 4 * CHUNK), "at most the one whose answer was lost"
    history.settle()
    assert history.follower.installs == 1
