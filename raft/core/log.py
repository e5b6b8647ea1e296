"""The core's view of the log: what is on disk, seen through a reader, and the tail that is not yet.

The reader is the storage (or a list, in a simulation). The core never writes it: it records operations as
effects, and keeps the entries here until the node reports them durable.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

from raft.core.effects import AppendLog, LogOperation, ResetLog, TruncateLog
from raft.core.entry import Entry
from raft.core.invariants import require


class LogReader(Protocol):
    """What the core reads of the stored log. term() covers first_index - 1 (0, or the snapshot's term) to
    last_index and raises IndexError elsewhere: a compacted term is never read as 0."""

    @property
    def first_index(self) -> int: ...

    @property
    def last_index(self) -> int: ...

    def term(self, index: int) -> int: ...

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]: ...


class Room(Protocol):
    """What the disk has left. low: it is full but for a little; who leads should take nothing more.
    fits: whether these entries, which are to be written next, will find room."""

    @property
    def low(self) -> bool: ...

    def fits(self, entries: Sequence[Entry]) -> bool: ...


class EndlessRoom:
    """A disk that is never full."""

    low = False

    def fits(self, entries: Sequence[Entry]) -> bool:  # noqa: ARG002 - every entry does
        """They do."""
        return True


class RaftLog:
    """The whole log as Raft sees it. Owned by the core; not thread-safe.

    Terms are kept as runs (first index, term): there are as many runs as terms, so that finding a term's
    bounds costs a bisection however long the log is.
    """

    def __init__(self, reader: LogReader) -> None:
        self.reader = reader
        self.last_index = reader.last_index
        self.last_term = reader.term(reader.last_index)
        self.tail: list[Entry] = []  # entries that the reader may not have yet
        self.tail_first = reader.last_index + 1
        self.operations: list[LogOperation] = []
        self.floor = 1  # a reset that the reader has not seen yet begins the log here
        self.run_firsts: list[int] = []
        self.run_terms: list[int] = []
        self._find_runs()

    def _find_runs(self) -> None:
        """Terms never decrease along the log, so each run's end is found by bisection."""
        index = self.reader.first_index - 1
        while index <= self.last_index:
            term = self.reader.term(index)
            self.run_firsts.append(index)
            self.run_terms.append(term)
            index = bisect_right(range(self.last_index + 1), term, lo=index, key=self.reader.term)

    @property
    def first_index(self) -> int:
        """The first entry still in the log; 1 unless a snapshot replaced a prefix."""
        return max(self.reader.first_index, self.floor)

    def term(self, index: int) -> int:
        """The term of the entry at index; 0 for index 0. Raises IndexError outside the log."""
        if index == self.last_index:
            return self.last_term
        if not self.run_firsts[0] <= index < self.last_index:
            raise IndexError(f"entry {index} is not in the log, {self.run_firsts[0]} to {self.last_index}")
        return self.run_terms[bisect_right(self.run_firsts, index) - 1]

    def matches(self, index: int, term: int) -> bool:
        """Whether the log holds an entry with this index and term (paper 5.3, the consistency check)."""
        if index == self.last_index:  # nearly always
            return term == self.last_term
        return self.first_index - 1 <= index <= self.last_index and self.term(index) == term

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Whether a candidate's log is at least as up-to-date as this one (paper 5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries lo to hi - 1: at least one if there is one, then as many as fit into max_bytes of data."""
        if lo >= hi:
            return ()
        if lo < self.tail_first:
            return self.reader.entries(lo, min(hi, self.tail_first), max_bytes)
        size = 0
        chosen: list[Entry] = []
        for position in range(lo - self.tail_first, hi - self.tail_first):
            entry = self.tail[position]
            size += len(entry.data)
            if chosen and size > max_bytes:
                break
            chosen.append(entry)
        return tuple(chosen)

    def append(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow directly on the last one. Records the operation."""
        first = entries[0].index
        require(first == self.last_index + 1, f"append of {first} after {self.last_index}")
        self.tail.extend(entries)
        for entry in entries:
            if entry.term != self.run_terms[-1]:
                require(entry.term > self.run_terms[-1], f"term {entry.term} after {self.run_terms[-1]}")
                self.run_firsts.append(entry.index)
                self.run_terms.append(entry.term)
        self.last_index = entries[-1].index
        self.last_term = entries[-1].term
        if self.operations and isinstance(self.operations[-1], AppendLog):
            self.operations[-1].entries.extend(entries)
        else:
            self.operations.append(AppendLog(list(entries)))

    def truncate(self, from_index: int) -> None:
        """Remove every entry from from_index on. Records the operation."""
        require(self.first_index <= from_index <= self.last_index, f"truncation from {from_index}")
        if from_index > self.tail_first:
            del self.tail[from_index - self.tail_first :]
        else:
            self.tail.clear()
            self.tail_first = from_index
        self.last_term = self.term(from_index - 1)
        self.last_index = from_index - 1
        keep = bisect_left(self.run_firsts, from_index)
        del self.run_firsts[keep:], self.run_terms[keep:]
        self.operations.append(TruncateLog(from_index))

    def reset(self, index: int, term: int) -> None:
        """Empty the log: a snapshot, whose last entry is this one, stands for it (paper figure 13, step 7).
        Records the operation."""
        self.tail.clear()
        self.tail_first = self.floor = index + 1
        self.last_index, self.last_term = index, term
        self.run_firsts, self.run_terms = [index], [term]
        self.operations.append(ResetLog(index, term))

    def fits(self, room: Room, entries: Sequence[Entry]) -> bool:
        """Whether entries will find room behind what is about to be written."""
        if room.fits(entries):
            waiting = [each for each in self.operations if isinstance(each, AppendLog)]
            return not waiting or room.fits([*(e for each in waiting for e in each.entries), *entries])
        return False

    def take_operations(self) -> list[LogOperation]:
        """The operations since the last call, in order; they now belong to the caller."""
        operations, self.operations = self.operations, []
        return operations

    def stable_to(self, index: int) -> None:
        """The reader has everything up to index: forget that part of the tail."""
        if index >= self.tail_first:
            del self.tail[: index + 1 - self.tail_first]
            self.tail_first = index + 1

    def first_index_of_term_at(self, index: int) -> int:
        """The first index of the run of equal terms that contains index."""
        return self.run_firsts[bisect_right(self.run_firsts, index) - 1]

    def last_index_of_term(self, term: int) -> int | None:
        """The last index whose entry has this term; None if the log has none."""
        run = bisect_left(self.run_terms, term)
        if run == len(self.run_terms) or self.run_terms[run] != term:
            return None
        return self.run_firsts[run + 1] - 1 if run + 1 < len(self.run_firsts) else self.last_index
