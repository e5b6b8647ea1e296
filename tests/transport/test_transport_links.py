"""What a turn takes from a peer's connection: much of a stream of large frames, little of a flood."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from raft.core.entry import Entry
from raft.core.messages import AppendEntries
from raft.syscalls import Buffer
from raft.transport.codec import MessageCodec
from raft.transport.handover import Incoming
from raft.transport.links import MESSAGES_A_READ, IncomingLink, PeerStatistics
from raft.transport.network import READ_BYTES
from raft.transport.node_messages import PeerMessage, Ping


class Peer:
    """The other end of an IncomingLink, with as much room between them as the system gives."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setblocking(False)
        self._theirs.setblocking(False)
        self.statistics = PeerStatistics()
        self.link = IncomingLink(Incoming(2, "run", ours), self.statistics)
        self._buffer = Buffer(READ_BYTES)
        self._codec = MessageCodec()
        self._waiting = bytearray()

    def send(self, *messages: PeerMessage) -> None:
        self._waiting += b"".join(self._codec.encode(each) for each in messages)

    def read(self) -> list[PeerMessage]:
        """What one turn takes, after all was sent that there is room for."""
        try:
            while self._waiting:
                del self._waiting[: self._theirs.send(self._waiting)]
        except BlockingIOError:
            pass
        return self.link.read(self._buffer, self._codec)

    def close(self) -> None:
        self.link.sock.close()
        self._theirs.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def test_a_flood_of_small_messages_is_taken_in_small_portions(peer: Peer) -> None:
    flood = [Ping(number, 1) for number in range(20_000)]
    peer.send(*flood)
    portions: list[list[PeerMessage]] = []
    while sum(map(len, portions)) < len(flood):
        portions.append(peer.read())
    assert [message for portion in portions for message in portion] == flood
    assert max(map(len, portions[1:])) <= 2 * MESSAGES_A_READ + 10  # one more may end in it
    assert len(portions[0]) <= 200  # nothing is known of it yet


def test_large_messages_are_taken_in_large_portions_again_soon_after_a_flood(peer: Peer) -> None:
    peer.send(*(Ping(number, 1) for number in range(5_000)))
    while peer.statistics.messages_in < 5_000:
        peer.read()
    large = AppendEntries(1, 2, 0, 0, (Entry(1, 1, 0, bytes(100_000)),), 0, 0)
    peer.send(*[large] * 50)
    taken = []
    while peer.statistics.messages_in < 5_050:
        before = peer.statistics.bytes_in
        peer.read()
        taken.append(peer.statistics.bytes_in - before)
    assert max(taken) >= 64 * 1024
    assert len(taken) < 100  # of 5 MB
