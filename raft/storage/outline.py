"""What is known of every entry of the log without reading it, in little memory: its term, and whether it is
a configuration."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from raft.core.entry import Entry, EntryKind

_CONFIGURATION = EntryKind.CONFIGURATION.value


class Outline:
    """Owned by the log store's thread.

    firsts, terms: terms never fall, so a pair for each run will do; removing a prefix keeps the pairs'
    meaning. configurations: the indexes of the entries of kind CONFIGURATION, ascending.
    """

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.terms: list[int] = []
        self.configurations: list[int] = []

    def add(self, index: int, term: int) -> None:
        """The entry at index, which follows on the last, has this term."""
        if not self.terms or self.terms[-1] != term:
            self.firsts.append(index)
            self.terms.append(term)

    def extend(self, entries: Sequence[Entry]) -> None:
        """These entries, at least one, follow on the last."""
        if not self.terms or entries[-1].term != self.terms[-1]:
            for entry in entries:
                self.add(entry.index, entry.term)
        self.configurations += [entry.index for entry in entries if entry.kind == _CONFIGURATION]

    def cut(self, from_index: int) -> None:
        """Forget all entries from from_index on."""
        keep = bisect_left(self.firsts, from_index)
        del self.firsts[keep:], self.terms[keep:]
        del self.configurations[bisect_left(self.configurations, from_index) :]

    def cut_prefix(self, first_index: int) -> None:
        """Forget all entries before first_index, which is in the log."""
        drop = bisect_right(self.firsts, first_index) - 1
        del self.firsts[:drop], self.terms[:drop]
        del self.configurations[: bisect_left(self.configurations, first_index)]

    def term(self, index: int) -> int:
        """The term of an entry that is in the log; the caller has checked that it is."""
        return self.terms[bisect_right(self.firsts, index) - 1]
