"""MULTI, EXEC, DISCARD, WATCH and UNWATCH: a connection's side of transactions.

Between MULTI and EXEC commands are only looked up and queued here; EXEC hands them to the worker as one
command, ~EXEC, which stands in the log as one entry's command and is carried out in one piece on every node.
WATCH asks the worker for ~VERSION, a linearizable read: the applied index that the watched keys must not
change after. EXEC compares in the log. A transaction ends with EXEC whatever EXEC answers: after BUSY or
CLUSTERDOWN, which mean that it was not carried out, it must be sent again from MULTI (or WATCH) on.

What may stand in a transaction: reads and writes, but for ONCE and RAFT DIGEST, and what the machine answers
itself (raft/machine/transactions.py: PING ECHO SELECT TIME UNWATCH READONLY READWRITE ASKING). QUIT and RESET
act at once, as in Redis. Anything else is refused, and EXEC then answers EXECABORT: Redis would carry out
SUBSCRIBE, HELLO or INFO inside EXEC, but the log cannot, for they are about one connection or one node.
"""

from __future__ import annotations

from functools import partial

from raft.clients.batch import OnDone
from raft.clients.connection import Connection
from raft.clients.requests import encoded_length
from raft.clients.resp import NULL_BYTES, OK_BYTES
from raft.machine.commands import CommandSpec, Kind
from raft.machine.transactions import encode_transaction, may_stand_inside
from raft.replies import OK, Error, Reply, Simple

MAX_COMMANDS = 16_384  # the worker carries them out in one piece: about 20 ms
MAX_BYTES = 4 * 1024 * 1024  # of a transaction, watched keys included; it must fit into a frame between nodes
_NULL_ARRAY = b"*-1\r\n"

_QUEUED = Simple("QUEUED")
_ABORTED = Error("EXECABORT Transaction discarded because of previous errors.")
_NOT_INSIDE = Error("ERR Command not allowed inside a transaction")
_TOO_LARGE = Error(f"ERR a transaction may have at most {MAX_COMMANDS} commands and {MAX_BYTES} bytes")
_TOO_MANY_WATCHED = Error(f"ERR the watched keys may have at most {MAX_BYTES} bytes")
_WORDS = frozenset((b"MULTI", b"EXEC", b"DISCARD", b"WATCH"))
_AT_ONCE = frozenset((*_WORDS, b"QUIT", b"RESET"))  # the commands that MULTI does not queue


class Queue:
    """What was queued since MULTI. size: bytes; aborted: EXEC will refuse, so nothing more is kept."""

    __slots__ = ("aborted", "commands", "size")

    def __init__(self, size: int) -> None:
        self.commands: list[list[bytes]] = []
        self.size = size
        self.aborted = False

    def abort(self, error: Error) -> Error:
        """Something was refused."""
        self.aborted = True
        self.commands = []
        return error


class Ask:
    """What the worker is to answer instead. watch: it is a WATCH, whose keys are noted with the answer."""

    __slots__ = ("watch", "words")

    def __init__(self, words: list[bytes], watch: bool = False) -> None:
        self.words = words
        self.watch = watch


def queue_instead(connection: Connection, spec: CommandSpec | Error, args: list[bytes]) -> Reply:
    """Inside MULTI: queues a command, or refuses it; None for what acts at once (`act`, QUIT, RESET)."""
    queue = connection.queue
    assert queue is not None  # the caller has looked
    if isinstance(spec, Error):
        return refused(connection, spec, args)
    if spec.name in _AT_ONCE:
        return None
    if not may_stand_inside(spec.name, spec.kind in (Kind.READ, Kind.WRITE)):
        return queue.abort(_NOT_INSIDE)
    if not queue.aborted:
        queue.size += encoded_length(args)
        if queue.size > MAX_BYTES or len(queue.commands) == MAX_COMMANDS:
            return queue.abort(_TOO_LARGE)
        queue.commands.append(args)
    return _QUEUED


def refused(connection: Connection, error: Error, args: list[bytes]) -> Error:
    """What a command that `lookup` refuses is answered; EXEC with words too many ends the transaction."""
    if args[0].upper() == b"EXEC":
        _end(connection)
        return Error(f"EXECABORT Transaction discarded because of: {error.removeprefix('ERR ')}")
    return error if connection.queue is None else connection.queue.abort(error)


def act(connection: Connection, spec: CommandSpec, args: list[bytes]) -> Reply | Ask:
    """Answers a Kind.TRANSACTION command, or says what to ask the worker."""
    name, queue = spec.name, connection.queue
    if name == b"MULTI":
        if queue is not None:
            return Error("ERR MULTI calls can not be nested")
        connection.queue = Queue(sum(map(len, connection.watched)))
        return OK
    if name == b"WATCH":
        if queue is not None:
            return Error("ERR WATCH inside MULTI is not allowed")
        if sum(map(len, connection.watched)) + sum(map(len, args)) > MAX_BYTES:
            return _TOO_MANY_WATCHED
        return Ask([b"~VERSION"], watch=True)
    if name == b"UNWATCH":
        connection.watched = {}
        return OK
    if queue is None:
        return Error(f"ERR {name.decode('ascii')} without MULTI")
    watched = connection.watched
    _end(connection)
    if name == b"DISCARD":
        return OK
    if queue.aborted:
        return _ABORTED
    if not queue.commands and not watched:
        return []
    return Ask([b"~EXEC", encode_transaction(watched.items(), queue.commands)])


def _end(connection: Connection) -> None:
    """The transaction is over: nothing is queued or watched any more."""
    connection.queue = None
    connection.watched = {}


def receiver(connection: Connection, execs: list[int], watch: list[bytes] | None) -> OnDone:
    """What takes the answers of a batch with transactions in it.

    execs: the slots of ~EXEC. watch: the words of a WATCH if its ~VERSION is in the last slot.
    """
    return partial(_receive, connection, execs, watch) if execs or watch else connection.deliver


def _receive(
    connection: Connection, execs: list[int], watch: list[bytes] | None, answers: list[bytes]
) -> None:
    """On the thread of whoever answered: the handler does not look at the connection before deliver()."""
    for slot in execs:
        if answers[slot] == NULL_BYTES[2]:
            answers[slot] = _NULL_ARRAY  # in RESP2 EXEC's null is one of an array; RESP3 has only one null
    if watch is not None and answers[-1].startswith(b":"):
        index = int(answers[-1][1:])
        for key in watch[1:]:
            connection.watched.setdefault(key, index)  # of two WATCHes the earlier one counts
        answers[-1] = OK_BYTES
    connection.deliver(answers)
