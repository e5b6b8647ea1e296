"""The clients: they read, write and count through every node, and put down all they did and were told."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis

from tests.chaos.history import FAILED, OK, History, Operation

TIMEOUT_S = 5.0
REFUSED = ("CLUSTERDOWN", "BUSY")
Address = tuple[str, int]
_pack: Any = hiredis.pack_command


class NotSentError(Exception):
    """Nothing of the request has left: certainly not carried out."""


class LostError(Exception):
    """The connection broke, or no answer came: nobody knows the outcome."""


class Link:
    """A connection to one node."""

    def __init__(self, address: Address) -> None:
        try:
            self._socket = socket.create_connection(address, 1.0)
        except OSError as error:
            raise NotSentError(str(error)) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def ask(self, *commands: Sequence[str | int], timeout_s: float = TIMEOUT_S) -> list[Any]:
        """The replies to commands that are sent in one piece; errors are among them. LostError."""
        replies: list[Any] = []
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(b"".join(_pack(tuple(map(str, words))) for words in commands))
            while len(replies) < len(commands):
                data = self._socket.recv(65536)
                if not data:
                    raise LostError("closed by the node")
                self._reader.feed(data)
                while (reply := self._reader.gets()) is not False:
                    replies.append(reply)
        except TimeoutError as error:
            raise LostError("no answer") from error
        except OSError as error:
            raise LostError(str(error)) from error
        if len(replies) != len(commands):
            raise RuntimeError(f"{len(replies)} replies to {len(commands)} commands: {commands} {replies}")
        return replies

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._socket.close()


def code_of(reply: Any) -> str:
    """The first word of an error reply; empty for any other."""
    return str(reply).split(" ", 1)[0] if isinstance(reply, hiredis.ReplyError) else ""


@dataclass
class Targets:
    """Where the nodes are, and what the clients are to work on. Shared; replaced, never changed."""

    addresses: dict[int, Address]
    generation: int = 0


@dataclass
class Findings:
    """What clients saw that no healthy cluster shows. Appended to by all threads."""

    wrong: list[str] = field(default_factory=list)
    silences: list[tuple[int, int, int]] = field(default_factory=list)  # node, began, ended (no answer)


class Client:
    """A connection to some node, another one now and then; for one thread."""

    def __init__(self, name: str, seed: str, targets: Callable[[], Targets], findings: Findings) -> None:
        self.name, self.targets, self.findings = name, targets, findings
        self.rng = random.Random(f"{seed}:{name}")
        self.node = 0
        self.patience_s = TIMEOUT_S
        self._link: Link | None = None
        self.session, self.number = f"{seed}-{name}-{random.SystemRandom().getrandbits(40):x}", 0

    def hang_up(self) -> None:
        """Close the connection; the next request goes to a node chosen anew."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def ask(self, *commands: Sequence[str | int]) -> list[Any]:
        """See Link.ask; NotSentError when no node could be reached."""
        addresses = self.targets().addresses
        if self._link is not None and (self.node not in addresses or self.rng.random() < 0.03):
            self.hang_up()
        if self._link is None:
            self.node = self.rng.choice(sorted(addresses))
            self._link = Link(addresses[self.node])
        began = time.monotonic_ns()
        try:
            return self._link.ask(*commands, timeout_s=self.patience_s)
        except LostError as error:
            if str(error) == "no answer":
                self.findings.silences.append((self.node, began, time.monotonic_ns()))
            self.hang_up()
            raise

    def until_answered(self, words: Sequence[str | int], stop: Callable[[], bool]) -> tuple[Any, bool]:
        """A command under ONCE, sent again through other nodes until it is answered: (reply, True); or
        (None, False) when stop() says to give up."""
        self.number += 1
        once = ["ONCE", self.session, self.number, *words]
        while not stop():
            try:
                (reply,) = self.ask(once)
            except (NotSentError, LostError):
                reply = None
            if reply is not None and code_of(reply) not in (*REFUSED, "INDETERMINATE"):
                return reply, True
            self.hang_up()
            time.sleep(0.02 + self.rng.random() * 0.05)
        return None, False


class Worker(threading.Thread):
    """One client at work on registers, counters and pairs, until told to stop; it rests while told so."""

    def __init__(self, client: Client, history: History, stopped: threading.Event, pause_s: float) -> None:
        super().__init__(name=client.name, daemon=True)
        self.client, self.history, self._stopped, self._pause_s = client, history, stopped, pause_s
        self.resting = threading.Event()
        self.rest = threading.Event()
        self._last: dict[str, Any] = {}  # what was last read of a register
        self._written = 0

    def run(self) -> None:
        """The thread's body."""
        rng = self.client.rng
        kinds = (self._read, self._read, self._write, self._write, self._compare, self._set_new,
                 self._count, self._count_once, self._count_once, self._read_counter, self._pair)  # fmt: skip
        try:
            while not self._stopped.is_set():
                if self.rest.is_set():
                    self.resting.set()
                    self._stopped.wait(0.01)
                    continue
                self.resting.clear()
                rng.choice(kinds)()
                self._stopped.wait(rng.random() * self._pause_s)
        except Exception as error:  # noqa: BLE001 - a dead client must not pass for a quiet one
            self.client.findings.wrong.append(f"client {self.name} failed: {error!r}")
        finally:
            self.resting.set()
            self.client.hang_up()

    # --- what it does -------------------------------------------------------------------------------------

    def _key(self, kind: str, count: int) -> str:
        return f"{kind}:{self.client.targets().generation}:{self.client.rng.randrange(count)}"

    def _value(self) -> str:
        self._written += 1
        return f"{self.name}-{self._written}"

    def _read(self) -> None:
        key = self._key("r", 6)
        done = self._do(Operation(key, "get", None, 0), ["GET", key], text)
        if done.outcome == OK:
            self._last[key] = done.result

    def _write(self) -> None:
        key, value = self._key("r", 6), self._value()
        self._do(Operation(key, "set", value, 0), ["SET", key, value], accepted)

    def _set_new(self) -> None:
        key, value = self._key("n", 40), self._value()
        self._do(Operation(key, "setnx", value, 0), ["SET", key, value, "NX"], accepted)
        self._do(Operation(key, "get", None, 0), ["GET", key], text)

    def _compare(self) -> None:
        key, value = self._key("r", 6), self._value()
        expected = self._last.get(key)
        if expected is not None:
            words = ["SET", key, value, "IFEQ", expected]
            self._do(Operation(key, "ifeq", (expected, value), 0), words, accepted)

    def _count(self) -> None:
        key = self._key("c", 3)
        self._do(Operation(key, "incr", 1, 0), ["INCR", key], int)

    def _read_counter(self) -> None:
        key = self._key(self.client.rng.choice("co"), 3)
        self._do(Operation(key, "get", None, 0), ["GET", key], number)

    def _count_once(self) -> None:
        key = self._key("o", 3)
        operation = Operation(key, "incr", 1, time.monotonic_ns(), client=self.name)
        reply, answered = self.client.until_answered(["INCR", key], self._stopped.is_set)
        operation.ended = time.monotonic_ns()
        operation.node = self.client.node
        if answered and not code_of(reply):
            operation.outcome, operation.result = OK, reply
        elif answered:
            self.client.findings.wrong.append(f"ONCE INCR answered {reply}")
        self.history.add(operation)

    def _pair(self) -> None:
        """Two keys that are only written together must only be read as equals."""
        key, value = self._key("m", 3), self._value()
        writes = self.client.rng.random() < 0.5
        inside = (
            [["SET", f"{key}:a", value], ["SET", f"{key}:b", value]]
            if writes
            else [["GET", f"{key}:a"], ["GET", f"{key}:b"]]
        )
        operation = Operation(key, "set" if writes else "get", value if writes else None, 0)

        def result(reply: Any) -> Any:
            if writes:
                return True
            if reply[0] != reply[1]:
                self.client.findings.wrong.append(
                    f"half a transaction: {key} {reply} at node {self.client.node}"
                )
            return text(reply[0])

        self._do(operation, ["MULTI"], result, *inside, ["EXEC"])

    # --- and how it is put down ---------------------------------------------------------------------------

    def _do(
        self, operation: Operation, words: Sequence[Any], result: Callable[[Any], Any], *more: Sequence[Any]
    ) -> Operation:
        """Carry out and record; of several commands the last one's reply counts."""
        operation.client = self.name
        operation.began = time.monotonic_ns()
        reply: Any = None
        try:
            replies = self.client.ask(words, *more)
            reply = replies[-1]
            if (code := code_of(reply)) in REFUSED or (code == "EXECABORT" and self._aborted(replies)):
                operation.outcome, operation.error = FAILED, code
            elif code == "INDETERMINATE":
                operation.error = code
            elif code:
                self.client.findings.wrong.append(f"unexpected answer to {words}: {reply}")
            else:
                operation.outcome, operation.result = OK, result(reply)
        except NotSentError:
            operation.outcome, operation.error = FAILED, "not sent"
        except LostError as error:
            operation.error = str(error)
        operation.ended = time.monotonic_ns()
        operation.node = self.client.node
        self.history.add(operation)
        if operation.outcome != OK:
            self.client.hang_up()
            time.sleep(0.02 + self.client.rng.random() * 0.05)
        return operation

    @staticmethod
    def _aborted(replies: Sequence[Any]) -> bool:
        return any(code_of(reply) in REFUSED for reply in replies)


def text(reply: Any) -> str | None:
    """A value as str."""
    return reply.decode() if reply is not None else None


def number(reply: Any) -> int | None:
    """A counter's value."""
    return int(reply) if reply is not None else None


def accepted(reply: Any) -> bool:
    """Whether SET was carried out."""
    return reply is not None
