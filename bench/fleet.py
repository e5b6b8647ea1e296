"""Thousands of followers in one thread, a connection each, as so many separate programs would have.

Each one JOINs, and answers its turn some time after it was announced; a few miss theirs, others in each
interval. What was told OK is counted for each follower.
"""

from __future__ import annotations

import random
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence

import hiredis

from cli.link import Address
from cli.load import encode

_CONNECTING_AT_ONCE = 200


class Follower:
    """One of them. acknowledged: the turns for which it was told OK."""

    def __init__(self, number: int) -> None:
        self.name = f"follower-{number:05d}"
        self.sock: socket.socket | None = None
        self.reader = hiredis.Reader()
        self.acknowledged: list[int] = []
        self.asked = 0  # the interval whose answer is under way; 0: none; -1: JOIN
        self.sent_at = 0.0


class Fleet:
    """Owned by one thread. Connections are spread over the addresses."""

    def __init__(self, addresses: Sequence[Address], count: int, missing: float, interval_s: float) -> None:
        """missing: the share that does not answer, others each time."""
        self.followers = [Follower(n) for n in range(count)]
        self.errors: Counter[str] = Counter()
        self.announced: dict[int, float] = {}  # interval -> when this thread heard of it
        self.report_ms: list[float] = []
        self._addresses = addresses
        self._missing, self._interval_s = missing, interval_s
        self._rng = random.Random(11)
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, Follower, int]] = []  # the next one last
        self._subscriber: socket.socket | None = None
        self._subscription = hiredis.Reader()

    def connect(self, progress: Callable[[int], None]) -> None:
        """Connect and JOIN everyone, wait until all are in. Raises RuntimeError, OSError."""
        waiting = 0
        for number, follower in enumerate(self.followers, 1):
            sock = socket.create_connection(self._addresses[number % len(self._addresses)], timeout=20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            follower.sock, follower.asked = sock, -1
            self._selector.register(sock, selectors.EVENT_READ, follower)
            sock.send(encode(b"FOLLOWER", b"JOIN", follower.name.encode(), b"1.0"))
            waiting += 1
            while waiting >= _CONNECTING_AT_ONCE or (number == len(self.followers) and waiting):
                answered = self._poll(20.0)
                if not answered:
                    raise RuntimeError(f"{waiting} followers got no answer to JOIN: {dict(self.errors)}")
                waiting -= answered
                progress(answered)
        if self.errors:
            raise RuntimeError(f"JOIN was refused: {dict(self.errors)}")

    def subscribe(self) -> None:
        """One connection hears `turns` for all."""
        self._subscriber = socket.create_connection(self._addresses[0], timeout=20)
        self._subscriber.sendall(encode(b"SUBSCRIBE", b"turns"))
        self._subscriber.setblocking(False)
        self._selector.register(self._subscriber, selectors.EVENT_READ, None)

    def serve(self, seconds: float, over: Callable[[], bool] = lambda: False) -> None:
        """Answer turns for so long, or until over() says so (asked a few times a second)."""
        until, asked = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < until:
            if now - asked > 0.2:
                asked = now
                if over():
                    return
            while self._due and self._due[-1][0] <= now:
                self._report(*self._due.pop()[1:])
            wait = min(0.2, until - now, self._due[-1][0] - now if self._due else 1.0)
            self._poll(max(0.0, wait))

    @property
    def idle(self) -> bool:
        """Nothing is due, everything is answered."""
        return not self._due and all(not follower.asked for follower in self.followers)

    def stop_announcing(self) -> None:
        """Nobody begins a turn any more."""
        if self._subscriber is not None:
            self._selector.unregister(self._subscriber)
            self._subscriber.close()
            self._subscriber = None

    def close(self) -> None:
        """Close all connections."""
        self.stop_announcing()
        for follower in self.followers:
            if follower.sock is not None:
                follower.sock.close()
        self._selector.close()

    def _poll(self, wait_s: float) -> int:
        """Take what has come; how many answers."""
        answers = 0
        for key, _ in self._selector.select(wait_s):
            sock: socket.socket = key.fileobj  # type: ignore[assignment]
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._lost(sock, key.data)
            elif key.data is None:
                self._hear(data)
            else:
                answers += self._take(key.data, data)
        return answers

    def _lost(self, sock: socket.socket, follower: Follower | None) -> None:
        if follower is None:
            raise RuntimeError("the node of the subscription is gone")
        self.errors["LOST"] += 1
        self._selector.unregister(sock)
        sock.close()
        follower.sock, follower.asked = None, 0

    def _hear(self, data: bytes) -> None:
        self._subscription.feed(data)
        while (message := self._subscription.gets()) is not False:
            if message[0] == b"message":
                number, now = int(message[2].split()[0]), time.monotonic()
                self.announced[number] = now
                self._plan(number, now)

    def _plan(self, interval: int, now: float) -> None:
        spread = self._interval_s / 2
        for follower in self.followers:
            if self._rng.random() >= self._missing and follower.sock is not None:
                self._due.append((now + self._rng.random() * spread, follower, interval))
        self._due.sort(key=lambda due: -due[0])

    def _report(self, follower: Follower, interval: int) -> None:
        if follower.sock is None or follower.asked:
            self.errors["SKIPPED"] += 1
            return
        follower.asked, follower.sent_at = interval, time.monotonic()
        words = (b"FOLLOWER", b"REPORT", follower.name.encode(), b"%d" % interval, b"answer")
        follower.sock.send(encode(*words))

    def _take(self, follower: Follower, data: bytes) -> int:
        follower.reader.feed(data)
        answer = follower.reader.gets()
        if answer is False:
            return 0
        if isinstance(answer, hiredis.ReplyError):
            self.errors[str(answer).partition(" ")[0]] += 1
        elif follower.asked > 0:
            follower.acknowledged.append(follower.asked)
            self.report_ms.append(1000 * (time.monotonic() - follower.sent_at))
        follower.asked = 0
        return 1
