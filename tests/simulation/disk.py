"""A disk in memory that forgets what was not synced, for the tests of the pure core.

`log` is what the process sees of its own writes, `synced` is what a power cut cannot take. The hard state is
replaced atomically and durable when write_hard_state returns, as raft/storage promises.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from raft.core.effects import AppendLog, HardState, LogOperation, TruncateLog
from raft.core.entry import Entry


class Disk:
    """One node's files. Implements raft.core.log.LogReader, so that a core can be opened on it."""

    def __init__(self, entries: Iterable[Entry] = (), hard_state: HardState | None = None) -> None:
        self.log: list[Entry] = list(entries)
        self.synced: list[Entry] = list(self.log)
        self.unsynced: list[TruncateLog | Entry] = []
        last_term = self.log[-1].term if self.log else 0
        self.hard_state = hard_state or HardState(last_term)

    # --- raft.core.log.LogReader ------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return 1

    @property
    def last_index(self) -> int:
        return len(self.log)

    def term(self, index: int) -> int:
        """The term at index; IndexError outside 0 to last_index."""
        if index == 0:
            return 0
        if not 0 < index <= len(self.log):
            raise IndexError(f"entry {index} is not on disk, 1 to {len(self.log)}")
        return self.log[index - 1].term

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries lo to hi - 1, at least one, then as many as fit into max_bytes."""
        chosen: list[Entry] = []
        size = 0
        for entry in self.log[lo - 1 : hi - 1]:
            size += len(entry.data)
            if chosen and size > max_bytes:
                break
            chosen.append(entry)
        return tuple(chosen)

    # --- writing ----------------------------------------------------------------------------------------

    def write_hard_state(self, hard_state: HardState) -> None:
        """Replace term and vote, durably."""
        self.hard_state = hard_state

    def write(self, operation: LogOperation) -> None:
        """Carry out one log operation; a crash may take it back until sync()."""
        if isinstance(operation, AppendLog):
            for entry in operation.entries:
                self._change(self.log, entry)
                self.unsynced.append(entry)
        else:
            self._change(self.log, operation)
            self.unsynced.append(operation)

    def sync(self) -> None:
        """fdatasync: what was written until now is durable."""
        for record in self.unsynced:
            self._change(self.synced, record)
        self.unsynced.clear()

    def crash(self, rng: random.Random, *, power_cut: bool) -> None:
        """The process dies. A power cut keeps any prefix of the unsynced records; otherwise all survive.

        What the next start finds, it syncs before it promises anything about it.
        """
        keep = rng.randint(0, len(self.unsynced)) if power_cut else len(self.unsynced)
        del self.unsynced[keep:]
        self.sync()
        self.log = list(self.synced)

    def holds(self, index: int, term: int) -> bool:
        """Whether a power cut now would leave the entry (index, term)."""
        return 0 < index <= len(self.synced) and self.synced[index - 1].term == term

    @staticmethod
    def _change(entries: list[Entry], record: TruncateLog | Entry) -> None:
        if isinstance(record, TruncateLog):
            if not 0 < record.from_index <= len(entries):
                raise ValueError(f"truncation from {record.from_index} of a log of {len(entries)}")
            del entries[record.from_index - 1 :]
        else:
            if record.index != len(entries) + 1:
                raise ValueError(f"append of {record.index} to a log of {len(entries)}")
            entries.append(record)
