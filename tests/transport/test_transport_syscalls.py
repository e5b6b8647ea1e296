"""The short system calls answer as the methods of a socket do."""

from __future__ import annotations

import ctypes
import os
import select
import socket
from collections.abc import Iterator

import pytest

from raft.syscalls import SHORT_BYTES, Buffer, poll_now, receive, receive_bytes, send, signal_eventfd

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.mark.parametrize("data", [b"x", b"a\0b\r\n\0", bytes(range(256)) * 16])
def test_what_is_sent_arrives_whole(pair: Pair, data: bytes) -> None:
    buffer = Buffer(65536)
    assert send(pair[0], data) == len(data)
    assert receive(pair[1], buffer) == len(data)
    assert bytes(buffer.view[: len(data)]) == data


def test_no_more_is_taken_than_was_asked_for_or_fits(pair: Pair) -> None:
    buffer = Buffer(8)
    send(pair[0], bytes(range(20)))
    assert [receive(pair[1], buffer, most) for most in (3, 0, 99)] == [3, 8, 8]
    assert bytes(buffer.view) == bytes(range(11, 19))


def test_bytes_come_in_pieces_of_the_buffer(pair: Pair) -> None:
    buffer = Buffer(8)
    send(pair[0], bytes(range(12)))
    first = receive_bytes(pair[1], buffer)
    assert (first, receive_bytes(pair[1], buffer)) == (bytes(range(8)), bytes(range(8, 12)))
    assert first == bytes(range(8)), "it is a copy: the buffer is used again"
    with pytest.raises(BlockingIOError):
        receive_bytes(pair[1], buffer)


class Wrapped(socket.socket):
    """Not plain: stands for TLS, whose bytes only its own methods know."""

    def send(self, data: object, flags: int = 0) -> int:
        assert isinstance(data, bytes)
        return super().send(bytes(reversed(data)), flags)

    def recv_into(self, buffer: object, nbytes: int = 0, flags: int = 0) -> int:
        assert isinstance(buffer, memoryview)
        size = super().recv_into(buffer, nbytes, flags)
        buffer[:size] = bytes(reversed(buffer[:size]))
        return size


def test_a_socket_that_is_not_plain_is_asked_itself(pair: Pair) -> None:
    with Wrapped(fileno=os.dup(pair[0].fileno())) as wrapped:
        wrapped.setblocking(False)
        buffer = Buffer(8)
        assert send(wrapped, b"abc") == 3
        assert receive_bytes(pair[1], buffer) == b"cba"
        send(pair[1], b"123456789")
        assert receive(wrapped, buffer, 2) == 2 and bytes(buffer.view[:2]) == b"21"
        assert receive_bytes(wrapped, buffer) == b"9876543"
        with pytest.raises(BlockingIOError):
            receive(wrapped, buffer)


def test_what_is_no_bytes_is_not_sent(pair: Pair) -> None:
    with pytest.raises((TypeError, ctypes.ArgumentError)):
        send(pair[0], "text")  # type: ignore[arg-type]


def test_a_poll_tells_what_is_ready_and_does_not_wait(pair: Pair) -> None:
    with select.epoll() as epoll:
        for sock in pair:
            epoll.register(sock, select.EPOLLIN)
        assert poll_now(epoll) == []
        send(pair[0], b"x")
        assert poll_now(epoll) == [(pair[1].fileno(), select.EPOLLIN)]
        send(pair[1], b"x")
        assert {fd for fd, _ in poll_now(epoll)} == {sock.fileno() for sock in pair}
    with pytest.raises((OSError, ValueError)):
        poll_now(epoll)


def test_a_full_socket_takes_a_part_then_nothing(pair: Pair) -> None:
    taken = 0
    with pytest.raises(BlockingIOError):
        while True:
            taken += send(pair[0], b"x" * SHORT_BYTES)
    assert taken > 0
    buffer, got = Buffer(4096), 0
    while got < taken:
        got += receive(pair[1], buffer)
    assert got == taken
    with pytest.raises(BlockingIOError):
        receive(pair[1], buffer)


def test_more_than_a_little_goes_the_way_of_the_socket(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert send(pair[0], b"x" * (SHORT_BYTES + 1)) > 0


def test_a_peer_that_is_gone_is_an_error_and_no_signal(pair: Pair) -> None:
    pair[1].close()
    assert receive(pair[0], Buffer(10)) == 0
    assert receive_bytes(pair[0], Buffer(10)) == b""
    with pytest.raises(BrokenPipeError):
        send(pair[0], b"x")


def test_a_closed_socket_is_an_error(pair: Pair) -> None:
    pair[0].close()
    buffer = Buffer(10)
    for call in (
        lambda: send(pair[0], b"x"),
        lambda: receive(pair[0], buffer),
        lambda: receive_bytes(pair[0], buffer),
    ):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


def test_an_eventfd_wakes_also_when_its_counter_is_full() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        signal_eventfd(fd)
        assert os.eventfd_read(fd) == 1
        os.eventfd_write(fd, 2**64 - 2)
        signal_eventfd(fd)
        assert select.select([fd], [], [], 0)[0] == [fd]
    finally:
        os.close(fd)
