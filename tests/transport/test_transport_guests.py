"""Guests: a node that this one does not know may be its leader, added while this one was away."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

import pytest
from transport_helpers import CLUSTER, HOST, accept_raw, closed_by_peer, dial_raw, drive, free_port, members

from raft.transport import membership
from raft.transport.acceptor import listen
from raft.transport.admission import answer_address
from raft.transport.handshake import PROTOCOL_VERSION, HandshakeError, Hello, RefusedByPeerError
from raft.transport.node_messages import Ping, Pong


def dial_as_guest(one: Any, peer_id: int, listener: socket.socket, **says: Any) -> socket.socket:
    host, port = listener.getsockname()[:2]
    return dial_raw(one.address, peer_id, 1, host=host, raft_port=port, **says)


def lone(net: Any, *, is_open: bool = True) -> Any:
    """Node 1, which knows nobody else."""
    one = net.make(1, {1: 0})
    one.open_to_strangers = is_open
    return one


def test_a_leader_that_this_node_does_not_know_is_let_in_and_answered(net: Any) -> None:
    ports = {1: free_port(), 3: free_port()}
    away, leader = net.make(1, {1: ports[1]}), net.make(3, ports, identity="c")
    away.open_to_strangers = True
    drive([away, leader], lambda: away.connected(3) and leader.connected(1))
    assert leader.send(1, Ping(1, 1))
    assert drive([away, leader], lambda: away.statistics()[3].messages_in == 1) == [(1, 3, Ping(1, 1))]
    assert away.send(3, Pong(1, 1))
    assert drive([away, leader], lambda: leader.statistics()[1].messages_in == 1) == [(3, 1, Pong(1, 1))]
    assert away.heard_identities() == {3: "c"}


def test_a_stranger_is_refused_while_the_door_is_closed_and_told_the_way_in(net: Any, caplog: Any) -> None:
    ports = {1: free_port(), 3: free_port()}
    one, three = net.make(1, {1: ports[1]}), net.make(3, ports)

    def told() -> list[str]:
        says = ("node 3 is not a member in the configuration of node 1", "RAFT ADD 3")
        return [text for text in caplog.messages if all(each in text for each in says)]

    drive([one, three], lambda: len(told()) == 2)
    assert any("the peer refuses this node" in text for text in told())
    assert max(record.levelno for record in caplog.records) == logging.WARNING
    assert one.statistics() == {}
    assert not one._membership._dialers


def test_a_guest_stays_and_may_come_again_when_the_door_closes(net: Any, listener: socket.socket) -> None:
    """The guest is the leader: hearing from it is what closes the door."""
    one = lone(net)
    with dial_as_guest(one, 3, listener), accept_raw(listener, 3):
        drive([one], lambda: one.connected(3) and 3 in one._incoming)
        one.open_to_strangers = False
        one.set_members({}, "x")
        one.poll(0)
        assert one.connected(3)
        assert 3 in one._incoming
    with dial_as_guest(one, 3, listener):
        drive([one], lambda: one.statistics()[3].connects_in == 2)
    with pytest.raises(RefusedByPeerError, match="RAFT ADD 4"):
        dial_as_guest(one, 4, listener)


def test_a_stranger_of_another_cluster_is_no_guest(net: Any, listener: socket.socket) -> None:
    one = net.make(1, {1: 0}, cluster_id="x")
    one.open_to_strangers = True
    with pytest.raises(RefusedByPeerError, match="another cluster of the same name"):
        dial_as_guest(one, 3, listener, cluster_id="y")
    assert not one._membership._guests


def test_the_seventeenth_guest_is_refused(net: Any, listener: socket.socket) -> None:
    one = lone(net)
    socks = [dial_as_guest(one, 100 + number, listener) for number in range(membership.MAX_GUESTS)]
    with pytest.raises(
        RefusedByPeerError, match=r"node 200 is not a member .*16 guests.*RAFT ADD 200"
    ) as got:
        dial_as_guest(one, 200, listener)
    assert got.value.cause == "guests"
    assert len(one._membership._dialers) == len(one.statistics()) == 16
    dial_as_guest(one, 100, listener).close()  # one that is a guest already may come again
    for sock in socks:
        sock.close()


def test_a_guest_that_is_gone_makes_room_after_a_while(
    net: Any, listener: socket.socket, monkeypatch: Any
) -> None:
    one = lone(net)
    now = [0.0]
    monkeypatch.setattr(one._membership, "_clock", lambda: now[0])
    sock = dial_as_guest(one, 3, listener, identity="c")
    drive([one], lambda: 3 in one._incoming)
    listener.close()  # it cannot be dialed back any more
    now[0] = 100.0
    one.poll(0)
    assert 3 in one.statistics()  # here as long as one connection is
    sock.close()
    drive([one], lambda: 3 not in one._incoming and not one.connected(3))
    now[0] += membership.GUEST_LINGER_S - 0.1
    one.poll(0)
    assert 3 in one.statistics()
    now[0] += 1.1
    one.poll(0)
    assert one.statistics() == one.heard_identities() == one._membership._dialers == {}
    assert all(dialer.join(5) for dialer in one._membership._retired)
    assert "raft-dial-3" not in [thread.name for thread in threading.enumerate()]


def test_a_guest_that_becomes_a_member_keeps_its_connections(net: Any) -> None:
    ports = {1: free_port(), 3: free_port()}
    one, three = net.make(1, {1: ports[1]}), net.make(3, ports, identity="c")
    one.open_to_strangers = True
    drive([one, three], lambda: one.connected(3) and three.connected(1))
    one.open_to_strangers = False
    one.set_members(members(ports, n3="c"), "x")
    one.poll(0)
    assert one.send(3, Ping(1, 1))
    assert three.send(1, Ping(2, 2))
    drive(
        [one, three],
        lambda: one.statistics()[3].messages_in == 1 == three.statistics()[1].messages_in,
    )
    assert (one.statistics()[3].connects_in, one.statistics()[3].connects_out) == (1, 1)
    assert not one._membership._guests
    one.set_members(members({1: ports[1]}), "x")  # now it can be removed like any member
    one.poll(0)
    assert not one._by_fd


def test_a_guest_with_another_identity_than_is_recorded_for_it_is_no_member(
    net: Any, listener: socket.socket
) -> None:
    one = lone(net)
    with dial_as_guest(one, 3, listener, identity="new") as sock, accept_raw(listener, 3, identity="new"):
        drive([one], lambda: one.connected(3) and 3 in one._incoming)
        # While there is no leader, and of the leader itself, this node may be the one that is behind.
        one.set_members(members({3: listener.getsockname()[1]}, n3="old"), "")
        one.poll(0)
        assert one.connected(3)
        one.follow(3, open_to_strangers=False)
        one.poll(0)
        assert one.connected(3)
        one.follow(2, open_to_strangers=False)
        one.poll(0)
        assert not one._by_fd
        assert closed_by_peer(sock)


def test_the_configurations_address_of_a_former_guest_wins(net: Any, listener: socket.socket) -> None:
    one = lone(net)
    with listen(HOST, 0) as elsewhere, dial_as_guest(one, 3, elsewhere), accept_raw(elsewhere, 3) as first:
        drive([one], lambda: one.connected(3) and 3 in one._incoming)
        one.set_members(members({3: listener.getsockname()[1]}), "")
        with accept_raw(listener, 3):
            drive([one], lambda: one.statistics()[3].connects_out == 2)
            assert one.connected(3)
            assert closed_by_peer(first)
            assert one.statistics()[3].connects_in == 1  # it has not lost the connection it made
            assert 3 in one._incoming


def test_a_guest_that_has_moved_is_answered_at_its_new_address(net: Any, listener: socket.socket) -> None:
    one = lone(net)
    with listen(HOST, 0) as elsewhere, dial_as_guest(one, 3, elsewhere), accept_raw(elsewhere, 3) as first:
        drive([one], lambda: one.connected(3))
        with dial_as_guest(one, 3, listener):
            drive([one], lambda: not one.connected(3))  # before anybody answers at the new one
            assert closed_by_peer(first)
            with accept_raw(listener, 3):
                drive([one], lambda: one.connected(3))


def test_a_guest_that_listens_everywhere_is_answered_where_it_dialed_from() -> None:
    for host in ("", "0.0.0.0", "::"):
        hello = Hello(CLUSTER, PROTOCOL_VERSION, 3, 1, "run", host=host, raft_port=7)
        assert answer_address(hello, "10.0.0.3") == ("10.0.0.3", 7)


@pytest.mark.parametrize(("peer_id", "port"), [(3, 0), (3, 70_000), (0, 7000), (-1, 7000)])
def test_a_stranger_that_cannot_be_answered_is_refused(net: Any, peer_id: int, port: int) -> None:
    one = lone(net)
    with pytest.raises(RefusedByPeerError) as caught:
        dial_raw(one.address, peer_id, 1, host=HOST, raft_port=port)
    assert caught.value.cause == "sender"
    assert not one._membership._dialers


def test_a_stranger_at_the_moment_of_the_close_leaves_no_thread(net: Any, listener: socket.socket) -> None:
    one = lone(net)
    sock = dial_as_guest(one, 3, listener)
    one.close()
    hello = Hello(CLUSTER, PROTOCOL_VERSION, 4, 1, "run", host=HOST, raft_port=7)
    with pytest.raises(HandshakeError, match="stopping"):
        one._membership.admit(hello, HOST)
    assert closed_by_peer(sock)
    sock.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name in ("raft-dial-3", "raft-dial-4")]


def test_a_hello_tells_an_empty_node_that_a_cluster_is_there(net: Any, listener: socket.socket) -> None:
    one = lone(net)
    assert not one.cluster_heard
    with dial_as_guest(one, 3, listener, cluster_id="c"), accept_raw(listener, 3):
        drive([one], lambda: one.connected(3))
    assert one.cluster_heard
