"""Helpers of the transport's tests: real sockets on loopback, one thread drives all networks under test."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from raft.transport.acceptor import listen
from raft.transport.frames import FrameDecoder, FrameType
from raft.transport.handshake import (
    PROTOCOL_VERSION,
    Hello,
    PeerAddress,
    Refused,
    Welcome,
    introduce,
    receive,
)
from raft.transport.network import PeerNetwork

HOST = "127.0.0.1"
CLUSTER = "test"


def drive(networks: list[PeerNetwork], until: Callable[[], Any], deadline_s: float = 10.0) -> list[Any]:
    """Poll the networks in turn until the condition holds; returns (receiver, sender, message) of all."""
    received = []
    end = time.monotonic() + deadline_s
    while not until():
        assert time.monotonic() < end, "the awaited condition did not come about in time"
        for network in networks:
            for sender, message in network.poll(0.002):
                received.append((network.node_id, sender, message))
    return received


def wait_for(condition: Callable[[], Any], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the awaited condition did not come about in time"
        time.sleep(0.002)


def dial_raw(
    address: tuple[str, int], from_id: int, to_id: int, run_id: str = "raw", **says: Any
) -> socket.socket:
    """A hand-made peer: a connected socket that has passed the handshake. says: more fields of its hello."""
    sock = socket.create_connection(address, timeout=5)
    try:
        introduce(sock, Hello(CLUSTER, PROTOCOL_VERSION, from_id, to_id, run_id, **says), 5)
    except BaseException:
        sock.close()
        raise
    return sock


def accept_raw(listener: socket.socket, node_id: int, run_id: str = "raw", **says: Any) -> socket.socket:
    """A hand-made peer's side of a connection that the network under test dials. says: more fields of its
    welcome."""
    listener.settimeout(5)
    sock, _ = listener.accept()
    receive(sock, lambda _hello: Welcome(node_id, run_id, **says), 5)
    sock.settimeout(5)
    return sock


def members(ports: dict[int, int], **identities: str) -> dict[int, PeerAddress]:
    """Members on loopback; identities: those recorded, by name ("n2" is node 2)."""
    return {each: PeerAddress(HOST, port, identities.get(f"n{each}", "")) for each, port in ports.items()}


def read_refusal(sock: socket.socket) -> Refused:
    decoder = FrameDecoder()
    sock.settimeout(5)
    while True:
        data = sock.recv(4096)
        assert data, "closed without an answer"
        for frame_type, payload in decoder.feed(data):
            assert frame_type is FrameType.REFUSED
            return msgspec.msgpack.decode(payload, type=Refused)


def closed_by_peer(sock: socket.socket, deadline_s: float = 5.0) -> bool:
    """Does the other side close the connection, having sent nothing more?"""
    sock.settimeout(deadline_s)
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


_ports = itertools.count(os.getpid() * 131)


def free_port() -> int:
    """A port nobody listens on, below the ephemeral range: no outgoing connection of a test that runs at the
    same time can take it meanwhile."""
    while True:
        port = 10_000 + next(_ports) % 5_000
        with contextlib.suppress(OSError), listen(HOST, port):
            return port
