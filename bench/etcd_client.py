"""A small load for etcd: Put over gRPC, one request under way per connection, as redis-benchmark's clients.

etcd's own tool for this (`check perf`) loads for a minute at a fixed rate and tells no percentiles, and a
gRPC library for Python would cost much more than these frames. So those of HTTP/2 (RFC 9113) are made
here: a request is always the same HEADERS (RFC 7541, literals only) and one DATA frame.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import time

from cli.histogram import Histogram
from cli.load import Outcome

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WIDE = 1 << 30  # bytes of answers before the window would have to be opened again


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def headers(path: bytes, authority: bytes) -> bytes:
    """The header block of a gRPC request."""

    def text(value: bytes) -> bytes:
        return bytes((len(value),)) + value  # no Huffman code, fewer than 127 bytes

    return (
        b"\x83\x86"  # :method POST, :scheme http
        + b"\x04" + text(path) + b"\x01" + text(authority)
        + b"\x0f\x10" + text(b"application/grpc")  # content-type
        + b"\x00" + text(b"te") + text(b"trailers")
    )  # fmt: skip


def put_request(key: bytes, value: bytes) -> bytes:
    """etcdserverpb.PutRequest behind gRPC's prefix: uncompressed, length."""

    def field(number: int, data: bytes) -> bytes:
        return bytes((number << 3 | 2,)) + _varint(len(data)) + data

    message = field(1, key) + field(2, value)
    return b"\0" + struct.pack(">I", len(message)) + message


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


class _Client:
    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.headers = headers(b"/etcdserverpb.KV/Put", b"127.0.0.1:%d" % port)
        opening = _OPENING + frame(_SETTINGS, 0, 0) + frame(_WINDOW, 0, 0, struct.pack(">I", _WIDE))
        self.sock.sendall(opening)
        self.buffer = bytearray()
        self.stream = -1
        self.sent_at = 0.0
        self.waiting = False
        self.answered = False  # the answer's message has come; its end has not

    def put(self, key: bytes, value: bytes) -> None:
        self.stream += 2
        self.waiting, self.answered = True, False
        head = frame(_HEADERS, _END_HEADERS, self.stream, self.headers)
        self.sent_at = time.perf_counter()
        self.sock.sendall(head + frame(_DATA, _END_STREAM, self.stream, put_request(key, value)))

    def receive(self) -> bool | None:
        """None: the answer is not complete. Otherwise whether it was one, not an error."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("etcd closed the connection")
        self.buffer += data
        done = None
        while len(self.buffer) >= 9:
            length = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + length:
                break
            kind, flags = self.buffer[3], self.buffer[4]
            body = bytes(self.buffer[9 : 9 + length])
            del self.buffer[: 9 + length]
            if self._take(kind, flags, body):
                self.waiting, done = False, self.answered
        return done

    def _take(self, kind: int, flags: int, body: bytes) -> bool:
        """Whether the answer is over."""
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.sock.sendall(frame(kind, _ACK, 0, body if kind == _PING else b""))
        elif kind == _GOAWAY:
            raise ConnectionResetError(f"etcd says GOAWAY: {body[8:]!r}")
        elif kind == _DATA:
            self.answered = self.answered or bool(body)
        return kind == _RST or (kind in (_DATA, _HEADERS) and bool(flags & _END_STREAM))


def load(port: int, clients: int, seconds: float, keys: int = 100_000, size: int = 64) -> Outcome:
    """Puts of random keys for so long. Raises OSError, RuntimeError when etcd answers errors."""
    selector = selectors.DefaultSelector()
    outcome = Outcome(by_kind={"PUT": Histogram()})
    histogram, rng, value = outcome.by_kind["PUT"], random.Random(1), b"x" * size
    made: list[_Client] = []
    try:
        for _ in range(clients):
            client = _Client(port)
            made.append(client)
            selector.register(client.sock, selectors.EVENT_READ, client)
        began = now = time.perf_counter()
        for client in made:
            client.put(b"key:%012d" % rng.randrange(keys), value)
        under_way = clients
        while under_way:
            ready = selector.select(10.0)
            if not ready:
                raise RuntimeError("etcd does not answer")
            for key, _ in ready:
                client = key.data
                good = client.receive()
                if good is None:
                    continue
                now = time.perf_counter()
                under_way -= 1
                if good:
                    histogram.add(int(1e6 * (now - client.sent_at)))
                else:
                    outcome.errors["etcd"] += 1
                if now - began < seconds:
                    client.put(b"key:%012d" % rng.randrange(keys), value)
                    under_way += 1
        outcome.seconds = now - began
    finally:
        selector.close()
        for client in made:
            client.sock.close()
    if outcome.errors:
        raise RuntimeError(f"etcd answered {outcome.errors['etcd']} errors")
    return outcome
