"""ClientServer: the client port. One acceptor thread, and a handler thread that serves all connections.

More handlers than one are possible, but cannot run at the same time: two made 7 % less SETs a second and 9 %
less GETs (50 clients, compiled), because the worker waits for the interpreter's lock behind both.

acceptor ──new socket──▶ handler 1 … N ──Batch──▶ Backend (the worker), which answers through Batch
                              ▲
publish(channel, payload) ────┘
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time

from raft.clients.connection import close_gently, show_address
from raft.clients.handler import Handler, OnFatal
from raft.clients.shared import Backend, ServerState
from raft.config import Settings
from raft.listening import ListenError, listen

__all__ = ["Backend", "ClientServer", "ListenError"]

log = logging.getLogger(__name__)

_BACKLOG = 1024
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_S = 0.1  # after running out of descriptors
_JOIN_GRACE_S = 2.0
_FULL = b"-ERR max number of clients reached\r\n"


def _no_fatal(thread_name: str, error: BaseException) -> None:
    raise RuntimeError(f"thread {thread_name} failed") from error


class ClientServer:
    """Speaks RESP with clients on behalf of a Backend. Every public method may be called by any thread."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        host: str,
        port: int,
        handlers: int = 1,
        on_fatal: OnFatal = _no_fatal,
    ) -> None:
        """port 0: any free port, see `port`. on_fatal(thread name, exception): a thread here died."""
        self._state = ServerState(backend, settings)
        self._host = host
        self._wanted_port = port
        self._on_fatal = on_fatal
        self._handlers = [Handler(f"clients-{n}", self._state, on_fatal) for n in range(1, handlers + 1)]
        self._listener: socket.socket | None = None
        self._running = False
        self._lock = threading.Lock()  # start, stop, and choosing a handler for a new client
        self._wake_read, self._wake_write = socket.socketpair()
        self._acceptor = threading.Thread(target=self._run_acceptor, name="clients-acceptor", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before start()."""
        return self._state.port

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return len(self._state.connections)

    def start(self) -> None:
        """Listens and starts the threads. Raises ListenError when the address is taken or is not ours."""
        self._listener = listen(self._host, self._wanted_port, "clients", _BACKLOG)
        self._listener.setblocking(False)
        self._state.host, self._state.port = self._host, self._listener.getsockname()[1]
        for handler in self._handlers:
            handler.start()
        self._running = True
        self._acceptor.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Accepts no more, answers what is under way, closes every connection, within about `timeout_s`.

        The backend must still be answering. Requests not read yet are not executed. Twice is harmless.
        """
        with self._lock:
            was_running, self._running = self._running, False
        if not was_running:
            return
        deadline = time.monotonic() + timeout_s
        self._wake_write.send(b"x")
        self._acceptor.join(timeout_s + _JOIN_GRACE_S)
        for handler in self._handlers:
            handler.stop(deadline)
        stuck = [handler for handler in self._handlers if not handler.join(timeout_s + _JOIN_GRACE_S)]
        self._wake_read.close()
        self._wake_write.close()
        if stuck or self._acceptor.is_alive():
            log.error("a thread of the client server does not end")

    def serve(self, sock: socket.socket, address: object = None) -> None:
        """Takes over a connected socket as one more client; refuses one too many. Returns at once."""
        shown = show_address(sock, peer=True) if address is None else _show(address)
        with self._lock:
            full = len(self._state.connections) >= self._state.settings.limits.max_clients
            if self._running and not full:
                _tune(sock)
                self._state.accepted += 1
                handler = min(self._handlers, key=lambda handler: handler.load)
                handler.adopt(sock, shown, next(self._state.numbers))
                return
        if full:
            self._state.rejected += 1
            log.warning("client %s refused: %d clients are connected", shown, self.connected)
            sock.setblocking(False)
            try:
                sock.send(_FULL)
            except OSError as error:
                log.debug("client %s: %s", shown, error.strerror)
        close_gently(sock)

    def publish(self, channel: str, payload: str) -> None:
        """Sends a message to every subscriber of the channel on this node. Returns at once."""
        name = channel.encode()
        for handler in self._handlers:  # most of what the ledger publishes is for nobody: 10,000 at a close
            if handler.subscriptions.wants(name):
                handler.publish(name, payload.encode())

    def _run_acceptor(self) -> None:
        assert self._listener is not None  # start() made it
        try:
            with self._listener as listener, select.epoll() as epoll:
                epoll.register(listener, select.EPOLLIN)
                epoll.register(self._wake_read, select.EPOLLIN)
                while self._running:
                    epoll.poll()
                    self._accept_all(listener)
        except BaseException as error:
            log.exception("thread clients-acceptor failed")
            self._on_fatal("clients-acceptor", error)

    def _accept_all(self, listener: socket.socket) -> None:
        while self._running:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    log.info("a client left while it was accepted: %s", error.strerror)
                    continue
                log.error("cannot accept a client: %s", os.strerror(error.errno or 0))
                select.select([self._wake_read], [], [], _RETRY_S)  # the listener stays readable: do not spin
                return
            self.serve(sock, address)


def _tune(sock: socket.socket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # finds clients that vanished
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 300)


def _show(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"{address[0]}:{address[1]}"
    return str(address) or "unix:0"
