"""Who votes, who only listens, and what a quorum is (thesis chapter 4).

The configuration is an immutable value. Issue by issue it may come from the founding members or from the
log; everything else asks this module, so that no other place counts nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec


class Configuration(msgspec.Struct, frozen=True):
    """voters decide elections and commitment; learners only receive the log (thesis 4.2.1)."""

    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()

    def quorum(self) -> int:
        """The size of a majority of the voters (paper 5.2): 2 of 2, 2 of 3, 3 of 4."""
        return len(self.voters) // 2 + 1

    def peers(self, node_id: int) -> tuple[int, ...]:
        """Everyone else that receives the log, voters first."""
        return tuple(peer for peer in (*self.voters, *self.learners) if peer != node_id)

    def has_quorum(self, nodes: Iterable[int]) -> bool:
        """Whether these nodes hold a majority of the voters. Others, and repeats, do not count."""
        return len(set(nodes) & set(self.voters)) >= self.quorum()

    def quorum_value(self, value_of: Callable[[int], int]) -> int:
        """The largest value that a majority of the voters has reached (paper 5.3, 5.4: the commit rule)."""
        return sorted((value_of(voter) for voter in self.voters), reverse=True)[self.quorum() - 1]
