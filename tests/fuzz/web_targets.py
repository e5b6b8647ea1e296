"""Targets: what comes to the HTTP port, and the arguments of the RAFT commands that change the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import h11

from raft.core.membership import decode_configuration, encode_configuration
from raft.machine.arguments import RefusedError
from raft.replies import Error
from raft.runtime import backups, control, membership
from raft.transport.codec import MessageError
from raft.transport.node_messages import ForwardReply
from tests.fuzz import samples
from tests.fuzz.client_targets import _status
from tests.fuzz.machine_targets import _answerable
from tests.fuzz.target import Feed, Target, check, piece
from tests.fuzz.wire_targets import _codec, _payload
from web.exchange import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_UNSENT_BYTES, Exchange
from web.pages import Page, answer

STATUS = _status()
T = TypeVar("T")


def http(data: bytes) -> None:
    """A stream of requests, whole and cut: sound answers, as many as requests, however it is cut."""
    feed = Feed(data)
    step, ends = 1 + feed.byte(), feed.byte() & 1
    stream = feed.rest()
    whole, pieces = _exchanged(stream, len(stream) or 1, ends), _exchanged(stream, step, ends)
    check(whole[0] == pieces[0], f"{whole[0]} whole, {pieces[0]} in pieces")
    check(whole[1] == pieces[1] or whole[2], "other answers when cut")


def _exchanged(stream: bytes, step: int, ends: int) -> tuple[int, bytes, bool]:
    """How many were answered, the bytes, and whether it was closed."""
    asked: list[str] = []

    def respond(method: str, target: str) -> Page:
        asked.append(method)
        return answer(method, target, STATUS, 1.0)

    exchange = Exchange(respond)
    for at in range(0, len(stream), step):
        exchange.receive(stream[at : at + step])
        check(len(exchange.unsent) <= MAX_UNSENT_BYTES + 100_000, "more unsent than it may hold")
        trailing = exchange._protocol.trailing_data[0]
        check(len(trailing) <= MAX_HEAD_BYTES + MAX_BODY_BYTES + step, "more is held back than a request")
    if ends:
        exchange.receive(b"")
    check(exchange.answered == len(asked), "a request without an answer")
    _read_as_a_client(bytes(exchange.unsent), asked, exchange.closing)
    return exchange.answered, bytes(exchange.unsent), exchange.closing


def _read_as_a_client(sent: bytes, asked: list[str], closing: bool) -> None:
    for method in asked:
        client = h11.Connection(h11.CLIENT)
        client.send(
            h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("Host", "x")])
        )
        client.send(h11.EndOfMessage())
        client.receive_data(sent)
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            check(event is not h11.NEED_DATA, "an answer without its end")
        sent = client.trailing_data[0]
    check(
        not sent or (closing and sent.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501"))),
        f"{sent[:60]!r} behind the answers",
    )


def _http_seeds() -> Iterator[bytes]:
    for head in (b"\xff\x00", b"\x06\x01", b"\x00\x00"):
        yield head + b"GET /status HTTP/1.1\r\nHost: a\r\n\r\nHEAD /health/ready HTTP/1.1\r\nHost: a\r\n\r\n"
        yield head + b"POST /x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n"
        yield (
            head
            + b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nA: b\r\n\r\n"
        )
        yield head + b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab"
        yield (
            head
            + b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\nx"
        )


def raft_arguments(data: bytes) -> None:
    """The words of RAFT ADD, TRANSFER, REMOVE and BACKUP READ: an error that can be answered, or values that
    every node can read in the configuration."""
    feed = Feed(data)
    words = [b"RAFT", b"X"]
    while feed.more and len(words) < 10:
        words.append(feed.piece())
    server = _taken(lambda: membership._server(words))
    if server is not None and server[0].id not in (1, 2, 3):  # who is there already is refused elsewhere
        changed = samples.CONFIGURATION.with_learner(server[0], promote=server[1])
        check(decode_configuration(encode_configuration(changed)) == changed, f"{server} cannot be read")
    _taken(lambda: control._node_id(words))
    for word in words[2:4]:
        _taken(lambda word=word: membership._number(word, "id"))
        _taken(lambda word=word: backups._number(word))


def _taken(parse: Callable[[], T]) -> T | None:
    try:
        return parse()
    except RefusedError as error:
        _answerable(error.error)
        return None


def _raft_seeds() -> Iterator[bytes]:
    for line in (
        b"4 host 1 2 3",
        b"4 host 1 2 3 AUTO",
        b"12345678901 h 0 70000 -1",
        b"2 10.0.0.1 7102 7202 7302",
    ):
        yield b"".join(map(piece, line.split()))
    yield piece(b"123456789012345678") + piece(b"0")


def forward_reply(data: bytes) -> None:
    """What another node says of commands that were passed on: its error can be given to a client."""
    decoded = _codec.decode(data)
    if isinstance(decoded, ForwardReply) and decoded.error is not None:
        _answerable(Error(decoded.error))


TARGETS = (
    Target("http", http, (), _http_seeds, max_bytes=12_000, bytes_per_byte=500),
    Target("raft-arguments", raft_arguments, (), _raft_seeds, max_bytes=256),
    Target(
        "forward-reply",
        forward_reply,
        (MessageError,),
        lambda: [_payload(ForwardReply(7, [b"+OK\r\n"])), _payload(ForwardReply(7, [], "BUSY no\r\n+OK"))],
        packed=True,
        max_bytes=1024,
    ),
)
