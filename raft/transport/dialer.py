"""One thread per peer that keeps the outgoing connection to it alive."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

from raft.transport.handover import Handover, Outgoing
from raft.transport.handshake import (
    DEADLINE_S,
    HandshakeError,
    Hello,
    RefusedByPeerError,
    Welcome,
    introduce,
    wrap_outgoing,
)
from raft.transport.quiet_log import QuietLog

CONNECT_TIMEOUT_S = 1.0  # one SYN: the second would leave after 1 s, and a new dial does as well
STABLE_S = 1.0  # a connection that lived so long was a success

_logger = logging.getLogger(__name__)


class Backoff:
    """Jittered exponential pauses: the n-th is between half of first_s * 2**n and all of it, at most
    last_s."""

    def __init__(self, rng: random.Random, first_s: float = 0.02, last_s: float = 1.0) -> None:
        self._rng = rng
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    def next_s(self) -> float:
        """The next pause in seconds."""
        pause_s = self._next_s
        self._next_s = min(self._last_s, pause_s * 2)
        return pause_s * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again with the shortest pause."""
        self._next_s = self._first_s


class Dialer:
    """Dials one peer whenever there is no connection to it, and hands finished connections to the worker.

    start, stop, broken and hurry may be called by any thread; none of them blocks. A failed dial is followed
    by a pause (Backoff); a connection that breaks is dialed again at once if it had lived for STABLE_S, else
    after the next pause, so that a peer that accepts and drops is not dialed in a hot loop. hello gives what
    to say at each dial, check raises HandshakeError for an answer from somebody else; both are called by the
    dialer's thread.
    """

    def __init__(
        self,
        peer_id: int,
        address: tuple[str, int],
        hello: Callable[[], Hello],
        check: Callable[[Welcome], None],
        handover: Handover,
        quiet_log: QuietLog,
        on_fatal: Callable[[str, BaseException], None],
        rng: random.Random,
        on_refusal: Callable[[str], None] = lambda _cause: None,
    ) -> None:
        self.peer_id = peer_id
        self.address = address
        self._hello = hello
        self._check = check
        self._handover = handover
        self._quiet_log = quiet_log
        self._on_fatal = on_fatal
        self._on_refusal = on_refusal
        self._backoff = Backoff(rng)
        self._condition = threading.Condition()
        self._connected = False
        self._stopped = False
        self._hurried = False
        self._pause_s = 0.0
        self._socket: socket.socket | None = None  # the one being dialed
        self._thread = threading.Thread(target=self._run, name=f"raft-dial-{self.peer_id}", daemon=True)

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def stop(self) -> None:
        """Dial no more; breaks off a dial under way. Connections handed over are the worker's to close."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
            if self._socket is not None:
                _shut_down(self._socket)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end after stop; False if it has not within timeout_s seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def broken(self, lived_s: float) -> None:
        """The connection handed over last is gone after lived_s seconds: dial again."""
        with self._condition:
            if lived_s >= STABLE_S:
                self._backoff.reset()
                self._pause_s = 0.0
            else:
                self._pause_s = self._backoff.next_s()
            self._connected = False
            self._condition.notify_all()

    def hurry(self) -> None:
        """The peer shows signs of life (it has dialed in): end a pause now, or leave out the next one."""
        with self._condition:
            self._hurried = True
            self._condition.notify_all()

    def _run(self) -> None:
        try:
            while self._wait():
                connection = self._dial()
                with self._condition:
                    if connection is None:
                        self._pause_s = self._backoff.next_s()
                    else:
                        self._connected = True  # before the worker can say that it is broken
                if connection is not None:
                    self._handover.put_outgoing(connection)
        except Exception as error:  # noqa: BLE001  a node without a dialer is a zombie: let it stop
            self._on_fatal(self._thread.name, error)

    def _wait(self) -> bool:
        """Until a dial is due: True; or until stop: False."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or not self._connected)
            self._condition.wait_for(lambda: self._stopped or self._hurried, timeout=self._pause_s)
            self._hurried = False
            return not self._stopped

    def _dial(self) -> Outgoing | None:
        """One attempt: the connection, ready for the worker, or None (the reason is logged)."""
        host, port = self.address
        try:
            candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for number, (family, kind, protocol, _, address) in enumerate(candidates, start=1):
                try:
                    return self._connect(socket.socket(family, kind, protocol), address)
                except OSError:
                    if number == len(candidates):
                        raise
        except HandshakeError as failure:
            if isinstance(failure, RefusedByPeerError):
                self._on_refusal(failure.cause)
            who = f"node {self.peer_id} at {host}:{port}"
            self._quiet_log.write(failure.level, failure.cause, who, str(failure))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                self._handover.put_refused(self.peer_id)
            if not self._stopped:
                cause = errno.errorcode.get(error.errno or 0, type(error).__name__)
                text = f"no connection: {error.strerror or error}"
                self._quiet_log.warning(cause, f"node {self.peer_id} at {host}:{port}", text)
        except (ValueError, OverflowError) as error:  # no such host name or port can exist: not a fault here
            self._quiet_log.warning(
                "address", f"node {self.peer_id} at {host!r}:{port}", f"bad address: {error}"
            )
        return None

    def _connect(self, sock: socket.socket, address: Any) -> Outgoing:
        """Connect and shake hands; closes the socket on any failure (HandshakeError, OSError)."""
        try:
            with self._condition:
                if self._stopped:
                    raise ConnectionAbortedError("stopped")
                self._socket = sock
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(address)
            peer = wrap_outgoing(sock)
            welcome = introduce(peer, self._hello(), DEADLINE_S)
            self._check(welcome)
            peer.setblocking(False)
        except BaseException:
            sock.close()
            raise
        finally:
            with self._condition:
                self._socket = None
        _logger.info("node %d: connected (run %s)", self.peer_id, welcome.run_id[:40])
        return Outgoing(self, welcome.run_id, peer, welcome.identity, welcome.cluster_id)


def _shut_down(sock: socket.socket) -> None:
    """Make whoever blocks on the socket return; it may be in any state."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
