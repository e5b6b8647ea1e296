"""An in-memory backend with a worker thread, and servers and sockets around it."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable

from raft.clients.batch import Batch
from raft.clients.server import ClientServer
from raft.config import LimitSettings, Member, Settings
from raft.replies import OK, Error, Reply
from raft.status import NodeStatus

DEADLINE_S = 20.0


def make_status(**changes: object) -> NodeStatus:
    """A three-node cluster as its leader, node 1, sees it."""
    fields: dict[str, object] = {
        "node_id": 1,
        "cluster_name": "test",
        "run_id": "ab" * 20,
        "started_monotonic_s": time.monotonic(),
        "role": "leader",
        "term": 7,
        "leader_id": 1,
        "voted_for": 1,
        "commit_index": 41,
        "applied_index": 40,
        "last_log_index": 42,
        "first_log_index": 1,
        "members": tuple(
            Member(id=n, host="127.0.0.1", raft_port=7100 + n, client_port=7200 + n, http_port=7300 + n)
            for n in (1, 2, 3)
        ),
        "voters": (1, 2, 3),
        "match": ((2, 41), (3, 40)),
    }
    fields.update(changes)
    return NodeStatus(**fields)  # type: ignore[arg-type]


class DictBackend:
    """GET, SET, INCR, INCRBY, DEL, MGET, MSET on a dict, answered by one worker thread."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.current = make_status()
        self.full = False
        self.gate = threading.Event()  # cleared: the worker stands still
        self.gate.set()
        self.batches: list[int] = []  # sizes, as they were taken
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, batch: Batch) -> bool:
        if self.full:
            return False
        self.batches.append(len(batch.operations))
        self._queue.put(batch)
        return True

    def status(self) -> NodeStatus:
        return self.current

    def stop(self) -> None:
        self.gate.set()
        self._queue.put(None)
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            self.gate.wait()
            for slot, args in batch.operations:
                try:
                    reply = self.execute(args)
                except ValueError as error:  # a number that is none, a key without a value
                    reply = Error(f"ERR {error!r}")
                batch.answer(slot, reply)

    def execute(self, args: list[bytes]) -> Reply:
        name = args[0].upper()
        if name == b"SET":
            self.values[args[1]] = args[2]
            return OK
        if name == b"GET":
            return self.values.get(args[1])
        if name in (b"INCR", b"INCRBY"):
            step = int(args[2]) if len(args) > 2 else 1
            self.values[args[1]] = b"%d" % (int(self.values.get(args[1], b"0")) + step)
            return int(self.values[args[1]])
        if name == b"DEL":
            return sum(self.values.pop(key, None) is not None for key in args[1:])
        if name == b"MGET":
            return [self.values.get(key) for key in args[1:]]
        if name == b"MSET":
            self.values.update(zip(args[1::2], args[2::2], strict=True))
            return OK
        if name == b"FOLLOWER":
            return {"id": args[2], "balance": 5}
        return Error(f"ERR the fake does not know {name.decode()}")


class Wire:
    """A raw client socket with deadlines."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE_S)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def expect(self, data: bytes) -> None:
        """Exactly these bytes come next."""
        got = bytearray()
        while len(got) < len(data):
            piece = self.sock.recv(len(data) - len(got))
            if not piece:
                break
            got += piece
        assert bytes(got) == data

    def until_closed(self) -> bytes:
        """All that comes until the server closes."""
        got = b""
        while piece := self.sock.recv(65536):
            got += piece
        return got

    def line(self) -> bytes:
        got = b""
        while not got.endswith(b"\r\n"):
            piece = self.sock.recv(1)
            assert piece, f"closed after {got!r}"
            got += piece
        return got


def eventually(condition: Callable[[], object], what: str = "condition") -> None:
    """Waits until the condition holds; fails after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def resp(*words: bytes) -> bytes:
    """One request as an array of bulk strings."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Harness:
    """A server on a free port, its backend, and connections that are closed in the end."""

    def __init__(self, backend: DictBackend | None = None, handlers: int = 1, **limits: int) -> None:
        self.backend = backend or DictBackend()
        self.fatal: list[tuple[str, BaseException]] = []
        settings = Settings(limits=LimitSettings(**limits))
        self.server = ClientServer(
            self.backend,
            settings,
            "127.0.0.1",
            0,
            handlers,
            on_fatal=lambda name, error: self.fatal.append((name, error)),
        )
        self.server.start()
        self._sockets: list[socket.socket] = []

    def connect(self) -> Wire:
        sock = socket.create_connection(("127.0.0.1", self.server.port), timeout=DEADLINE_S)
        self._sockets.append(sock)
        return Wire(sock)

    def pair(self) -> Wire:
        """A client over a socket pair that the server adopts."""
        ours, theirs = socket.socketpair()
        self._sockets.append(ours)
        self.server.serve(theirs, ("pair", 1))
        return Wire(ours)

    def close(self) -> None:
        self.server.stop()
        self.backend.stop()
        for sock in self._sockets:
            sock.close()
        assert not self.fatal
