"""What must hold of every machine after every entry: one state at one index, each command once, each value
at its time. The ledger's rules are in tests/simulation/books.py.

The first node to apply an index says what the state is there; the others, and those that come from a snapshot
or apply their log again, must agree: by a cheap print at every index, by the real digest at every 16th.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raft.core.entry import EntryKind
from raft.machine.batch import decode_batch
from raft.machine.machine import Machine
from tests.simulation.books import Books
from tests.simulation.checker import violated
from tests.simulation.model import UNKNOWN, Answer, Model, Words
from tests.simulation.node import Node
from tests.simulation.service import Events, ServicePlan

DIGEST_EVERY = 16
APPENDED = (b"plain", b"once0", b"once1")  # keys of which every client appends its own tags, each once
Print = tuple[Any, ...]
Value = bytes | int | None
Moment = tuple[int, int]
LAST = 1 << 30
NEVER_SET: tuple[Moment, Value] = ((0, LAST), None)


class Machines:
    """Watches all machines of a cluster (tests.simulation.service.Watcher)."""

    def __init__(self, plan: ServicePlan) -> None:
        self.exact = not plan.sessions_expire  # else the model does not know which sessions are gone
        self.model = Model(self.exact)
        self.books = Books(plan.policy)
        self.prints: list[Print] = []  # by index, from 1 on
        self.events: list[Events] = []
        self.digests: dict[int, str] = {}
        # What a key was from which moment on: an entry, and a command of it (reads may be passed on, and then
        # stand between two); LAST for what the entry has left.
        self.history: dict[bytes, list[tuple[Moment, Value]]] = {}
        self.listener: Callable[[str, str], None] = _nobody
        self.projected = 0
        self.vouched_for: Callable[[], int] = _zero  # MongoDB's checkpoint
        self._values: dict[bytes, bytes] = {}

    @property
    def last_index(self) -> int:
        """The newest entry that any machine has applied."""
        return len(self.prints)

    def applied(self, node: Node, machine: Machine, events: Events) -> None:
        """An entry was applied."""
        index, seen = machine.applied_index, print_of(machine)
        if index > len(self.prints):
            self.prints.append(seen)
            self.events.append(events)
            self._first(node, machine, events)
        elif self.prints[index - 1] != seen or self.events[index - 1] != events:
            violated(self._difference(node, index, seen, events))
        touched = touched_at(machine, index)
        for follower in touched:
            if follower.balance != follower.earned - follower.penalties - follower.claimed:
                violated(f"balance of {follower.id} at {node.node_id} after {index}: {follower}")
        if index % DIGEST_EVERY == 0:
            self.compare_digest(node, machine)

    def compare_digest(self, node: Node, machine: Machine) -> None:
        """The real digest, which must be everybody's at this index."""
        index, digest = machine.applied_index, machine.digest()
        if self.digests.setdefault(index, digest) != digest:
            violated(f"the machine of {node.node_id} has another digest at {index}")

    def dumped(self, node: Node, machine: Machine) -> None:
        """What the snapshot is of."""
        self.compare_digest(node, machine)

    def loaded(self, node: Node, machine: Machine) -> None:
        """A machine from a snapshot is the one that the snapshot was taken of."""
        index = machine.applied_index
        if index not in self.digests:
            violated(f"{node.node_id} has loaded a machine of {index}, of which no snapshot was taken")
        self.compare_digest(node, machine)
        if self.prints[index - 1] != print_of(machine):
            violated(self._difference(node, index, print_of(machine), self.events[index - 1]))

    def published(self, _node: Node, channel: str, payload: str) -> None:
        """What subscribers at a node hear."""
        self.listener(channel, payload)

    def _difference(self, node: Node, index: int, seen: Print, events: Events) -> str:
        first = self.prints[index - 1]
        if first == seen:
            return f"{node.node_id} hears {events} at {index}, the first node heard {self.events[index - 1]}"
        parts = [f"{a} was {b}" for a, b in zip(seen, first, strict=True) if a != b]
        return f"the machine of {node.node_id} differs at {index}: {'; '.join(parts)}"

    # --- once for every index ---------------------------------------------------------------------------

    def _first(self, node: Node, machine: Machine, events: Events) -> None:
        index, entry = machine.applied_index, node.applied[-1]
        commands: list[list[bytes]] = []
        if entry.kind == EntryKind.COMMANDS:
            batch = decode_batch(entry.data)
            commands = batch.commands
            self.model.apply(index, batch.at_ms, commands)
            for number, (key, between) in enumerate(self.model.changes):
                self._became(key, (index, number), between)
                self._became(key, (index, LAST), machine.kv.values.get(key))
        values = machine.kv.values
        if values != self._values:
            for key in values.keys() | self._values.keys():
                value = values.get(key)
                if value != self._values.get(key):
                    if value is not None and key in APPENDED and has_repeats(value):
                        violated(f"{key!r} at {node.node_id} after {index} has something twice: {value!r}")
                    self._became(key, (index, LAST), value)
            self._values = dict(values)
        if self.exact and values != self.model.values:
            violated(f"after {index} {node.node_id} has {values}, but should have {self.model.values}")
        for follower in touched_at(machine, index):
            key = b"balance " + follower.id.encode()
            self._became(key, (index, LAST), follower.balance)
        self.books.write(index, machine, commands, events)
        projected = machine.ledger.projected_index
        if projected > self.projected:
            self.projected = projected
            if projected > self.vouched_for():
                violated(f"{index} drops what is projected up to {projected}: MongoDB has not so much")

    def _became(self, key: bytes, moment: Moment, value: Value) -> None:
        self.history.setdefault(key, [NEVER_SET]).append((moment, value))

    # --- what clients see -------------------------------------------------------------------------------

    def index_of(self, words: Words, answer: object) -> int:
        """The entry that carried out a command which a client was answered."""
        index = self.model.applied_at.get(words)
        if index is None:
            violated(f"{words} is answered {answer!r}, but stands nowhere in the log")
        return index

    def refuse(self, words: Words) -> None:
        """A client was told that this command, which it sent once, is certainly not executed."""
        if self.exact and words in self.model.applied_at:
            violated(f"{words} is refused, but stands at {self.model.applied_at[words]}")
        self.model.refused.add(words)

    def check_answer(self, words: Words, answer: Answer) -> None:
        """The answer is that of the command's one execution."""
        wanted = self.model.answers.get(words, UNKNOWN)
        if self.exact and wanted != UNKNOWN and wanted != answer:
            violated(f"{words} is answered {answer!r}, not {wanted!r}")

    def check_read(self, keys: list[bytes], values: list[Any], floor: int, who: str) -> None:
        """All values held together at one moment since the read began, when clients had seen `floor`."""
        seen = (floor, LAST)
        moments = {seen}
        for key in keys:
            moments.update(moment for moment, _ in self.history.get(key, ()) if moment > seen)
        for moment in moments:
            if all(self._value_at(key, moment) == value for key, value in zip(keys, values, strict=True)):
                return
        history = {key: self.history.get(key, [])[-4:] for key in keys}
        violated(f"stale read {who}: {keys} gave {values}, clients had seen {floor}; {history}")

    def _value_at(self, key: bytes, moment: Moment) -> Value:
        for since, value in reversed(self.history.get(key, ())):
            if since <= moment:
                return value
        return None


def _nobody(_channel: str, _payload: str) -> None:
    pass


def _zero() -> int:
    return 0


def has_repeats(value: bytes) -> bool:
    """Whether something was appended twice."""
    parts = value.split(b";")
    return len(set(parts)) < len(parts)


def touched_at(machine: Machine, index: int) -> list[Any]:
    """The followers whose rows the entry at index has changed, as far as MongoDB may not have them yet."""
    state = machine.ledger._state
    touched: list[Any] = []
    for follower_id, at in reversed(state.outbox.touched.items()):
        if at != index:
            break
        touched.append(state.followers.by_id[follower_id])
    return touched


def print_of(machine: Machine) -> Print:
    """Whatever is cheap to see of the state and likely to differ if the states do."""
    kv, sessions, ledger = machine.kv, machine.sessions, machine.ledger._state
    newest = next(reversed(sessions._sessions.items()), None)
    opened = ledger.intervals.open
    return (
        machine.applied_term,
        kv.at_ms,
        tuple(kv.values.items()),
        tuple(kv.expiries.items()),
        len(sessions),
        sessions.taken_bytes,
        sessions.tombstones,
        newest and (newest[0], newest[1].last_ms, len(newest[1].answers)),
        ledger.intervals.last,
        opened and (opened.number, opened.term, opened.answered, opened.due_at),
        len(ledger.intervals.closed),
        ledger.claims.chain,
        ledger.outbox.projected_index,
        ledger.outbox.bytes,
        tuple(
            (each.id, each.state, each.balance, each.spam)
            for each in touched_at(machine, machine.applied_index)
        ),
    )
