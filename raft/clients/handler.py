"""A handler thread: serves many client connections through one epoll.

It reads, parses, answers what can be answered here and hands the rest to the backend, one batch a connection
at a time. Answers are sent by whoever has the last of them (Connection.deliver); this thread sends what it
answered itself, pub/sub messages, and what a full socket left over.

epoll is edge-triggered: an event only sets Connection.waiting, and input is read when the connection is free.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from raft.clients.batch import Batch
from raft.clients.connection import LARGE_ANSWERS, Connection
from raft.clients.dispatch import (
    ALLOWED_WHILE_SUBSCRIBED,
    BARRIERS,
    HOT,
    HotRow,
    answer_here,
    once_error,
)
from raft.clients.pubsub import Subscriptions
from raft.clients.requests import FastReader, RequestParser
from raft.clients.resp import encode_reply
from raft.clients.shared import Raw, ServerState
from raft.clients.single import BUSY, submit_single
from raft.clients.transactions import Ask, act, queue_instead, receiver, refused
from raft.machine.commands import SLOW_READS, CommandSpec, Kind, lookup
from raft.replies import Error, Reply
from raft.syscalls import Buffer, WakeUp, receive_bytes

log = logging.getLogger(__name__)

READ_BYTES = 65536
MAX_BATCH_COMMANDS = 1024
_ROUNDS = 8  # reads or batches of one connection before others get their turn
_MAX_NEWS = 100_000  # published messages that wait for this thread
_NEWS_S = 0.005  # how long it delivers some in one turn
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_HANGUP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_NO_ROWS: dict[bytes, HotRow] = {}

OnFatal = Callable[[str, BaseException], None]
_News = tuple[bytes, bytes]


class _Plan:
    """What becomes of one connection's backlog: answers, and what the worker is to answer.

    muted: RESP2 and subscribed. hot: plain reads and writes need no closer look. writes: those of the slow
    path. execs, watch: see raft.clients.transactions.receiver.
    """

    __slots__ = ("answers", "execs", "hot", "muted", "operations", "watch", "writes")

    def __init__(self, connection: Connection) -> None:
        self.answers: list[bytes | None] = []
        self.operations: list[tuple[int, list[bytes]]] = []
        self.writes = 0
        self.muted = connection.protocol == 2 and connection.subscribed
        self.hot = not self.muted and connection.queue is None
        self.execs: list[int] = []
        self.watch: list[bytes] | None = None

    def ask(self, words: list[bytes], writes: bool) -> None:
        """One more operation for the worker."""
        self.operations.append((len(self.answers), words))
        self.answers.append(None)
        self.writes += writes


class Handler:
    """One thread and its connections. Public methods may be called by any thread."""

    def __init__(self, name: str, server: ServerState, on_fatal: OnFatal) -> None:
        """on_fatal(thread name, exception) is called if the thread's loop itself fails: a bug."""
        self.subscriptions = Subscriptions()
        self._server = server
        self._on_fatal = on_fatal
        self._connections: dict[int, Connection] = {}  # by file descriptor
        self._fast = FastReader()
        self._buffer = Buffer(READ_BYTES)
        self._inbox: deque[Connection] = deque()  # new, or to be looked at
        self._news: deque[_News] = deque(maxlen=_MAX_NEWS + 1)
        self._signalled = False
        self._stop_at: float | None = None  # time.monotonic()
        self._stopping = False  # the thread itself has begun to stop
        self._epoll = select.epoll()
        self._wake_up = WakeUp()
        self._epoll.register(self._wake_up.fd, select.EPOLLIN)
        self._own_thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._own_thread.start()

    def stop(self, deadline: float) -> None:
        """Tells the thread to finish what is under way and to end, at the latest when time.monotonic() is
        `deadline`."""
        self._stop_at = deadline
        self._wake()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread; False if it still runs."""
        if self._own_thread.ident is not None:
            self._own_thread.join(timeout_s)
        return not self._own_thread.is_alive()

    @property
    def load(self) -> int:
        """How many connections it serves."""
        return len(self._connections) + len(self._inbox)

    def adopt(self, sock: socket.socket, address: str, number: int) -> None:
        """Makes a connected socket one of this thread's clients."""
        parser = RequestParser(self._server.settings.limits.max_request_bytes, self._fast)
        connection = Connection(sock, address, number, self, parser)
        self._server.connections[number] = connection
        self.poke(connection)

    def poke(self, connection: Connection) -> None:
        """Lets the thread look at this connection soon."""
        self._inbox.append(connection)
        self._wake()

    def publish(self, channel: bytes, payload: bytes) -> None:
        """Hands a message to this thread's subscribers."""
        self._news.append((channel, payload))
        self._wake()

    def _wake(self) -> None:
        # Append first, then look at the flag; the thread clears the flag first and then empties its queues.
        if not self._signalled:
            self._signalled = True
            self._wake_up.signal()

    # Everything below runs on the thread itself.

    def _run(self) -> None:
        try:
            while not self._finished():
                self._turn()
        except BaseException as error:
            log.exception("thread %s failed", self._own_thread.name)
            self._on_fatal(self._own_thread.name, error)
        finally:
            for connection in tuple(self._connections.values()):
                self._close(connection)
            self._epoll.close()

    def _turn(self) -> None:
        """Waits for something to happen and sees to all that has."""
        timeout = -1.0 if self._stop_at is None else max(0.0, self._stop_at - time.monotonic())
        if self._news:  # left over by the last turn
            timeout = 0.0
        for fd, events in self._epoll.poll(timeout):
            if fd == self._wake_up.fd:
                self._wake_up.clear()
                self._signalled = False
                continue
            connection = self._connections.get(fd)
            if connection is not None:
                connection.waiting = True
                if events & _HANGUP:
                    connection.hangup = True
                self._look_at(connection)
        for _ in range(len(self._inbox)):
            self._look_at(self._inbox.popleft())
        if self._news:
            self._deliver_news()

    def _look_at(self, connection: Connection) -> None:
        """Whatever goes wrong with one connection ends that connection, and no other."""
        try:
            if connection.closed:
                return
            if not connection.registered:
                self._register(connection)
            if connection.output_bytes:
                connection.flush()
            if connection.waiting and not self._stopping and connection.idle:
                self._serve_single(connection)
            else:
                self._process(connection)
        except Exception:
            log.exception("%r: closed after an error in its handler", connection)
            self._close(connection)

    def _register(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        self._connections[fd] = connection
        connection.registered = True
        connection.waiting = True
        self._epoll.register(fd, _EVENTS)

    def _process(self, connection: Connection) -> None:
        """Takes a connection as far as it goes: until it has a batch under way, or nothing more to say."""
        rounds = 0
        while connection.failure is None and not connection.busy and not connection.output_bytes:
            if connection.closing or self._stopping:
                self._close(connection)
                return
            if not connection.backlog:
                connection.backlog = _take_batch(connection)
            if connection.backlog:
                self._execute(connection)
            elif connection.parser.error is not None:
                connection.closing = True
                connection.send(encode_reply(Error(f"ERR {connection.parser.error}"), connection.protocol))
            elif not self._read(connection):
                return
            rounds += 1
            if rounds == _ROUNDS:
                self.poke(connection)
                return
        if connection.failure is not None:
            log.warning("%r: dropped: %s", connection, connection.failure)
            self._close(connection)

    def _serve_single(self, connection: Connection) -> None:
        """Reads once; the short way for what is one plain command, the long one for all else."""
        data = self._receive(connection)
        if data and not submit_single(connection, data, self._server):
            connection.parser.feed(data)
            self._process(connection)

    def _read(self, connection: Connection) -> bool:
        """Reads once. False when nothing was there (or the connection is closed now)."""
        if not connection.waiting:
            return False
        data = self._receive(connection)
        if data:
            connection.parser.feed(data)
        return bool(data)

    def _receive(self, connection: Connection) -> bytes:
        """What one read gives; nothing if nothing was there or the connection is closed now."""
        try:
            data = receive_bytes(connection.sock, self._buffer)
        except (BlockingIOError, InterruptedError):
            connection.waiting = False
            return b""
        except OSError as error:
            log.debug("%r: reading failed: %s", connection, error.strerror)
            data = b""
        if not data:
            self._close(connection)
            return b""
        # Less than asked for: the kernel has no more, and epoll will tell of what comes later.
        connection.waiting = connection.hangup or len(data) == READ_BYTES
        return data

    def _execute(self, connection: Connection) -> None:
        """Answers or submits the backlog, up to the first command that must see everything before it done."""
        commands = connection.backlog
        plan = _Plan(connection)
        answers, operations = plan.answers, plan.operations
        writes = 0
        hot, slot = (HOT if plan.hot else _NO_ROWS).get, 0
        for args in commands:
            row = hot(args[0])
            if row is not None and row[0] <= len(args) <= row[1]:
                operations.append((slot, args))
                answers.append(None)
                writes += row[2]
                slot += 1
            elif self._plan(connection, plan, args):
                break
            else:
                hot, slot = (HOT if plan.hot else _NO_ROWS).get, len(answers)
        done = len(answers)
        connection.last_s = time.monotonic()
        connection.last_command = commands[done - 1][0] if done else commands[0][0]
        connection.backlog = commands[done:] if done < len(commands) else []
        self._server.commands += done
        if operations:
            on_done = receiver(connection, plan.execs, plan.watch)
            writes += plan.writes
            self._submit(connection, Batch(connection.protocol, operations, writes, answers, on_done))
        else:
            connection.send(b"".join(answers))  # type: ignore[arg-type]  # without operations none is None

    def _plan(self, connection: Connection, plan: _Plan, args: list[bytes]) -> bool:
        """Answers or notes one command that is not a plain read or write. True: nothing may follow it now
        (and without an answer: nor may it itself).
        """
        spec = lookup(args)
        if connection.queue is not None:
            queued = queue_instead(connection, spec, args)
            if queued is not None:
                plan.answers.append(encode_reply(queued, connection.protocol))
                plan.hot = connection.queue is None
                return False
        if isinstance(spec, Error):
            plan.answers.append(encode_reply(refused(connection, spec, args), connection.protocol))
            return False
        if spec.name in BARRIERS:
            if not plan.operations:
                plan.answers.append(self._answer(connection, spec, args, plan.muted))
            return True
        if not plan.muted:
            if spec.kind is Kind.TRANSACTION:
                return self._transact(connection, plan, spec, args)
            if spec.kind is Kind.CONTROL or (spec.kind is Kind.READ and args[0].upper() in SLOW_READS):
                if not plan.operations:  # a batch of its own: past the log, or one a turn
                    plan.ask(args, writes=spec.kind is Kind.CONTROL)
                return True
            if spec.kind is Kind.READ or spec.kind is Kind.WRITE:
                error = once_error(args) if spec.name == b"ONCE" else None
                if error is None:
                    plan.ask(args, spec.kind is Kind.WRITE)
                else:
                    plan.answers.append(encode_reply(error, connection.protocol))
                return False
        plan.answers.append(self._answer(connection, spec, args, plan.muted))
        return False

    def _transact(self, connection: Connection, plan: _Plan, spec: CommandSpec, args: list[bytes]) -> bool:
        """The same for MULTI, EXEC, DISCARD, WATCH and UNWATCH."""
        watches = spec.name == b"WATCH"
        if watches and plan.operations:  # a read of its own: what follows needs its answer
            return True
        done = act(connection, spec, args)
        plan.hot = connection.queue is None
        if not isinstance(done, Ask):
            plan.answers.append(encode_reply(done, connection.protocol))
            return False
        if watches:
            plan.watch = args
        else:
            plan.execs.append(len(plan.answers))
        plan.ask(done.words, writes=not watches)
        return watches

    def _answer(
        self, connection: Connection, spec: CommandSpec | Error, args: list[bytes], muted: bool
    ) -> bytes:
        """The encoded answer of a command that needs no worker."""
        reply: Reply | Raw
        if isinstance(spec, Error):
            reply = spec
        elif muted and spec.name not in ALLOWED_WHILE_SUBSCRIBED:
            reply = Error(
                f"ERR Can't execute '{spec.shown_name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / "
                "QUIT / RESET are allowed in this context"
            )
        else:
            reply = answer_here(spec, connection, args, self._server)
        return reply if type(reply) is Raw else encode_reply(reply, connection.protocol)

    def _submit(self, connection: Connection, batch: Batch) -> None:
        # What is parsed but not executed counts as input too: nobody but the poke would come back to it.
        if connection.backlog or connection.parser.ready:
            connection.waiting = True
        connection.busy = True  # before submit: the answer may come before submit returns
        if not self._server.backend.submit(batch):
            batch.fail(BUSY)

    def _deliver_news(self) -> None:
        if len(self._news) > _MAX_NEWS:
            # Some are lost. A subscriber that is cut off knows it missed something; a silent gap would lie.
            self._news.clear()
            for connection in self.subscriptions.subscribers():
                log.warning("%r: dropped: more than %d messages wait to be published", connection, _MAX_NEWS)
                self._close(connection)
        until = time.monotonic() + _NEWS_S
        while self._news:
            self.subscriptions.deliver(*self._news.popleft())
            if time.monotonic() >= until:
                break  # commands come between: a client may have 10,000 patterns, a close as many messages

    def _close(self, connection: Connection) -> None:
        if connection.closed:
            return
        self.subscriptions.remove(connection)
        self._server.connections.pop(connection.number, None)
        if connection.registered:
            fd = connection.sock.fileno()
            self._connections.pop(fd, None)
            self._epoll.unregister(fd)
        connection.close()

    def _finished(self) -> bool:
        """Whether the thread may end; on its way there it closes whoever has nothing under way."""
        if self._stop_at is None:
            return False
        if not self._stopping:
            self._stopping = True
            for connection in (*self._connections.values(), *self._inbox):
                connection.waiting = True  # so that deliver() pokes; see there
                self._look_at(connection)
        if not self._connections and not self._inbox:
            return True
        if time.monotonic() < self._stop_at:
            return False
        log.warning("%s: %d clients cut off in mid-request", self._own_thread.name, len(self._connections))
        return True


def _take_batch(connection: Connection) -> list[list[bytes]]:
    """The next commands: more at a time while answers are small, fewer where values are large.

    Output is held back only between batches, so a client that does not read costs the answers of one batch.
    """
    limit, size = connection.batch_limit, connection.answered_bytes
    if size > LARGE_ANSWERS:
        connection.answered_bytes = 0  # judged; no batch is under way now
        limit = max(1, connection.batch_size * LARGE_ANSWERS // size)
    commands = connection.parser.take(limit)
    connection.batch_size = len(commands)
    connection.batch_limit = min(limit * 2, MAX_BATCH_COMMANDS) if len(commands) == limit else limit
    return commands
