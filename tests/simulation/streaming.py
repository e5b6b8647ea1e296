"""How a simulated node streams snapshots: raft/runtime/install.py without files, windows and threads.

A snapshot travels as the bytes of its name; the library, which all nodes share, knows what they stand for.
A receiver that mixed up chunks of two snapshots would ask for a name that nobody ever gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from raft.core.messages import InstallSnapshot, InstallSnapshotResponse, Message
from tests.simulation.disk import Snapshot

STALL_MS = 100.0
PIECE = 1000


@dataclass(slots=True)
class Library:
    """Every snapshot that was ever sent, by the bytes that were."""

    contents: dict[bytes, Snapshot] = field(default_factory=dict)
    names: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def bytes_of(self, node_id: int, snapshot: Snapshot) -> bytes:
        """A name of its own for each file; the same again for the same file, as a disk would give."""
        name = self.names.get((node_id, snapshot.index))
        if name is not None and self.contents[name] == snapshot:
            return name
        name = f"node {node_id}, entry {snapshot.index}, file {len(self.contents)}".encode()
        self.contents[name] = snapshot
        self.names[node_id, snapshot.index] = name
        return name

    def chunks_of(self, node_id: int, snapshot: Snapshot) -> list[bytes]:
        """What a file of the snapshot holds: its name, in two pieces, and the machine."""
        name, machine = self.bytes_of(node_id, snapshot), snapshot.machine
        pieces = [machine[at : at + PIECE] for at in range(0, len(machine), PIECE)]
        return [name[:12], name[12:], *pieces]

    def snapshot_of(self, chunks: Iterable[bytes]) -> Snapshot:
        """The inverse, the machine as the file has it. Raises KeyError for a name that nobody gave."""
        head, tail, *pieces = chunks
        return replace(self.contents[head + tail], machine=b"".join(pieces))


@dataclass(slots=True)
class Stream:
    """One snapshot on its way to one peer."""

    snapshot: Snapshot
    data: bytes
    wanted: int
    touched_ms: float


class Sender:
    """The leader's side: one chunk at a time to each peer, again when nothing was heard for a while."""

    def __init__(self, node_id: int, library: Library, chunk_bytes: int) -> None:
        self.node_id = node_id
        self.library = library
        self.chunk_bytes = chunk_bytes
        self.streams: dict[int, Stream] = {}

    def want(self, peer: int, term: int, newest: Snapshot, now: float) -> Message | None:
        """The core says that the peer needs a snapshot: what to send it now, if anything."""
        stream = self.streams.get(peer)
        if stream is not None and now - stream.touched_ms < STALL_MS:
            return None
        if stream is None or stream.snapshot.index < newest.index:
            data = self.library.bytes_of(self.node_id, newest)
            stream = self.streams[peer] = Stream(newest, data, 0, now)
        return self._chunk(stream, term, now)

    def on_response(
        self, peer: int, response: InstallSnapshotResponse, term: int, now: float
    ) -> Message | None:
        """The peer has so much of it: the next chunk, if there is one."""
        stream = self.streams.get(peer)
        if stream is None or stream.snapshot.index != response.last_index or response.term != term:
            return None
        if stream.wanted == response.wanted:
            return None  # nothing new: to answer each of these would be a game of ping-pong
        stream.wanted = response.wanted
        return self._chunk(stream, term, now) if response.wanted < len(stream.data) else None

    def _chunk(self, stream: Stream, term: int, now: float) -> Message:
        stream.touched_ms = now
        start = min(stream.wanted, len(stream.data) - 1)
        data = stream.data[start : start + self.chunk_bytes]
        index, last_term = stream.snapshot.index, stream.snapshot.term
        return InstallSnapshot(term, self.node_id, index, last_term, start, len(stream.data), data)


class Receiver:
    """The follower's side: chunks in order, a later snapshot replaces an earlier one."""

    def __init__(self, library: Library, save: Callable[[Snapshot], None]) -> None:
        self.library = library
        self.save = save
        self.source = (0, 0, 0)  # leader, last index, total
        self.data = b""
        self.complete: Snapshot | None = None  # durable, and being loaded

    def on_chunk(self, leader: int, chunk: InstallSnapshot, term: int) -> InstallSnapshotResponse:
        """Take a chunk in; `complete` is set once all bytes have come."""
        source = (leader, chunk.last_index, chunk.total)
        if self.complete is not None:
            wanted = chunk.total if self.complete.index >= chunk.last_index else 0
            return InstallSnapshotResponse(term, chunk.last_index, wanted)
        # A later snapshot of the same leader, or whatever another leader has: its may be older than what an
        # earlier leader left unfinished, and nobody will ever finish that.
        if source != self.source and (leader != self.source[0] or chunk.last_index >= self.source[1]):
            self.source, self.data = source, b""
        if source == self.source and chunk.offset == len(self.data):
            self.data += chunk.data
        wanted = len(self.data) if source == self.source else 0
        if source == self.source and wanted == chunk.total:
            self.complete = self.library.contents[self.data]
            self.abort()
            self.save(self.complete)
        return InstallSnapshotResponse(term, chunk.last_index, wanted)

    def abort(self) -> None:
        """Forget what has come of an unfinished one."""
        self.source, self.data = (0, 0, 0), b""
