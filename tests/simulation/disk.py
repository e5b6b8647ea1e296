"""A disk in memory that forgets what was not synced, for the tests of the pure core.

`log` is what the process sees of its own writes, `synced` is what a power cut cannot take. The hard state and
the snapshot are replaced atomically and durable at once, as raft/storage promises.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from raft.core.effects import AppendLog, HardState, LogOperation, LostEntries, ResetLog, TruncateLog
from raft.core.entry import Entry, EntryKind
from raft.core.log import LogReader

Record: TypeAlias = TruncateLog | ResetLog | Entry


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine after the entry (index, term). configuration: the committed one there, encoded; b"" for
    the founding one. applied: all that was ever applied, for the checker; machine: the real one's dump."""

    index: int
    term: int
    configuration: bytes
    applied: tuple[Entry, ...]
    machine: bytes = b""


NO_SNAPSHOT = Snapshot(0, 0, b"", ())


class Image(list[Entry]):
    """A log file's entries; what stood before them is compacted away up to (base_index, base_term)."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        super().__init__(entries)
        self.base_index = 0
        self.base_term = 0
        self.configurations = [entry for entry in self if entry.kind == EntryKind.CONFIGURATION]

    @property
    def last_index(self) -> int:
        return self.base_index + len(self)

    def term(self, index: int) -> int:
        """The term at index; IndexError outside base_index to last_index."""
        if index == self.base_index:
            return self.base_term
        if not self.base_index < index <= self.last_index:
            raise IndexError(f"entry {index} is not on disk, {self.base_index + 1} to {self.last_index}")
        return self[index - self.base_index - 1].term

    def change(self, record: Record) -> None:
        """Carry out one write."""
        if isinstance(record, TruncateLog):
            if not self.base_index < record.from_index <= self.last_index:
                raise ValueError(f"truncation from {record.from_index} of a log to {self.last_index}")
            del self[record.from_index - self.base_index - 1 :]
            while self.configurations and self.configurations[-1].index >= record.from_index:
                self.configurations.pop()
        elif isinstance(record, ResetLog):
            self.reset(record.index, record.term)
        else:
            if record.index != self.last_index + 1:
                raise ValueError(f"append of {record.index} to a log to {self.last_index}")
            self.append(record)
            if record.kind == EntryKind.CONFIGURATION:
                self.configurations.append(record)

    def reset(self, index: int, term: int) -> None:
        """Empty: a snapshot stands for all up to index."""
        self.clear()
        self.configurations.clear()
        self.base_index, self.base_term = index, term

    def compact(self, index: int) -> None:
        """Remove the entries up to index."""
        self.base_term = self.term(index)
        del self[: index - self.base_index]
        self.base_index = index
        self.configurations = [entry for entry in self.configurations if entry.index > index]


class Disk:
    """One node's files. Implements raft.core.log.LogReader, so that a core can be opened on it."""

    has_lost = False  # something that it had acknowledged, because it was damaged

    def __init__(self, entries: Iterable[Entry] = (), hard_state: HardState | None = None) -> None:
        self.log = Image(entries)
        self.synced = Image(self.log)
        self.unsynced: list[Record] = []
        last_term = self.log[-1].term if self.log else 0
        self.hard_state = hard_state or HardState(last_term)
        self.snapshot = NO_SNAPSHOT
        self.lost: LostEntries | None = None

    def blank(self) -> Disk:
        """Another disk, with nothing on it."""
        return Disk()

    def open(self) -> None:
        """A process begins with what is there."""

    @property
    def reader(self) -> LogReader:
        """What a core reads the log with."""
        return self

    def configurations(self) -> list[Entry]:
        """The log's entries of that kind, oldest first."""
        return list(self.log.configurations)

    # --- raft.core.log.LogReader ------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self.log.base_index + 1

    @property
    def last_index(self) -> int:
        return self.log.last_index

    def term(self, index: int) -> int:
        """The term at index; IndexError outside first_index - 1 to last_index."""
        return self.log.term(index)

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries lo to hi - 1, at least one, then as many as fit into max_bytes."""
        base = self.log.base_index
        if lo <= base:
            raise IndexError(f"entry {lo} is compacted away, up to {base}")
        chosen: list[Entry] = []
        size = 0
        for entry in self.log[lo - base - 1 : hi - base - 1]:
            size += len(entry.data)
            if chosen and size > max_bytes:
                break
            chosen.append(entry)
        return tuple(chosen)

    def entry(self, index: int) -> Entry:
        """One entry of the log."""
        return self.log[index - self.log.base_index - 1]

    # --- writing ----------------------------------------------------------------------------------------

    def write_hard_state(self, hard_state: HardState) -> None:
        """Replace term and vote, durably."""
        self.hard_state = hard_state

    def write(self, operation: LogOperation) -> None:
        """Carry out one log operation; a crash may take it back until sync()."""
        if isinstance(operation, AppendLog):
            for entry in operation.entries:
                self.log.change(entry)
                self.unsynced.append(entry)
        else:
            self.log.change(operation)
            self.unsynced.append(operation)

    def sync(self) -> None:
        """fdatasync: what was written until now is durable."""
        for record in self.unsynced:
            self.synced.change(record)
        self.unsynced.clear()

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep the newest snapshot, durably. The log stays as it is until it is compacted or reset."""
        if snapshot.index > self.snapshot.index:
            self.snapshot = snapshot

    def compact(self, index: int) -> None:
        """Remove the log's entries up to index, which the snapshot covers."""
        if self.unsynced or index > self.snapshot.index:
            raise ValueError(f"compaction to {index}, the snapshot covers {self.snapshot.index}")
        if index > self.log.base_index:
            self.log.compact(index)
            self.synced.compact(index)

    def lose(self, from_index: int) -> None:
        """A node that is down loses its log from from_index on, and knows it (raft/core/recovery.py). What
        the snapshot covers is not lost."""
        from_index = max(from_index, self.snapshot.index + 1, self.synced.base_index + 1)
        if from_index <= self.synced.last_index:
            self.synced.change(TruncateLog(from_index))
        if self.lost is not None:
            from_index = min(from_index, self.lost.from_index)
        self.lost = LostEntries(from_index, self.hard_state.term)
        self._reread()

    def healed(self) -> None:
        """Nothing is missing any more."""
        self.lost = None

    def _reread(self) -> None:
        self.log = Image(self.synced)
        self.log.base_index, self.log.base_term = self.synced.base_index, self.synced.base_term

    def crash(self, rng: random.Random, *, power_cut: bool) -> None:
        """The process dies. A power cut keeps any prefix of the unsynced records; otherwise all survive.

        What the next start finds, it syncs before it promises anything about it. A log that does not reach
        the snapshot, or has another entry there, is what a crash left of an install: it is emptied.
        """
        keep = rng.randint(0, len(self.unsynced)) if power_cut else len(self.unsynced)
        del self.unsynced[keep:]
        self.sync()
        covered = self.snapshot.index
        if covered > self.synced.base_index and (
            covered > self.synced.last_index or self.synced.term(covered) != self.snapshot.term
        ):
            self.synced.reset(covered, self.snapshot.term)
        self._reread()

    def holds(self, index: int, term: int) -> bool:
        """Whether a power cut now would leave the entry (index, term), or a snapshot that covers it."""
        if index <= max(self.snapshot.index, self.synced.base_index):
            return True
        return index <= self.synced.last_index and self.synced.term(index) == term

    def synced_index(self) -> int:
        """The last index that a power cut now would leave, in the log or covered by the snapshot."""
        return max(self.synced.last_index, self.snapshot.index)
