"""The two directions of a peer's connection, as the worker sees them: what comes in, what goes out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from raft.syscalls import Buffer, receive, send
from raft.transport.codec import MessageCodec, MessageError
from raft.transport.frames import FrameDecoder, FrameType
from raft.transport.handover import Incoming, Outgoing
from raft.transport.node_messages import PeerMessage

MESSAGES_A_READ = 32  # of one peer in one turn, about: a flood of small ones shall not hold up the others
_FIRST_READ_BYTES = 4 * 1024
_LEAST_READ_BYTES = 1024
_COALESCE_BYTES = 128 * 1024  # small frames leave together in one send of about this size


class LinkClosedError(Exception):
    """The peer closed the connection or it broke."""


@dataclass(slots=True)
class PeerStatistics:
    """What went over a peer's connections since this node started. Bytes are those of the TCP stream."""

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    connects_in: int = 0  # connections the peer made to this node
    connects_out: int = 0  # connections this node made; the first one is no reconnect
    refused_sends: int = 0  # messages the full outbox or a missing connection turned away


class IncomingLink:
    """A connection the peer dialed: this node only reads it. Worker only."""

    def __init__(self, connection: Incoming, statistics: PeerStatistics) -> None:
        self.peer_id = connection.peer_id
        self.run_id = connection.run_id
        self.identity = connection.identity
        self.cluster_id = connection.cluster_id
        self.sock = connection.sock
        self._statistics = statistics
        self._decoder = FrameDecoder()
        self._read_bytes = _FIRST_READ_BYTES  # how much to take at once

    def read(self, buffer: Buffer, codec: MessageCodec) -> list[PeerMessage]:
        """One recv of at most buffer.size bytes; returns the messages that became complete.

        A peer whose messages are many and small gets shorter reads, so that it has about MESSAGES_A_READ a
        turn; what it sends beyond that waits in its own socket.

        Raises LinkClosedError at the end of the stream, FrameError or MessageError for bytes that are no
        messages: the caller drops the link on each of them.
        """
        try:
            size = receive(self.sock, buffer, self._read_bytes)
        except BlockingIOError:
            return []
        except OSError as error:
            raise LinkClosedError(str(error)) from error
        if size == 0:
            raise LinkClosedError("closed by the peer")
        messages = []
        for frame_type, payload in self._decoder.feed(buffer.view[:size]):
            if frame_type is not FrameType.MESSAGE:
                raise MessageError(f"a {frame_type.name} frame after the handshake")
            messages.append(codec.decode(payload))
        if len(messages) > MESSAGES_A_READ:
            self._read_bytes = max(_LEAST_READ_BYTES, size * MESSAGES_A_READ // len(messages))
        elif size >= self._read_bytes:
            self._read_bytes = min(2 * size, buffer.size)
        self._statistics.bytes_in += size
        self._statistics.messages_in += len(messages)
        return messages


class OutgoingLink:
    """A connection this node dialed: it only sends on it. Worker only.

    Frames wait in an outbox of at most outbox_bytes until the socket takes them. opened_s is the caller's
    clock.
    """

    def __init__(
        self, connection: Outgoing, outbox_bytes: int, opened_s: float, statistics: PeerStatistics
    ) -> None:
        self.dialer = connection.dialer
        self.peer_id = connection.dialer.peer_id
        self.run_id = connection.run_id
        self.identity = connection.identity
        self.cluster_id = connection.cluster_id
        self.sock = connection.sock
        self.opened_s = opened_s
        self.waits_for_room = False  # registered for EPOLLOUT
        self._outbox_bytes = outbox_bytes
        self._queue: deque[bytes] = deque()
        self._head = b""  # what is being sent
        self._head_sent = 0  # how much of it
        self._waiting_bytes = 0  # in _queue and _head
        self._statistics = statistics

    @property
    def waiting_bytes(self) -> int:
        """Bytes in the outbox."""
        return self._waiting_bytes

    def put(self, frame: bytes) -> bool:
        """Queue a frame; False if the outbox would pass its bound (an empty outbox takes any frame)."""
        if self._waiting_bytes and self._waiting_bytes + len(frame) > self._outbox_bytes:
            self._statistics.refused_sends += 1
            return False
        self._queue.append(frame)
        self._waiting_bytes += len(frame)
        self._statistics.messages_out += 1
        return True

    def flush(self) -> bool:
        """Send what the socket takes; True when the outbox is empty. Raises LinkClosedError."""
        try:
            while self._waiting_bytes:
                if not self._head:
                    self._head = self._next_chunk()
                    self._head_sent = 0
                sent = self._send_head()
                self._waiting_bytes -= sent
                self._statistics.bytes_out += sent
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkClosedError(str(error)) from error
        return True

    def _send_head(self) -> int:
        """One send of what is left of the head."""
        begin, whole = self._head_sent, self._head
        sent = send(self.sock, whole) if not begin else self.sock.send(memoryview(whole)[begin:])
        self._head_sent = begin + sent
        if self._head_sent == len(whole):
            self._head = b""
        return sent

    def check(self) -> None:
        """The socket is readable although the peer never sends here: raises LinkClosedError if it is the end,
        MessageError if it is bytes."""
        try:
            data = self.sock.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            raise LinkClosedError(str(error)) from error
        if data:
            raise MessageError("bytes on a connection that only this node may use to send")
        raise LinkClosedError("closed by the peer")

    def _next_chunk(self) -> bytes:
        """The next frame, or several small ones in one piece."""
        queue = self._queue
        first = queue.popleft()
        if not queue or len(first) >= _COALESCE_BYTES:
            return first
        chunk = [first]
        size = len(first)
        while queue and size + len(queue[0]) <= _COALESCE_BYTES:
            size += len(queue[0])
            chunk.append(queue.popleft())
        return b"".join(chunk) if len(chunk) > 1 else first
