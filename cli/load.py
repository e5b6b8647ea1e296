"""A load for anything that speaks RESP: many connections in one thread, latencies and errors by kind.

Each client sends `pipeline` requests at once and the next ones when all are answered, as redis-benchmark
does. A connection that breaks, or whose answers do not come in time, is opened again to the next address;
what was under way on it counts as an error, since nobody knows whether it was executed.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import hiredis

from cli.histogram import Histogram
from cli.link import Address

_RECEIVE_BYTES = 256 * 1024
_SWEEP_S = 0.1  # how often deadlines are looked at
_PAUSE_S = 0.05  # before a lost connection is opened again
LOST, LATE = "LOST", "TIMEOUT"  # kinds of errors that no server answered: outcome unknown


class Request(NamedTuple):
    """What goes out, how many answers it gets, and under which kind it is counted."""

    data: bytes
    answers: int
    kind: str


Source = Callable[[int], Request]  # the next request of client number …


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load. requests: at most so many; timeout_s: for one answer, and to connect."""

    clients: int
    pipeline: int
    seconds: float
    requests: int = 2**62
    timeout_s: float = 5.0


@dataclass(slots=True)
class Outcome:
    """What came of it. by_kind: latencies of what was answered without an error. cpu_s: of this process."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    by_kind: dict[str, Histogram] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0

    @property
    def total(self) -> Histogram:
        """All kinds together."""
        merged = Histogram()
        for each in self.by_kind.values():
            merged.merge(each)
        return merged

    @property
    def rate(self) -> float:
        """Answered without an error, per second."""
        return self.total.count / self.seconds if self.seconds else 0.0


class _Client:
    """One connection. sock None: it is to be opened at `since` or later."""

    def __init__(self, number: int, place: int) -> None:
        self.number = number
        self.place = place  # which address
        self.sock: socket.socket | None = None
        self.connected = False
        self.reader = hiredis.Reader()
        self.under_way: deque[Request] = deque()
        self.left = 0  # answers that the first of them still gets
        self.error = ""  # the first among its answers
        self.unsent = b""
        self.since = 0.0


class LoadRun:
    """One load; call run() once, from any one thread."""

    def __init__(self, addresses: Sequence[Address], plan: Plan, source: Source) -> None:
        """Raises OSError when a host name cannot be resolved."""
        self._targets = [
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0] for host, port in addresses
        ]
        self._plan = plan
        self._source = source
        self._selector = selectors.DefaultSelector()
        self._clients = [_Client(n, n % len(self._targets)) for n in range(plan.clients)]
        self._started = 0  # requests that went out
        self._now = 0.0
        self._over_at = 0.0
        self.outcome = Outcome()

    def run(self, tick: Callable[[float], None] = lambda _elapsed: None) -> Outcome:
        """Load until the time or the requests are used up, then wait for what is under way. tick hears about
        ten times a second how many seconds have passed. Whatever ends it, the connections are closed."""
        began, cpu = time.perf_counter(), time.process_time()
        self._now, self._over_at = began, began + self._plan.seconds
        swept = 0.0
        try:
            while True:
                if self._now - swept >= _SWEEP_S:
                    swept = self._now
                    tick(self._now - began)
                    if not self._sweep():
                        break
                for key, events in self._selector.select(_SWEEP_S / 2):
                    self._now = time.perf_counter()
                    self._serve(key.data, events)
                self._now = time.perf_counter()
        finally:
            for client in self._clients:
                self._close(client)
            self._selector.close()
            self.outcome.seconds = min(time.perf_counter(), self._over_at) - began
            self.outcome.cpu_s = time.process_time() - cpu
        return self.outcome

    @property
    def _over(self) -> bool:
        return self._now >= self._over_at or self._started >= self._plan.requests

    def _sweep(self) -> bool:
        """Open what has to be opened, give up what takes too long; whether there is anything left to do."""
        if self._started >= self._plan.requests:  # it ends now: what follows is no load any more
            self._over_at = min(self._over_at, self._now)
        for client in self._clients:
            if client.sock is None:
                if not self._over and self._now >= client.since:
                    self._open(client)
            elif (client.under_way or not client.connected) and (
                self._now - client.since > self._plan.timeout_s
            ):
                self._lose(client, LATE)
        return not self._over or any(client.under_way for client in self._clients)

    def _open(self, client: _Client) -> None:
        family, kind, protocol, _, address = self._targets[client.place % len(self._targets)]
        sock = client.sock = socket.socket(family, kind, protocol)
        client.since = self._now
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_WRITE, client)
        if sock.connect_ex(address) not in (0, errno.EINPROGRESS):
            self._lose(client, LOST)

    def _close(self, client: _Client) -> None:
        if client.sock is not None:
            self._selector.unregister(client.sock)
            client.sock.close()
            client.sock = None

    def _lose(self, client: _Client, why: str) -> None:
        """What was under way has an unknown outcome; a connection that never came counts as one error."""
        self.outcome.errors[why] += len(client.under_way) or (not client.connected)
        self.outcome.reconnects += 1
        self._close(client)
        client.under_way.clear()
        client.unsent, client.left, client.error = b"", 0, ""
        client.connected, client.reader = False, hiredis.Reader()
        client.place += 1
        client.since = self._now + _PAUSE_S

    def _serve(self, client: _Client, events: int) -> None:
        if client.sock is None:
            return
        try:
            if not client.connected:
                if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._lose(client, LOST)
                    return
                client.connected = True
                self._selector.modify(client.sock, selectors.EVENT_READ, client)
                self._send_more(client)
            elif events & selectors.EVENT_WRITE:
                self._flush(client)
            if events & selectors.EVENT_READ:
                self._receive(client)
        except BlockingIOError:
            return
        except (OSError, hiredis.ProtocolError):
            self._lose(client, LOST)

    def _send_more(self, client: _Client) -> None:
        if self._over:
            return
        count = min(self._plan.pipeline, self._plan.requests - self._started)
        requests = [self._source(client.number) for _ in range(count)]
        self._started += count
        client.under_way.extend(requests)
        client.left = requests[0].answers
        client.unsent = requests[0].data if count == 1 else b"".join([each.data for each in requests])
        client.since = self._now
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        assert client.sock is not None
        try:
            sent = client.sock.send(client.unsent)
        except BlockingIOError:
            sent = 0
        client.unsent = client.unsent[sent:]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        if self._selector.get_key(client.sock).events != wanted:
            self._selector.modify(client.sock, wanted, client)

    def _receive(self, client: _Client) -> None:
        assert client.sock is not None
        data = client.sock.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError
        self._now = time.perf_counter()
        client.reader.feed(data)
        while client.under_way and (answer := client.reader.gets()) is not False:
            if isinstance(answer, hiredis.ReplyError) and not client.error:
                client.error = str(answer).partition(" ")[0]
            client.left -= 1
            if not client.left:
                self._finish(client)
        if not client.under_way:
            self._send_more(client)

    def _finish(self, client: _Client) -> None:
        request = client.under_way.popleft()
        if client.error:
            self.outcome.errors[client.error] += 1
            client.error = ""
        else:
            histogram = self.outcome.by_kind.get(request.kind)
            if histogram is None:
                histogram = self.outcome.by_kind[request.kind] = Histogram()
            histogram.add(int(1e6 * (self._now - client.since)))
        if client.under_way:
            client.left = client.under_way[0].answers


def encode(*words: bytes) -> bytes:
    """A command in RESP."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%s\r\n" % (len(word), word) for word in words])
