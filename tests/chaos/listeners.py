"""Two that only listen: to what the nodes publish (rule 7), and to MongoDB, where nothing may move back."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import hiredis
from pymongo.errors import PyMongoError

from database.client import new_client
from tests.chaos.clients import Findings, Targets, _pack

DATABASE = "super_node"


class Address:
    """What new_client wants to know."""

    def __init__(self, uri: str) -> None:
        self.uri = uri


class Ear(threading.Thread):
    """Subscribes to `turns` and `rewards:*` on some node, on another one every few seconds. Every node must
    publish the same; messages may be missed. heard: (follower, interval) -> (outcome, delta, balance)."""

    def __init__(
        self, seed: str, targets: Callable[[], Targets], findings: Findings, stopped: threading.Event
    ):
        super().__init__(name="ear", daemon=True)
        self._rng = random.Random(f"{seed}:ear")
        self._targets, self._findings, self._stopped = targets, findings, stopped
        self.heard: dict[tuple[str, int], tuple[str, int, int]] = {}
        self.due: dict[int, int] = {}

    def run(self) -> None:
        """The thread's body."""
        try:
            while not self._stopped.is_set():
                with contextlib.suppress(OSError):
                    self._listen(time.monotonic() + 4 + self._rng.random() * 8)
                self._stopped.wait(0.1)
        except Exception as error:  # noqa: BLE001 - a dead listener must not pass for silence
            self._findings.wrong.append(f"the listener failed: {error!r}")

    def _listen(self, until: float) -> None:
        addresses = self._targets().addresses
        reader, last = hiredis.Reader(), 0
        with socket.create_connection(addresses[self._rng.choice(sorted(addresses))], 1.0) as sock:
            sock.settimeout(1.0)
            sock.sendall(_pack(("SUBSCRIBE", "turns")) + _pack(("PSUBSCRIBE", "rewards:*")))
            while time.monotonic() < until and not self._stopped.is_set():
                with contextlib.suppress(TimeoutError):
                    if not (data := sock.recv(65536)):
                        return
                    reader.feed(data)
                while (message := reader.gets()) is not False:
                    last = self._take(message, last)

    def _take(self, message: list[Any], last: int) -> int:
        """One message; the newest interval that this connection has heard of."""
        if message[0] == b"message":
            number, due_at = map(int, message[2].split())
            if number <= last:
                self._findings.wrong.append(f"`turns` told of interval {number} after {last}")
            self._same(self.due, number, due_at)
            return number
        if message[0] == b"pmessage":
            number, outcome, delta, balance = message[3].decode().split()
            follower = message[2].decode().partition(":")[2]
            self._same(self.heard, (follower, int(number)), (outcome, int(delta), int(balance)))
        return last

    def _same(self, told: dict[Any, Any], key: Any, value: Any) -> None:
        if told.setdefault(key, value) != value:
            self._findings.wrong.append(f"published for {key}: {value} after {told[key]}")


class MongoWatch(threading.Thread):
    """Reads `rewards` and `projection` again and again: no document may go or move back, not even when a
    deposed leader still writes or MongoDB is killed."""

    def __init__(self, uri: str, findings: Findings, stopped: threading.Event) -> None:
        super().__init__(name="mongo-watch", daemon=True)
        self._uri, self._findings, self._stopped = uri, findings, stopped
        self.looks = 0
        self._seen: dict[str, int] = {}

    def run(self) -> None:
        """The thread's body."""
        try:
            with new_client(Address(self._uri), timeout_ms=1000) as client:
                database = client[DATABASE]
                while not self._stopped.wait(0.25):
                    with contextlib.suppress(PyMongoError):
                        self._look(database)
        except Exception as error:  # noqa: BLE001 - see Ear
            self._findings.wrong.append(f"the watch over MongoDB failed: {error!r}")

    def _look(self, database: Any) -> None:
        now = {
            f"{name} {document['_id']}": int(document["applied_index"])
            for name in ("projection", "rewards")
            for document in list(database[name].find({}, {"applied_index": 1}))
        }
        for key, index in self._seen.items():
            if now.get(key, -1) < index:
                self._findings.wrong.append(f"MongoDB: {key} went from {index} back to {now.get(key)}")
        self._seen = now
        self.looks += 1
