"""The terms of the whole log in little memory: they never fall, so a pair for each run will do."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class TermRuns:
    """Maps index to term. Owned by the log store's thread. Removing a prefix keeps the pairs' meaning."""

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.terms: list[int] = []

    def add(self, index: int, term: int) -> None:
        """The entry at index, which follows on the last, has this term."""
        if not self.terms or self.terms[-1] != term:
            self.firsts.append(index)
            self.terms.append(term)

    def cut(self, from_index: int) -> None:
        """Forget all entries from from_index on."""
        keep = bisect_left(self.firsts, from_index)
        del self.firsts[keep:], self.terms[keep:]

    def cut_prefix(self, first_index: int) -> None:
        """Forget all entries before first_index, which is in the log."""
        drop = bisect_right(self.firsts, first_index) - 1
        del self.firsts[:drop], self.terms[:drop]

    def term(self, index: int) -> int:
        """The term of an entry that is in the log; the caller has checked that it is."""
        return self.terms[bisect_right(self.firsts, index) - 1]
