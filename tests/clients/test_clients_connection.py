"""Connection alone: order and wholeness of what is sent, and closing without losing it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from clients_support import DEADLINE_S, Wire

from raft.clients import connection as connection_module
from raft.clients.connection import Connection, close_gently
from raft.clients.pubsub import Subscriptions
from raft.clients.requests import FastReader, RequestParser


class Pokes:
    """An owner that only notes who was poked."""

    def __init__(self) -> None:
        self.subscriptions = Subscriptions()
        self.poked: list[Connection] = []

    def poke(self, connection: Connection) -> None:
        self.poked.append(connection)


@pytest.fixture
def owner() -> Pokes:
    return Pokes()


@pytest.fixture
def pair(owner: Pokes) -> Iterator[tuple[Connection, Wire]]:
    ours, theirs = socket.socketpair()
    connection = Connection(theirs, "test", 1, owner, RequestParser(1024, FastReader()))
    yield connection, Wire(ours)
    connection.close()
    ours.close()


def test_what_comes_later_waits_behind_what_is_left_over(pair: tuple[Connection, Wire]) -> None:
    connection, wire = pair
    first = b"a" * 1_000_000
    connection.send(first)
    left = connection.output_bytes
    assert 0 < left < len(first)
    wire.expect(first[: len(first) - left])  # now the socket has room again
    connection.send(b"b" * 10)
    assert connection.output_bytes == left + 10
    reader = threading.Thread(target=wire.expect, args=(b"a" * left + b"b" * 10,))
    reader.start()
    while connection.output_bytes:
        connection.flush()
    reader.join()


def test_sending_and_flushing_at_once_keeps_messages_whole(pair: tuple[Connection, Wire]) -> None:
    connection, wire = pair
    messages = [b"%06d" % number * 3000 for number in range(500)]
    done = threading.Event()

    def flush() -> None:
        while not done.is_set() or connection.output_bytes:
            connection.flush()

    flusher = threading.Thread(target=flush)
    sender = threading.Thread(target=lambda: ([connection.send(message) for message in messages], done.set()))
    flusher.start()
    sender.start()
    for message in messages:
        wire.expect(message)
    sender.join()
    flusher.join(DEADLINE_S)
    assert not flusher.is_alive()


def test_a_send_to_a_client_that_is_gone_is_a_failure_and_a_poke(
    owner: Pokes, pair: tuple[Connection, Wire]
) -> None:
    connection, wire = pair
    wire.sock.close()
    connection.send(b"x")
    assert connection.failure == "sending failed: Broken pipe"
    assert owner.poked == [connection]
    connection.send(b"y")  # nothing more happens
    assert owner.poked == [connection]


def test_answers_after_close_are_dropped(owner: Pokes, pair: tuple[Connection, Wire]) -> None:
    connection, wire = pair
    connection.busy = connection.waiting = True
    connection.close()
    connection.close()
    connection.deliver([b"+OK\r\n"])
    assert not connection.busy
    assert connection.failure is None
    assert owner.poked == [connection]  # harmless: the handler sees that it is closed
    assert wire.until_closed() == b""


@pytest.mark.parametrize(("subscribed", "limit"), [(False, 64 * 1024 * 1024), (True, 8 * 1024 * 1024)])
def test_output_is_bounded(pair: tuple[Connection, Wire], subscribed: bool, limit: int) -> None:
    connection, _ = pair
    if subscribed:
        connection.channels.add(b"c")
    assert limit == (connection_module.MAX_PUSH_BYTES if subscribed else connection_module.MAX_ANSWER_BYTES)
    block = b"x" * (1 << 20)
    while connection.failure is None:
        assert connection.output_bytes <= limit
        connection.send(block)
    assert connection.output_bytes <= limit + len(block)
    assert "bytes unread" in connection.failure


def test_the_last_words_arrive_although_input_was_left_unread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=DEADLINE_S)
        served, _ = listener.accept()
    with client:
        client.sendall(b"x" * 100_000)
        while len(served.recv(100_000, socket.MSG_PEEK)) < 100_000:
            pass
        served.sendall(b"-ERR bye\r\n")
        close_gently(served)
        assert Wire(client).until_closed() == b"-ERR bye\r\n"
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # no reset, which could lose it
