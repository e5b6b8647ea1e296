"""The replicated state machine: values and ledger, changed only by applying log entries in order.

Deterministic: the same entries give the same state and replies on every node (paper section 2); time is
the leader's stamp inside the entry, never this node's clock. Nothing here is kept on disk: a restarted
node applies its log again. What stands in the log is never refused by an exception because of its
arguments, for such an entry would stop every node for ever; it gets an Error reply, the same on every
node. Only an entry that this version cannot understand raises: to go on would be to diverge.

Owner: the raft worker thread; no method may be called by another.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator

from ledger.ledger import Context, Hasher, Ledger
from raft.core.entry import Entry, EntryKind
from raft.machine.arguments import RefusedError
from raft.machine.batch import decode_batch, decode_commands
from raft.machine.commands import COMMANDS, Kind, word_bounds, wrong_arity
from raft.machine.keyvalue import LONGEST_VALUE, KeyValue
from raft.machine.sessions import SessionTable, fingerprint, lane_fingerprint, session_and_number
from raft.machine.snapshot import Progress, dump, load_into
from raft.machine.transactions import HERE, decode_transaction
from raft.replies import OK, Error, Reply, size_of

_Handler = Callable[[list[bytes]], Reply]
_Row = tuple[_Handler, int, int]  # what executes a command, its fewest and its most words
_Rows = dict[bytes, _Row]

_COMMANDS = EntryKind.COMMANDS.value  # a plain number: a comparison with an enum costs as much as a SET
_SMALL_ANSWERS_BYTES = 1 << 20  # what fits beside the largest value
_LEFT_OUT = Error("ERR the command was carried out, but with its answer that of all would be too large")
_DIGEST_AT_END = Error("ERR digest")  # takes the digest's place until the whole entry is applied


class MachineError(Exception):
    """The machine was given what it cannot apply or answer. Fatal: the node must stop."""


class OutOfOrderError(MachineError):
    """An entry that does not follow the last one applied."""


class UnknownCommandError(MachineError):
    """A command that this version does not know, perhaps from a newer one, or no read where one must be."""


class Machine:
    """Applies entries and answers reads. cluster_name is part of the digest.

    kv, ledger, sessions: the state. applied_index, applied_term: of the last entry applied (0 before the
    first).
    """

    __slots__ = (
        "_digest_asked",
        "_digest_due",
        "_lane_rows",
        "_once_rows",
        "_quiet_rows",
        "_read_rows",
        "_rows",
        "_transaction_rows",
        "applied_index",
        "applied_term",
        "cluster_name",
        "kv",
        "ledger",
        "sessions",
    )

    def __init__(self, cluster_name: str) -> None:
        self.cluster_name = cluster_name
        self.kv = KeyValue()
        self.ledger = Ledger()
        self.sessions = SessionTable()
        self.applied_index = 0
        self.applied_term = 0
        self._digest_asked = False
        self._digest_due = False
        reads, writes = self._value_rows(Kind.READ), self._value_rows(Kind.WRITE)
        system = self._system_rows()
        self._once_rows: _Rows = {
            **reads,
            **writes,
            **_containers(self._ledger_command, self._no_digest_inside),
        }
        self._transaction_rows = {**self._once_rows, **_rows_of(HERE), b"TIME": (self._time, 1, 1)}
        once = (self._once, *word_bounds(COMMANDS[b"ONCE"])[:2])  # it is always carried out, reads too
        writes |= {b"ONCE": once, b"once": once}
        self._lane_rows = {**self._once_rows, b"ONCE": once, b"once": once, b"~EXEC": (self._exec, 2, 2)}
        self._rows = {**reads, **writes, **system, **_containers(self._ledger_command, self._digest_later)}
        self._quiet_rows: _Rows = {
            **{name: (_nothing, fewest, most) for name, (_, fewest, most) in reads.items()},
            **writes,
            **system,
            **_containers(self._ledger_write, self._no_digest),
        }
        self._read_rows = {
            **reads,
            **_containers(self._ledger_read, self._digest_now),
            b"~VERSION": (self._version, 1, 1),
        }

    @property
    def at_ms(self) -> int:
        """The log's time: the latest stamp applied, ms since the epoch."""
        return self.kv.at_ms

    # --- applying ---

    def apply(self, entry: Entry, want_replies: bool = True) -> list[Reply]:
        """Applies the next entry. One reply per command of a COMMANDS entry, in order; [] for other kinds.

        want_replies=False leaves out pure reads and returns []. Raises OutOfOrderError, UnknownCommandError
        and BatchFormatError; all of them are fatal.
        """
        if entry.kind == _COMMANDS:
            batch = decode_batch(entry.data)
            return self.apply_commands(entry.index, entry.term, batch.at_ms, batch.commands, want_replies)
        if entry.kind not in (EntryKind.NOOP, EntryKind.CONFIGURATION):
            raise UnknownCommandError(f"entry {entry.index} is of the unknown kind {entry.kind}")
        if entry.index != self.applied_index + 1:
            raise self._out_of_order(entry.index)
        self.applied_index, self.applied_term = entry.index, entry.term
        return []

    def apply_commands(
        self, index: int, term: int, at_ms: int, commands: list[list[bytes]], want_replies: bool = True
    ) -> list[Reply]:
        """The same for a COMMANDS entry whose commands are at hand. at_ms: the leader's stamp."""
        if index != self.applied_index + 1:
            raise self._out_of_order(index)
        self.applied_index = index
        self.applied_term = term
        self.kv.advance(at_ms, index)
        rows = self._rows if want_replies else self._quiet_rows
        replies: list[Reply] = []
        for words in commands:
            row = rows.get(words[0]) or rows.get(words[0].upper())
            if row is None:
                raise UnknownCommandError(f"entry {index} holds the unknown command {words[0][:64]!r}")
            handler, fewest, most = row
            if fewest <= len(words) <= most:
                try:
                    replies.append(handler(words))
                except RefusedError as refused:
                    replies.append(refused.error)
            else:
                replies.append(_wrong_arity(words))
        if self._digest_asked:
            self._digest_asked = False
            answer: Reply = [index, self.digest()]
            replies = [answer if reply is _DIGEST_AT_END else reply for reply in replies]
        return replies if want_replies else []

    def _out_of_order(self, index: int) -> OutOfOrderError:
        return OutOfOrderError(f"entry {index} after entry {self.applied_index}")

    # --- reading ---

    def read(self, args: list[bytes], now_ms: int) -> Reply:
        """The reply to a Kind.READ command at the state as applied. now_ms: this node's clock, for TTL and
        PTTL.

        Raises UnknownCommandError for any other command: only a bug sends one here.
        """
        row = self._read_rows.get(args[0]) or self._read_rows.get(args[0].upper())
        if row is None:
            raise UnknownCommandError(f"{args[0][:64]!r} is not a read")
        handler, fewest, most = row
        if not fewest <= len(args) <= most:
            return _wrong_arity(args)
        self.kv.reader_ms = now_ms
        try:
            return handler(args)
        except RefusedError as refused:
            return refused.error

    def next_expiry_ms(self) -> int | None:
        """When the next key is due, ms since the epoch: the leader then proposes ~EXPIRE. None: no key is."""
        return self.kv.next_expiry_ms()

    def take_events(self) -> list[tuple[str, str]]:
        """(channel, payload) of everything that happened in the ledger since the last call."""
        return self.ledger.take_events()

    def digest(self) -> str:
        """SHA-256 (hex) of all replicated state: equal on all nodes that applied the same entries.

        Covers the cluster's name, applied index and term, the log's time, values and times of expiry in their
        (replicated) order, versions, the sessions and the ledger. Takes 0.3 to 1 s for a million keys.
        """
        hasher = hashlib.sha256()
        self.digest_into(hasher)
        return hasher.hexdigest()

    def digest_into(self, hasher: Hasher) -> None:
        """Give the same to a hash that was made before: see raft/runtime/digesting.py. Raises InvariantError
        if the ledger contradicts itself."""
        head = f"{self.cluster_name}\n{self.applied_index} {self.applied_term} {self.at_ms}\n"
        hasher.update(head.encode())
        self.kv.feed(hasher.update)
        self.sessions.feed(hasher.update)
        self.ledger.digest_into(hasher)

    def take_digest_due(self) -> bool:
        """Whether the entries applied since the last call held ~DIGEST: all members are to compare their
        digests after that entry."""
        due, self._digest_due = self._digest_due, False
        return due

    # --- snapshots ---

    def dump(self, on_progress: Progress | None = None) -> Iterator[bytes]:
        """The complete state in chunks of at most 256 KiB: raft/machine/snapshot.py. The machine must not
        change meanwhile. on_progress(rows done, rows in all)."""
        return dump(self, on_progress)

    @classmethod
    def load(cls, cluster_name: str, chunks: Iterable[bytes], on_progress: Progress | None = None) -> Machine:
        """A machine with the state that gave these chunks; pieces of any other size will do as well.

        Raises SnapshotFormatError, SnapshotVersionError, SnapshotClusterError, and whatever chunks raises.
        """
        machine = cls(cluster_name)
        load_into(machine, chunks, on_progress)
        return machine

    def become(self, other: Machine) -> None:
        """Takes over the state of another, just loaded, which must not be used any more. Events not yet taken
        are lost with the old state."""
        self.kv.become(other.kv)
        self.ledger, self.sessions = other.ledger, other.sessions
        self.applied_index, self.applied_term = other.applied_index, other.applied_term
        self._digest_due = False

    # --- what executes what ---

    def _value_rows(self, kind: Kind) -> _Rows:
        """Rows of KeyValue's commands of one kind, under their upper-case and lower-case names."""
        return {case: (getattr(self.kv, name), few, most) for case, name, few, most in _VALUE_ROWS[kind]}

    def _system_rows(self) -> _Rows:
        """Rows of what no client can send."""
        rows: _Rows = dict.fromkeys(_LEDGER_SYSTEM, (self._ledger_system, 1, sys.maxsize))
        rows[b"~EXPIRE"] = (_expired, 1, 1)
        rows[b"~DIGEST"] = (self._compare, 1, 1)
        rows[b"~EXEC"] = (self._exec, 2, 2)
        rows[b"~ONCE"] = (self._lane, 4, 4)
        return rows

    # --- commands that carry out commands ---

    def _run(self, rows: _Rows, words: list[bytes]) -> Reply:
        """Carries out a command that stands inside another one."""
        row = rows.get(words[0]) or rows.get(words[0].upper())
        if row is None:
            raise UnknownCommandError(f"entry {self.applied_index} holds {words[0][:64]!r} inside a command")
        handler, fewest, most = row
        if not fewest <= len(words) <= most:
            return _wrong_arity(words)
        try:
            return handler(words)
        except RefusedError as refused:
            return refused.error

    def _run_all(self, rows: _Rows, commands: list[list[bytes]]) -> list[Reply]:
        """The same for several. Their replies are one answer, which every node makes and perhaps keeps: those
        that make it too large are left out, or a large value asked for often would end all nodes for good."""
        replies: list[Reply] = []
        room = LONGEST_VALUE + _SMALL_ANSWERS_BYTES
        for words in commands:
            reply = self._run(rows, words)
            size = size_of(reply)
            if size > room:
                reply = _LEFT_OUT
            else:
                room -= size
            replies.append(reply)
        return replies

    def _once(self, words: list[bytes]) -> Reply:
        """ONCE session seq COMMAND ...: see raft/machine/sessions.py"""
        session, number = session_and_number(words)
        command = words[3:]
        mark, now_ms = fingerprint(command), self.kv.at_ms
        first = self.sessions.recall(session, number, mark, now_ms)
        if first is not None:
            return first[0]
        reply = self._run(self._once_rows, command)
        self.sessions.keep(session, number, mark, reply, now_ms)
        return reply

    def _lane(self, words: list[bytes]) -> Reply:
        """~ONCE lane seq commands: what a node passes on for its clients. Answers all replies in an array, or
        an error: then nothing is carried out. See raft/machine/sessions.py"""
        lane, number, mark, now_ms = words[1], int(words[2]), lane_fingerprint(words[3]), self.kv.at_ms
        first = self.sessions.recall(lane, number, mark, now_ms)
        if first is not None:
            return first[0]
        replies = self._run_all(self._lane_rows, decode_commands(words[3]))
        self.sessions.keep(lane, number, mark, replies, now_ms)
        return replies

    def _exec(self, words: list[bytes]) -> Reply:
        """~EXEC data: see raft/machine/transactions.py"""
        transaction = decode_transaction(words[1])
        last_change = self.kv.versions.last_change
        if any(last_change(key) > seen for key, seen in transaction.watched):
            return None
        return self._run_all(self._transaction_rows, transaction.commands)

    def _version(self, _words: list[bytes]) -> Reply:
        """~VERSION, a read: the index that a key watched now must not change after."""
        return self.applied_index

    def _time(self, _words: list[bytes]) -> Reply:
        """TIME inside a transaction: the log's."""
        seconds, milliseconds = divmod(self.kv.at_ms, 1000)
        return [b"%d" % seconds, b"%d" % (milliseconds * 1000)]

    def _context(self) -> Context:
        return Context(self.applied_index, self.applied_term, self.kv.at_ms)

    def _ledger_system(self, words: list[bytes]) -> Reply:
        return self.ledger.execute(words, self._context())

    def _ledger_command(self, words: list[bytes]) -> Reply:
        _kind(words)  # raises if unknown
        return self.ledger.execute(words, self._context())

    def _ledger_write(self, words: list[bytes]) -> Reply:
        """The same where no reply is wanted: reads have no effect and are left out."""
        return None if _kind(words) is Kind.READ else self.ledger.execute(words, self._context())

    def _ledger_read(self, words: list[bytes]) -> Reply:
        if _kind(words) is not Kind.READ:
            raise UnknownCommandError(f"{words[:2]!r} is not a read")
        return self.ledger.execute(words, self._context())

    def _digest_later(self, words: list[bytes]) -> Reply:
        """RAFT DIGEST inside an entry answers for the end of the entry, as every node will at that index."""
        _kind(words)  # raises for all of RAFT but DIGEST
        if len(words) != 2:
            return _wrong_arity(words)
        self._digest_asked = True
        return _DIGEST_AT_END

    def _compare(self, _words: list[bytes]) -> Reply:
        """~DIGEST: the state stays as it is. Whoever applies the entry compares once all of it is applied."""
        self._digest_due = True
        return OK

    def _no_digest(self, words: list[bytes]) -> Reply:
        _kind(words)
        return None

    def _no_digest_inside(self, words: list[bytes]) -> Reply:
        """An answer that depends on the end of the entry cannot stand inside another one."""
        raise UnknownCommandError(f"entry {self.applied_index} holds {words[:2]!r} inside a command")

    def _digest_now(self, words: list[bytes]) -> Reply:
        _kind(words)
        return [self.applied_index, self.digest()] if len(words) == 2 else _wrong_arity(words)


_LEDGER_SYSTEM = (b"~TERM", b"~OPEN", b"~CLOSE", b"~PROJECTED", b"~MEMBERS")


def _containers(ledger: _Handler, digest: _Handler) -> _Rows:
    """Rows of the commands of two words, whose handlers count the rest of the words themselves."""
    names = ((b"FOLLOWER", ledger), (b"REWARD", ledger), (b"INTERVAL", ledger), (b"RAFT", digest))
    return {case: (handler, 2, sys.maxsize) for name, handler in names for case in (name, name.lower())}


def _rows_of(handlers: dict[bytes, _Handler]) -> _Rows:
    rows: _Rows = {}
    for name, handler in handlers.items():
        fewest, most, _ = word_bounds(COMMANDS[name])
        rows[name] = (handler, fewest, most)
    return rows


def _value_rows_of(kind: Kind) -> list[tuple[bytes, str, int, int]]:
    """(name, KeyValue's method, fewest words, most words) of KeyValue's commands of one kind."""
    specs = [(name, spec) for name, spec in COMMANDS.items() if spec.kind is kind and name != b"ONCE"]
    return [
        (case, "delete" if name == b"DEL" else name.decode("ascii").lower(), *word_bounds(spec)[:2])
        for name, spec in specs
        if spec.container is None
        for case in (name, name.lower())
    ]


_VALUE_ROWS = {kind: _value_rows_of(kind) for kind in (Kind.READ, Kind.WRITE)}


def _kind(words: list[bytes]) -> Kind:
    """READ or WRITE, of a command of two words. Raises UnknownCommandError for what is neither."""
    spec = COMMANDS.get(words[0].upper() + b" " + words[1].upper())
    if spec is None or spec.kind not in (Kind.READ, Kind.WRITE):
        raise UnknownCommandError(f"unknown command {words[:2]!r}")
    return spec.kind


def _expired(_words: list[bytes]) -> Reply:
    """~EXPIRE: due keys went when its entry began, as at the beginning of every entry."""
    return OK


def _nothing(_words: list[bytes]) -> Reply:
    return None


def _wrong_arity(words: list[bytes]) -> Error:
    return wrong_arity(words[0].decode("utf-8", "backslashreplace").lower())
