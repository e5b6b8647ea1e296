"""The leader's side of InstallSnapshot: window, going back, stalls, files kept open."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from install_support import CLUSTER, make_machine, write_snapshot

from raft.core.invariants import ProtocolViolation
from raft.core.messages import InstallSnapshot, InstallSnapshotResponse
from raft.runtime import install_send
from raft.runtime.install import SnapshotSender
from raft.runtime.install_send import CONFIRM_MS, FORGET_MS, LONGEST_STALL_MS, RETRY_MS, STALL_MS, WINDOW
from raft.storage.disk import Disk
from raft.storage.errors import CorruptSnapshotError
from raft.storage.snapshots import SnapshotInfo, SnapshotStore
from raft.transport.node_messages import PeerMessage

CHUNK = 4096
TERM = 5


class CountingDisk(Disk):
    """The real one, which counts reads and knows what is open."""

    def __init__(self) -> None:
        self.reads = 0
        self.opened: set[int] = set()

    def open(self, path: Path, *, create: bool = False) -> int:
        fd = super().open(path, create=create)
        self.opened.add(fd)
        return fd

    def close(self, fd: int) -> None:  # type: ignore[misc]
        self.opened.discard(fd)
        Disk.close(fd)  # type: ignore[call-arg,arg-type]

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self.reads += 1
        return super().pread(fd, count, offset)


class Bench:
    """A sender whose messages the test reads."""

    def __init__(self, directory: Path) -> None:
        self.disk = CountingDisk()
        self.store = SnapshotStore.open(directory, CLUSTER, disk=self.disk)
        self.sent: list[tuple[int, InstallSnapshot]] = []
        self.away: set[int] = set()
        self.refused = 0
        self.now = 1000.0
        self.sender = SnapshotSender(self.store, 1, self._send)

    def _send(self, peer: int, message: PeerMessage) -> bool:
        assert isinstance(message, InstallSnapshot)
        if peer in self.away:
            self.refused += 1
            return False
        self.sent.append((peer, message))
        return True

    def snapshot(self, entries: int = 30) -> SnapshotInfo:
        info = write_snapshot(self.store, make_machine(entries))
        self.store.prune()
        return info

    def take(self, peer: int = 2) -> list[InstallSnapshot]:
        found = [message for to, message in self.sent if to == peer]
        self.sent = [each for each in self.sent if each[0] != peer]
        return found

    def offsets(self, peer: int = 2) -> list[int]:
        return [message.offset for message in self.take(peer)]

    def want(self, peer: int = 2, after_ms: float = 0.0) -> None:
        self.now += after_ms
        self.sender.want(peer, TERM, self.now)

    def answer(self, info: SnapshotInfo, wanted: int, peer: int = 2, term: int = TERM) -> None:
        self.sender.on_response(peer, InstallSnapshotResponse(term, info.index, wanted), self.now)

    def tick(self, after_ms: float = 0.0) -> None:
        self.now += after_ms
        self.sender.tick(TERM, self.now)

    def stream(self, info: SnapshotInfo, until: int, peer: int = 2) -> None:
        """The peer has all before byte until; what follows is on the way."""
        self.want(peer)
        self.take(peer)
        self.answer(info, until, peer)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(install_send, "CHUNK", CHUNK)
    return Bench(tmp_path)


def test_the_whole_file_arrives_in_order(bench: Bench) -> None:
    info = bench.snapshot()
    received = b""
    bench.want()
    while messages := bench.take():
        for message in messages:
            assert (message.term, message.leader_id) == (TERM, 1)
            assert (message.last_index, message.last_term, message.total) == (30, 1, info.bytes)
            assert message.offset == len(received)
            received += message.data
            bench.answer(info, len(received))
            assert len(bench.sender._chunks) <= WINDOW, "never the whole file in memory"
    assert received == info.path.read_bytes()
    assert bench.sender.progress() == {2: (info.bytes, info.bytes)}


def test_never_more_than_the_window_is_on_the_way(bench: Bench) -> None:
    """Bug 55: heartbeats wait behind a bounded number of chunks, whatever the peer answers and how often it
    is wanted."""
    info = bench.snapshot(60)
    rng = random.Random(1)
    on_the_way: list[int] = []
    bench.want()
    wanted, most = 0, 0
    while wanted < info.bytes:
        on_the_way += [message.offset + len(message.data) for message in bench.take()]
        most = max(most, len(on_the_way))
        assert len(on_the_way) <= WINDOW
        bench.want(after_ms=10)
        bench.tick()
        if rng.random() < 0.7 and on_the_way:
            wanted = on_the_way.pop(0)
            bench.answer(info, wanted)
            assert bench.sender.progress()[2] == (wanted, info.bytes)
    assert most == WINDOW


def test_the_window_holds_when_the_peer_is_at_an_odd_offset(bench: Bench) -> None:
    info = bench.snapshot(60)
    bench.want()
    bench.take()
    bench.answer(info, CHUNK + 100)  # it had this from before
    assert bench.offsets() == [CHUNK + 100 + n * CHUNK for n in range(WINDOW)]
    bench.answer(info, CHUNK + 101)
    assert bench.offsets() == []


def test_only_one_chunk_goes_out_before_the_peer_has_said_where_it_is(bench: Bench) -> None:
    bench.snapshot()
    bench.want()
    assert bench.offsets() == [0]


def test_want_is_idempotent_and_without_a_snapshot_nothing(bench: Bench) -> None:
    bench.want()
    assert bench.sender.pinned_index() is None
    assert bench.sender.next_deadline() == float("inf")
    bench.snapshot()
    for _ in range(20):
        bench.want(after_ms=60)
    assert bench.offsets() == [0]
    assert bench.sender.pinned_index() == 30


def test_a_peer_that_has_a_part_goes_on_there(bench: Bench) -> None:
    info = bench.snapshot()
    bench.want()
    bench.take()
    bench.answer(info, 5 * CHUNK)
    assert bench.offsets() == [(5 + n) * CHUNK for n in range(WINDOW)]


def test_a_peer_that_restarted_gets_it_from_the_start_once(bench: Bench) -> None:
    """The chunks that were on the way are all answered with 0: only the first answer sends again."""
    info = bench.snapshot()
    bench.stream(info, 4 * CHUNK)
    assert len(bench.take()) == WINDOW
    bench.answer(info, 0)
    assert bench.offsets() == [0]
    for _ in range(WINDOW - 1):
        bench.answer(info, 0)
    assert bench.offsets() == []
    bench.answer(info, CHUNK)
    assert bench.offsets() == [CHUNK * n for n in range(1, 1 + WINDOW)]


@pytest.mark.parametrize("stale", ["index", "term", "peer"])
def test_answers_about_something_else_change_nothing(bench: Bench, stale: str) -> None:
    old = bench.snapshot(20)
    info = bench.snapshot(30)
    bench.stream(info, 4 * CHUNK)
    bench.take()
    for wanted in (0, 2 * CHUNK, 5 * CHUNK, 6 * CHUNK):
        if stale == "index":
            bench.answer(old, wanted)
        elif stale == "term":
            bench.answer(info, wanted, term=TERM - 1)
        else:
            bench.answer(info, wanted, peer=3)
    assert bench.sent == []
    assert bench.sender.progress() == {2: (4 * CHUNK, info.bytes)}


def test_a_stale_answer_is_no_sign_of_life(bench: Bench) -> None:
    old, info = bench.snapshot(20), bench.snapshot(30)
    bench.stream(info, 4 * CHUNK)
    bench.take()
    bench.now += STALL_MS - 1
    bench.answer(old, 0)
    bench.tick(after_ms=2)
    assert bench.offsets() == [4 * CHUNK]


@pytest.mark.parametrize("wanted", [-1, 1 << 40])
def test_an_offset_that_is_not_there_is_a_violation(bench: Bench, wanted: int) -> None:
    info = bench.snapshot()
    bench.want()
    with pytest.raises(ProtocolViolation):
        bench.answer(info, wanted)
    assert bench.sender.progress() == {2: (0, info.bytes)}


def test_a_peer_that_takes_nothing_is_asked_slowly(bench: Bench) -> None:
    """A full disk there, or a load: it answers everything at once with 0. No circle at full speed."""
    info = bench.snapshot()
    bench.want()
    chunks = 0
    for _ in range(1000):  # ten seconds
        for _ in bench.take():
            chunks += 1
            bench.answer(info, 0)
        bench.want(after_ms=10)
        bench.tick()
    assert 3 <= chunks <= 6


def test_a_stall_sends_again_from_what_was_acknowledged_ever_more_slowly(bench: Bench) -> None:
    info = bench.snapshot()
    bench.stream(info, 3 * CHUNK)
    bench.take()
    bench.tick(after_ms=STALL_MS - 1)
    assert bench.sent == []
    deadline = bench.sender.next_deadline()
    assert deadline == bench.now + 1
    waits = []
    for _ in range(6):
        before = bench.now
        bench.now = bench.sender.next_deadline()
        bench.tick()
        assert bench.offsets() == [3 * CHUNK]
        waits.append(bench.now - before)
    assert waits == [1, 2000, 4000, 8000, 16_000, 16_000]
    assert waits[-1] == LONGEST_STALL_MS
    bench.answer(info, 4 * CHUNK)  # it lives: all as before
    assert len(bench.take()) == WINDOW
    assert bench.sender.next_deadline() == bench.now + STALL_MS


def test_what_is_turned_away_is_tried_again_without_reading_it_again(bench: Bench) -> None:
    info = bench.snapshot()
    bench.away.add(2)
    bench.want()
    reads = bench.disk.reads
    assert bench.sender.next_deadline() == bench.now + RETRY_MS
    for _ in range(10):
        bench.want(after_ms=RETRY_MS / 2)
        bench.tick()
    assert bench.refused == 6
    assert bench.disk.reads == reads
    bench.away.clear()
    bench.tick(after_ms=RETRY_MS)
    assert bench.offsets() == [0]
    bench.answer(info, CHUNK)
    assert len(bench.take()) == WINDOW
    bench.away.add(2)
    bench.answer(info, 3 * CHUNK)  # the outbox is full
    bench.away.clear()
    bench.tick(after_ms=RETRY_MS)
    assert bench.offsets() == [5 * CHUNK, 6 * CHUNK], "those on the way are not sent again"


def test_after_a_break_it_goes_on_from_what_was_acknowledged(bench: Bench) -> None:
    info = bench.snapshot()
    bench.stream(info, 3 * CHUNK)
    bench.take()
    bench.sender.disconnected(2)
    bench.sender.disconnected(3)
    bench.away.add(2)
    bench.tick()
    bench.away.clear()
    bench.tick(after_ms=RETRY_MS)
    assert bench.offsets() == [3 * CHUNK]
    bench.answer(info, 5 * CHUNK)  # an answer from before the break was late: it is true nevertheless
    assert bench.offsets() == [(5 + n) * CHUNK for n in range(WINDOW)]


def test_a_peer_goes_on_with_its_snapshot_while_newer_ones_are_taken_and_pruned(bench: Bench) -> None:
    info = bench.snapshot(20)
    content = info.path.read_bytes()
    bench.stream(info, 2 * CHUNK)
    bench.take()
    for entries in (30, 40, 50):
        bench.snapshot(entries)
    assert not info.path.exists()
    bench.sender.disconnected(2)
    bench.tick()
    received = content[: 2 * CHUNK]
    while messages := bench.take():
        for message in messages:
            assert message.last_index == 20
            received += message.data
            bench.answer(info, len(received))
    assert received == content
    assert bench.sender.pinned_index() == 20
    assert len(bench.disk.opened) == 1
    bench.sender.done(2)
    bench.sender.done(2)
    assert bench.disk.opened == set()
    assert bench.sender.pinned_index() is None


def test_who_has_to_begin_again_gets_the_newest(bench: Bench) -> None:
    old = bench.snapshot(20)
    bench.stream(old, 2 * CHUNK)
    bench.take()
    new = bench.snapshot(30)
    bench.answer(old, 0)
    (message,) = bench.take()
    assert (message.last_index, message.offset, message.total) == (30, 0, new.bytes)
    bench.answer(old, 2 * CHUNK)
    assert bench.sent == []
    assert bench.sender.pinned_index() == 30
    assert len(bench.disk.opened) == 1
    bench.sender.stop()
    assert bench.disk.opened == set()


def test_a_whole_snapshot_is_asked_for_until_the_peer_matches(bench: Bench) -> None:
    info = bench.snapshot()
    bench.stream(info, info.bytes)
    assert bench.sent == []
    for _ in range(5):
        bench.want(after_ms=CONFIRM_MS / 2)
        bench.tick()
        assert bench.sent == []
        bench.tick(after_ms=CONFIRM_MS / 2)
        (message,) = bench.take()
        assert (message.offset, message.data) == (info.bytes, b"")
        bench.answer(info, info.bytes)
    bench.sender.done(2)
    bench.tick(after_ms=CONFIRM_MS)
    assert bench.sent == []


@pytest.mark.parametrize("noticed", [False, True])
def test_a_peer_that_lost_a_whole_snapshot_gets_it_again(bench: Bench, noticed: bool) -> None:
    """It restarted while it loaded, or its disk was full at the very end."""
    info = bench.snapshot()
    bench.stream(info, info.bytes)
    if noticed:
        bench.sender.disconnected(2)
        bench.tick()
    else:
        bench.tick(after_ms=CONFIRM_MS)
    assert bench.offsets() == [info.bytes]
    bench.answer(info, 0)
    assert bench.offsets() == [0]


def test_two_peers_in_step_read_the_file_once(bench: Bench) -> None:
    info = bench.snapshot()
    before = bench.disk.reads
    bench.want(2)
    bench.want(3)
    for n in range(1, info.bytes // CHUNK + 2):
        for peer in (2, 3):
            bench.answer(info, min(n * CHUNK, info.bytes), peer)
    assert bench.take(2) == bench.take(3)
    assert bench.disk.reads - before == -(-info.bytes // CHUNK)
    bench.sender.done(2)
    assert len(bench.disk.opened) == 1
    bench.sender.done(3)
    assert bench.disk.opened == set()


def test_who_is_no_member_any_more_gets_nothing(bench: Bench) -> None:
    bench.snapshot()
    for peer in (2, 3, 4):
        bench.want(peer)
    bench.sender.retain([3, 7])
    assert bench.sender.progress().keys() == {3}


def test_a_silent_peer_pins_nothing_for_ever(bench: Bench) -> None:
    """A dead follower must not keep the leader's log from being compacted until the disk is full."""
    old = bench.snapshot(20)
    bench.stream(old, CHUNK)
    new = bench.snapshot(30)
    bench.away.add(2)
    while bench.now < 1000 + FORGET_MS + LONGEST_STALL_MS:
        bench.tick(after_ms=100)
    assert bench.sender.pinned_index() is None
    assert bench.disk.opened == set()
    bench.want()
    assert bench.sender.pinned_index() == new.index


def test_a_new_term_sends_again_in_it(bench: Bench) -> None:
    info = bench.snapshot()
    bench.stream(info, 2 * CHUNK)
    bench.take()
    bench.sender.tick(TERM + 2, bench.now)
    (message,) = bench.take()
    assert (message.term, message.offset) == (TERM + 2, 2 * CHUNK)
    bench.answer(info, 0, term=TERM)
    assert bench.sent == []


def test_a_file_that_was_cut_stops_the_leader_loudly(bench: Bench) -> None:
    info = bench.snapshot()
    bench.stream(info, CHUNK)
    with info.path.open("r+b") as file:
        file.truncate(6 * CHUNK)
    with pytest.raises(CorruptSnapshotError, match=f"byte {6 * CHUNK}"):
        bench.answer(info, 3 * CHUNK)
