"""Tools of the process tests: questions asked on many connections at once, load that keeps its own books,
and a replay of a node's log that tells what the ledger must say."""

from __future__ import annotations

import random
import selectors
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import redis
from cluster import Cluster, code_of, eventually

from raft.core.entry import Entry
from raft.machine.machine import Machine
from raft.storage.node_storage import NodeStorage

LIMIT_S = 1.2 + 1.0  # two election timeouts of at most 600 ms, and slack for a busy machine
REFUSED = {"CLUSTERDOWN", "INDETERMINATE"}
Words = Sequence[str | int]
_pack: Any = hiredis.pack_command  # its stub knows only commands of one word


def pack(*commands: Words) -> bytes:
    """Commands as RESP requests."""
    return b"".join(_pack(tuple(map(str, words))) for words in commands)


def word(reply: Any) -> str:
    """The code of an error reply, or `ok` for any other."""
    return str(reply).split(" ", 1)[0] if isinstance(reply, hiredis.ReplyError) else "ok"


def connect(port: int, timeout_s: float = 10.0) -> socket.socket:
    """A raw connection to a node."""
    return socket.create_connection(("127.0.0.1", port), timeout_s)


def read_replies(sock: socket.socket, count: int, timeout_s: float = 10.0) -> list[Any]:
    """That many replies. TimeoutError, ConnectionError."""
    reader = hiredis.Reader()
    replies: list[Any] = []
    sock.settimeout(timeout_s)
    while len(replies) < count:
        data = sock.recv(65536)
        if not data:
            raise ConnectionError(f"closed after {len(replies)} of {count} replies")
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            replies.append(reply)
    return replies


def ask_all(asked: Sequence[tuple[int, Words]], timeout_s: float) -> list[tuple[Any, float]]:
    """Send each command to its port on a connection of its own, all at once: (reply, seconds) each.

    AssertionError naming the commands that had no answer after timeout_s.
    """
    answers: dict[int, tuple[Any, float]] = {}
    with selectors.DefaultSelector() as selector:
        socks = [connect(port) for port, _ in asked]
        try:
            started = time.monotonic()
            for number, (sock, (_, words)) in enumerate(zip(socks, asked, strict=True)):
                sock.sendall(pack(words))
                selector.register(sock, selectors.EVENT_READ, (number, hiredis.Reader()))
            while len(answers) < len(asked) and (left := started + timeout_s - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    number, reader = key.data
                    reader.feed(key.fileobj.recv(65536))  # type: ignore[union-attr]
                    if (reply := reader.gets()) is not False:
                        answers[number] = (reply, time.monotonic() - started)
                        selector.unregister(key.fileobj)
        finally:
            for sock in socks:
                sock.close()
    silent = [asked[n] for n in range(len(asked)) if n not in answers]
    assert not silent, f"no answer within {timeout_s} s to {str(silent)[:500]}"
    return [answers[n] for n in range(len(asked))]


# --- load -----------------------------------------------------------------------------------------------


@dataclass
class Book:
    """What one client thread knows of its counter and its keys."""

    counter: str
    acked: int = 0
    unknown: int = 0
    last: int = 0  # highest value that the counter was seen at
    sets: dict[str, str] = field(default_factory=dict)  # acknowledged: must be there
    maybe: dict[str, str] = field(default_factory=dict)  # unknown: this value or nothing
    refused: set[str] = field(default_factory=set)  # certainly not executed: must not be there
    refusals: int = 0


class Load:
    """Client threads that increment, set and read through all nodes, while the test breaks things.

    Reads are checked as they come: a counter read after an acknowledged INCR shows it, on any node. A wrong
    answer is kept in `wrong` and ends the thread.
    """

    def __init__(self, cluster: Cluster, threads: int = 4) -> None:
        self._ports = cluster.client_ports  # nodes may come and go meanwhile
        self._paused_once = cluster.paused_once
        self._stop = threading.Event()
        self.books = [Book(f"counter:{n}") for n in range(threads)]
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(book,), daemon=True) for book in self.books]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the load; what is under way is waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a client hangs"

    @property
    def acked(self) -> int:
        """Acknowledged operations so far."""
        return sum(book.acked + len(book.sets) for book in self.books)

    def progress(self, more: int = 40, timeout_s: float = 30.0) -> None:
        """Wait until every client has had `more` operations acknowledged from now on."""
        goals = [book.acked + more for book in self.books]
        deadline = time.monotonic() + timeout_s
        while any(book.acked < goal for book, goal in zip(self.books, goals, strict=True)):
            assert not self.wrong, self.wrong
            assert time.monotonic() < deadline, f"no progress within {timeout_s} s: {self.books}"
            time.sleep(0.01)

    def check(self, cluster: Cluster) -> None:
        """Nothing acknowledged is lost, nothing refused was done: on every living node."""
        assert not self.wrong, self.wrong
        for node in cluster.alive():
            for book in self.books:
                value = int(cluster.execute(node, "GET", book.counter) or 0)
                assert book.acked <= value <= book.acked + book.unknown, (node, value, book)
                keys = [*book.sets, *book.maybe, *book.refused]
                found = dict(zip(keys, cluster.execute(node, "MGET", *keys), strict=True)) if keys else {}
                lost = {key for key, value in book.sets.items() if found[key] != value}
                assert not lost, f"acknowledged and lost on node {node}: {sorted(lost)}"
                assert all(found[key] in (None, value) for key, value in book.maybe.items()), node
                ghosts = {key for key in book.refused if found[key] is not None}
                assert not ghosts, f"answered CLUSTERDOWN or BUSY and yet done: {sorted(ghosts)}"

    def _run(self, book: Book) -> None:
        rng = random.Random(book.counter)
        client: Any = None
        number = 0
        while not self._stop.is_set() and not self.wrong:
            if client is None or rng.random() < 0.05:
                if client is not None:
                    client.close()
                port = rng.choice(list(self._ports.values()))
                client = redis.Redis(
                    port=port, socket_timeout=10, decode_responses=True,
                    retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                )  # fmt: skip
            try:
                client.ping()
            except redis.RedisError:  # this node is gone: nothing was sent
                client.close()
                client = None
                self._stop.wait(0.01)
                continue
            number += 1
            what = rng.choice((self._increment, self._increment, self._set, self._read))
            try:
                what(client, book, number)
            except redis.RedisError as error:
                if code_of(error) == "TimeoutError" and port not in self._paused_once:
                    self.wrong.append(f"no answer within 10 s: {book}")
                client.close()
                client = None
            except AssertionError as error:
                self.wrong.append(str(error))

    def _outcome(self, call: Callable[[], Any], book: Book, unknown: Callable[[], None]) -> Any:
        """The reply; None when the command was refused. unknown() is told when nobody can know."""
        try:
            return call()
        except redis.RedisError as error:
            if code_of(error) in ("CLUSTERDOWN", "BUSY"):
                book.refusals += 1
                return None
            unknown()
            if code_of(error) in ("INDETERMINATE", "ConnectionError", "TimeoutError"):
                raise
            raise AssertionError(f"unexpected: {error!r}") from error

    def _increment(self, client: Any, book: Book, _number: int) -> None:
        def unknown() -> None:
            book.unknown += 1

        value = self._outcome(lambda: client.incr(book.counter), book, unknown)
        if value is not None:
            book.acked += 1
            assert book.last < value <= book.acked + book.unknown, f"INCR gave {value}: {book}"
            book.last = value

    def _set(self, client: Any, book: Book, number: int) -> None:
        key, value = f"{book.counter}:{number}", str(number)

        def unknown() -> None:
            book.maybe[key] = value

        if self._outcome(lambda: client.set(key, value), book, unknown):
            book.sets[key] = value
        elif key not in book.maybe:
            book.refused.add(key)

    def _read(self, client: Any, book: Book, _number: int) -> None:
        value = self._outcome(lambda: int(client.get(book.counter) or 0), book, lambda: None)
        if value is not None:
            assert max(book.acked, book.last) <= value <= book.acked + book.unknown, f"read {value}: {book}"
            book.last = value


# --- the log as the judge -------------------------------------------------------------------------------


@dataclass
class Replay:
    """What a node's log says: its machine after the last entry, every outcome and every claim ever."""

    machine: Machine
    outcomes: dict[tuple[int, str], Any] = field(default_factory=dict)  # (interval, follower) -> IntervalRow
    claims: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)


def replay(cluster: Cluster, node: int, scratch: Path) -> Replay:
    """Apply the whole log of a stopped node to a fresh machine. Raises if the ledger contradicts itself."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(cluster.directory / "data" / f"node-{node}", scratch)
    storage = NodeStorage.open(scratch, "test-cluster", node)
    try:
        said = Replay(Machine("test-cluster"))
        log = storage.log
        while said.machine.applied_index < log.last_index:
            for entry in log.entries(said.machine.applied_index + 1, log.last_index + 1, 1 << 20):
                said.machine.apply(entry)
                said.entries.append(entry)
                if any(name in entry.data.upper() for name in (b"~CLOSE", b"~TERM", b"CLAIM")):
                    _collect(said, entry.index)
        said.machine.ledger.check()
        return said
    finally:
        storage.close()


def _collect(said: Replay, index: int) -> None:
    batch = said.machine.ledger.pull(1_000_000)
    if batch is None:
        return
    for row in batch.intervals:
        if row.applied_index == index:
            assert (row.interval, row.node) not in said.outcomes, (
                f"two outcomes for {row.interval} {row.node}"
            )
            said.outcomes[row.interval, row.node] = row
    for claim in batch.claims:
        if claim.applied_index == index:
            assert claim.claim_id not in said.claims, f"two answers to claim {claim.claim_id}"
            said.claims[claim.claim_id] = claim


def check_rule_8(cluster: Cluster) -> None:
    """balance = earned − penalties − claimed for every follower on every living node."""
    for node in cluster.alive():
        _, names = cluster.execute(node, "FOLLOWER", "LIST", 0, "COUNT", 1000)
        for name in names:
            it = follower_info(cluster, node, name)
            assert it["balance"] == it["earned"] - it["penalties"] - it["claimed"], (node, it)


def follower_info(cluster: Cluster, node: int, name: str) -> dict[str, Any]:
    """FOLLOWER INFO as a dict."""
    flat = cluster.execute(node, "FOLLOWER", "INFO", name)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def interval(cluster: Cluster, node: int, *which: str | int) -> dict[str, Any]:
    """INTERVAL CURRENT (waiting for the first ever), or INTERVAL SHOW with a number, as a dict."""
    words = ("SHOW", *which) if which else ("CURRENT",)
    flat = eventually(lambda: cluster.execute(node, "INTERVAL", *words), 20, "an interval")
    return dict(zip(flat[::2], flat[1::2], strict=True))
