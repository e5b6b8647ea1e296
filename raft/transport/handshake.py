"""The handshake of a peer connection: who is there, and is it one of us.

The dialer sends Hello; the accepting side answers Welcome, or Refused with the reason, and closes. Until then
it reads not one byte beyond the hello and no hello above MAX_HELLO_BYTES. From then on the connection is
one-way: only the dialer sends. All of it runs in helper threads with blocking sockets and one deadline for
the whole exchange, so that a silent or slow stranger costs a helper thread for DEADLINE_S seconds and nothing
else. Who is let in is decided in admission.py and membership.py; both sides check the other.

wrap_outgoing and wrap_incoming are the only places where a socket becomes a peer's socket: TLS goes there.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from raft.transport.codec import DECODE_ERRORS
from raft.transport.frames import (
    MAX_HELLO_BYTES,
    BadVersionError,
    FrameDecoder,
    FrameError,
    FrameType,
    encode_frame,
)

PROTOCOL_VERSION = 2  # what the messages mean; WIRE_VERSION in frames.py is how they are framed
DEADLINE_S = 2.0

# A connection whose bytes nobody acknowledges for so long is dead: dial again instead of waiting for TCP's
# doubling retransmission timer, which after a network partition may sleep long after the network has healed.
USER_TIMEOUT_MS = 2000
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 2), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3))  # seconds, count


class PeerAddress(NamedTuple):
    """Where a peer's raft port is. identity: the name of its data directory as this node's configuration has
    recorded it; "": not recorded, any will do."""

    host: str
    raft_port: int
    identity: str = ""


class Hello(msgspec.Struct, frozen=True):
    """The dialer's introduction. run_id is new with every start of its process.

    identity: the name of its data directory. cluster_id: the cluster's random name, "" while it knows none.
    host, raft_port: where it listens itself. to_identity: the identity that it has recorded for the node it
    dials, "" for none: so a node that has lost its disk is told in both directions.
    """

    cluster: str
    protocol: int
    from_id: int
    to_id: int
    run_id: str
    identity: str = ""
    cluster_id: str = ""
    host: str = ""
    raft_port: int = 0
    to_identity: str = ""


class Welcome(msgspec.Struct, frozen=True):
    """The accepting side's: come in. The fields say of it what those of Hello say of the dialer."""

    node_id: int
    run_id: str
    identity: str = ""
    cluster_id: str = ""


class _Protocol(msgspec.Struct, frozen=True):
    """What every version's hello has: it is read first, the rest may mean something else in another one."""

    protocol: int


class Refused(msgspec.Struct, frozen=True):
    """The accepting side's: no. cause is one stable word, reason is for people."""

    cause: str
    reason: str


class HandshakeError(Exception):
    """The handshake failed. cause is one stable word (for rate-limited logs), the text is for people.

    peer_id: who the other side says it is, None if it has not said.
    """

    def __init__(self, cause: str, reason: str, peer_id: int | None = None) -> None:
        super().__init__(reason)
        self.cause = cause
        self.peer_id = peer_id

    @property
    def level(self) -> int:
        """How loudly to log it: a lost data directory stays lost until an operator acts."""
        return logging.ERROR if self.cause == "identity" else logging.WARNING


class RefusedByPeerError(HandshakeError):
    """The other side refused this node and said why."""


def wrap_outgoing(sock: socket.socket) -> socket.socket:
    """Make a freshly connected socket a peer's socket (later: TLS client side). Dialer threads."""
    _tune(sock)
    return sock


def wrap_incoming(sock: socket.socket) -> socket.socket:
    """Make a freshly accepted socket a peer's socket (later: TLS server side). Handshake threads."""
    _tune(sock)
    return sock


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def introduce(sock: socket.socket, hello: Hello, deadline_s: float = DEADLINE_S) -> Welcome:
    """The dialing side: send hello on a connected blocking socket and wait for the answer.

    deadline_s bounds the whole exchange. Raises RefusedByPeerError, HandshakeError, OSError. The caller
    closes the socket on any of them.
    """
    until = time.monotonic() + deadline_s
    try:
        sock.settimeout(deadline_s)
        sock.sendall(encode_frame(FrameType.HELLO, msgspec.msgpack.encode(hello), MAX_HELLO_BYTES))
        frame_type, payload = _read_frame(sock, until)
    except FrameError as error:
        raise _broken(error) from error
    if frame_type is FrameType.REFUSED:
        refused = _decode(payload, Refused)
        raise RefusedByPeerError(refused.cause[:40], f"the peer refuses this node: {refused.reason[:400]}")
    if frame_type is not FrameType.WELCOME:
        raise HandshakeError("garbage", f"the peer answers hello with a {frame_type.name} frame")
    welcome = _decode(payload, Welcome)
    if welcome.node_id != hello.to_id:
        raise HandshakeError("target", f"node {welcome.node_id} answers in the place of node {hello.to_id}")
    return welcome


def receive(sock: socket.socket, admit: Callable[[Hello], Welcome], deadline_s: float = DEADLINE_S) -> Hello:
    """The accepting side: read the hello from a blocking socket, verify it and answer it.

    admit gives the answer, or raises HandshakeError. That is raised here too, after telling the other side
    why, if it is one that would understand; also OSError. The caller then closes the socket.
    """
    until = time.monotonic() + deadline_s
    try:
        frame_type, payload = _read_frame(sock, until)
        if frame_type is not FrameType.HELLO:
            raise HandshakeError("garbage", f"the first frame is a {frame_type.name} frame, not a hello")
        hello = _decode_hello(payload)
        welcome = admit(hello)
    except BadVersionError as error:
        failure = _broken(error)
        _refuse(sock, failure)
        raise failure from error
    except FrameError as error:  # a stranger: no answer
        raise _broken(error) from error
    except HandshakeError as failure:
        if failure.cause not in ("garbage", "silence", "closed"):
            _refuse(sock, failure)
        raise
    sock.settimeout(max(0.001, until - time.monotonic()))
    sock.sendall(encode_frame(FrameType.WELCOME, msgspec.msgpack.encode(welcome), MAX_HELLO_BYTES))
    return hello


def _decode_hello(payload: bytes) -> Hello:
    theirs = _decode(payload, _Protocol).protocol
    if theirs != PROTOCOL_VERSION:
        text = f"the dialer speaks protocol version {theirs}, the node it dialed speaks {PROTOCOL_VERSION}"
        raise HandshakeError("version", f"{text}: run the same release on both")
    return _decode(payload, Hello)


def _refuse(sock: socket.socket, failure: HandshakeError) -> None:
    """Tell the dialer why. It has a fresh, empty send buffer, so this neither blocks nor sends a part."""
    reason = str(failure).encode()[:600].decode(errors="ignore")
    payload = msgspec.msgpack.encode(Refused(failure.cause, reason))
    sock.sendall(encode_frame(FrameType.REFUSED, payload, MAX_HELLO_BYTES))


def _read_frame(sock: socket.socket, until: float) -> tuple[FrameType, bytes]:
    """Exactly one frame of at most MAX_HELLO_BYTES of payload, by the time until (monotonic seconds)."""
    decoder = FrameDecoder(MAX_HELLO_BYTES)
    while True:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise HandshakeError("silence", "the peer did not finish the handshake in time")
        sock.settimeout(left_s)
        try:
            data = sock.recv(decoder.missing_bytes)
        except TimeoutError:
            continue
        if not data:
            raise HandshakeError("closed", "the peer closed the connection in the handshake")
        frames = decoder.feed(data)
        if frames:
            return frames[0]


_T = TypeVar("_T")


def _decode(payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except DECODE_ERRORS as error:
        raise HandshakeError("garbage", f"not a {kind.__name__}: {error}") from error


def _broken(error: FrameError) -> HandshakeError:
    return HandshakeError("version" if isinstance(error, BadVersionError) else "garbage", str(error))
