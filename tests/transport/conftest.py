"""Fixtures of the transport's tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from transport_helpers import CLUSTER, HOST, drive, free_port

from raft.transport.acceptor import listen
from raft.transport.handshake import PeerAddress
from raft.transport.network import PeerNetwork


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    """net.make(node_id, ports, ...) starts a network; net.fatal collects faults: none must be left."""
    networks: list[PeerNetwork] = []
    fatal: list[tuple[str, BaseException]] = []

    def make(node_id: int, ports: dict[int, int], **extra: Any) -> PeerNetwork:
        members = extra.pop("members", None) or {
            peer_id: PeerAddress(HOST, port) for peer_id, port in ports.items()
        }
        network = PeerNetwork(
            node_id, CLUSTER, members, HOST, ports[node_id], lambda *fault: fatal.append(fault), **extra
        )
        networks.append(network)
        network.start()
        return network

    def pair(**extra: Any) -> tuple[PeerNetwork, PeerNetwork]:
        ports = {1: free_port(), 2: free_port()}
        one, two = make(1, ports, **extra), make(2, ports, **extra)
        drive([one, two], lambda: one.connected(2) and two.connected(1))
        return one, two

    yield SimpleNamespace(make=make, pair=pair, fatal=fatal)
    for network in networks:
        network.close()
    assert not fatal, f"faults in background threads: {fatal}"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """The raft port of a hand-made node 2."""
    with listen(HOST, 0) as sock:
        yield sock
