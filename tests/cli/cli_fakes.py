"""A small cluster that speaks RESP2, for the command line's tests: it scripts answers, nothing more."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hiredis

NOT_DONE = ("CLUSTERDOWN", "INDETERMINATE", "BUSY")


class FakeError(str):
    """An error answer."""


class Encoded(bytes):
    """An answer as it goes out."""


def encode(value: Any) -> bytes:
    if isinstance(value, Encoded):
        return value
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, FakeError):
        return f"-{value}\r\n".encode()
    if isinstance(value, int):
        return f":{value}\r\n".encode()
    if isinstance(value, str):
        data = value.encode()
        return b"$%d\r\n%b\r\n" % (len(data), data)
    return b"*%d\r\n" % len(value) + b"".join(map(encode, value))


class FakeCluster:
    """What the nodes share: followers, the open interval, reports. `script` may answer before it does."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.nodes: list[FakeNode] = []
        self.joined_at: dict[str, int] = {}
        self.left: list[str] = []
        self.reports: list[tuple[str, int]] = []  # accepted, once each
        self.received: list[tuple[str, ...]] = []  # every command, in order
        self.numbered: list[tuple[str, ...]] = []  # every ONCE, in order
        self.once: dict[tuple[str, ...], tuple[tuple[str, ...], Any]] = {}  # by session and number
        self.interval = 0
        self.opened_at = 0
        self.clock = 1000
        self.per_interval = 0  # as followers_per_interval: so many have a turn, one after the other
        self.turns: set[str] | None = None  # None: everyone who joined before the interval opened
        self.script: Callable[[FakeNode, tuple[str, ...]], Any] = lambda node, words: ...

    def add_node(self) -> FakeNode:
        node = FakeNode(self, len(self.nodes) + 1)
        self.nodes.append(node)
        return node

    def open(self, announce: bool = True) -> int:
        """Opens the next interval and tells the subscribers of every node that runs."""
        with self.lock:
            self.interval += 1
            self.clock += 10
            self.opened_at = self.clock
            names = list(self.joined_at)
            if self.per_interval:
                first = self.per_interval * (self.interval - 1)
                self.turns = {names[(first + n) % len(names)] for n in range(self.per_interval)}
        if announce:
            for node in self.nodes:
                node.publish("turns", f"{self.interval} {self.opened_at + 2000}")
        return self.interval

    def answer(self, node: FakeNode, words: tuple[str, ...]) -> Any:
        with self.lock:
            if words[0] == "ONCE":
                return self._once(node, words)
            self.received.append(words)
            scripted = self.script(node, words)
            if scripted is not ...:
                return scripted
            self.clock += 1
            match words:
                case ("FOLLOWER", "JOIN", name, version, *_):
                    if version != "1.0":
                        return FakeError("VERSION 1.0 is wanted")
                    self.joined_at.setdefault(name, self.clock)
                    return "OK"
                case ("FOLLOWER", "REPORT", name, number, _):
                    return self._report(name, int(number))
                case ("FOLLOWER", "INFO", name):
                    open_turn = self.interval if self._waits_for(name) else None
                    return ["node", name, "joined_at", self.joined_at[name], "turn", open_turn]
                case ("FOLLOWER", "LEAVE", name):
                    self.left.append(name)
                    return "OK"
                case ("INTERVAL", "CURRENT"):
                    if not self.interval:
                        return None
                    return ["interval", self.interval, "opened_at", self.opened_at, "closed_at", None]
            return FakeError(f"ERR unknown command {words[0]}")

    def _once(self, node: FakeNode, words: tuple[str, ...]) -> Any:
        """As the cluster does it. A script may lose the answer: then the command was carried out or not."""
        self.numbered.append(words)
        key = words[1:3]
        if key not in self.once:
            reply = self.answer(node, words[3:])
            if isinstance(reply, FakeError) and reply.split()[0] in NOT_DONE:
                return reply
            self.once[key] = (words[3:], reply)
        command, reply = self.once[key]
        return reply if command == words[3:] else FakeError("ERR this sequence number was used")

    def _report(self, name: str, number: int) -> Any:
        if name not in self.joined_at:
            return FakeError("NOFOLLOWER who?")
        if (name, number) in self.reports:
            return "OK"
        if number != self.interval or not self._waits_for(name):
            return FakeError(f"NOTURN {name} has no turn in interval {number}")
        self.reports.append((name, number))
        return "OK"

    def _waits_for(self, name: str) -> bool:
        """Whether the open interval still wants this follower's answer."""
        if not self.interval or (name, self.interval) in self.reports:
            return False
        if self.turns is not None:
            return name in self.turns
        return self.joined_at[name] <= self.opened_at

    def close(self) -> None:
        for node in self.nodes:
            node.kill()


@contextmanager
def fake_cluster(nodes: int) -> Iterator[FakeCluster]:
    """A cluster of so many nodes, all of them gone at the end."""
    made = FakeCluster()
    for _ in range(nodes):
        made.add_node()
    try:
        yield made
    finally:
        made.close()


class FakeNode:
    """One listening socket and the thread that serves all its connections."""

    def __init__(self, cluster: FakeCluster, node_id: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.info: str | None = None  # the text of RAFT INFO
        self.silent = False  # takes requests and does not answer
        self.deaf_subscriptions = False  # confirms subscriptions, never publishes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._subscribers: dict[socket.socket, set[str]] = {}
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """The node is gone: listener and connections closed."""
        self._stop.set()
        self._thread.join(5)

    def die_after_this(self) -> None:
        """For scripts (they run in the node's thread): the node is gone once the script raised an OSError."""
        self._stop.set()

    def publish(self, channel: str, payload: str) -> None:
        for connection, channels in list(self._subscribers.items()):
            if channel in channels and not self.deaf_subscriptions:
                connection.sendall(encode(["message", channel, payload]))

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.02):
                if key.data is None:
                    connection, _ = self._listener.accept()
                    self._selector.register(
                        connection, selectors.EVENT_READ, hiredis.Reader(encoding="utf-8")
                    )
                else:
                    self._serve(key.fileobj, key.data)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._subscribers.clear()

    def _serve(self, connection: Any, reader: Any) -> None:
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            self._subscribers.pop(connection, None)
            connection.close()
            return
        reader.feed(data)
        while (words := reader.gets()) is not False:
            if self.silent:
                continue
            try:
                connection.sendall(self._answer(connection, tuple(words)))
            except OSError:
                return  # the script lets the node die before it answers, or the client is gone

    def _answer(self, connection: socket.socket, words: tuple[str, ...]) -> bytes:
        if words[0] == "SUBSCRIBE":
            channels = self._subscribers.setdefault(connection, set())
            channels.update(words[1:])
            return b"".join(encode(["subscribe", name, n + 1]) for n, name in enumerate(words[1:]))
        if words[0] in ("CLIENT", "PING"):
            return b"+OK\r\n"
        if words[:2] == ("RAFT", "INFO") and self.info is not None:
            return encode(self.info)
        return encode(self.cluster.answer(self, words))


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
    """Waits until the condition holds; fails with `what` after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.005)
