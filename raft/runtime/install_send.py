"""Streams the newest snapshot to peers that need one (paper section 7, figure 13). See install.py."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

from raft.core.invariants import ProtocolViolation
from raft.core.messages import InstallSnapshot, InstallSnapshotResponse
from raft.storage.errors import CorruptSnapshotError
from raft.storage.snapshots import SnapshotInfo, SnapshotStore
from raft.transport.node_messages import PeerMessage

log = logging.getLogger(__name__)

CHUNK = 256 << 10  # bytes of the file in one message
WINDOW = 4  # chunks on the way to one peer: heartbeats wait behind no more than these
STALL_MS = 2000.0  # nothing heard for so long: go back to what was acknowledged; doubled each time, up to
LONGEST_STALL_MS = 16_000.0
RETRY_MS = 50.0  # after a send that was turned away: there is no connection, or its outbox is full
CONFIRM_MS = 1000.0  # all is there and the peer loads it: ask so often whether it still has it
FORGET_MS = 60_000.0  # a peer silent for so long keeps no file open and no log from being compacted
_NEVER = float("inf")


class _Stream:
    """One peer's snapshot. The peer has the file's bytes before `acked`; those before `next` were sent.

    probing: one chunk on the way is enough until the peer takes one. due_ms: when to act if nothing is heard;
    retry_ms: when to go on after a send that was turned away. Times: monotonic ms.
    """

    __slots__ = (
        "acked",
        "chunk",
        "due_ms",
        "heard_ms",
        "info",
        "next",
        "patience_ms",
        "probing",
        "retry_ms",
        "term",
    )

    def __init__(self, info: SnapshotInfo, term: int, now: float, chunk: int, patience_ms: float) -> None:
        self.info = info
        self.term = term
        self.chunk = chunk
        self.heard_ms = now
        self.patience_ms = patience_ms
        self.due_ms = now + patience_ms
        self.retry_ms = _NEVER
        self.go_to(0)

    def go_to(self, offset: int) -> None:
        """Send from here on, carefully at first."""
        self.acked = self.next = offset
        self.probing = True

    @property
    def whole(self) -> bool:
        """Whether the peer has all of it."""
        return self.acked == self.info.bytes

    def size_of_next(self) -> int:
        """How many bytes may be sent now: one chunk's, or none while the window is full."""
        size = min(self.chunk, self.info.bytes - self.next)
        room = self.acked + (1 if self.probing else WINDOW) * self.chunk - self.next
        return size if size <= room else 0


class SnapshotSender:
    """The leader's side. Worker only; makes no system call but reads of the snapshot's file.

    A peer goes on with the snapshot that it was begun with, whatever newer one is taken meanwhile; the newest
    is chosen when it has to begin at 0 again. send(peer, message) -> False if it certainly did not leave.

    Memory: WINDOW chunks that were read last, shared by all peers (those that keep step read the file once),
    and in each peer's outbox at most WINDOW chunks and one for each stall.
    """

    def __init__(
        self,
        store: SnapshotStore,
        node_id: int,
        send: Callable[[int, PeerMessage], bool],
        *,
        chunk_bytes: int | None = None,
        stall_ms: float = STALL_MS,
    ) -> None:
        """chunk_bytes, stall_ms: other values than CHUNK and STALL_MS, for simulations."""
        self._chunk = chunk_bytes or CHUNK
        self._stall_ms = stall_ms
        self._store = store
        self._node_id = node_id
        self._send = send
        self._streams: dict[int, _Stream] = {}
        self._chunks: OrderedDict[tuple[Path, int], bytes] = OrderedDict()  # read last, by file and offset

    # --- what the worker tells ------------------------------------------------------------------------

    def want(self, peer: int, term: int, now: float) -> None:
        """The peer needs a snapshot: begin, unless it is being sent one. now: monotonic ms, here and below.

        Raises StorageError if the file cannot be read, as do on_response() and tick()."""
        if peer in self._streams:
            return
        info = self._store.latest()
        if info is None:  # the core's log says that there is one: not yet adopted, it asks again
            return
        self._streams[peer] = stream = _Stream(info, term, now, self._chunk, self._stall_ms)
        log.info("sending node %d the snapshot of entry %d, %d bytes", peer, info.index, info.bytes)
        self._pump(peer, stream, now)

    def on_response(self, peer: int, message: InstallSnapshotResponse, now: float) -> None:
        """How far the peer is. Answers about another snapshot or of another term change nothing.

        Raises ProtocolViolation for an offset that the file does not have."""
        stream = self._streams.get(peer)
        if stream is None or message.last_index != stream.info.index or message.term != stream.term:
            return
        wanted = message.wanted
        if not 0 <= wanted <= stream.info.bytes:
            raise ProtocolViolation(f"node {peer} wants byte {wanted} of {stream.info.bytes}")
        stream.heard_ms, stream.patience_ms = now, self._stall_ms
        stream.due_ms = now + (CONFIRM_MS if wanted == stream.info.bytes else self._stall_ms)
        if wanted > stream.acked:
            stream.acked, stream.next = wanted, max(stream.next, wanted)
            stream.probing = False
        elif wanted < stream.acked:
            log.info(
                "node %d wants the snapshot of entry %d again from byte %d", peer, stream.info.index, wanted
            )
            self._go_back(stream, wanted)
        # Else it took nothing: this answers a chunk from before a step back, or the peer takes none just now
        # (its disk is full, it loads another one). Sending at once would go round in a circle at full speed.
        self._pump(peer, stream, now)

    def disconnected(self, peer: int) -> None:
        """What was on the way is lost, and so may be what the peer had: ask with the next tick."""
        stream = self._streams.get(peer)
        if stream is not None:
            stream.go_to(stream.acked)
            stream.due_ms = 0.0
            stream.patience_ms = self._stall_ms

    def done(self, peer: int) -> None:
        """The peer's log matches beyond the snapshot, or it needs none any more."""
        stream = self._streams.pop(peer, None)
        if stream is not None:
            self._release(stream.info)

    def tick(self, term: int, now: float) -> None:
        """Time passed: send again what is not acknowledged. term: the one in which this node leads."""
        for peer, stream in list(self._streams.items()):
            if stream.term != term:  # what is on the way bears the old one and will be refused
                stream.term = term
                stream.due_ms = 0.0
            if now - stream.heard_ms >= FORGET_MS:
                log.warning("node %d is silent: no longer sending it a snapshot", peer)
                self.done(peer)
            elif now >= stream.due_ms:
                self._on_stall(peer, stream, now)
            elif now >= stream.retry_ms:
                self._pump(peer, stream, now)

    def stop(self) -> None:
        """This node leads no more."""
        self.retain(())

    def retain(self, peers: Collection[int]) -> None:
        """Only these are members still."""
        for peer in [peer for peer in self._streams if peer not in peers]:
            self.done(peer)

    # --- what it tells --------------------------------------------------------------------------------

    def pinned_index(self) -> int | None:
        """The oldest snapshot that is being sent: who loads it will need the log behind it. None: none is."""
        return min((stream.info.index for stream in self._streams.values()), default=None)

    def next_deadline(self) -> float:
        """Monotonic ms at which tick() has something to do; infinity if never."""
        if not self._streams:  # nearly always, and asked for every turn
            return _NEVER
        return min(min(stream.due_ms, stream.retry_ms) for stream in self._streams.values())

    def progress(self) -> dict[int, tuple[int, int]]:
        """By peer: bytes that it has, bytes in all."""
        return {peer: (stream.acked, stream.info.bytes) for peer, stream in self._streams.items()}

    # --- inside ---------------------------------------------------------------------------------------

    def _pump(self, peer: int, stream: _Stream, now: float) -> None:
        """Send what the window allows."""
        stream.retry_ms = _NEVER
        while size := stream.size_of_next():
            if not self._send(peer, self._message(stream, self._read(stream.info, stream.next, size))):
                stream.retry_ms = now + RETRY_MS
                return
            stream.next += size

    def _on_stall(self, peer: int, stream: _Stream, now: float) -> None:
        stream.due_ms = now + stream.patience_ms
        stream.patience_ms = min(2 * stream.patience_ms, LONGEST_STALL_MS)
        if stream.whole:  # no bytes: whoever lost the rest since says so in its answer
            sent = self._send(peer, self._message(stream, b""))
            stream.due_ms = now + (CONFIRM_MS if sent else RETRY_MS)
            return
        self._go_back(stream, stream.acked)
        self._pump(peer, stream, now)

    def _go_back(self, stream: _Stream, offset: int) -> None:
        newest = self._store.latest()
        if offset == 0 and newest is not None and newest != stream.info:
            old, stream.info = stream.info, newest
            self._release(old)
        stream.go_to(offset)

    def _message(self, stream: _Stream, data: bytes) -> InstallSnapshot:
        info = stream.info
        return InstallSnapshot(
            stream.term, self._node_id, info.index, info.term, stream.next, info.bytes, data
        )

    def _read(self, info: SnapshotInfo, offset: int, size: int) -> bytes:
        key = (info.path, offset)
        data = self._chunks.get(key)
        if data is None:
            data = self._store.read_at(info, offset, size)
            if len(data) != size:
                raise CorruptSnapshotError(info.path, offset + len(data), f"it has had {info.bytes} bytes")
            self._chunks[key] = data
            if len(self._chunks) > WINDOW:
                self._chunks.popitem(last=False)
        return data

    def _release(self, info: SnapshotInfo) -> None:
        """Close the file if nobody is sent it any more. Call it once the stream has gone."""
        if all(stream.info.path != info.path for stream in self._streams.values()):
            self._store.release(info)
            for key in [key for key in self._chunks if key[0] == info.path]:
                del self._chunks[key]
