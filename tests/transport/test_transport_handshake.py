"""The handshake lets in members of this cluster that look for this node, and tells all others why not."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from transport_helpers import (
    CLUSTER,
    HOST,
    closed_by_peer,
    dial_raw,
    drive,
    free_port,
    read_refusal,
    wait_for,
)

from raft.transport import frames, handshake
from raft.transport.acceptor import Acceptor, listen
from raft.transport.frames import FrameType, encode_frame
from raft.transport.handover import Handover
from raft.transport.handshake import (
    PROTOCOL_VERSION,
    HandshakeError,
    Hello,
    Refused,
    RefusedByPeerError,
    Welcome,
    introduce,
    receive,
)
from raft.transport.network import PeerNetwork
from raft.transport.node_messages import Ping
from raft.transport.quiet_log import QuietLog

GOOD = Hello(CLUSTER, PROTOCOL_VERSION, 2, 1, "run")


def hello_frame(**changes: Any) -> bytes:
    return encode_frame(FrameType.HELLO, msgspec.msgpack.encode(msgspec.structs.replace(GOOD, **changes)))


def let_in(_hello: Hello) -> Welcome:
    """Node 1 takes anybody."""
    return Welcome(1, "run")


def other_wire_version() -> bytes:
    frame = bytearray(hello_frame())
    frame[4] = 9
    return bytes(frame)


@pytest.fixture
def one(net: SimpleNamespace) -> Any:
    """Node 1 of a cluster whose node 2 is not there."""
    return net.make(1, {1: 0, 2: free_port()})


REFUSALS = [
    ("cluster", hello_frame(cluster="other"), "'other'.*'test'"),
    ("target", hello_frame(to_id=3), "looks for node 3, this is node 1"),
    ("sender", hello_frame(from_id=9), "node 9"),
    ("sender", hello_frame(from_id=1), "node 1"),
    ("version", hello_frame(protocol=9), f"version 9, the node it dialed speaks {PROTOCOL_VERSION}"),
    ("version", other_wire_version(), "version 9, this node speaks 1"),
]


@pytest.mark.parametrize(("cause", "data", "says"), REFUSALS)
def test_refusals_name_the_cause(one: Any, caplog: Any, cause: str, data: bytes, says: str) -> None:
    caplog.set_level(logging.WARNING)
    with socket.create_connection(one.address) as sock:
        sock.sendall(data)
        refused = read_refusal(sock)
        assert refused.cause == cause
        assert closed_by_peer(sock)
    assert re.search(says, refused.reason)
    wait_for(lambda: HOST in caplog.text)
    one.poll(0)
    assert one.statistics()[2].connects_in == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        encode_frame(FrameType.MESSAGE, msgspec.msgpack.encode(Ping(1, 2))),
        encode_frame(FrameType.HELLO, b"rubbish"),
        encode_frame(FrameType.HELLO, msgspec.msgpack.encode({"cluster": b"\x80", "protocol": "1"})),
        encode_frame(FrameType.HELLO, b"\x81\xa7cluster\xa1\x80"),
        encode_frame(FrameType.HELLO, bytes(frames.MAX_HELLO_BYTES + 1)),
    ],
    ids=["http", "zeros", "message first", "no msgpack", "ill-typed", "no utf-8", "oversized"],
)
def test_garbage_is_closed_without_an_answer_and_leaves_the_node_sound(one: Any, data: bytes) -> None:
    with socket.create_connection(one.address) as sock:
        sock.sendall(data)
        assert closed_by_peer(sock)
    with dial_raw(one.address, 2, 1):
        drive([one], lambda: one.statistics()[2].connects_in == 1)


def test_an_oversized_hello_is_refused_at_its_header() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = encode_frame(FrameType.HELLO, bytes(frames.MAX_HELLO_BYTES + 1))
        theirs.sendall(data)
        with pytest.raises(HandshakeError) as caught:
            receive(ours, let_in, 5)
        assert caught.value.cause == "garbage"
        left = len(data) - frames.HEADER_BYTES
        assert len(ours.recv(len(data), socket.MSG_DONTWAIT)) == left


def test_nothing_behind_the_hello_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(hello_frame() + b"what follows")
        assert receive(ours, let_in, 5) == GOOD
        assert ours.recv(100) == b"what follows"


@pytest.mark.parametrize("first", [b"", hello_frame()[:-1]])
def test_silence_ends_at_the_deadline(first: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(first)
        began = time.monotonic()
        with pytest.raises(HandshakeError) as caught:
            receive(ours, let_in, 0.1)
        assert caught.value.cause == "silence"
        assert 0.1 <= time.monotonic() - began < 2


def test_dripping_bytes_do_not_move_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        for byte in hello_frame()[:-1]:
            if stop.wait(0.02):
                return
            theirs.send(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    with ours, theirs:
        began = time.monotonic()
        with pytest.raises(HandshakeError) as caught:
            receive(ours, let_in, 0.2)
        stop.set()
        thread.join()
    assert caught.value.cause == "silence"
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (
            encode_frame(FrameType.REFUSED, msgspec.msgpack.encode(Refused("cluster", "go away"))),
            "cluster",
            "go away",
        ),
        (encode_frame(FrameType.WELCOME, msgspec.msgpack.encode(Welcome(3, "r"))), "target", "node 3"),
        (encode_frame(FrameType.HELLO, msgspec.msgpack.encode(GOOD)), "garbage", "HELLO"),
        (b"+PONG\r\n", "garbage", "SNRF"),
        (other_wire_version(), "version", "version 9"),
        (b"", "closed", "closed"),
    ],
    ids=["refused", "another node", "hello", "redis", "version", "closed"],
)
def test_the_dialer_checks_the_answer(answer: bytes, error: str, says: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeError, match=says) as caught:
            introduce(ours, GOOD, 5)
    assert caught.value.cause == error
    assert isinstance(caught.value, RefusedByPeerError) == (says == "go away")


def test_both_sides_together() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        got: list[Hello] = []
        thread = threading.Thread(target=lambda: got.append(receive(ours, let_in, 5)))
        thread.start()
        assert introduce(theirs, GOOD, 5) == Welcome(1, "run")
        thread.join(5)
        assert got == [GOOD]


def test_long_names_still_fit_a_refusal(one: Any) -> None:
    with socket.create_connection(one.address) as sock:
        sock.sendall(hello_frame(cluster="ä" * 400))
        assert read_refusal(sock).cause == "cluster"


def test_too_long_a_cluster_name_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="cluster name"):
        PeerNetwork(1, "x" * 1000, {}, HOST, 0, lambda *_: None)


def test_silent_strangers_do_not_hold_up_a_peer(one: Any) -> None:
    strangers = [socket.create_connection(one.address) for _ in range(20)]
    try:
        began = time.monotonic()
        with dial_raw(one.address, 2, 1):
            drive([one], lambda: one.statistics()[2].connects_in == 1)
        assert time.monotonic() - began < handshake.DEADLINE_S / 2
    finally:
        for sock in strangers:
            sock.close()


@pytest.fixture
def small_acceptor() -> Any:
    """An acceptor with room for two handshakes of 300 ms."""
    taken: list[int] = []
    fatal: list[Any] = []
    handover = Handover(lambda: None)
    listener = listen(HOST, 0)
    acceptor = Acceptor(
        listener,
        lambda hello, _source: let_in(hello),
        taken.append,
        handover,
        QuietLog(logging.getLogger("test")),
        lambda *fault: fatal.append(fault),
        max_handshakes=2,
        deadline_s=0.3,
    )
    acceptor.start()
    yield SimpleNamespace(address=listener.getsockname(), taken=taken, acceptor=acceptor, handover=handover)
    assert acceptor.stop(5)
    handover.close()
    assert not fatal


def test_for_one_handshake_too_many_the_oldest_is_broken_off(small_acceptor: Any) -> None:
    strangers = [socket.create_connection(small_acceptor.address) for _ in range(2)]
    began = time.monotonic()
    strangers.append(socket.create_connection(small_acceptor.address))
    assert closed_by_peer(strangers[0])
    assert time.monotonic() - began < 0.3  # at once, not at a deadline
    for sock in strangers[1:]:
        assert closed_by_peer(sock)  # at the deadline
    for sock in strangers:
        sock.close()
    with dial_raw(small_acceptor.address, 2, 1):
        wait_for(lambda: small_acceptor.taken == [2])


def test_strangers_that_take_every_place_again_and_again_keep_no_peer_out(small_acceptor: Any) -> None:
    strangers = []
    for number in range(20):
        strangers += [socket.create_connection(small_acceptor.address) for _ in range(2)]

        def came_in() -> bool:
            # On a busy machine the threads of those who were broken off may still be there: dial again.
            with contextlib.suppress(OSError, HandshakeError), dial_raw(small_acceptor.address, 2, 1):
                return True
            return False

        wait_for(came_in)
        wait_for(lambda: len(small_acceptor.taken) > number)  # noqa: B023 - called at once
    for sock in strangers:
        sock.close()


def test_the_address_with_most_handshakes_makes_room(small_acceptor: Any) -> None:
    """Who comes from an address of its own is not broken off for a crowd from another, though it is older."""
    acceptor = small_acceptor.acceptor
    acceptor._max_handshakes, acceptor._deadline_s = 3, 10.0
    with socket.create_connection(small_acceptor.address, source_address=("127.0.0.2", 0)) as slow:
        wait_for(lambda: len(acceptor._handshakes) == 1)
        crowd = [socket.create_connection(small_acceptor.address) for _ in range(12)]
        for sock in crowd[:10]:
            assert closed_by_peer(sock)
        slow.sendall(hello_frame())
        wait_for(lambda: small_acceptor.taken == [2])
        for sock in crowd:
            sock.close()


def test_stop_breaks_off_handshakes_under_way(small_acceptor: Any) -> None:
    with socket.create_connection(small_acceptor.address) as stranger:
        began = time.monotonic()
        wait_for(lambda: any(t.name.startswith("raft-handshake") for t in threading.enumerate()))
        assert small_acceptor.acceptor.stop(5)
        assert time.monotonic() - began < 0.25
        assert closed_by_peer(stranger)


def test_a_cause_and_address_speak_once_a_minute(caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    now = [0.0]
    quiet = QuietLog(logging.getLogger("quiet"), 60, capacity=4, clock=lambda: now[0])
    assert quiet.warning("cluster", "10.0.0.1", "first")
    assert not any(quiet.warning("cluster", "10.0.0.1", "again") for _ in range(5))
    assert quiet.warning("version", "10.0.0.1", "another cause")
    assert quiet.warning("cluster", "10.0.0.2", "another address")
    now[0] = 60.0
    assert quiet.warning("cluster", "10.0.0.1", "a minute later")
    assert "10.0.0.1: a minute later (5 more like this)" in caplog.text


def test_many_addresses_do_not_grow_the_log_or_its_memory() -> None:
    quiet = QuietLog(logging.getLogger("quiet"), 60, capacity=8, clock=lambda: 0.0)
    spoken = sum(quiet.warning("garbage", f"10.0.0.{number}", "x") for number in range(200))
    assert spoken == 9  # eight with a place of their own, one for all the rest
    assert len(quiet._seen) == 9


def test_repeated_garbage_is_logged_once(one: Any, caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(5):
        with socket.create_connection(one.address) as sock:
            sock.sendall(b"garbage")
            assert closed_by_peer(sock)
    assert len([r for r in caplog.records if "refused on the raft port" in r.getMessage()]) == 1
