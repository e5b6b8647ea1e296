"""A real cluster under valid load while strangers do what they can to its ports: nobody notices."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from raft.transport.frames import FrameType, encode_frame
from tests.fuzz import samples
from tests.fuzz.client_targets import request
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.wire_targets import OWN, seal_frames
from tests.node.cluster import Cluster, eventually, running

ATTACK_S = 6.0
MOST_MORE_MB = 120  # what a node may grow by meanwhile
Port = tuple[str, int]  # raft or client, number

pytestmark = pytest.mark.process


class Load:
    """A valid client of one node: counts up, reads back, and keeps what was answered wrongly."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        self._client = redis.Redis(port=cluster.client_ports[node], socket_timeout=10)
        self._key = f"load-{node}"
        self._stop = threading.Event()
        self.count = 0
        self.slowest_s = 0.0
        self.wrong: list[str] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                answers: list[Any] = [
                    self._client.incr(self._key),
                    self._client.get(self._key),
                    self._client.set(f"{self._key}-{self.count % 50}", self.count),
                    self._client.get(f"{self._key}-{self.count % 50}"),
                ]
            except redis.RedisError as error:
                self.wrong.append(repr(error))
                continue
            wanted = [self.count + 1, b"%d" % (self.count + 1), True, b"%d" % self.count]
            if answers != wanted:
                self.wrong.append(f"{answers} instead of {wanted}")
                return
            self.count += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def stop(self) -> None:
        self._stop.set()
        self.thread.join(15)
        self._client.close()
        assert not self.thread.is_alive()


def connected(port: Port, timeout_s: float = 0.3) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port[1]), timeout_s)


def noise(port: Port, rng: random.Random) -> None:
    """Random bytes, or a valid beginning with damage behind it."""
    if port[0] == "raft":
        hello = encode_frame(
            FrameType.HELLO, samples.msgpack(OWN._replace(node_id=rng.randint(0, 9)).hello(1, ""))
        )
        sent = seal_frames(mutate_bytes(hello, rng, 2000)) if rng.random() < 0.6 else rng.randbytes(500)
    else:
        lines = b"".join(request(list(rng.choice(STRANGE))) for _ in range(5))
        sent = mutate_bytes(lines, rng, 4000) if rng.random() < 0.7 else rng.randbytes(3000)
    with connected(port) as sock:
        sock.sendall(sent)
        with contextlib.suppress(OSError):
            sock.recv(4096)


STRANGE: tuple[list[bytes], ...] = (
    [b"PING"], [b"GET", b"x"], [b"CLIENT", b"LIST"], [b"HELLO", b"3"], [b"SUBSCRIBE", b"turns"], [b"MULTI"],
    [b"EXEC"], [b"RAFT", b"INFO"], [b"KEYS", b"[["], [b"SCAN", b"-1"], [b"ONCE", b"~x", b"1", b"GET", b"a"],
    [b"FOLLOWER", b"INFO"],
)  # fmt: skip


def oversize(port: Port, rng: random.Random) -> None:
    """Lengths beyond every cap."""
    frame = struct.pack(
        ">4sBBHI", b"SNRF", 1, rng.choice((1, 4)), 0, rng.choice((1025, 2**24 + 1, 2**32 - 1))
    )
    texts = (b"*1048577\r\n", b"*1\r\n$999999999\r\n", b"*2147483648\r\n", b"$5\r\nhello\r\n", b"A" * 70_000)
    with connected(port) as sock, contextlib.suppress(OSError):
        sock.sendall(seal_frames(frame + bytes(8)) if port[0] == "raft" else rng.choice(texts))
        sock.recv(4096)


def half_open(port: Port, rng: random.Random) -> None:
    """Connects, perhaps says a little, and closes one direction, or resets."""
    with connected(port) as sock, contextlib.suppress(OSError):
        if rng.random() < 0.5:
            sock.sendall(b"SNRF\x01" if port[0] == "raft" else b"*2\r\n$3\r\nGET\r\n$1")
        if rng.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            sock.shutdown(socket.SHUT_WR)
            sock.recv(100)


def never_finishing(port: Port, rng: random.Random) -> None:
    """One byte now and then of something that has no end."""
    data = b"SNRF\x01\x01" if port[0] == "raft" else b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000\r\n" + b"x" * 200
    with connected(port) as sock, contextlib.suppress(OSError):
        for byte in data[: rng.randint(1, 60)]:
            sock.sendall(bytes([byte]))
            time.sleep(0.005)  # that is the attack
        sock.settimeout(1)
        sock.recv(10)


def never_reading(port: Port, rng: random.Random) -> None:
    """Asks for much and reads nothing of it."""
    if port[0] == "raft":
        return never_finishing(port, rng)
    with connected(port) as sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(200):
            sock.sendall(request([b"GET", b"big"]) * 20)
    return None


ATTACKS: tuple[Callable[[Port, random.Random], None], ...] = (
    *(noise, oversize, half_open, never_finishing, never_reading),
)


@contextlib.contextmanager
def attackers(ports: list[Port]) -> Iterator[list[int]]:
    """Twenty threads; gives the number of attacks, which grows."""
    stop, counts, broken = threading.Event(), [0] * 20, []

    def attack(number: int) -> None:
        rng = random.Random(number)
        kind = ATTACKS[number % len(ATTACKS)]
        try:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    kind(rng.choice(ports), rng)
                counts[number] += 1
        except BaseException as error:
            broken.append(error)
            raise

    threads = [threading.Thread(target=attack, args=(n,), daemon=True) for n in range(20)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
        assert broken == []


def descriptors(cluster: Cluster, node: int) -> int:
    return len(list(Path(f"/proc/{cluster.processes[node].pid}/fd").iterdir()))


def resident_mb(cluster: Cluster, node: int) -> float:
    status = Path(f"/proc/{cluster.processes[node].pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def test_strangers_do_not_disturb_a_cluster_that_works(tmp_path: Path) -> None:
    ports: list[Port] = []
    with running(
        tmp_path, 3, raft={"election_timeout_ms": [1000, 2000], "heartbeat_interval_ms": 100}
    ) as cluster:
        leader = cluster.leader()
        term = cluster.info(leader)["term"]
        cluster.execute(leader, "SET", "big", "x" * 500_000)
        for node in cluster.ids:
            address = cluster.addresses[node]
            ports += [("raft", address["raft_port"]), ("client", address["client_port"])]
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", address["http_port"]), 1),
            ):
                ports.append(("client", address["http_port"]))
        loads = [Load(cluster, node) for node in cluster.ids]
        eventually(lambda: all(load.count > 20 for load in loads), 20, "load")
        fds = {node: descriptors(cluster, node) for node in cluster.ids}
        memory = {node: resident_mb(cluster, node) for node in cluster.ids}
        before = [load.count for load in loads]
        most_fds = 0
        with attackers(ports) as counts:
            until = time.monotonic() + ATTACK_S
            while time.monotonic() < until:
                most_fds = max(most_fds, *(descriptors(cluster, node) - fds[node] for node in cluster.ids))
                time.sleep(0.1)  # between two looks
        during = [load.count for load in loads]
        eventually(
            lambda: all(descriptors(cluster, node) <= fds[node] for node in cluster.ids),
            15,
            "descriptors are closed",
        )
        for load in loads:
            load.stop()
        assert [load.wrong for load in loads] == [[], [], []]
        assert all(late - early > 20 for late, early in zip(during, before, strict=True)), (before, during)
        assert max(load.slowest_s for load in loads) < 5
        assert sum(counts) > 100
        assert most_fds <= 100
        for node in cluster.ids:
            assert resident_mb(cluster, node) - memory[node] < MOST_MORE_MB
            assert cluster.info(node)["term"] == term, "there was an election"
        assert cluster.leader() == leader
        cluster.agree()
