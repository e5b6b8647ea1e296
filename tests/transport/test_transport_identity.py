"""Who a peer is: its data directory and its cluster are checked on both sides and when members change."""

from __future__ import annotations

import logging
import re
import socket
import time
from typing import Any

import msgspec
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
    read_refusal,
    wait_for,
)

from raft.transport.admission import Credentials, check_hello
from raft.transport.frames import FrameDecoder, FrameType, encode_frame
from raft.transport.handshake import (
    PROTOCOL_VERSION,
    HandshakeError,
    Hello,
    RefusedByPeerError,
    introduce,
)
from raft.transport.node_messages import Ping

NEXT_STEP = "RAFT REMOVE 2, then RAFT ADD 2"


def lines(caplog: Any, level: int, *parts: str) -> list[str]:
    """The messages of that level that contain all parts."""
    said = [record.getMessage() for record in caplog.records if record.levelno == level]
    return [each for each in said if all(part in each for part in parts)]


def pair(net: Any, first: dict[str, Any], second: dict[str, Any], ports: Any = None) -> tuple[Any, Any]:
    ports = ports or {1: free_port(), 2: free_port()}
    return net.make(1, ports, **first), net.make(2, ports, **second)


def connect(one: Any, two: Any) -> None:
    drive([one, two], lambda: one.connected(2) and two.connected(1) and 2 in one._incoming)


def test_a_wiped_node_is_refused_by_both_sides_and_both_logs_say_what_to_do(net: Any, caplog: Any) -> None:
    """Node 2 has lost its disk, and with it the votes it gave: it must not come back as the one it was."""
    ports = {1: free_port(), 2: free_port()}
    one = net.make(1, ports, members=members(ports, n2="old" * 10), identity="a" * 32)
    two = net.make(2, ports, identity="new" * 10)

    def told() -> bool:
        errors = lines(caplog, logging.ERROR, NEXT_STEP, "node 2 has lost its data directory")
        texts = "\n".join(errors)
        return all(
            re.search(each, texts)
            for each in (
                r"\(node 2\): refused on the raft port",  # node 1 has read node 2's hello
                r"node 1 at .*: the peer refuses this node",  # so node 2 knows
                r"\(node 1\): refused on the raft port",  # node 2 has read whom node 1 looks for
                r"node 2 at .*: the peer refuses this node",  # so node 1 knows
            )
        )

    drive([one, two], told)
    assert not one._by_fd
    assert not two._by_fd
    assert one.statistics()[2].connects_in == one.statistics()[2].connects_out == 0
    assert two.statistics()[1].connects_in == two.statistics()[1].connects_out == 0
    assert len(lines(caplog, logging.ERROR, NEXT_STEP)) == 4  # however often they have dialed
    assert one.heard_identities() == {}


def test_the_dialer_itself_refuses_the_welcome_of_another_directory(
    net: Any, listener: socket.socket, caplog: Any
) -> None:
    ports = {1: 0, 2: listener.getsockname()[1]}
    one = net.make(1, ports, members=members(ports, n2="old"))
    for says in ({"identity": "new"}, {}):
        with accept_raw(listener, 2, **says) as sock:
            assert closed_by_peer(sock)
    wait_for(lambda: lines(caplog, logging.ERROR, NEXT_STEP, f"node 2 at {HOST}"))
    one.poll(0)
    assert not one.connected(2)
    with accept_raw(listener, 2, identity="old"):
        drive([one], lambda: one.connected(2))


def test_the_dialer_itself_refuses_the_welcome_of_another_cluster(
    net: Any, listener: socket.socket, caplog: Any
) -> None:
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]}, cluster_id="x")
    with accept_raw(listener, 2, cluster_id="y") as sock:
        assert closed_by_peer(sock)
    wait_for(lambda: lines(caplog, logging.WARNING, "another cluster of the same name", "node 2 at"))
    one.poll(0)
    assert not one.connected(2)


@pytest.mark.parametrize("identity", ["new", ""])
def test_another_or_no_identity_is_refused_where_one_is_recorded(net: Any, identity: str) -> None:
    ports = {1: 0, 2: free_port()}
    one = net.make(1, ports, members=members(ports, n2="old"))
    with pytest.raises(RefusedByPeerError, match=NEXT_STEP) as caught:
        dial_raw(one.address, 2, 1, identity=identity)
    assert caught.value.cause == "identity"
    with dial_raw(one.address, 2, 1, identity="old"):
        drive([one], lambda: one.heard_identities() == {2: "old"})


def test_a_node_with_another_directory_than_the_dialer_looks_for_says_so(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()}, identity="mine")
    with pytest.raises(RefusedByPeerError, match="RAFT REMOVE 1, then RAFT ADD 1") as caught:
        dial_raw(one.address, 2, 1, to_identity="another")
    assert caught.value.cause == "identity"
    dial_raw(one.address, 2, 1, to_identity="mine").close()
    dial_raw(one.address, 2, 1).close()


def test_both_hear_the_others_identity(net: Any) -> None:
    one, two = pair(net, {"identity": "a"}, {"identity": "b"})
    connect(one, two)
    drive([one, two], lambda: one.heard_identities() == {2: "b"} and two.heard_identities() == {1: "a"})


def test_of_a_peer_that_says_none_nothing_is_heard(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    with dial_raw(one.address, 2, 1, identity="b"):
        drive([one], lambda: one.heard_identities() == {2: "b"})
        with dial_raw(one.address, 2, 1):
            drive([one], lambda: one.heard_identities() == {})


def test_recording_the_identity_of_a_connected_peer_leaves_it_connected(net: Any) -> None:
    ports = {1: free_port(), 2: free_port()}
    one, two = pair(net, {"identity": "a"}, {"identity": "b"}, ports)
    connect(one, two)
    for each in (one, two):
        each.set_members(members(ports, n1="a", n2="b"), "c" * 32)
    one.poll(0)
    two.poll(0)
    assert one.send(2, Ping(1, 1))
    drive([one, two], lambda: two.statistics()[1].messages_in == 1)
    for statistics in (one.statistics()[2], two.statistics()[1]):
        assert (statistics.connects_in, statistics.connects_out) == (1, 1)
    assert one.take_disconnects() == two.take_disconnects() == []


@pytest.mark.parametrize("said", ["b", ""])
def test_recording_another_identity_drops_the_connected_peer(net: Any, caplog: Any, said: str) -> None:
    ports = {1: free_port(), 2: free_port()}
    one, two = pair(net, {"identity": "a"}, {"identity": said}, ports)
    connect(one, two)
    one.set_members(members(ports, n2="another"), "")
    one.poll(0)
    assert not one.connected(2)
    assert not one._by_fd
    assert one.take_disconnects() == []  # this node ended it
    drive([one, two], lambda: len(lines(caplog, logging.ERROR, NEXT_STEP)) == 4)  # both dial again
    assert one.statistics()[2].connects_in == 1


def test_a_connection_that_waits_for_the_worker_is_checked_again(net: Any, listener: socket.socket) -> None:
    """The handshake was over before the identity was recorded, the worker sees it after that."""
    ports = {1: 0, 2: listener.getsockname()[1]}
    one = net.make(1, ports)
    with (
        accept_raw(listener, 2, identity="b") as inward,
        dial_raw(one.address, 2, 1, identity="b") as outward,
    ):
        wait_for(lambda: one._handover._incoming and one._handover._outgoing)
        one.set_members(members(ports, n2="another"), "")
        one.poll(0)
        assert closed_by_peer(inward)
        assert closed_by_peer(outward)
        assert not one._by_fd
    with accept_raw(listener, 2, identity="another"):  # the dialer has not been left thinking it is connected
        drive([one], lambda: one.connected(2))


def test_a_member_removed_and_added_again_is_asked_anew_who_it_is(net: Any, listener: socket.socket) -> None:
    """What the removed one said must not be recorded for the added one."""
    ports = {1: 0, 2: listener.getsockname()[1]}
    one = net.make(1, ports, members=members(ports, n2="old"))
    with accept_raw(listener, 2, identity="old") as first:
        drive([one], lambda: one.heard_identities() == {2: "old"})
        one.set_members(members(ports), "")
        assert one.heard_identities() == {}
        with accept_raw(listener, 2, identity="new"):
            drive([one], lambda: one.heard_identities() == {2: "new"})
            assert closed_by_peer(first)


def test_a_restored_cluster_and_the_one_it_comes_from_do_not_mix(net: Any, caplog: Any) -> None:
    one, two = pair(net, {"cluster_id": "x"}, {"cluster_id": "y"})
    says = ("another cluster of the same name, perhaps one restored from a backup", "RAFT ADD")
    drive([one, two], lambda: len(lines(caplog, logging.WARNING, *says)) == 4)
    assert not one._by_fd
    assert not two._by_fd


def test_a_cluster_id_learned_later_travels_in_both_directions(net: Any, listener: socket.socket) -> None:
    ports = {1: 0, 2: listener.getsockname()[1]}
    one = net.make(1, ports)
    dial_raw(one.address, 2, 1, cluster_id="y").close()
    accept_raw(listener, 2).close()
    one.set_members(members(ports), "x")
    with pytest.raises(RefusedByPeerError) as caught:
        dial_raw(one.address, 2, 1, cluster_id="y")
    assert caught.value.cause == "cluster"
    dial_raw(one.address, 2, 1).close()  # a new node knows none
    with socket.create_connection(one.address) as sock:
        assert introduce(sock, Hello(CLUSTER, PROTOCOL_VERSION, 2, 1, "run")).cluster_id == "x"
    drive([one], lambda: one.statistics()[2].connects_out == 1 and not one.connected(2))
    for _ in range(3):  # a dial or two may have begun before
        with heard_hello(listener) as (_, hello):
            if hello.cluster_id:
                break
    assert hello.cluster_id == "x"


def test_a_connected_peer_of_another_cluster_is_dropped_once_that_shows(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    with dial_raw(one.address, 2, 1, cluster_id="y") as sock:
        drive([one], lambda: 2 in one._incoming)
        one.set_members(members({2: free_port()}), "x")
        one.poll(0)
        assert closed_by_peer(sock)


class heard_hello:
    """The next hello that a network under test says to a listener, and its socket."""

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(5)
        self.listener = listener

    def __enter__(self) -> tuple[socket.socket, Hello]:
        decoder = FrameDecoder()
        while True:
            self.sock, _ = self.listener.accept()
            self.sock.settimeout(5)
            while data := self.sock.recv(4096):
                for frame_type, payload in decoder.feed(data):
                    assert frame_type is FrameType.HELLO
                    return self.sock, msgspec.msgpack.decode(payload, type=Hello)

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def test_the_hello_says_everything(net: Any, listener: socket.socket) -> None:
    ports = {1: 0, 2: listener.getsockname()[1]}
    extra = {"identity": "a", "cluster_id": "x", "run_id": "run"}
    one = net.make(1, ports, members=members(ports, n2="b"), **extra)
    with heard_hello(listener) as (_, hello):
        port = one.address[1]
        assert hello == Hello(CLUSTER, PROTOCOL_VERSION, 1, 2, "run", "a", "x", HOST, port, "b")


V1_HELLO = {"cluster": CLUSTER, "protocol": 1, "from_id": 2, "to_id": 1, "run_id": "old release"}


def test_the_older_protocol_is_refused_naming_both_versions(net: Any, caplog: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    with socket.create_connection(one.address) as sock:
        sock.sendall(encode_frame(FrameType.HELLO, msgspec.msgpack.encode(V1_HELLO)))
        refused = read_refusal(sock)
    assert refused.cause == "version"
    says = "version 1, the node it dialed speaks 2"
    assert says in refused.reason
    wait_for(lambda: lines(caplog, logging.WARNING, says))


def test_a_version_to_come_is_refused_by_its_number_whatever_else_it_says(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    with socket.create_connection(one.address) as sock:
        hello = {"protocol": 3, "cluster": [1, 2], "who": "else"}
        sock.sendall(encode_frame(FrameType.HELLO, msgspec.msgpack.encode(hello)))
        assert "version 3, the node it dialed speaks 2" in read_refusal(sock).reason


def test_what_was_flushed_to_a_removed_member_arrives(net: Any, listener: socket.socket) -> None:
    """The leader's last message tells it that it was removed: closing must not take it back (no reset, though
    the removed one is sending at the same moment)."""
    ports = {1: 0, 2: listener.getsockname()[1]}
    one = net.make(1, ports)
    with accept_raw(listener, 2) as inward, dial_raw(one.address, 2, 1) as outward:
        drive([one], lambda: one.connected(2) and 2 in one._incoming)
        outward.sendall(b"SNRF")  # half a frame: it is left unread
        for number in range(200):
            assert one.queue(2, Ping(number, 0))
        one.flush()
        assert one.queue(2, Ping(200, 0))  # not even flushed
        one.set_members(members({1: 0}), "")
        outward.sendall(b"more of it")
        one.poll(0)
        assert not one._by_fd
        assert nonces(inward) == list(range(201))


def test_what_waits_in_the_outbox_of_a_removed_member_leaves_if_there_is_room(
    net: Any, listener: socket.socket
) -> None:
    ports = {1: 0, 2: listener.getsockname()[1]}
    one = net.make(1, ports)
    with accept_raw(listener, 2) as inward:
        drive([one], lambda: one.connected(2))
        link = one._outgoing[2]
        link.put(one._codec.encode(Ping(0, 0)))  # as after a flush that found the socket full
        one.set_members({}, "")
        one.poll(0)
        assert nonces(inward) == [0]


def nonces(sock: socket.socket) -> list[int]:
    """The pings on a connection up to its orderly end."""
    decoder, got = FrameDecoder(), []
    while data := sock.recv(1 << 16):
        got += [msgspec.msgpack.decode(payload)[1] for _, payload in decoder.feed(data)]
    return got


def test_what_was_counted_and_heard_of_a_removed_member_is_forgotten(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    with dial_raw(one.address, 2, 1, identity="b"):
        drive([one], lambda: one.heard_identities() == {2: "b"})
        one.set_members({}, "")
        assert one.heard_identities() == one.statistics() == {}
        assert not one.send(2, Ping(1, 1))


def test_every_refusal_names_both_nodes_and_fits_its_frame() -> None:
    own = Credentials(1, "x" * 300, "run", "a" * 32, "c" * 32, HOST, 1)
    good = Hello(own.cluster, PROTOCOL_VERSION, 2, 1, "run", "b" * 32, own.cluster_id, HOST, 2)
    check_hello(good, own)
    for changes in ({"cluster": "y" * 300}, {"cluster_id": "d"}, {"to_id": 3}, {"to_identity": "d"}):
        with pytest.raises(HandshakeError) as caught:
            check_hello(msgspec.structs.replace(good, **changes), own)
        assert caught.value.peer_id == 2
        assert "node 1" in str(caught.value)
        assert len(str(caught.value)) < 400


def test_dialing_a_wiped_node_is_not_hot(net: Any, listener: socket.socket) -> None:
    ports = {1: 0, 2: listener.getsockname()[1]}
    net.make(1, ports, members=members(ports, n2="old"))
    dials, end = 0, time.monotonic() + 0.6
    while time.monotonic() < end:
        accept_raw(listener, 2, identity="new").close()
        dials += 1
    assert 2 <= dials <= 8
