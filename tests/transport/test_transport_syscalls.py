"""The short system calls answer as the methods of a socket do."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from raft.syscalls import SHORT_BYTES, Buffer, receive, send, signal_eventfd

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
    with pytest.raises(BrokenPipeError):
        send(pair[0], b"x")


def test_a_closed_socket_is_an_error(pair: Pair) -> None:
    pair[0].close()
    for call in (lambda: send(pair[0], b"x"), lambda: receive(pair[0], Buffer(10))):
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
