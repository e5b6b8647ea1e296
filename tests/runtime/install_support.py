"""Snapshots on their way: leaders with a sender, a follower with a receiver, and what lies between them.

Time is the test's. The only thread is the receiver's loader, and what it does shows only when the test takes
it; so a seed decides everything.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from io import BytesIO
from itertools import chain, repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "storage"))

from faulty_disk import FaultyDisk, PowerLoss

from raft.core.membership import Configuration, encode_configuration
from raft.core.messages import AppendEntriesResponse, InstallSnapshot, InstallSnapshotResponse
from raft.machine.machine import Machine
from raft.runtime.install import Installed, SnapshotReceiver, SnapshotSender
from raft.storage.disk import Disk
from raft.storage.snapshots import SnapshotInfo, SnapshotStore
from raft.transport.node_messages import PeerMessage

CLUSTER = "test"
CONFIGURATION = Configuration((1, 2, 3))
START_MS = 1_700_000_000_000
DIRECTORY = Path("/data")
CHUNK = 4096  # what the tests cut files into: set on install_send by the fixture small_chunks


def make_machine(entries: int, value_bytes: int = 6000) -> Machine:
    """The machine after so many entries, always the same one; term 1. Each entry adds a value."""
    machine = Machine(CLUSTER)
    for index in range(1, entries + 1):
        value = (b"%d " % index * value_bytes)[:value_bytes]
        machine.apply_commands(index, 1, START_MS + index, [[b"SET", b"key:%d" % index, value]], False)
    return machine


def write_snapshot(store: SnapshotStore, machine: Machine, cut: tuple[int, ...] = ()) -> SnapshotInfo:
    """Take a snapshot; cut: into pieces of so many bytes, the last size again and again, which makes another
    file of the same content."""
    configuration = encode_configuration(CONFIGURATION)
    writer = store.writer(machine.applied_index, machine.applied_term, configuration)
    pieces: Iterable[bytes] = machine.dump()
    if cut:
        stream = BytesIO(b"".join(pieces))
        sizes = chain(cut, repeat(cut[-1]))
        pieces = iter(lambda: stream.read(next(sizes)), b"")
    for piece in pieces:
        writer.write(piece)
    return writer.commit()


def memory_disk() -> FaultyDisk:
    disk = FaultyDisk(1 << 16)
    disk.directories.add(DIRECTORY)
    return disk


class Source:
    """A snapshot file at some leader, as chunks. For tests that need no sender."""

    def __init__(self, entries: int, leader: int = 2, cut: tuple[int, ...] = (), term: int = 5) -> None:
        self.leader = leader
        self.term = term
        self.machine = make_machine(entries)
        store = SnapshotStore.open(DIRECTORY, CLUSTER, disk=memory_disk())
        self.info = write_snapshot(store, self.machine, cut)
        self.data = store.read_at(self.info, 0, self.info.bytes)

    def chunk(self, offset: int, size: int = CHUNK, term: int | None = None) -> InstallSnapshot:
        info = self.info
        data = self.data[offset : offset + size]
        term = self.term if term is None else term
        return InstallSnapshot(term, self.leader, info.index, info.term, offset, info.bytes, data)


class Follower:
    """Node 1: a store, a receiver, and what the core would do with a chunk that it has no use for."""

    def __init__(self, disk: Disk | None = None, directory: Path = DIRECTORY) -> None:
        self.disk = memory_disk() if disk is None else disk
        self.directory = directory
        self.machine = Machine(CLUSTER)
        self.answers: list[tuple[int, PeerMessage]] = []
        self.wakes = 0
        self.installs = 0
        self._open()

    def _open(self) -> None:
        self.store = SnapshotStore.open(self.directory, CLUSTER, disk=self.disk)
        self.receiver = SnapshotReceiver(self.store, CLUSTER, self._send, self._wake)
        info = self.store.latest()
        if info is not None and info.index > self.machine.applied_index:
            self.machine = Machine.load(CLUSTER, self.store.open_chunks(info))

    @property
    def commit_index(self) -> int:
        return self.machine.applied_index

    def _send(self, peer: int, message: PeerMessage) -> bool:
        self.answers.append((peer, message))
        return True

    def _wake(self) -> None:
        self.wakes += 1

    def receive(self, leader: int, message: InstallSnapshot, now: float) -> None:
        if message.last_index <= self.commit_index:
            self._send(leader, AppendEntriesResponse(message.term, True, self.commit_index))
        else:
            self.receiver.on_chunk(leader, message, now)

    def wanted(self, leader: int, message: InstallSnapshot, now: float = 0.0) -> int:
        """Hand in one chunk; what the receiver wants next."""
        self.receiver.on_chunk(leader, message, now)
        peer, answer = self.answers.pop()
        assert isinstance(answer, InstallSnapshotResponse)
        assert (peer, answer.term, answer.last_index) == (leader, message.term, message.last_index)
        return answer.wanted

    def feed(self, source: Source, start: int = 0, end: int | None = None, now: float = 0.0) -> int:
        """Hand in the chunks from byte start to byte end, in order; what is wanted then."""
        wanted = -1
        end = source.info.bytes if end is None else end
        for offset in range(start, end, CHUNK):
            wanted = self.wanted(source.leader, source.chunk(offset, min(CHUNK, end - offset)), now)
        return wanted

    def wait_for_loader(self) -> None:
        load = self.receiver._load
        if load is not None:
            load.thread.join(20)
            assert load.ended

    def install(self) -> Installed | None:
        """What the worker does with what was loaded."""
        self.wait_for_loader()
        installed = self.receiver.take_installed()
        if installed is not None:
            assert installed.info == self.store.latest()
            assert installed.configuration == CONFIGURATION
            if installed.info.index > self.commit_index:
                self.machine.become(installed.machine)
                self.installs += 1
        return installed

    def restart(self) -> None:
        """The process ends and starts again; what it has on disk stays."""
        self.receiver.close()
        self.store.close()
        self.machine = Machine(CLUSTER)
        self._open()


class Wire:
    """Messages between a leader and the follower, in order both ways, as TCP keeps it."""

    def __init__(self, room: int = 12) -> None:
        self.room = room
        self.up = True
        self.to_follower: deque[PeerMessage] = deque()
        self.to_leader: deque[PeerMessage] = deque()

    def put(self, message: PeerMessage) -> bool:
        if not self.up or len(self.to_follower) >= self.room:
            return False
        self.to_follower.append(message)
        return True


class Leader:
    """A node that streams to node 1: want() as the core says it in every heartbeat."""

    def __init__(self, node_id: int, disk: Disk | None = None, directory: Path = DIRECTORY) -> None:
        self.node_id = node_id
        self.term = 1
        self.wire = Wire()
        self.needed = True
        self.disk = memory_disk() if disk is None else disk
        self.store = SnapshotStore.open(directory, CLUSTER, disk=self.disk)
        self.sender = SnapshotSender(self.store, node_id, lambda peer, message: self.wire.put(message))

    def take_snapshot(self, entries: int, cut: tuple[int, ...] = ()) -> SnapshotInfo:
        info = write_snapshot(self.store, make_machine(entries), cut)
        self.store.prune()
        return info

    def heartbeat(self, now: float) -> None:
        if self.needed:
            self.sender.want(1, self.term, now)
        self.sender.tick(self.term, now)

    def receive(self, message: PeerMessage, now: float) -> None:
        if isinstance(message, InstallSnapshotResponse):
            self.sender.on_response(1, message, now)
        elif isinstance(message, AppendEntriesResponse):
            if message.match_index < (self.sender.pinned_index() or 0):
                return
            self.needed = False
            self.sender.done(1)


__all__ = [
    "CHUNK", "CLUSTER", "CONFIGURATION", "DIRECTORY", "Follower", "Leader", "PowerLoss", "Source", "Wire",
    "make_machine", "memory_disk", "write_snapshot",
]  # fmt: skip
