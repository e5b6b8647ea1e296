"""The HTTP port's thread, over real sockets."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from test_web_pages import status

from web.server import HttpServer


class Fatal:
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.told = threading.Event()

    def __call__(self, thread: str, error: BaseException) -> None:
        self.errors.append(error)
        self.told.set()


@pytest.fixture
def fatal() -> Fatal:
    return Fatal()


@pytest.fixture
def server(fatal: Fatal) -> Iterator[HttpServer]:
    made = HttpServer(status, "127.0.0.1", 0, fatal, deadline_s=30, max_connections=8)
    made.start()
    yield made
    made.stop()
    assert not fatal.errors


def get(server: HttpServer, path: str = "/health/live") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def dial(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 10)


def ended(sock: socket.socket) -> bool:
    """Whether the server ends the connection (within the socket's timeout)."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_one_connection_serves_many_requests(server: HttpServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for path, code in (("/status", 200), ("/health/ready", 200), ("/x", 404)):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == code and response.read()
    connection.close()


def test_clients_that_never_finish_keep_no_monitor_out(server: HttpServer) -> None:
    with ExitStack() as stack:
        stuck = [stack.enter_context(dial(server)) for _ in range(20)]
        for sock in stuck[-8:]:
            sock.sendall(b"GET /status HT")
        for _ in range(30):
            assert get(server) == (200, b"live\n")
        assert all(ended(sock) for sock in stuck[:12])


def test_a_client_that_never_reads_is_cut_off_and_disturbs_nobody(server: HttpServer) -> None:
    with dial(server) as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.settimeout(10)
        try:
            for _ in range(200):
                greedy.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        except OSError:
            pass  # cut off, or no more is taken from it
        assert get(server) == (200, b"live\n")


def test_who_is_silent_is_cut_off_after_the_deadline(fatal: Fatal) -> None:
    server = HttpServer(status, "127.0.0.1", 0, fatal, deadline_s=0.1)
    server.start()
    with dial(server) as silent, dial(server) as half:
        half.sendall(b"GET /health/live HTTP/1.1\r\n")
        assert ended(silent) and ended(half)
    assert get(server)[0] == 200
    server.stop()
    assert not fatal.errors


def test_noise_and_resets(server: HttpServer) -> None:
    for number in range(50):
        with dial(server) as sock:
            sock.sendall(bytes((number * 37 + i * 11) % 256 for i in range(number * 20 + 1)))
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert get(server) == (200, b"live\n")


def test_a_fault_of_its_own_is_fatal(fatal: Fatal) -> None:
    def broken() -> object:
        raise RuntimeError("no status")

    server = HttpServer(broken, "127.0.0.1", 0, fatal)  # type: ignore[arg-type]
    server.start()
    with dial(server) as sock:
        sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert fatal.told.wait(10)
    server.stop()
    assert str(fatal.errors[0]) == "no status"


def test_a_taken_port_is_named(server: HttpServer, fatal: Fatal) -> None:
    second = HttpServer(status, "127.0.0.1", server.port, fatal)
    with pytest.raises(OSError, match=f"cannot listen for HTTP on 127.0.0.1:{server.port}: .*in use"):
        second.start()
    second.stop()
    second.stop()


def test_stop_ends_every_connection(fatal: Fatal) -> None:
    server = HttpServer(status, "127.0.0.1", 0, fatal)
    server.start()
    with dial(server) as sock:
        sock.sendall(b"GET /sta")
        began = time.monotonic()
        server.stop()
        assert ended(sock) and time.monotonic() - began < 10
    with pytest.raises(OSError):
        dial(server)
