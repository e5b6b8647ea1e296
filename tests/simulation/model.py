"""A second opinion of the values: what a batch of commands must do, in as few words as possible.

The simulation's clients use few commands, all of them here. The model knows no log, no snapshots and no
bounds; a command under ONCE, and one that a node passed on, is carried out when its number is new.
"""

from __future__ import annotations

from raft.machine.batch import decode_commands
from raft.machine.transactions import decode_transaction
from tests.simulation.checker import violated

Words = tuple[bytes, ...]
Answer = int | bytes | list["Answer"] | None  # as a client's parser gives it; a status is bytes, too

UNKNOWN = b"?"  # an answer that the model does not foretell: the ledger's


class Model:
    """values, and what was carried out so far. Commands are known by their words."""

    def __init__(self, exact: bool) -> None:
        """exact: no session ever expires."""
        self.exact = exact
        self.values: dict[bytes, bytes] = {}
        self.expires_at: dict[bytes, int] = {}
        self.changed_at: dict[bytes, int] = {}
        self.changes: list[tuple[bytes, bytes | None]] = []  # of the last entry, in their order
        self.at_ms = 0
        self.index = 0
        self.answers: dict[Words, Answer] = {}  # the first one of each command
        self.applied_at: dict[Words, int] = {}  # where each command stands first
        self.refused: set[Words] = set()  # what clients were told will certainly not be carried out
        self.single: set[Words] = set()  # what was sent once, and plain
        self.numbers: set[tuple[bytes, bytes]] = set()  # (session or lane, number)
        self.lanes: dict[bytes, int] = {}  # the highest number of each

    def apply(self, index: int, at_ms: int, commands: list[list[bytes]]) -> None:
        """The entry at index."""
        self.index, self.at_ms = index, max(self.at_ms, at_ms)
        self.changes.clear()
        for key in [key for key, due in self.expires_at.items() if due <= self.at_ms]:
            del self.expires_at[key]
            self._change(key, None)
        for words in commands:
            self._take(words)

    def _take(self, words: list[bytes]) -> None:
        if words[0] == b"~ONCE":
            if self._is_new(words[1], words[2]):
                for each in decode_commands(words[3]):
                    self._take(each)
            else:  # carried out before, which is where its commands stand
                return
        elif words[0] == b"~EXEC" or not words[0].startswith(b"~"):
            key = tuple(words)
            if key in self.refused and self.exact:
                violated(f"{self.index} holds what a client was told is not executed: {words}")
            if key in self.single and key in self.applied_at and self.exact:
                violated(
                    f"{words} was sent once, but is carried out at {self.applied_at[key]} and {self.index}"
                )
            self.applied_at.setdefault(key, self.index)
            if words[0] != b"ONCE":
                self.answers.setdefault(key, self._run(words))
            elif self._is_new(words[1], words[2]):
                self.answers[key] = self._run(words[3:])

    def _is_new(self, session: bytes, number: bytes) -> bool:
        """Of a node's lane only the last number is known: a copy that comes later than the next number was
        given up by its sender, whose clients have heard INDETERMINATE, and is refused."""
        if session.startswith(b"~"):
            if int(number) <= self.lanes.get(session, 0):
                return False
            self.lanes[session] = int(number)
        before = len(self.numbers)
        self.numbers.add((session, number))
        return len(self.numbers) > before

    def _run(self, words: list[bytes]) -> Answer:
        name, key = words[0], words[1]
        if name == b"SET":
            self._change(key, words[2])
            if len(words) == 5:  # PX ms
                self.expires_at[key] = self.at_ms + int(words[4])
            else:
                self.expires_at.pop(key, None)
            return b"OK"
        if name in (b"INCR", b"INCRBY"):
            after = int(self.values.get(key, b"0")) + (int(words[2]) if name == b"INCRBY" else 1)
            self._change(key, b"%d" % after)
            return after
        if name == b"APPEND":
            after_append = self.values.get(key, b"") + words[2]
            self._change(key, after_append)
            return len(after_append)
        if name == b"GET":
            return self.values.get(key)
        if name == b"~EXEC":
            transaction = decode_transaction(words[1])
            if any(self.changed_at.get(watched, 0) > seen for watched, seen in transaction.watched):
                return None
            return [self._run(each) for each in transaction.commands]
        return UNKNOWN

    def _change(self, key: bytes, value: bytes | None) -> None:
        self.changed_at[key] = self.index
        self.changes.append((key, value))
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value
