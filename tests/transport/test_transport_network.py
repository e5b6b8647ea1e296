"""PeerNetwork: messages arrive whole and in order; everything that breaks is noticed, bounded and mended."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from typing import Any

from transport_helpers import (
    accept_raw,
    closed_by_peer,
    dial_raw,
    drive,
    free_port,
    members,
    wait_for,
)

from raft.core.entry import Entry
from raft.core.messages import AppendEntries
from raft.transport import dialer as dialer_module
from raft.transport.codec import MessageCodec
from raft.transport.dialer import Backoff
from raft.transport.frames import FrameDecoder
from raft.transport.handover import Incoming
from raft.transport.node_messages import ForwardReply, Ping, Pong


def test_messages_go_both_ways_in_order(net: Any) -> None:
    one, two = net.pair()
    for number in range(200):
        assert one.send(2, Ping(number, 1))
        assert two.send(1, Pong(number, 2))
    got: list[Any] = []
    end = time.monotonic() + 5
    while len(got) < 400 and time.monotonic() < end:
        got += [(1, *each) for each in one.poll(0.01)] + [(2, *each) for each in two.poll(0.01)]
    assert [m for to, sender, m in got if (to, sender) == (2, 1)] == [Ping(n, 1) for n in range(200)]
    assert [m for to, sender, m in got if (to, sender) == (1, 2)] == [Pong(n, 2) for n in range(200)]
    seen = two.statistics()[1]
    assert (seen.messages_in, seen.messages_out, seen.connects_in, seen.connects_out) == (200, 200, 1, 1)
    assert seen.bytes_in == one.statistics()[2].bytes_out > 200 * 20


def test_queued_messages_leave_at_the_flush_in_order_with_those_sent(net: Any) -> None:
    one, two = net.pair()
    before = one.statistics()[2].bytes_out
    for number in range(50):
        assert one.queue(2, Ping(number, 0))
    assert one.statistics()[2].bytes_out == before
    one.flush()
    assert one.statistics()[2].bytes_out > before
    assert one.queue(2, Ping(50, 0))
    assert one.send(2, Ping(51, 0))
    assert one.queue(2, Ping(52, 0))  # leaves with the next poll
    messages = drive([one, two], lambda: two.statistics()[1].messages_in == 53)
    assert [message.nonce for _, _, message in messages] == list(range(53))


def test_large_messages_arrive_whole_among_small_ones(net: Any) -> None:
    one, two = net.pair()
    data = random.Random(1).randbytes(9 * 1024 * 1024)
    sent: list[Any] = []
    for number in range(3):
        sent += [AppendEntries(1, 1, number, 1, (Entry(1, 1, 1, data),), 0), Ping(number, 0)]
    for message in sent:
        assert one.send(2, message)
    messages = drive([one, two], lambda: two.statistics()[1].messages_in == 6)
    assert [message for _, _, message in messages] == sent


def test_three_nodes_know_who_spoke(net: Any) -> None:
    ports = {each: free_port() for each in (1, 2, 3)}
    nodes = [net.make(each, ports) for each in ports]
    drive(nodes, lambda: all(a.connected(b) for a in nodes for b in ports if a.node_id != b))
    for node in nodes:
        for other in ports:
            assert node.send(other, Ping(node.node_id, other)) == (other != node.node_id)
    messages = drive(
        nodes, lambda: all(sum(s.messages_in for s in n.statistics().values()) == 2 for n in nodes)
    )
    assert sorted((to, sender) for to, sender, _ in messages) == [
        (a, b) for a in ports for b in ports if a != b
    ]
    assert all(message == Ping(sender, to) for to, sender, message in messages)


def test_send_to_nobody_is_false(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    assert not one.connected(2)
    assert not one.send(2, Ping(1, 1))
    assert not one.send(77, Ping(1, 1))
    assert one.statistics()[2].refused_sends == 1


def test_reconnects_after_the_peer_restarts_and_tells_of_its_death(net: Any) -> None:
    ports = {1: free_port(), 2: free_port()}
    one, two = net.make(1, ports), net.make(2, ports)
    drive([one, two], lambda: one.connected(2) and two.connected(1))
    one.take_refused()
    two.close()
    drive([one], lambda: not one.connected(2))
    drive([one], lambda: 2 in one._refused)
    assert one.take_disconnects() == [2]
    assert one.take_disconnects() == []
    assert one.take_refused() == [2]
    assert not one.send(2, Ping(1, 1))
    began = time.monotonic()
    again = net.make(2, ports)
    drive([one, again], lambda: one.connected(2) and again.connected(1))
    assert time.monotonic() - began < 3
    assert one.send(2, Ping(7, 7))
    assert drive([one, again], lambda: again.statistics()[1].messages_in == 1) == [(2, 1, Ping(7, 7))]
    assert one.statistics()[2].connects_out == 2


def test_a_peer_that_dials_in_ends_the_pause_of_the_dialer(net: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        dialer_module, "Backoff", lambda rng: Backoff(rng, first_s=60, last_s=60)
    )  # nothing else would dial again during this test
    ports = {1: free_port(), 2: free_port()}
    one = net.make(1, ports)
    drive([one], lambda: one.take_refused() == [2])
    two = net.make(2, ports)
    drive([one, two], lambda: one.connected(2) and two.connected(1))


def test_backoff_is_bounded_jittered_and_can_be_reset() -> None:
    backoff = Backoff(random.Random(1), first_s=0.02, last_s=1.0)
    for turn in range(3):
        pauses = [backoff.next_s() for _ in range(12)]
        for number, pause in enumerate(pauses):
            whole = min(1.0, 0.02 * 2**number)
            assert whole / 2 <= pause <= whole, (turn, number)
        backoff.reset()
    assert len({Backoff(random.Random(seed)).next_s() for seed in range(20)}) == 20


def test_a_peer_that_welcomes_and_drops_is_not_dialed_hotly(net: Any, listener: socket.socket) -> None:
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]})
    dials = 0
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        accept_raw(listener, 2).close()
        dials += 1
        drive([one], lambda: one.statistics()[2].connects_out == dials)  # noqa: B023
        drive([one], lambda: not one.connected(2))
    assert 2 <= dials <= 8  # pauses of 10-20, 20-40, 40-80 ... ms


def test_a_dead_port_is_not_dialed_hotly(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    events = 0
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        one.poll(0.05)
        events += len(one.take_refused())
    assert 2 <= events <= 8


def test_the_newer_connection_of_a_peer_replaces_the_older(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    codec = MessageCodec()
    with dial_raw(one.address, 2, 1, "first") as first:
        first.sendall(codec.encode(Ping(1, 1)))
        assert drive([one], lambda: one.statistics()[2].messages_in == 1) == [(1, 2, Ping(1, 1))]
        with dial_raw(one.address, 2, 1, "first") as second:
            drive([one], lambda: one.statistics()[2].connects_in == 2)
            assert closed_by_peer(first)
            assert one.take_disconnects() == []  # the same process has only dialed again
            second.sendall(codec.encode(Ping(2, 2)))
            assert drive([one], lambda: one.statistics()[2].messages_in == 2) == [(1, 2, Ping(2, 2))]
            with dial_raw(one.address, 2, 1, "restarted"):
                drive([one], lambda: one.statistics()[2].connects_in == 3)
                assert closed_by_peer(second)
                assert one.take_disconnects() == [2]


def test_a_restarted_peer_takes_the_place_of_its_dead_process_outward_too(
    net: Any, listener: socket.socket
) -> None:
    """The host of the old process may have died without a word; its successor dialing in is the word."""
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]})
    with accept_raw(listener, 2, "old") as old:
        drive([one], lambda: one.connected(2))
        with dial_raw(one.address, 2, 1, "new"):
            drive([one], lambda: not one.connected(2))
            assert closed_by_peer(old)
            with accept_raw(listener, 2, "new"):
                drive([one], lambda: one.connected(2))


def test_a_slow_receiver_meets_the_bound_and_loses_nothing_it_was_promised(
    net: Any, listener: socket.socket
) -> None:
    bound = 4 * 1024 * 1024
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]}, outbox_bytes=bound)
    with accept_raw(listener, 2) as slow:
        drive([one], lambda: one.connected(2))
        data = bytes(100_000)
        taken = 0
        while one.send(2, AppendEntries(1, 1, taken, 1, (Entry(1, 1, 1, data),), 0)):
            taken += 1
            assert taken < 1000, "nothing stops the sender"
        link = one._outgoing[2]
        assert bound - 2 * len(data) < link.waiting_bytes <= bound
        for _ in range(1000):
            assert not one.send(2, AppendEntries(1, 1, 0, 1, (Entry(1, 1, 1, data),), 0))
        assert link.waiting_bytes <= bound
        assert one.statistics()[2].refused_sends == 1001

        got: list[int] = []
        codec, decoder = MessageCodec(), FrameDecoder()
        slow.settimeout(0.01)

        def read_some() -> bool:
            try:
                frames = decoder.feed(slow.recv(1 << 20))
            except TimeoutError:
                return False
            got.extend(codec.decode(payload).prev_log_index for _, payload in frames)  # type: ignore[union-attr]
            return len(got) == taken

        drive([one], read_some)
        assert got == list(range(taken))
        assert link.waiting_bytes == 0
        assert one.send(2, Ping(1, 1))


def test_a_full_outbox_is_freed_when_the_connection_breaks(net: Any, listener: socket.socket) -> None:
    one = net.make(1, {1: 0, 2: listener.getsockname()[1]}, outbox_bytes=1 << 20)
    with accept_raw(listener, 2):
        drive([one], lambda: one.connected(2))
        while one.send(2, ForwardReply(1, [bytes(50_000)])):
            pass
    drive([one], lambda: not one.connected(2))
    assert one.take_disconnects() == [2]
    with accept_raw(listener, 2):
        drive([one], lambda: one.connected(2))
        assert one._outgoing[2].waiting_bytes == 0
        assert one.send(2, Ping(1, 1))


def test_a_stopped_reader_is_back_pressure_not_memory(net: Any) -> None:
    one, two = net.pair(outbox_bytes=1 << 20)
    end = time.monotonic() + 5
    while one.send(2, ForwardReply(1, [bytes(50_000)])):  # two does not poll: its kernel buffers fill up
        assert time.monotonic() < end
    assert two.statistics()[1].bytes_in == 0
    drive([one, two], lambda: one._outgoing[2].waiting_bytes == 0)
    sent = one.statistics()[2]
    drive([one, two], lambda: two.statistics()[1].messages_in == sent.messages_out)


def test_wake_from_another_thread_ends_a_poll(net: Any) -> None:
    one = net.make(1, {1: 0})
    thread = threading.Thread(target=lambda: (wait_for(lambda: one._asleep), one.wake()))
    thread.start()
    began = time.monotonic()
    assert one.poll(10) == []
    assert time.monotonic() - began < 5
    thread.join()


def test_a_negative_timeout_does_not_wait_for_ever(net: Any) -> None:
    assert net.make(1, {1: 0}).poll(-0.5) == []


def test_a_wake_before_the_poll_is_not_lost_and_is_used_up(net: Any) -> None:
    one = net.make(1, {1: 0})
    for _ in range(3):
        one.wake()
    began = time.monotonic()
    one.poll(10)
    assert time.monotonic() - began < 5
    began = time.monotonic()
    one.poll(0.05)
    assert time.monotonic() - began >= 0.05


def test_several_wakes_of_a_sleeping_worker_are_one_event(net: Any) -> None:
    one = net.make(1, {1: 0})
    one._asleep = True  # as poll leaves it while it waits
    for _ in range(5):
        one.wake()
    assert os.eventfd_read(one._eventfd) == 1


def test_no_wake_is_ever_lost(net: Any) -> None:
    """Two threads hand over items and wake; the worker must see each of them without a time-out's help."""
    one = net.make(1, {1: 0})
    items: list[int] = []
    count = 3000

    def work(start: int) -> None:
        for number in range(start, start + count):
            items.append(number)
            one.wake()

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, count)]
    for thread in threads:
        thread.start()
    seen = 0
    while seen < 2 * count:
        if len(items) == seen:
            began = time.monotonic()
            one.poll(5)
            assert time.monotonic() - began < 4, "an item lay there and nobody woke the worker"
        seen = len(items)
    for thread in threads:
        thread.join()


def test_members_come_go_and_move(net: Any) -> None:
    ports = {1: free_port(), 2: free_port(), 3: free_port()}
    one, two = net.make(1, {1: ports[1], 2: ports[2]}), net.make(2, ports)
    drive([one, two], lambda: one.connected(2) and two.connected(1))
    three = net.make(3, ports)
    drive([three], lambda: three.statistics()[1].connects_out == 0 and 2 in three._outgoing)
    one.set_members(members(ports), "")  # 3 comes
    drive([one, two, three], lambda: one.connected(3) and three.connected(1) and one.connected(2))
    assert one.statistics()[2].connects_out == 1  # whoever stays keeps its connection
    one.set_members(members({1: ports[1], 3: ports[3]}), "")  # 2 goes
    drive([one, two, three], lambda: not one.connected(2) and 2 not in one._incoming)
    assert one.take_disconnects() == []
    assert not one.send(2, Ping(1, 1))
    moved = free_port()
    three.close()
    new = net.make(3, {**ports, 3: moved})
    one.set_members(members({1: ports[1], 3: moved}), "")  # 3 moves
    drive([one, new], lambda: one.connected(3) and new.connected(1))
    assert one.send(3, Ping(1, 1))
    drive([one, new], lambda: new.statistics()[1].messages_in == 1)


def test_a_connection_of_a_member_removed_meanwhile_is_not_adopted(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    with dial_raw(one.address, 2, 1) as sock:
        wait_for(lambda: one._handover._incoming)
        one.set_members({}, "")
        one.poll(0)
        assert closed_by_peer(sock)
        assert one._by_fd == {}


def test_a_handshake_that_ends_after_its_peer_was_removed_is_not_adopted(net: Any) -> None:
    """The helper thread verified the sender, then the members changed, then it handed the socket over."""
    one = net.make(1, {1: 0, 2: free_port()})
    one.set_members({}, "")
    ours, theirs = socket.socketpair()
    with theirs:
        one._handover.put_incoming(Incoming(2, "run", ours))
        one.poll(0)
        assert closed_by_peer(theirs)
        assert one._by_fd == {}


def test_connections_waiting_for_the_worker_are_bounded(net: Any) -> None:
    one = net.make(1, {1: 0, 2: free_port()})
    socks = [dial_raw(one.address, 2, 1) for _ in range(10)]
    for sock in socks[:-1]:
        assert closed_by_peer(sock)
    drive([one], lambda: one.statistics()[2].connects_in == 1)
    for sock in socks:
        sock.close()


def test_the_sockets_are_tuned_for_latency_and_dead_peers(net: Any) -> None:
    one, _ = net.pair()
    for link in (*one._incoming.values(), *one._outgoing.values()):
        assert not link.sock.getblocking()
        assert link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2000
