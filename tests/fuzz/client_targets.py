"""Targets: what clients send, from bytes to commands and to answers."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator

import hiredis

from raft.clients.batch import Batch
from raft.clients.handler import READ_BYTES, Handler
from raft.clients.requests import FastReader, ProtocolError, RequestParser, encoded_length, split_inline
from raft.clients.resp import encode_push, encode_reply
from raft.clients.shared import ServerState
from raft.config import LimitSettings, Settings
from raft.machine.commands import COMMANDS
from raft.machine.machine import Machine
from raft.machine.sessions import pack, unpack
from raft.status import NodeStatus
from tests.fuzz import samples
from tests.fuzz.target import Feed, FuzzFailure, Target, check

LIMIT = 1024


class NeverFast(FastReader):
    """Leaves everything to the reference parser."""

    def read(self, data: bytes, limit: int, max_bytes: int) -> tuple[list[list[bytes]], int]:
        return [], 0


def parse(data: bytes, cuts: list[int], fast: FastReader, limit: int) -> tuple[list[list[bytes]], str | None]:
    """All commands in a stream that arrives cut at these places, and the error behind them."""
    parser, commands, start = RequestParser(LIMIT, fast), [], 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        parser.feed(data[start:end])
        start = end
        while parser.ready and parser.error is None:
            before = parser.buffered
            taken = parser.take(limit)
            commands += taken
            if not taken and parser.buffered == before:
                break
            check(parser.buffered < before or parser.error is not None, "commands out of nothing")
        check(parser.buffered <= LIMIT + (end - start) + READ_BYTES, "more is held back than a request")
    return commands, str(parser.error) if parser.error is not None else None


def resp(data: bytes) -> None:
    """Requests: the same commands and error however cut, by the fast reader or without."""
    feed = Feed(data)
    flags = feed.byte()
    cuts = [feed.byte() << 8 | feed.byte() for _ in range(flags >> 6)]
    stream = feed.rest()
    expected = parse(stream, [], NeverFast(), 1 << 30)
    whole = parse(stream, [], FastReader(), 1 << 30)
    check(whole == expected, f"{whole} instead of {expected}")
    if flags & 1:  # one of three more ways: all of them would be half of the time
        cut = parse(stream, cuts, FastReader(), 1 + (flags & 7))
    elif flags & 2:
        cut = parse(stream, list(range(0, len(stream), _STEPS[flags >> 3 & 7])), FastReader(), 32)
    else:
        cut = parse(stream, cuts, NeverFast(), 3)
    check(cut == expected, f"{cut} instead of {expected}")
    for words in expected[0]:
        check(words and sum(map(len, words)) <= LIMIT, "an empty or oversize command")
        encoded = request(words)
        check(encoded_length(words) == len(encoded), f"encoded_length of {words}")
        check(
            parse(encoded, [], FastReader(), 10) in (([words], None), ([], _too_big(encoded))), "round trip"
        )
    _like_hiredis(stream, expected)


_STEPS = (1, 2, 3, 5, 8, 13, 21, 34)


def _too_big(encoded: bytes) -> str | None:
    """The error for a command that became longer than the limit by being encoded."""
    return parse(encoded, [], NeverFast(), 1)[1] if len(encoded) > LIMIT else None


def _like_hiredis(stream: bytes, expected: tuple[list[list[bytes]], str | None]) -> None:
    """Where our reader finds nothing wrong in a row of arrays, hiredis reads the same."""
    if expected[1] is not None or not stream.startswith(b"*") or _OTHER_TYPES.search(stream):
        return
    reader = hiredis.Reader()
    reader.feed(stream)
    for words in expected[0]:
        try:
            theirs = reader.gets()
            while theirs == [] or theirs is None:  # "*0", "*-1": nothing to do
                theirs = reader.gets()
        except hiredis.HiredisError:
            return  # an inline command, say: no RESP
        if not isinstance(theirs, list):
            return
        check(theirs == words, f"hiredis reads {theirs}, we read {words}")


_OTHER_TYPES = re.compile(rb"[-+:_#,(=!~%>|.]")  # inline commands to us, values of RESP3 to hiredis


def request(words: list[bytes]) -> bytes:
    """A command as an array of bulk strings."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def inline(data: bytes) -> None:
    """The words of an inline command: quoted again they are the same."""
    words = split_inline(data)
    quoted = b" ".join(b'"' + b"".join(b"\\x%02x" % byte for byte in word) + b'"' for word in words)
    check(split_inline(quoted) == words, f"{words} comes back changed")


def _inline_seeds() -> Iterator[bytes]:
    yield from samples.USES
    yield from (
        b'set a "x\\x41\\n\\"q"',
        b"set 'it\\'s' ''",
        b'"a" \'b\'\t"c"',
        b'get "unbalanced',
        b"a\x00b",
    )


def _resp_seeds() -> Iterator[bytes]:
    everything = b"".join(request(words) for words in samples.COMMAND_LINES[:12])
    for flags in (0x00, 0x4A, 0xC1, 0x3F, 0x40, 0x02):
        head = bytes([flags, 0, 9, 0, 20, 0, 21][: 1 + 2 * (flags >> 6)])
        yield head + everything
        yield head + b"*0\r\n*-1\r\n\r\nPING\r\n*1\r\n$4\r\nPING\r\nset a 'b c'\r\n" + everything[:60]
        yield head + b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n*1\r\n$5\r\nhello\r\n"
        yield head + b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$9\r\n*1\r\n$1\r\na\r\n"
        yield head + b"*1048576\r\n$1\r\n"


# --- a whole connection ---------------------------------------------------------------------------------


class MachineBackend:
    """The machine behind the handler, answering at once: a node without Raft."""

    def __init__(self) -> None:
        self.machine = Machine("test")
        self.machine.apply_commands(1, 1, samples.START_MS, [samples.SYSTEM[0]])
        self._status = _status()

    def status(self) -> NodeStatus:
        return self._status

    def submit(self, batch: Batch) -> bool:
        words = [args for _, args in batch.operations]
        if words[0][0].upper() == b"RAFT" and len(words) == 1 and words[0][1].upper() != b"DIGEST":
            batch.fail(_REFUSED)
        elif not batch.writes:
            for slot, args in list(batch.operations):
                batch.answer(slot, self.machine.read(args, samples.START_MS))
        else:
            index = self.machine.applied_index + 1
            replies = self.machine.apply_commands(index, 1, samples.START_MS + index, words)
            for (slot, _), reply in zip(list(batch.operations), replies, strict=True):
                check(unpack(pack(reply)) == reply, f"{reply!r} is kept as something else")
                batch.answer(slot, reply)
        return True


class Watch(logging.Handler):
    """Turns what the handler logs of a connection's fault into a failure."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            raise FuzzFailure(f"{record.getMessage()}: {record.exc_info[1]!r}") from record.exc_info[1]


def connection(data: bytes) -> None:
    """A client's bytes through a handler and a machine: sound RESP comes back, whatever they are."""
    feed = Feed(data)
    flags = feed.byte()
    backend = MachineBackend()
    state = ServerState(backend, SETTINGS)
    handler = Handler("fuzz", state, _fatal)
    ours, theirs = socket.socketpair()
    _handler_log.addHandler(_watch)
    with ours:
        try:
            _talk(handler, ours, theirs, feed, 1 + flags * 4)
        finally:
            _handler_log.removeHandler(_watch)
            for each in list(state.connections.values()):
                handler._close(each)
            handler._epoll.close()


def _talk(handler: Handler, ours: socket.socket, theirs: socket.socket, feed: Feed, step: int) -> None:
    ours.setblocking(False)
    handler.adopt(theirs, "fuzz", 1)
    reader = hiredis.Reader(protocolError=FuzzFailure)
    while feed.more:
        try:
            ours.sendall(feed.bytes(step))
        except OSError:
            break  # refused and closed
        _turn(handler)
        _drain(ours, reader)
    each = handler._server.connections.get(1)
    check(each is None or each.parser.buffered <= LIMIT + READ_BYTES, "more is held back than a request")
    check(each is None or not each.busy, "a batch is never answered")


def _turn(handler: Handler) -> None:
    for _ in range(200):
        handler._wake()
        handler._turn()
        if not handler._inbox:
            return
    raise FuzzFailure("the handler does not come to rest")


def _drain(ours: socket.socket, reader: hiredis.Reader) -> None:
    try:
        while answer := ours.recv(1 << 16):
            reader.feed(answer)
            while reader.gets() is not False:
                pass
    except (BlockingIOError, ConnectionError):
        pass


def _fatal(name: str, error: BaseException) -> None:
    raise FuzzFailure(f"{name} failed: {error!r}") from error


def _connection_seeds() -> Iterator[bytes]:
    for chunk in range(0, len(samples.COMMAND_LINES), 6):
        yield b"\x10" + b"".join(request(words) for words in samples.COMMAND_LINES[chunk : chunk + 6])
    names = [name.split() for name in COMMANDS]
    for chunk in range(0, len(names), 8):
        lines = [
            [*words, b"a", b"1"][: max(len(words), -2 + abs(COMMANDS[b" ".join(words)].arity) + 2)]
            for words in names[chunk : chunk + 8]
        ]
        yield b"\xff" + b"".join(map(request, lines))
        yield b"\xff" + b"HELLO 3\r\n" + b"".join(map(request, lines))
    yield b"\xff" + b"MULTI\r\nSET a 1\r\nGET a\r\nTIME\r\nEXEC\r\nWATCH a\r\nMULTI\r\nINCR a\r\nEXEC\r\n"
    yield (
        b"\x03"
        + b"SUBSCRIBE turns\r\nPING\r\nGET a\r\nPSUBSCRIBE r*\r\nUNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nGET a\r\n"
    )
    yield (
        b"\xff"
        + b"HELLO 3 AUTH a b SETNAME c\r\nCLIENT LIST\r\nCLIENT SETNAME x\r\nINFO\r\nRESET\r\nQUIT\r\n"
    )


def _status() -> NodeStatus:
    from raft.config import Member

    members = tuple(
        Member(id=n, host="127.0.0.1", raft_port=7100 + n, client_port=7200 + n, http_port=7300 + n)
        for n in (1, 2)
    )
    return NodeStatus(
        node_id=1, cluster_name="test", run_id="ab" * 20, started_monotonic_s=0.0, role="leader", term=7,
        leader_id=1, voted_for=1, commit_index=41, applied_index=40, last_log_index=42, first_log_index=1,
        members=members, voters=(1, 2), match=((2, 41),),
    )  # type: ignore[arg-type]  # fmt: skip


_REFUSED = __import__("raft.replies", fromlist=["Error"]).Error("CLUSTERDOWN not here")
SETTINGS = Settings(limits=LimitSettings(max_request_bytes=LIMIT))
_handler_log = logging.getLogger("raft.clients.handler")
_watch = Watch(logging.ERROR)

TARGETS = (
    Target("resp", resp, (), _resp_seeds, max_bytes=1500),
    Target("inline", inline, (ProtocolError,), _inline_seeds, max_bytes=512),
    Target("connection", connection, (), _connection_seeds, max_bytes=2048, bytes_per_byte=2000),
)
__all__ = ["TARGETS", "encode_push", "encode_reply", "parse", "request"]
