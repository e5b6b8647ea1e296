"""PeerNetwork under bad peers, faults of its own, and over time: loud, contained, leaking nothing."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
from typing import Any

import pytest
from transport_helpers import (
    CLUSTER,
    HOST,
    accept_raw,
    closed_by_peer,
    dial_raw,
    drive,
    free_port,
    members,
    wait_for,
)

from raft.transport import dialer as dialer_module
from raft.transport.dialer import Backoff
from raft.transport.frames import FrameType, encode_frame
from raft.transport.handover import Handover, Incoming, Outgoing
from raft.transport.handshake import PeerAddress
from raft.transport.network import PeerNetwork
from raft.transport.node_messages import Ping


def raft_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("raft-")]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_fifty_reconnects_leak_nothing(net: Any, listener: socket.socket, monkeypatch: Any) -> None:
    """BUGS 57: a connection is one socket, used again for every message, and closed when it ends."""
    monkeypatch.setattr(dialer_module, "Backoff", lambda rng: Backoff(rng, 0.001, 0.002))
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]})

    def one_round(number: int) -> None:
        with accept_raw(listener, 2), dial_raw(one.address, 2, 1):
            drive([one], lambda: one.connected(2))
            drive([one], lambda: one.statistics()[2].connects_in == number)
            before = open_files()
            for _ in range(20):
                assert one.send(2, Ping(1, 1))
            assert open_files() == before
        drive([one], lambda: not one.connected(2) and not one._incoming)

    def settled() -> int:
        wait_for(lambda: not any(name.startswith("raft-handshake") for name in raft_threads()))
        gc.collect()
        return open_files()

    one_round(1)
    first, threads = settled(), sorted(raft_threads())
    for number in range(2, 52):
        one_round(number)
    wait_for(lambda: settled() <= first + 1)  # the dialer may be in the middle of its next attempt
    assert sorted(raft_threads()) == threads
    assert len(one._by_fd) == 0


def test_close_ends_all_threads_and_files_and_may_be_repeated(net: Any) -> None:
    files, threads = open_files(), raft_threads()
    one, two = net.pair()
    stranger = socket.create_connection(one.address)
    wait_for(lambda: any(name.startswith("raft-handshake") for name in raft_threads()))
    began = time.monotonic()
    one.close()
    two.close()
    assert time.monotonic() - began < 1.5
    stranger.close()
    one.close()
    one.wake()  # harmless
    assert not one.send(2, Ping(1, 1))
    assert raft_threads() == threads
    wait_for(lambda: open_files() == files)


def test_close_breaks_off_a_dial_that_gets_no_answer(net: Any, listener: socket.socket) -> None:
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]})
    listener.settimeout(5)
    with listener.accept()[0]:  # connected, and waiting for our welcome
        began = time.monotonic()
        one.close()
        assert time.monotonic() - began < 1
        assert not [name for name in raft_threads() if name == "raft-dial-2"]


@pytest.mark.parametrize(
    "data",
    [
        b"rubbish",
        encode_frame(FrameType.MESSAGE, b"rubbish"),
        encode_frame(FrameType.MESSAGE, b"\x93\xa2\x80i\x01\x02"),
        encode_frame(FrameType.HELLO, b"again"),
        encode_frame(FrameType.MESSAGE, b"\xc0")[:-1] + b"\xc1",
    ],
    ids=["no frame", "no message", "no utf-8", "hello", "bad crc"],
)
def test_rubbish_from_a_peer_drops_only_its_connection(net: Any, caplog: Any, data: bytes) -> None:
    """BUGS 54: what a peer sends may end its connection, never the worker."""
    caplog.set_level(logging.WARNING)
    ports = {1: free_port(), 2: free_port(), 3: free_port()}
    one, three = net.make(1, ports), net.make(3, ports)
    drive([one, three], lambda: one.connected(3) and three.connected(1))
    with dial_raw(one.address, 2, 1) as sock:
        drive([one], lambda: one.statistics()[2].connects_in == 1)
        caplog.clear()
        sock.sendall(data)
        drive([one, three], lambda: 2 not in one._incoming)
        assert closed_by_peer(sock)
    about = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert len(about) == 1
    assert about[0].startswith("node 2: ")
    assert one.take_disconnects() == []  # this node ended it; the peer lives
    assert three.send(1, Ping(1, 1))
    drive([one, three], lambda: one.statistics()[3].messages_in == 1)
    with dial_raw(one.address, 2, 1):
        drive([one], lambda: one.statistics()[2].connects_in == 2)


def test_bytes_on_the_connection_that_is_ours_to_send_on_end_it(net: Any, listener: socket.socket) -> None:
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]})
    with accept_raw(listener, 2) as sock:
        drive([one], lambda: one.connected(2))
        sock.sendall(b"x")
        drive([one], lambda: not one.connected(2))
        assert one.take_disconnects() == []


def test_a_reset_is_a_disconnect_in_either_direction(net: Any, listener: socket.socket) -> None:
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]})
    linger = (socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock = dial_raw(one.address, 2, 1)
    drive([one], lambda: 2 in one._incoming)
    sock.setsockopt(*linger)
    sock.close()
    drive([one], lambda: 2 not in one._incoming)
    assert one.take_disconnects() == [2]
    sock = accept_raw(listener, 2)
    drive([one], lambda: one.connected(2))
    sock.setsockopt(*linger)
    sock.close()
    drive([one], lambda: not one.connected(2))
    assert one.take_disconnects() == [2]


def test_an_exception_in_a_dialer_is_fatal(net: Any) -> None:
    one = PeerNetwork(1, CLUSTER, {2: PeerAddress(object(), 1)}, HOST, 0, lambda *f: net.fatal.append(f))  # type: ignore[arg-type]
    one.start()
    wait_for(lambda: net.fatal)
    one.close()
    ((name, error),) = net.fatal
    net.fatal.clear()
    assert name == "raft-dial-2"
    assert isinstance(error, TypeError)


def test_an_exception_in_a_handshake_thread_is_fatal(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    one._acceptor._on_peer = lambda peer_id: 1 // 0
    with dial_raw(one.address, 2, 1):
        wait_for(lambda: net.fatal)
    ((name, error),) = net.fatal
    net.fatal.clear()
    assert name.startswith("raft-handshake-")
    assert isinstance(error, ZeroDivisionError)


def test_an_exception_in_the_acceptor_is_fatal(net: Any) -> None:
    one = net.make(1, {1: 0})
    one._acceptor._listener.shutdown(socket.SHUT_RDWR)  # a listener that fails although nobody has stopped it
    wait_for(lambda: net.fatal)
    ((name, error),) = net.fatal
    net.fatal.clear()
    assert name == "raft-accept"
    assert isinstance(error, OSError)


def test_a_taken_port_is_an_error_at_start(net: Any, listener: socket.socket) -> None:
    one = PeerNetwork(1, CLUSTER, {}, HOST, listener.getsockname()[1], lambda *f: net.fatal.append(f))
    with pytest.raises(OSError, match="in use"):
        one.start()
    one.close()


@pytest.mark.parametrize(
    "address", [(HOST, 70_000), ("x" * 300, 1), ("a..b", 1), ("nul\0", 1), ("no.invalid", 1)]
)
def test_an_impossible_address_is_logged_not_fatal(net: Any, caplog: Any, address: tuple[str, int]) -> None:
    """A wrong member entry must not stop the node: on_fatal would raise at the end of the test."""
    caplog.set_level(logging.WARNING)
    one = net.make(1, {1: 0})
    one.set_members({1: PeerAddress(HOST, 0), 2: PeerAddress(*address)}, "")
    wait_for(lambda: "node 2 at" in caplog.text)
    assert "raft-dial-2" in raft_threads()


def test_a_newer_handover_closes_the_older_and_a_closed_one_closes_all() -> None:
    handover = Handover(lambda: None)
    pairs = [socket.socketpair() for _ in range(3)]
    first, second, third = (Incoming(2, "run", ours) for ours, _ in pairs)
    handover.put_incoming(first)
    handover.put_incoming(second)
    assert first.sock.fileno() == -1
    assert handover.take() == (False, [second], [], set())
    assert handover.take() is None
    handover.close()
    handover.put_incoming(third)
    assert third.sock.fileno() == -1
    for sock in (*pairs[1], pairs[0][1], pairs[2][1]):
        sock.close()


def test_a_connection_of_a_replaced_dialer_is_not_adopted(net: Any, listener: socket.socket) -> None:
    """The peer moved while its old dialer was finishing a handshake with the old address."""
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]})
    ours, theirs = socket.socketpair()
    with accept_raw(listener, 2), theirs:
        drive([one], lambda: one.connected(2))
        stale = one._membership._dialers[2]
        one.set_members(members({2: free_port()}), "")
        drive([one], lambda: not one.connected(2))
        one._handover.put_outgoing(Outgoing(stale, "run", ours))
        one.poll(0)
        assert not one.connected(2)
        assert ours.fileno() == -1
