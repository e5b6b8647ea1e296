"""HttpServer: the HTTP port of a node, served by one thread.

No request waits for the worker: each is answered at once from the published status. So one thread serves all
connections, and what a client does not send or read costs memory only, which is bounded.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from raft.listening import listen
from raft.status import NodeStatus
from web.exchange import Exchange
from web.pages import Page, answer

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
DEADLINE_S = 10.0  # for a request and the reading of its answer, and between two requests
_BACKLOG = 64
_READ_BYTES = 16 << 10
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_S = 0.1  # after running out of descriptors


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    exchange: Exchange
    deadline_s: float
    answered: int = 0


class HttpServer:
    """Listens on host:port (0: any free one). status(): the newest published snapshot, from any thread.

    At MAX_CONNECTIONS the one that has been without an answer for longest gives way to a new one, so that
    clients that never finish keep no monitor out. start and stop may be called by any thread. on_fatal(thread
    name, exception): the thread died.
    """

    def __init__(
        self,
        status: Callable[[], NodeStatus],
        host: str,
        port: int,
        on_fatal: Callable[[str, BaseException], None],
        *,
        deadline_s: float = DEADLINE_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._status = status
        self._host = host
        self._wanted_port = port
        self._on_fatal = on_fatal
        self._deadline_s = deadline_s
        self._max_connections = max_connections
        self._clients: dict[int, _Client] = {}  # by descriptor; the one without an answer for longest first
        self._listener: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._guarded, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before start()."""
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Listen and start the thread. Raises OSError, which names the address, when it cannot be had."""
        self._listener = listen(self._host, self._wanted_port, "HTTP", _BACKLOG)
        self._listener.setblocking(False)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the thread and every connection. Twice, or before start(), is harmless."""
        if self._stopping:
            return
        self._stopping = True
        self._wake_write.send(b"x")
        if self._listener is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.error("thread http does not end")
                return
            self._listener.close()
        self._wake_read.close()
        self._wake_write.close()

    # --- the thread -------------------------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it ends the node, loudly
            self._on_fatal("http", error)

    def _run(self) -> None:
        listener = self._listener
        assert listener is not None  # start() made it
        with select.epoll() as self._epoll:
            self._epoll.register(listener, select.EPOLLIN)
            self._epoll.register(self._wake_read, select.EPOLLIN)
            try:
                while not self._stopping:
                    for fd, events in self._epoll.poll(self._wait_s()):
                        if fd == listener.fileno():
                            self._accept_all(listener)
                        elif fd in self._clients:
                            self._serve(fd, self._clients[fd], events)
                    self._expire()
            finally:
                for fd in list(self._clients):
                    self._close(fd)

    def _wait_s(self) -> float | None:
        if not self._clients:
            return None
        return max(0.0, next(iter(self._clients.values())).deadline_s - time.monotonic())

    def _accept_all(self, listener: socket.socket) -> None:
        while not self._stopping:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    log.error("cannot accept an HTTP client: %s", os.strerror(error.errno or 0))
                    select.select([self._wake_read], [], [], _RETRY_S)  # the listener stays readable
                    return
                continue  # the client left meanwhile
            while len(self._clients) >= self._max_connections:
                self._close(next(iter(self._clients)))
            sock.setblocking(False)
            deadline_s = time.monotonic() + self._deadline_s
            self._clients[sock.fileno()] = _Client(sock, Exchange(self._respond), deadline_s)
            self._poll().register(sock, select.EPOLLIN)

    def _respond(self, method: str, target: str) -> Page:
        return answer(method, target, self._status(), time.monotonic())

    def _serve(self, fd: int, client: _Client, events: int) -> None:
        exchange = client.exchange
        try:
            if events & ~select.EPOLLOUT and not exchange.closing:
                exchange.receive(client.sock.recv(_READ_BYTES))
            while exchange.unsent:
                del exchange.unsent[: client.sock.send(exchange.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._close(fd)  # the client is gone
            return
        if exchange.closing and (not exchange.unsent or events & (select.EPOLLERR | select.EPOLLHUP)):
            self._close(fd)
            return
        if exchange.answered > client.answered and not exchange.unsent:
            client.answered = exchange.answered
            client.deadline_s = time.monotonic() + self._deadline_s
            self._clients[fd] = self._clients.pop(fd)  # now the last in line
        wanted = select.EPOLLOUT if exchange.unsent else select.EPOLLIN
        self._poll().modify(fd, wanted)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._clients:
            fd, client = next(iter(self._clients.items()))
            if client.deadline_s > now:
                return
            self._close(fd)

    def _close(self, fd: int) -> None:
        client = self._clients.pop(fd)
        with suppress(OSError):
            client.sock.shutdown(socket.SHUT_WR)
        client.sock.close()

    def _poll(self) -> select.epoll:
        assert self._epoll is not None  # the thread's
        return self._epoll
