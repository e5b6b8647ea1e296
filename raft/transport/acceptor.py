"""The raft port's listener: one thread accepts, short-lived helper threads shake hands."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable

from raft import listening
from raft.transport.handover import Handover, Incoming
from raft.transport.handshake import DEADLINE_S, HandshakeError, Hello, Welcome, receive, wrap_incoming
from raft.transport.quiet_log import QuietLog

MAX_HANDSHAKES = 32
_BACKLOG = 128
# accept() says one of these when the node is short of something for a moment, or the dialer has gone again
_PASSING = {errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO}
_PASSING_PAUSE_S = 0.1

_logger = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket on host:port (port 0: any). Raises OSError, which names both, e.g. if taken."""
    return listening.listen(host, port, "other nodes", _BACKLOG)


class Acceptor:
    """Accepts connections and hands those of verified peers to the worker.

    At most max_handshakes handshakes are under way; for one more the oldest is broken off of the address that
    has most of them, so that strangers who say nothing do not keep peers out. admit and on_peer are called by
    the helper threads: admit(hello, the dialer's address) says who is let in (see receive), on_peer(peer_id)
    follows every accepted handshake. start and stop may be called by any thread.
    """

    def __init__(
        self,
        listener: socket.socket,
        admit: Callable[[Hello, str], Welcome],
        on_peer: Callable[[int], None],
        handover: Handover,
        quiet_log: QuietLog,
        on_fatal: Callable[[str, BaseException], None],
        max_handshakes: int = MAX_HANDSHAKES,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._listener = listener
        self._admit = admit
        self._on_peer = on_peer
        self._handover = handover
        self._quiet_log = quiet_log
        self._on_fatal = on_fatal
        self._max_handshakes = max_handshakes
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._handshakes: dict[threading.Thread, tuple[socket.socket, str]] = {}  # the oldest first
        self._broken_off: set[threading.Thread] = set()  # those of them that are about to end
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raft-accept", daemon=True)
        self._started = 0

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Close the listener, break off handshakes under way, wait up to timeout_s seconds for each thread.
        False if one is still running then."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone would not
        self._thread.join(timeout_s)
        self._listener.close()
        with self._lock:
            running = dict(self._handshakes)
        for sock, _ in running.values():
            _shut_down(sock)
        for thread in running:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in (self._thread, *running))

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    sock, address = self._listener.accept()
                except OSError as error:
                    if self._stopping.is_set():
                        return
                    if error.errno not in _PASSING:
                        raise
                    self._quiet_log.warning("accept", "raft port", str(error))
                    self._stopping.wait(_PASSING_PAUSE_S)
                    continue
                self._begin(sock, str(address[0]))
        except Exception as error:  # noqa: BLE001  a node nobody can reach is a zombie: let it stop
            self._on_fatal(self._thread.name, error)

    def _begin(self, sock: socket.socket, host: str) -> None:
        """Start a helper thread for a new connection, in the place of another one if there are too many."""
        self._started += 1
        thread = threading.Thread(
            target=self._shake, args=(sock, host), name=f"raft-handshake-{self._started}", daemon=True
        )
        with self._lock:
            self._make_room()
            # Who was broken off ends in a moment; should threads not get on at all, this is the bound.
            room = len(self._handshakes) < 2 * self._max_handshakes and not self._stopping.is_set()
            if room:
                self._handshakes[thread] = sock, host
        if room:
            thread.start()
        else:
            sock.close()

    def _make_room(self) -> None:
        """Under the lock: break off a handshake if as many as there may be are under way."""
        going_on = {
            thread: host for thread, (_, host) in self._handshakes.items() if thread not in self._broken_off
        }
        if len(going_on) < self._max_handshakes:
            return
        busiest = Counter(going_on.values()).most_common(1)[0][0]
        oldest = next(thread for thread, host in going_on.items() if host == busiest)
        self._broken_off.add(oldest)
        _shut_down(self._handshakes[oldest][0])
        text = f"broken off, to make room: {self._max_handshakes} handshakes are under way"
        self._quiet_log.warning("too many", busiest, text)

    def _shake(self, sock: socket.socket, host: str) -> None:
        """Body of a helper thread: one handshake."""
        thread = threading.current_thread()
        try:
            try:
                peer = wrap_incoming(sock)
                hello = receive(peer, lambda hello: self._admit(hello, host), self._deadline_s)
                peer.setblocking(False)
            finally:
                with self._lock:
                    del self._handshakes[thread]
                    self._broken_off.discard(thread)
            _logger.info("node %d: has dialed in from %s (run %s)", hello.from_id, host, hello.run_id[:40])
            self._handover.put_incoming(
                Incoming(hello.from_id, hello.run_id, peer, hello.identity, hello.cluster_id)
            )
            self._on_peer(hello.from_id)
        except HandshakeError as failure:
            sock.close()
            if not self._stopping.is_set():
                who = host if failure.peer_id is None else f"{host} (node {failure.peer_id})"
                self._quiet_log.write(
                    failure.level, failure.cause, who, f"refused on the raft port: {failure}"
                )
        except OSError as error:
            sock.close()
            if not self._stopping.is_set():
                self._quiet_log.warning("broken", host, f"lost in the handshake: {error}")
        except Exception as error:  # noqa: BLE001  a fault of this program, not of the peer
            sock.close()
            self._on_fatal(thread.name, error)


def _shut_down(sock: socket.socket) -> None:
    """Make the thread that waits for the socket go on; it closes it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
