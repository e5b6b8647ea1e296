"""The follower's side of InstallSnapshot: what is taken, what is refused, and that nothing wedges it."""

from __future__ import annotations

import errno
import logging
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from install_support import (
    CHUNK,
    CLUSTER,
    CONFIGURATION,
    DIRECTORY,
    Follower,
    PowerLoss,
    Source,
    make_machine,
    memory_disk,
)

from raft.core.membership import ConfigurationFormatError, encode_configuration
from raft.core.messages import InstallSnapshot
from raft.machine.machine import Machine
from raft.machine.snapshot import SnapshotFormatError
from raft.runtime import install_receive
from raft.runtime.install_receive import DISK_FULL_PAUSE_MS, LONGEST_PAUSE_MS, REFUSED_PAUSE_MS
from raft.storage.disk import Disk
from raft.storage.errors import StorageError
from raft.storage.snapshots import SnapshotInfo, SnapshotStore


class Gate:
    """Holds the loader until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.loads = 0
        original = Machine.load

        def load(*args: Any) -> Machine:
            self.loads += 1
            assert self.open.wait(20)
            return original(*args)

        monkeypatch.setattr(install_receive.Machine, "load", load)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def check_installed(follower: Follower, source: Source) -> None:
    """The follower has the source's machine, in memory and after a restart."""
    assert follower.machine.digest() == source.machine.digest()
    assert follower.disk.listdir(follower.directory) == [source.info.path.name]
    follower.restart()
    assert follower.machine.digest() == source.machine.digest()


def leftovers(follower: Follower) -> list[str]:
    return [name for name in follower.disk.listdir(follower.directory) if name.endswith(".tmp")]


def install(follower: Follower, source: Source, now: float = 0.0) -> None:
    assert follower.feed(source, now=now) == source.info.bytes
    installed = follower.install()
    assert installed is not None
    assert installed.leader == source.leader


# --- the plain way


def test_a_snapshot_is_received_loaded_and_put_in_place(tmp_path: Path) -> None:
    follower, source = Follower(Disk(), tmp_path), Source(30)
    assert follower.receiver.take_installed() is None
    middle = follower.feed(source, end=5 * CHUNK)
    assert follower.receiver.progress() == (middle, source.info.bytes)
    assert (follower.receiver.index, follower.receiver.loading) == (30, False)
    assert follower.feed(source, 5 * CHUNK) == source.info.bytes
    assert (follower.receiver.index, follower.receiver.loading) == (30, True)
    assert follower.receiver.progress() == (source.info.bytes, source.info.bytes)
    follower.wait_for_loader()
    assert follower.wakes == 1
    assert follower.store.latest() is None, "not before the machine is loaded"
    assert follower.install() is not None
    assert follower.install() is None
    assert (follower.receiver.index, follower.receiver.loading) == (0, False)
    assert follower.receiver.progress() is None
    assert (tmp_path / source.info.path.name).read_bytes() == source.data
    check_installed(follower, source)


def test_the_receiver_is_of_the_stores_cluster() -> None:
    with pytest.raises(ValueError, match="cluster 'test'"):
        install_receive.SnapshotReceiver(Follower().store, "other", lambda *_: True, lambda: None)


def test_neither_side_holds_the_file_in_memory(tmp_path: Path) -> None:
    source = Source(1600, cut=(200_000,))
    assert source.info.bytes > 9_000_000
    follower = Follower(Disk(), tmp_path)
    tracemalloc.start()
    try:
        end = source.info.bytes - 1
        for offset in range(0, end, 256 << 10):
            follower.wanted(2, source.chunk(offset, min(256 << 10, end - offset)))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    follower.receiver.close()


def test_snapshots_received_one_after_another_do_not_fill_the_disk() -> None:
    follower = Follower()
    for entries in (10, 20, 30, 40):
        install(follower, Source(entries))
    names = sorted(follower.disk.listdir(follower.directory))
    assert names == [Source(30).info.path.name, Source(40).info.path.name]


# --- what comes twice, in the wrong place, or from somebody else


def test_a_duplicate_snapshot_does_not_disable_the_follower(gate: Gate) -> None:
    """Bug 43: every chunk twice, the whole of it again while it loads and after it was installed, then on."""
    follower, source = Follower(), Source(20)
    for offset in range(0, source.info.bytes, CHUNK):
        for _ in range(2):
            expected = min(offset + CHUNK, source.info.bytes)
            assert follower.wanted(2, source.chunk(offset)) == expected
    for _ in range(2):
        assert follower.feed(source) == source.info.bytes
    gate.open.set()
    assert follower.install() is not None
    assert gate.loads == 1
    install(follower, source)  # the core keeps this away; the receiver alone must not break on it either
    assert follower.installs == 1
    newer = Source(30)
    install(follower, newer)
    assert follower.machine.digest() == newer.machine.digest()
    assert leftovers(follower) == []


def test_chunks_in_the_wrong_place_are_dropped_and_answered_with_what_is_wanted() -> None:
    follower, source = Follower(), Source(20)
    assert follower.wanted(2, source.chunk(CHUNK)) == 0
    assert follower.receiver.index == 0
    assert follower.wanted(2, source.chunk(0)) == CHUNK
    assert follower.wanted(2, source.chunk(2 * CHUNK)) == CHUNK
    assert follower.wanted(2, source.chunk(CHUNK - 10, 20)) == CHUNK + 10
    assert follower.wanted(2, source.chunk(0)) == CHUNK + 10
    assert follower.wanted(2, source.chunk(source.info.bytes)) == CHUNK + 10, "the empty one asks"
    assert follower.feed(source, CHUNK + 10) == source.info.bytes
    assert follower.install() is not None
    check_installed(follower, source)


@pytest.mark.parametrize("change", [{"offset": -5}, {"total": 0}, {"total": -1}])
def test_nonsense_is_not_taken(change: dict[str, int]) -> None:
    follower, source = Follower(), Source(20)
    good = source.chunk(0)
    fields = {name: getattr(good, name) for name in good.__struct_fields__}
    assert follower.wanted(2, InstallSnapshot(**{**fields, **change})) == 0
    install(follower, source)


def test_the_same_leader_resumes_in_a_later_term() -> None:
    follower, source = Follower(), Source(30)
    follower.feed(source, end=4 * CHUNK)
    assert follower.wanted(2, source.chunk(0, term=9)) == 4 * CHUNK
    assert follower.wanted(2, source.chunk(4 * CHUNK, term=9)) == 5 * CHUNK
    assert follower.feed(source, 5 * CHUNK) == source.info.bytes
    assert follower.install() is not None
    check_installed(follower, source)


@pytest.mark.parametrize("cut", [(1000,), (7000, 1000, 4000)], ids=["other size", "same size"])
def test_files_of_two_leaders_are_never_mixed(cut: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    """Snapshots of one entry are not equal byte by byte: a second leader's begins at 0."""
    follower, first, second = Follower(), Source(30, cut=(1000, 7000, 4000)), Source(30, leader=3, cut=cut)
    assert first.data != second.data
    assert (first.info.bytes == second.info.bytes) == (len(cut) > 1)
    follower.feed(first, end=4 * CHUNK)
    assert follower.wanted(3, second.chunk(4 * CHUNK)) == 0
    assert follower.wanted(3, second.chunk(0)) == CHUNK
    assert follower.feed(second, CHUNK) == second.info.bytes
    assert follower.install() is not None
    assert "refused" not in caplog.text
    check_installed(follower, second)


def test_another_file_of_the_same_leader_is_not_mixed_either(caplog: pytest.LogCaptureFixture) -> None:
    """Its disk was replaced from another node's, or it took the snapshot of that entry anew."""
    follower, first, second = Follower(), Source(30), Source(30, cut=(1000,))
    follower.feed(first, end=4 * CHUNK)
    assert follower.wanted(2, second.chunk(4 * CHUNK)) == 0
    assert follower.receiver.progress() == (4 * CHUNK, first.info.bytes), "it may yet go on"
    install(follower, second)
    assert "refused" not in caplog.text
    check_installed(follower, second)


@pytest.mark.parametrize("entries", [20, 40])
@pytest.mark.parametrize("leader", [2, 3])
def test_the_beginning_of_another_snapshot_replaces_the_unfinished_one(entries: int, leader: int) -> None:
    """Of an older entry as well: the leader that sends it may have no newer one, and would wait for ever."""
    follower, first, second = Follower(), Source(30), Source(entries, leader=leader)
    follower.feed(first, end=4 * CHUNK)
    assert follower.wanted(leader, second.chunk(4 * CHUNK)) == 0
    assert follower.receiver.progress() == (4 * CHUNK, first.info.bytes), "not before its beginning comes"
    install(follower, second)
    check_installed(follower, second)


def test_while_it_loads_what_it_covers_is_whole_and_a_newer_one_has_to_wait(gate: Gate) -> None:
    follower, source = Follower(), Source(30)
    older, other, newer = Source(20, leader=3), Source(30, leader=3, cut=(1000,)), Source(40)
    follower.feed(source)
    assert follower.wanted(2, source.chunk(0)) == source.info.bytes
    assert follower.wanted(2, source.chunk(source.info.bytes)) == source.info.bytes
    assert follower.wanted(3, other.chunk(0)) == other.info.bytes
    assert follower.wanted(3, older.chunk(0)) == older.info.bytes
    assert follower.wanted(2, newer.chunk(0)) == 0
    assert follower.receiver.take_installed() is None
    gate.open.set()
    follower.wait_for_loader()
    assert follower.wanted(2, newer.chunk(0)) == 0, "the load is not taken yet"
    assert follower.install() is not None
    check_installed(follower, source)
    install(follower, newer)
    assert follower.machine.digest() == newer.machine.digest()


# --- what is not sound


def test_a_refused_snapshot_leaves_nothing_that_the_next_attempt_meets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bug 58. Wherever a byte is wrong; the leader's next attempt, or another leader's, begins at 0."""
    source = Source(6)
    good = source.data
    for at in range(0, len(good), 1789):
        follower = Follower()
        source.data = good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]
        wanted = [follower.wanted(2, source.chunk(offset)) for offset in range(0, len(good), CHUNK)]
        refused = wanted.index(0)
        assert wanted[refused:] == [0] * (len(wanted) - refused)
        assert leftovers(follower) == []
        assert (follower.receiver.index, follower.receiver.loading) == (0, False)
        source.data = good
        assert follower.wanted(2, source.chunk(0), REFUSED_PAUSE_MS - 1) == 0
        install(follower, source, now=REFUSED_PAUSE_MS)
        check_installed(follower, source)
    assert "Node 2 sent it" in caplog.text


@pytest.mark.parametrize("change", [-100, -1, 1, 100])
def test_a_wrong_total_does_not_wedge(change: int) -> None:
    """The file ends before or after it was said to end: neither side may wait for ever."""
    follower, source = Follower(), Source(6)
    total = source.info.bytes + change
    data = source.data + bytes(change) if change > 0 else source.data[:change]
    wanted = 0
    for offset in range(0, total, CHUNK):
        piece = data[offset : offset + CHUNK]
        wanted = follower.wanted(2, InstallSnapshot(5, 2, 6, 1, offset, total, piece))
    assert wanted == 0
    assert leftovers(follower) == []
    install(follower, source, now=REFUSED_PAUSE_MS)


def test_a_chunk_that_goes_beyond_the_end_is_refused() -> None:
    follower, source = Follower(), Source(6)
    total = source.info.bytes - 10
    wanted = [
        follower.wanted(2, InstallSnapshot(5, 2, 6, 1, offset, total, source.data[offset : offset + CHUNK]))
        for offset in range(0, total, CHUNK)
    ]
    assert wanted[-1] == 0
    assert not follower.receiver.loading


def test_a_file_that_ends_with_a_chunk_but_before_its_total_is_refused() -> None:
    follower, source = Follower(), Source(6)
    whole = InstallSnapshot(5, 2, 6, 1, 0, source.info.bytes + 10, source.data)
    assert follower.wanted(2, whole) == 0
    assert not follower.receiver.loading


def test_a_leader_whose_file_is_damaged_is_asked_ever_more_rarely() -> None:
    follower, source = Follower(), Source(6)
    good, source.data = source.data, source.data[:-1] + b"x"
    now, pauses = 0.0, []
    for _ in range(9):
        assert follower.feed(source, now=now) == 0
        began = now
        while follower.wanted(2, source.chunk(0), now) == 0:
            now += 500
        pauses.append(now - began)
        follower.receiver.drop()
    assert pauses[:4] == [1000, 2000, 4000, 8000]
    assert pauses[-1] == LONGEST_PAUSE_MS
    source.data = good
    install(follower, source, now)


@pytest.mark.parametrize("broken", ["machine", "index", "configuration"])
def test_what_is_no_machine_stops_the_node_but_is_never_put_in_place(broken: str) -> None:
    """Bug 44: a file that no start could load. The disk still holds what it held."""
    follower, before = Follower(), Source(20)
    install(follower, before)
    store = SnapshotStore.open(DIRECTORY, CLUSTER, disk=memory_disk())
    configuration = b"rubbish" if broken == "configuration" else encode_configuration(CONFIGURATION)
    writer = store.writer(30, 1, configuration)
    for piece in (
        [b"rubbish"] if broken == "machine" else make_machine(29 if broken == "index" else 30).dump()
    ):
        writer.write(piece)
    info = writer.commit()
    data = store.read_at(info, 0, info.bytes)
    for offset in range(0, info.bytes, CHUNK):
        piece = data[offset : offset + CHUNK]
        follower.wanted(2, InstallSnapshot(5, 2, 30, 1, offset, info.bytes, piece))
    error = ConfigurationFormatError if broken == "configuration" else SnapshotFormatError
    with pytest.raises(error):
        follower.install()
    assert follower.wakes == 2
    check_installed(follower, before)
    install(follower, Source(30))


# --- the disk


@pytest.mark.parametrize("skip", [0, 1, 5, 9])
def test_a_full_disk_is_waited_for(skip: int, caplog: pytest.LogCaptureFixture) -> None:
    follower, source = Follower(), Source(30)
    fault = follower.disk.fail("pwrite", errno.ENOSPC, name="snapshot-", skip=skip)
    now = 0.0
    for attempt in range(3):
        wanted = [
            follower.wanted(2, source.chunk(offset), now) for offset in range(0, source.info.bytes, CHUNK)
        ]
        fault_at = 0 if attempt else skip
        assert wanted[fault_at:] == [0] * (len(wanted) - fault_at)
        assert leftovers(follower) == [], "the log needs the space"
        assert follower.disk.open_files == []
        assert follower.wanted(2, source.chunk(0), now + DISK_FULL_PAUSE_MS - 1) == 0
        now += DISK_FULL_PAUSE_MS
    assert caplog.text.count("free some on this disk") == 1
    follower.disk.faults.remove(fault)
    assert follower.wanted(2, source.chunk(0), now - 1) == 0, "the space that there is now is left to the log"
    install(follower, source, now)
    check_installed(follower, source)


@pytest.mark.parametrize("call", ["create", "fsync", "rename"])
def test_a_disk_that_is_full_at_the_beginning_or_the_very_end(call: str) -> None:
    follower, source = Follower(), Source(30)
    follower.disk.fail(call, errno.ENOSPC, name="snapshot-", times=1)
    follower.feed(source)
    assert follower.install() is None
    assert follower.wanted(2, source.chunk(source.info.bytes)) == 0
    assert leftovers(follower) == []
    install(follower, source, DISK_FULL_PAUSE_MS)
    check_installed(follower, source)


@pytest.mark.parametrize("call", ["create", "pwrite", "fsync", "rename", "fsync_dir", "pread"])
def test_a_failing_disk_is_fatal(call: str) -> None:
    follower, source = Follower(), Source(30)
    follower.disk.fail(call, errno.EIO, name="" if call == "fsync_dir" else "snapshot-")

    def attempt() -> None:
        follower.feed(source)
        follower.install()

    with pytest.raises(StorageError):
        attempt()


def test_a_power_loss_at_every_operation_leaves_what_can_be_started() -> None:
    """Bug 44: before, or after; and the install then goes through."""
    before, source = Source(5), Source(9)
    for point in range(60):
        follower = Follower()
        install(follower, before)
        follower.disk.power_fails_at = len(follower.disk.calls) + point
        finished = False
        try:
            follower.feed(source)
            finished = follower.install() is not None
        except PowerLoss:
            follower.wait_for_loader()
        digests = {before.machine.digest(), source.machine.digest()}
        for after in follower.disk.power_loss_choices(seed=point, limit=8):
            again = Follower(after)
            assert again.machine.digest() in (digests if not finished else {source.machine.digest()})
            assert leftovers(again) == []
            if again.commit_index < 9:
                install(again, source)
            assert again.machine.digest() == source.machine.digest()
        if finished:
            return
    pytest.fail("it was never finished")


# --- given up


@pytest.mark.parametrize("loading", [False, True])
def test_what_is_dropped_is_gone_and_the_next_one_comes(loading: bool, gate: Gate) -> None:
    follower, source = Follower(), Source(30)
    follower.feed(source, end=None if loading else 4 * CHUNK)
    load = follower.receiver._load
    follower.receiver.drop()
    follower.receiver.drop()
    assert follower.receiver.index == 0
    assert leftovers(follower) == []
    gate.open.set()
    if load is not None:
        load.thread.join(20)
        assert follower.wakes == 0
    assert follower.receiver.take_installed() is None
    assert follower.disk.open_files == []
    install(follower, source)
    check_installed(follower, source)


def test_close_waits_for_the_thread_which_ends_with_the_next_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    follower, source = Follower(), Source(30, cut=(1000,))
    reading, closing, pieces = threading.Event(), threading.Event(), 0
    original = follower.store.open_chunks

    def open_chunks(info: SnapshotInfo) -> Iterator[bytes]:
        nonlocal pieces
        for piece in original(info):
            pieces += 1
            reading.set()
            assert closing.wait(20)
            yield piece

    monkeypatch.setattr(follower.store, "open_chunks", open_chunks)
    follower.feed(source)
    load = follower.receiver._load
    assert load is not None
    assert reading.wait(20)
    threading.Timer(0.05, closing.set).start()
    follower.receiver.close()
    assert not load.thread.is_alive()
    assert pieces == 1
    follower.receiver.close()
    assert follower.disk.open_files == []


def test_a_snapshot_that_this_node_overtook_is_not_installed(gate: Gate, caplog: Any) -> None:
    """While it loaded, this node applied entries from another leader and took a newer snapshot itself."""
    follower, source = Follower(), Source(30)
    follower.feed(source)
    writer = follower.store.writer(35, 1, encode_configuration(CONFIGURATION))
    for piece in make_machine(35).dump():
        writer.write(piece)
    writer.commit()
    gate.open.set()
    follower.wait_for_loader()
    with caplog.at_level(logging.ERROR):
        assert follower.receiver.take_installed() is None
    assert caplog.text == ""
    latest = follower.store.latest()
    assert latest is not None
    assert latest.index == 35
    assert leftovers(follower) == []
