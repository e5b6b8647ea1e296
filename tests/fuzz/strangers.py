"""Strangers, in a process of their own: `python -m tests.fuzz.strangers PLAN`, until its standard input ends.

They do to the ports of a running cluster what nobody should: noise, oversize lengths, halves of everything,
questions whose answers they do not read, crowds that never finish, and a peer (a learner that was really
added) that introduces itself correctly and then reads nothing, or sends without end. Says `ready`, and at the
end in a line of JSON how often each of them did what.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from raft.core.messages import AppendEntriesResponse, ReadIndexRequest, RequestVote
from raft.transport.admission import Credentials
from raft.transport.codec import MessageCodec
from raft.transport.frames import FrameType, encode_frame
from raft.transport.handshake import HandshakeError, Hello, Welcome, introduce, receive
from raft.transport.node_messages import Ping
from tests.fuzz import samples
from tests.fuzz.client_targets import request
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.wire_targets import OWN, seal_frames

Port = tuple[str, int]  # raft, client or http, and its number
Attack = Callable[[Port, random.Random], None]


class Plan(msgspec.Struct, frozen=True):
    """ports: of all nodes. threads: of attackers. crowd: connections that never finish, to each port. peer:
    the id of a learner that is one of them, at peer_port; 0: none.
    pause_s: between two hundreds of its messages to a node."""

    ports: list[Port]
    threads: int = 20
    crowd: int = 0
    peer: int = 0
    peer_port: int = 0
    pause_s: float = 0.02
    cluster: str = "test-cluster"
    seed: int = 0


def connected(port: Port, timeout_s: float = 0.3) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port[1]), timeout_s)


STRANGE: tuple[list[bytes], ...] = (
    [b"PING"], [b"GET", b"x"], [b"CLIENT", b"LIST"], [b"HELLO", b"3"], [b"SUBSCRIBE", b"turns"], [b"MULTI"],
    [b"EXEC"], [b"RAFT", b"INFO"], [b"KEYS", b"[["], [b"SCAN", b"-1"], [b"ONCE", b"~x", b"1", b"GET", b"a"],
    [b"FOLLOWER", b"INFO"],
)  # fmt: skip
HTTP = (
    b"GET /status HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123456789",
    b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
)
HALVES: dict[str, tuple[bytes, ...]] = {  # the beginnings of what never ends
    "raft": (b"", b"SNRF\x01\x01", struct.pack(">4sBBHI", b"SNRF", 1, 1, 0, 500)),
    "client": (b"", b"*2\r\n$3\r\nGET\r\n$1", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000000\r\nxx", b"SUBSCR"),
    "http": (b"", b"GET /sta", b"GET / HTTP/1.1\r\nHost: a\r\n", HTTP[1][:-4]),
}


def noise(port: Port, rng: random.Random) -> None:
    """Random bytes, or a valid beginning with damage behind it."""
    if port[0] == "raft":
        hello = encode_frame(
            FrameType.HELLO, samples.msgpack(OWN._replace(node_id=rng.randint(0, 9)).hello(1, ""))
        )
        sent = seal_frames(mutate_bytes(hello, rng, 2000)) if rng.random() < 0.6 else rng.randbytes(500)
    elif port[0] == "http":
        lines = b"".join(rng.choice(HTTP) for _ in range(4))
        sent = mutate_bytes(lines, rng, 4000) if rng.random() < 0.7 else rng.randbytes(3000)
    else:
        lines = b"".join(request(list(rng.choice(STRANGE))) for _ in range(5))
        sent = mutate_bytes(lines, rng, 4000) if rng.random() < 0.7 else rng.randbytes(3000)
    with connected(port) as sock:
        sock.sendall(sent)
        sock.recv(4096)


def oversize(port: Port, rng: random.Random) -> None:
    """Lengths beyond every cap."""
    size, kind = rng.choice((1025, 2**24 + 1, 2**32 - 1)), rng.choice((1, 4))
    sent = {
        "raft": (seal_frames(struct.pack(">4sBBHI", b"SNRF", 1, kind, 0, size) + bytes(8)),),
        "client": (
            *(b"*1048577\r\n", b"*1\r\n$999999999\r\n", b"*2147483648\r\n", b"$5\r\nhello\r\n"),
            *(b"A" * 70_000, b"*1\r\n$-5\r\n"),
        ),
        "http": (
            b"GET /" + b"a" * 70_000,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 70_000,
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n" + b"x" * 70_000,
        ),
    }[port[0]]
    with connected(port) as sock:
        sock.sendall(rng.choice(sent))
        sock.recv(4096)


def half_open(port: Port, rng: random.Random) -> None:
    """Connects, perhaps says a little, and closes one direction, or resets."""
    with connected(port) as sock:
        sock.sendall(rng.choice(HALVES[port[0]]))
        if rng.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            sock.shutdown(socket.SHUT_WR)
            sock.recv(100)


def never_finishing(port: Port, rng: random.Random) -> None:
    """One byte now and then of something that has no end."""
    data = {
        "raft": b"SNRF\x01\x01\0\0\0\0\x02" + bytes(50),
        "client": b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000\r\n" + b"x" * 200,
        "http": b"GET /status HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100,
    }[port[0]]
    with connected(port) as sock:
        for byte in data[: rng.randint(1, 60)]:
            sock.sendall(bytes([byte]))
            time.sleep(0.005)  # that is the attack
        sock.settimeout(1)
        sock.recv(10)


def never_reading(port: Port, rng: random.Random) -> None:
    """Asks for much and reads nothing of it, for a second."""
    if port[0] == "raft":
        return never_finishing(port, rng)
    asked = HTTP[0] * 20 if port[0] == "http" else request([b"GET", b"big"]) * 20
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.3)
        sock.connect(("127.0.0.1", port[1]))
        until = time.monotonic() + 1.0
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < until:
                sock.sendall(asked)
        time.sleep(max(0.0, until - time.monotonic()))  # that is the attack
    return None


ATTACKS: tuple[Attack, ...] = (noise, oversize, half_open, never_finishing, never_reading)


class Strangers:
    """All of them. run() returns when `stop` is set; it raises what broke in one of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.broken: list[BaseException] = []

    def run(self) -> None:
        plan = self.plan
        bodies: list[Callable[[], None]] = [
            lambda number=number: self._attack(number)  # type: ignore[misc]
            for number in range(plan.threads)
        ]
        if plan.crowd:
            bodies += [lambda port=port: self._crowd(port) for port in plan.ports]  # type: ignore[misc]
        if plan.peer:
            peer = Peer(plan, self.stop, self.counts)
            bodies += [peer.listen]
            bodies += [
                lambda at=at, port=port: peer.flood(at + 1, port)  # type: ignore[misc]
                for at, port in enumerate(port for port in plan.ports if port[0] == "raft")
            ]
        threads = [threading.Thread(target=self._guarded, args=(body,), daemon=True) for body in bodies]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        for thread in threads:
            thread.join()
        if self.broken:
            raise self.broken[0]

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self.broken.append(error)
            self.stop.set()

    def _attack(self, number: int) -> None:
        rng, kind = random.Random(self.plan.seed + number), ATTACKS[number % len(ATTACKS)]
        while not self.stop.is_set():
            port = rng.choice(self.plan.ports)
            with contextlib.suppress(OSError):
                kind(port, rng)
            self.counts[f"{kind.__name__} {port[0]}"] += 1

    def _crowd(self, port: Port) -> None:
        """Connections with half of something, as many as there may be; who is thrown out comes again."""
        rng, crowd = random.Random(self.plan.seed + port[1]), []
        while not self.stop.is_set():
            with contextlib.suppress(OSError):
                for _ in range(min(50, self.plan.crowd - len(crowd))):
                    crowd.append(connected(port))
                    crowd[-1].sendall(rng.choice(HALVES[port[0]]))
                    crowd[-1].setblocking(False)
            key = f"crowd {port[0]}"
            crowd = [sock for sock in crowd if _is_open(sock)]
            self.counts[key] = max(self.counts[key], len(crowd))
            self.stop.wait(0.1)
        for sock in crowd:
            sock.close()


def _is_open(sock: socket.socket) -> bool:
    try:
        if sock.recv(1000):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    sock.close()
    return False


class Peer:
    """A learner that is none of ours: it lets the leader dial it and reads nothing, and it dials the nodes
    and sends what a peer may send, as fast as it can."""

    def __init__(self, plan: Plan, stop: threading.Event, counts: Counter[str]) -> None:
        self._plan = plan
        self._stop = stop
        self._counts = counts
        self._cluster_id = ""

    def _own(self) -> Credentials:
        plan = self._plan
        return Credentials(
            plan.peer, plan.cluster, "run", "9" * 32, self._cluster_id, "127.0.0.1", plan.peer_port
        )

    def listen(self) -> None:
        """Welcomes who dials, and reads nothing from then on."""
        with (
            socket.create_server(("127.0.0.1", self._plan.peer_port)) as listener,
            contextlib.ExitStack() as all_of,
        ):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.settimeout(0.2)
            while not self._stop.is_set():
                with contextlib.suppress(OSError, HandshakeError):
                    sock, _ = listener.accept()
                    all_of.enter_context(sock)
                    receive(sock, self._welcome, 1.0)
                    self._counts["peer never reads"] += 1

    def _welcome(self, hello: Hello) -> Welcome:
        self._cluster_id = hello.cluster_id
        return self._own().welcome()

    def flood(self, node: int, port: Port) -> None:
        """Messages that are all right, one after the other, to one node."""
        codec, rng = MessageCodec(), random.Random(node)
        said = [Ping(7, 1), ReadIndexRequest(1, 5), AppendEntriesResponse(1, False, 0, 1, 0, 0, 0)]
        said += [RequestVote(1, self._plan.peer, 1, 1, True), RequestVote(1, self._plan.peer, 1, 1)]
        while not self._stop.is_set():
            if not self._cluster_id:  # until it has been dialed it does not know whose it is
                self._stop.wait(0.1)
                continue
            frames = b"".join(codec.encode(rng.choice(said)) for _ in range(100))
            with contextlib.suppress(OSError, HandshakeError), connected(port) as sock:
                introduce(sock, self._own().hello(node, ""), 1.0)
                sock.settimeout(0.3)
                self._counts["peer floods"] += 1
                while not self._stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        sock.sendall(frames)
                        self._counts["messages of the peer"] += 100
                    time.sleep(self._plan.pause_s)
            self._stop.wait(0.1)


def main() -> int:
    """The process."""
    os.nice(10)  # it is what the nodes make of it that counts
    strangers = Strangers(msgspec.json.decode(sys.argv[1], type=Plan))
    threading.Thread(target=lambda: (sys.stdin.read(), strangers.stop.set()), daemon=True).start()
    strangers.run()
    result: dict[str, Any] = dict(sorted(strangers.counts.items()))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
