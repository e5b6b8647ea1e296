"""One client's connection: its socket, what it has said of itself, and what is still to be sent.

Who may touch what:

| part | thread |
| --- | --- |
| everything not named below | the handler thread that owns the connection |
| `send`, `deliver`, and with them the output buffer (under `_lock`) and `failure` | any |
| `busy` | set by the handler before it submits a batch, cleared by whoever answers it |
| `answered_bytes`, `watched` | whoever answers, before it clears `busy`; the handler while it is clear |
| `waiting` | written by the handler alone, read by whoever answers |

At most one batch is under way. While it is, the handler reads nothing more from the socket: input stays in
the kernel and TCP slows the client down. The same while output waits for a client that does not read.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol

from raft.clients.requests import RequestParser
from raft.syscalls import send

if TYPE_CHECKING:
    from raft.clients.pubsub import Subscriptions
    from raft.clients.transactions import Queue

LARGE_ANSWERS = 4 * 1024 * 1024  # bytes that one batch's answers should about stay below
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # output waiting for a client that asks faster than it reads
MAX_PUSH_BYTES = 8 * 1024 * 1024  # the same for a subscriber, to whom more keeps coming


class Owner(Protocol):
    """What a connection knows of the handler thread it belongs to."""

    subscriptions: Subscriptions

    def poke(self, connection: Connection) -> None:
        """Lets the handler thread look at this connection soon. Any thread."""


class Connection:
    """See the module's docstring for who may touch what."""

    __slots__ = (
        "_lock", "_out", "address", "answered_bytes", "backlog", "batch_limit", "batch_size", "busy",
        "channels", "closed", "closing", "created_s", "failure", "hangup", "last_command", "last_s",
        "library", "library_version", "local_address", "name", "number", "owner", "parser", "patterns",
        "protocol", "queue", "registered", "sock", "waiting", "watched",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, address: str, number: int, owner: Owner, parser: RequestParser
    ) -> None:
        """Takes over a connected socket. address: the client's, for people; number: unique here."""
        sock.setblocking(False)
        self.sock = sock
        self.address = address
        self.local_address = show_address(sock)
        self.number = number
        self.owner = owner
        self.parser = parser
        self.created_s = self.last_s = time.monotonic()
        self.registered = False  # with the owner's epoll
        self.forget_session()

        self.backlog: list[list[bytes]] = []  # parsed commands that wait for the batch before them
        self.batch_limit = 32  # most commands in the next batch: see the handler
        self.batch_size = 0  # commands in the last one
        self.answered_bytes = 0  # size of the last batch's answers
        self.busy = False  # a batch is under way
        self.waiting = False  # there may be input: in the kernel, in the parser or in the backlog
        self.hangup = False  # the client has closed its side: read on until that shows
        self.closing = False  # close as soon as all output is gone
        self.closed = False
        self.failure: str | None = None  # why the handler must close it at once

        self._lock = (
            threading.Lock()
        )  # held for one non-blocking send: answers and pushes must not interleave
        self._out = bytearray()

    def forget_session(self) -> None:
        """Back to how a connection begins (RESET); subscriptions must have been ended before."""
        self.protocol = 2
        self.name = b""
        self.library = b""
        self.library_version = b""
        self.last_command = b"NULL"
        self.channels: set[bytes] = set()
        self.patterns: set[bytes] = set()
        self.queue: Queue | None = None  # MULTI was said: see raft/clients/transactions.py
        self.watched: dict[bytes, int] = {}  # keys with the index after which they must not change

    @property
    def idle(self) -> bool:
        """Whether the next bytes begin a command that may be carried out at once, and plainly: no answers
        wait, no transaction was begun, no subscription changes what may be said. Whatever else comes to
        restrict a connection (a missing AUTH, say) belongs in here, too. Handler thread."""
        return not (
            self.busy
            or self.backlog
            or self._out
            or not self.parser.empty
            or self.queue is not None
            or self.failure is not None
            or self.closing
            or self.channels
            or self.patterns
            # The long way has to find out how much it may take at a time.
            or self.batch_limit < 2
            or self.answered_bytes > LARGE_ANSWERS
        )

    @property
    def subscribed(self) -> bool:
        """Whether messages may be pushed to this client."""
        return bool(self.channels or self.patterns)

    @property
    def output_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._out)

    def send(self, data: bytes) -> None:
        """Sends, or keeps what the socket does not take. Never blocks, never raises for the client's doings.

        Any thread. A client that is gone or leaves too much unread gets a `failure`, and its handler a poke.
        """
        with self._lock:
            if self.closed or self.failure is not None:
                return
            if not self._out:
                sent = self._send_now(data)
                if sent == len(data):
                    return  # nearly always
                data = data[sent:]
            self._out += data
            self._judge_output()
        if self._has_failed():
            self.owner.poke(self)

    def _has_failed(self) -> bool:
        """Looks at failure anew: mypy takes what was None before a call for None after it, and compiled code
        would insist on that."""
        return self.failure is not None

    def flush(self) -> None:
        """Sends what waits, as far as the socket takes it. Handler thread, when it became writable."""
        with self._lock:
            while self._out and self.failure is None:
                sent = self._send_now(bytes(self._out[: 1 << 20]))
                del self._out[:sent]
                if sent == 0:
                    break

    def _send_now(self, data: bytes) -> int:
        """How many bytes went; goes on until the socket is full, so that epoll will tell when it is not."""
        total = 0
        try:
            total = send(self.sock, data)
            while total < len(data):
                total += send(self.sock, data[total:])
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.failure = f"sending failed: {error.strerror or error}"
        return total

    def _judge_output(self) -> None:
        limit = MAX_PUSH_BYTES if self.subscribed else MAX_ANSWER_BYTES
        if len(self._out) > limit and self.failure is None:
            self.failure = f"it left {len(self._out)} bytes unread (limit {limit})"

    def deliver(self, answers: list[bytes]) -> None:
        """Sends a batch's answers and makes the connection free for the next batch. Whoever answered it.

        No wake-up is lost: the handler writes `waiting` and then reads `busy`; here `busy` is written and
        then `waiting` read. However the two interleave, at least one sees the other's write (Dekker): the
        handler goes on itself, or it is poked. Both is harmless. The order of the last two statements must
        not change.
        """
        data = answers[0] if len(answers) == 1 else b"".join(answers)
        self.answered_bytes = len(data)
        self.send(data)
        self.busy = False
        if self.waiting:
            self.owner.poke(self)

    def close(self) -> None:
        """Closes the socket; answers that come later are dropped. Handler thread; twice is harmless."""
        with (
            self._lock
        ):  # no other thread may be inside send() when the number of the descriptor becomes free
            if self.closed:
                return
            self.closed = True
            self._out.clear()
            close_gently(self.sock)

    def __repr__(self) -> str:
        return f"client {self.number} ({self.address})"


def close_gently(sock: socket.socket) -> None:
    """Closes without losing what was just sent: unread input would make the kernel send a reset instead."""
    try:
        sock.setblocking(False)
        sock.shutdown(socket.SHUT_WR)
        for _ in range(16):  # bounded: a client that never stops is cut off
            if not sock.recv(65536):
                break
    except OSError:
        pass  # it is gone already, or there is nothing (more) to read
    finally:
        sock.close()


def show_address(sock: socket.socket, peer: bool = False) -> str:
    """host:port of one end of a socket, or what there is instead (a socket pair has no addresses)."""
    try:
        address = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return "?:0"
    if isinstance(address, tuple):
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    return "unix:0"
