"""Targets: what the command line's tools and the follower read: answers of servers that may be any, backup
files and data directories, arguments, MongoDB addresses."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import redis
from rich.console import Console

import cli.backup
import super_node
from cli.backup import BackupError, Source
from cli.crew import Crew, NextNode
from cli.follower import Behaviour, Follower
from cli.link import Link, LinkLost
from cli.restore import RestoreError, _load
from cli.status import NodeReport, ask_node, judge, parse_info, to_json, to_table
from cli.verify import DirectoryReport, verify, verify_backup
from cli.verify import to_table as to_verify_table
from database.client import DatabaseConfigError, new_client, redact
from raft.config import Member
from raft.core.membership import encode_configuration
from raft.storage import segments, snapshot_format
from raft.storage.errors import StorageError
from raft.storage.hard_state import encode_hard_state
from tests.fuzz import samples
from tests.fuzz.machine_targets import STREAM
from tests.fuzz.storage_targets import (
    FILES,
    HardState,
    _identity_seeds,
    seal_log,
    seal_snapshot,
    snapshot_bytes,
)
from tests.fuzz.target import Feed, Target, check, piece

MEMBERS = tuple(
    Member(id=n, host="127.0.0.1", raft_port=7100 + n, client_port=7200 + n, http_port=7300 + n)
    for n in (1, 2, 3)
)


# --- a server's answers -----------------------------------------------------------------------------------


class Scripted(redis.Connection):
    """A connection to a server that sends the next piece of the script for whatever it is asked, and behind
    the last one closes."""

    script: list[bytes] = []  # noqa: RUF012 - of the input that runs
    peers: list[socket.socket] = []  # noqa: RUF012 - closed behind it

    def _connect(self) -> socket.socket:
        ours, self._peer = socket.socketpair()
        ours.settimeout(WAIT_S)
        self.peers.append(self._peer)
        return ours

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        super().send_packed_command(command, check_health)
        if b"SETINFO" in b"".join(command if isinstance(command, list | tuple) else [command]):
            self._peer.sendall(b"+OK\r\n")  # redis-py introduces itself
        elif self.script:
            self._peer.sendall(self.script.pop(0))
        else:
            self._peer.close()


WAIT_S = 0.002  # for an answer that does not come


class ScriptedLink(Link):
    """A Link to such a server."""

    def __init__(self, address: tuple[str, int], timeout_s: float, *, text: bool = True) -> None:
        super().__init__(address, min(timeout_s, WAIT_S), text=text)
        self._client.connection_pool.connection_class = Scripted


@contextlib.contextmanager
def scripted(feed: Feed) -> Iterator[None]:
    """What is left of an input, piece by piece, is what servers send from now on."""
    Scripted.script = []
    while feed.more and len(Scripted.script) < 20:
        Scripted.script.append(feed.piece())
    try:
        yield
    finally:
        for each in Scripted.peers:
            each.close()
        Scripted.peers.clear()


def link(data: bytes) -> None:
    """Commands, a subscription and messages against any bytes: answers, or LinkLost."""
    feed = Feed(data)
    text = not feed.byte() & 1
    with scripted(feed), ScriptedLink(("127.0.0.1", 1), 1.0, text=text) as each:
        with contextlib.suppress(LinkLost):
            each.ask_all([["RAFT", "INFO"], ["PING"]])
        each.subscribe(["turns"])
        with contextlib.suppress(LinkLost):
            for _ in range(4):
                message = each.next_message(0.0)
                check(
                    message is None or not text or all(isinstance(part, str) for part in message), "no text"
                )


def _link_seeds() -> Iterator[bytes]:
    confirmed = b"*3\r\n$9\r\nsubscribe\r\n$5\r\nturns\r\n:1\r\n"
    turn = b"*3\r\n$7\r\nmessage\r\n$5\r\nturns\r\n$5\r\n7 100\r\n"
    for text in (0, 1):
        for info in (
            b"$5\r\na:1\r\n\r\n+PONG\r\n",
            b"-ERR no\r\n:5\r\n",
            b"*2\r\n$1\r\na\r\n$1\r\nb\r\n$-1\r\n",
        ):
            for kind in (0, 1):
                yield bytes([text]) + piece(info) + piece(confirmed + turn * kind)


class NoWaiting:
    """An Event that is never set, and on which nobody waits."""

    def is_set(self) -> bool:
        return False

    def wait(self, timeout_s: float) -> bool:
        check(timeout_s < 60, f"waits {timeout_s} s")
        return False


def follower(data: bytes) -> None:
    """A crew served by any server: it goes on to the next one. It does not fail."""
    feed = Feed(data)
    spam = feed.byte()
    followers = [Follower(f"f{n}", behaviour=Behaviour(spam=spam & 1)) for n in (1, 2)]
    crew = Crew(followers, [("127.0.0.1", 1)], timeout_s=1.0, patience_s=0.0)
    crew._stopping = NoWaiting()  # type: ignore[assignment]
    with scripted(feed), patch("cli.crew._LISTEN_S", 0):
        for _ in range(2):
            with contextlib.suppress(LinkLost, NextNode), ScriptedLink(("127.0.0.1", 1), 1.0) as each:
                crew._serve(each)
    for each_follower in followers:
        check(each_follower.join_at < 2**53, "banned for ever")


def _bulk(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _follower_seeds() -> Iterator[bytes]:
    names = (b"turns", b"rewards:f1", b"rewards:f2")
    confirmed = b"".join(
        b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (len(name), name, n + 1)
        for n, name in enumerate(names)
    )
    turns = b"".join(
        (_bulk(b"message", b"turns", b"8 1700000002000"), _bulk(b"message", b"rewards:f1", b"7 hit 10 10"))
    )
    current = _bulk(b"interval", b"7", b"opened_at", b"1700000000500", b"closed_at", b"")
    info = _bulk(b"joined_at", b"1700000000000", b"turn", b"7")
    for joins in (b"+OK\r\n+OK\r\n", b"+OK\r\n-BANNED 5000 ms left\r\n", b"-VERSION wants 2\r\n+OK\r\n"):
        for reports in (
            b"+OK\r\n+OK\r\n",
            b"-NOTURN no\r\n-BUSY later\r\n" + info + b"+OK\r\n",
            b"-ERR session expired\r\n-BANNED 9 s\r\n",
            b"-NOFOLLOWER x\r\n-CLUSTERDOWN y\r\n",
        ):
            answers = (confirmed + turns, joins, current, info * 2, reports, reports, joins, current, reports)
            for spam in (0, 1):
                yield bytes([spam]) + b"".join(map(piece, answers))


def backup_source(data: bytes) -> None:
    """The node that a backup is read from is any server: BackupError, or the bytes that it promised."""
    feed = Feed(data)
    at = cli.backup
    with (
        scripted(feed),
        patch.object(at, "Link", ScriptedLink),
        patch.object(at, "RESUME_PAUSE_S", 0),
    ):
        _, floor = at.find_source([("127.0.0.1", 1)])
        check(0 <= floor < 2**63, f"entry {floor}")
        source = Source(("127.0.0.1", 1), "1")
        try:
            opened = source.take(floor)
            total = sum(map(len, at._pieces(source, opened)))
            check(total == opened[2], "another length than it said")
        finally:
            source.close()


def _backup_seeds() -> Iterator[bytes]:
    info = b"node_id:1\r\napplied_index:7"
    read = (b":3\r\n", b":3\r\n", b"$%d\r\n%b\r\n" % (len(info), info), b"+OK\r\n")
    opened = b"*3\r\n:9\r\n:2\r\n:10\r\n"
    first, second, end = b"$6\r\nabcdef\r\n", b"$4\r\nghij\r\n", b"$0\r\n\r\n"
    for answers in (
        (opened, first, second, end),
        (opened, first, b"-ERR no backup of entry 9 is open on this node\r\n", opened, second, end),
        (opened, first, b"$100\r\nabc", second, end),
        (opened, b"-ERR no\r\n"),
        (b"*3\r\n:6\r\n:2\r\n:10\r\n", b"+OK\r\n"),
    ):
        yield b"".join(map(piece, (*read, *answers)))


# --- RAFT INFO as people and programs see it ------------------------------------------------------------


def status(data: bytes) -> None:
    """Texts that nodes give for RAFT INFO: there is a verdict, a table and JSON, whatever they say."""
    feed = Feed(data)
    flags = feed.byte()
    reports = tuple(
        NodeReport(
            member, parse_info(feed.piece().decode("utf-8", "replace")), "gone" if flags & 1 << n else None
        )
        for n, member in enumerate(MEMBERS)
    )
    cluster = judge(reports)
    check(cluster.leader in (None, 1, 2, 3), f"leader {cluster.leader}")
    to_json(cluster)
    table = to_table(cluster)
    if not flags & 0x30:
        Console(file=io.StringIO(), width=132).print(table)


def _status_seeds() -> Iterator[bytes]:
    text = (
        "# Raft\r\nnode_id:%d\r\nrole:%s\r\nterm:7\r\nleader_id:1\r\ncommit_index:41\r\napplied_index:40\r\n"
        "first_log_index:1\r\nlast_log_index:42\r\nvoters:1,2,3\r\ndatabase_lag:3\r\nuptime_s:93725.25\r\n"
    )
    infos = [(text % (n, "leader" if n == 1 else "follower")).encode() for n in (1, 2, 3)]
    for flags in (0, 0x11, 0x16, 0x10, 0x30):
        yield bytes([flags]) + b"".join(map(piece, infos))
    for line in (b"uptime_s:inf", b"term:--1", b"role:[/red]", b"term:123456789012345678901234567890"):
        yield b"\x10" + piece(infos[0] + line) + piece(infos[1]) + piece(line)
        yield b"\x00" + piece(infos[0] + line) + piece(infos[1]) + piece(line)


def ask(data: bytes) -> None:
    """A node that is asked for its status is any server: a report, never an exception."""
    with scripted(Feed(data)), patch("cli.status.Link", ScriptedLink):
        report = ask_node(MEMBERS[0], 1.0)
    check((report.problem is None) or not report.info, "a problem, and an answer")


def _ask_seeds() -> Iterator[bytes]:
    info = b"node_id:1\r\nterm:3"
    for answer in (b"$%d\r\n%b\r\n" % (len(info), info), b"-NOAUTH no\r\n", b":5\r\n", b"*1\r\n$-1\r\n"):
        yield piece(answer)


# --- files ----------------------------------------------------------------------------------------------


@functools.cache
def directory() -> Path:
    """Where this process puts what verify and restore read; in memory where there is such a place."""
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    _directories.append(made)  # gone with the process
    return Path(made.name)


_directories: list[tempfile.TemporaryDirectory[str]] = []


def _ignore(*_: Any) -> None:
    pass


def backup_file(data: bytes) -> None:
    """A backup: `verify` has a verdict and `restore` an error, or both find it sound. What can be restored
    verifies; what verifies is refused only for what the machine finds in it."""
    feed = Feed(data)
    content = seal_snapshot(feed.rest()) if feed.byte() & 0x80 else feed.rest()
    path = directory() / "backup"
    path.write_bytes(content)
    report = verify_backup(path, _ignore, _ignore)
    _shown(report)
    snapshot, machine = _load(path, _ignore, _ignore)
    check(report.sound and machine.applied_index == snapshot.header.index, "restored, though it is not sound")


def _backup_file_seeds() -> Iterator[bytes]:
    # The sample's header is of entry 9, the machine's stream of another: one of each is refused for that.
    for flags in (b"\x00", b"\x80"):
        yield flags + snapshot_bytes([STREAM])
        yield flags + _backup()
        yield flags + _backup()[:-20]


def _backup() -> bytes:
    machine = samples.machine()
    header = snapshot_format.SnapshotHeader(machine.applied_index, machine.applied_term, "test", b"\x90")
    encoder = snapshot_format.SnapshotEncoder(header)
    return b"".join([encoder.header(), encoder.chunk(STREAM), encoder.footer()])


def _shown(report: DirectoryReport) -> None:
    Console(file=io.StringIO(), width=160).print(to_verify_table(report))


def _snapshot() -> bytes:
    """One that agrees with the log beside it."""
    header = snapshot_format.SnapshotHeader(9, 2, "test", encode_configuration(samples.CONFIGURATION))
    encoder = snapshot_format.SnapshotEncoder(header)
    return b"".join([encoder.header(), encoder.chunk(b"one"), encoder.footer()])


_DATA: dict[str, bytes] = {
    "identity.json": next(iter(_identity_seeds())),
    "hard-state": encode_hard_state(HardState(7, 2)),
    snapshot_format.snapshot_name(9): _snapshot(),
    **FILES,
}


def data_directory(data: bytes) -> None:
    """A data directory, one file of which holds anything: `verify` has a report, or says what it is not."""
    feed = Feed(data)
    flags, content = feed.byte(), feed.rest()
    names = sorted(_DATA)
    name = names[flags % len(names)]
    if flags & 0x80:
        content = seal_log(content) if name in FILES else seal_snapshot(content)
    place = directory() / "node-1"
    place.mkdir(exist_ok=True)
    for each, sound in _DATA.items():
        if not (place / each).exists():
            (place / each).write_bytes(sound)
    (place / name).write_bytes(content)
    storage_log = logging.getLogger("raft.storage")
    level = storage_log.level
    storage_log.setLevel(logging.CRITICAL)  # as run_verify does
    try:
        report = verify(place, _ignore, _ignore)
        check(len(report.files) == len(_DATA), "a file is not reported")
        _shown(report)
    finally:
        storage_log.setLevel(level)
        (place / name).write_bytes(_DATA[name])


def _directory_seeds() -> Iterator[bytes]:
    for number, name in enumerate(sorted(_DATA)):
        for sealed in (0, 0x80 - 0x80 % len(_DATA) + len(_DATA)):
            yield bytes([sealed + number]) + _DATA[name]
            yield bytes([sealed + number]) + _DATA[name][:-9]


def names(data: bytes) -> None:
    """Names of files in a data directory: of an entry, or of none."""
    text = data.decode("utf-8", "surrogateescape")
    for index in (segments.first_index_of(text), snapshot_format.index_of(text)):
        check(index is None or 0 <= index < 10**20, f"entry {index}")
    segments.is_temporary(text)


def _name_seeds() -> Iterator[bytes]:
    yield from (name.encode() for name in _DATA)
    yield from (b"prealloc-3.tmp", segments.segment_name(2**63).encode(), b"log-00000000000000000001.seg")


# --- words from the shell and from config.yaml ---------------------------------------------------------


def arguments(data: bytes) -> None:
    """A command line: options, or exit 2 with the usage; never a traceback."""
    words = data.decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
    quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    with quiet[0], quiet[1]:
        try:
            options, _ = _parser().parse_known_args(words)
        except SystemExit as end:
            check(end.code in (0, 2), f"exit {end.code}")
            return
    check(options.id is None or options.id > 0, f"node {options.id}")


@functools.cache
def _parser() -> Any:
    return super_node.build_parser()


def _argument_seeds() -> Iterator[bytes]:
    yield b"--id\n1\n--config\nconfig.yaml"
    yield b"status\n--json\n--watch\n2"
    yield b"follower\n--id\nf1\n--connect\nlocalhost:7201,[::1]:7202\n--version\n1.0"
    yield b"demo\n--nodes\n3\n--followers\n12\n--data-dir\nx"
    yield b"backup\nfile\n--connect\n127.0.0.1:7201\n--force\n--json"
    yield b"restore\nfile\n--config\nx"
    yield b"verify\ndata/node-1\n--json"


SECRET = "Geheim7"


def database_uri(data: bytes) -> None:
    """A MongoDB address: a client, or an error in one line; with credentials their password is never told."""
    uri = data.decode("utf-8", "replace").replace("\ufffd", "?")
    scheme, _, rest = uri.partition("://")
    secret = f"{scheme}://user:{SECRET}@{rest}"
    check(SECRET not in redact(secret), f"{redact(secret)} tells the password")
    for each in (uri, secret):
        if each.startswith("mongodb+srv"):  # which asks a name server
            continue
        with warnings.catch_warnings(record=True):  # pymongo's, of options that stand there twice
            try:
                new_client(_Address(each)).close()
            except DatabaseConfigError as error:
                check("\n" not in str(error) and SECRET not in str(error), f"says {error}")


class _Address:
    def __init__(self, uri: str) -> None:
        self.uri = uri


def _uri_seeds() -> Iterator[bytes]:
    yield b"mongodb://127.0.0.1:27017"
    yield b"mongodb://h1:1,h2:2,[::1]:3/db?replicaSet=rs&w=1&readPreference=nearest"
    yield b"mongodb://h/?tls=true&tlsAllowInvalidCertificates=true&authSource=admin"
    yield b"mongodb://%2Ftmp%2Fx.sock/?w=majority&journal=false&wTimeoutMS=5&compressors=zlib"
    yield b"mongodb+srv://h.example.org/db?retryWrites=false"
    yield b"mongodb://h/?authMechanism=GSSAPI&authMechanismProperties=SERVICE_NAME:x&w=0"
    yield b"mongodb://h:99999/?readConcernLevel=majority&maxPoolSize=0&heartbeatFrequencyMS=1"


for _name in ("cli.crew", "cli.follower", "pymongo"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

_slow = {"bytes_per_byte": 2000, "suite_inputs": 60}  # hundreds a second

TARGETS = (
    Target("link", link, (LinkLost,), _link_seeds, max_bytes=1024, **_slow),
    Target("follower", follower, (), _follower_seeds, max_bytes=2048, **_slow),
    Target("backup-source", backup_source, (BackupError, LinkLost), _backup_seeds, max_bytes=1024, **_slow),
    Target("status", status, (), _status_seeds, max_bytes=1500, **_slow),
    Target("ask", ask, (), _ask_seeds, max_bytes=512, **_slow),
    Target("backup-file", backup_file, (RestoreError,), _backup_file_seeds, max_bytes=2048, **_slow),
    Target(
        *("data-directory", data_directory, (StorageError,), _directory_seeds),
        max_bytes=1024,
        few_bytes=8 << 20,  # it reads files in pieces of 1 MiB
        **_slow,
    ),
    Target("names", names, (), _name_seeds, max_bytes=64),
    Target("arguments", arguments, (), _argument_seeds, max_bytes=256, bytes_per_byte=5000),
    Target("database-uri", database_uri, (), _uri_seeds, max_bytes=256, bytes_per_byte=20000),
)
