"""The core's view of the log (raft/core/log.py)."""

from __future__ import annotations

import pytest

from raft.core.entry import Entry, EntryKind
from raft.core.invariants import InvariantViolation
from raft.core.log import RaftLog
from tests.core.lab import (
    log_of,
)
from tests.simulation.disk import Disk


def test_a_compacted_or_missing_term_is_never_read_as_zero() -> None:
    """etcd raft 76f1249."""
    log = RaftLog(Disk(log_of(1, 1, 3)))
    assert [log.term(i) for i in range(4)] == [0, 1, 1, 3]
    for index in (-1, 4):
        with pytest.raises(IndexError):
            log.term(index)
    assert not log.matches(4, 0)
    assert not log.matches(-1, 0)


class CompactedDisk(Disk):
    """A disk whose entries up to `base` a snapshot has replaced."""

    def __init__(self, terms: list[int], base: int) -> None:
        super().__init__(log_of(*terms))
        self.base = base

    @property
    def first_index(self) -> int:
        return self.base + 1

    def term(self, index: int) -> int:
        if index < self.base:
            raise IndexError(f"entry {index} is compacted")
        return super().term(index)


def test_a_log_whose_prefix_is_compacted_still_checks_what_it_has() -> None:
    """WRaft 118: prevIndex 0 skipped the check."""
    log = RaftLog(CompactedDisk([1, 1, 2, 2, 3], base=2))
    assert [log.term(i) for i in (2, 3, 4, 5)] == [1, 2, 2, 3]
    with pytest.raises(IndexError):
        log.term(1)
    assert not log.matches(0, 0)
    assert not log.matches(1, 1)
    assert log.matches(2, 1)


def test_reading_page_by_page_forgets_no_entry() -> None:
    """etcd raft 8ecce32. Some entries are on disk, some only in the tail."""
    log = RaftLog(Disk(log_of(1, 1, 1)))
    log.append([Entry(i, 2, 1, b"x" * i) for i in range(4, 10)])
    for max_bytes in (1, 7, 20, 1000):
        found: list[Entry] = []
        while len(found) < 9:
            page = log.entries(len(found) + 1, 10, max_bytes)
            assert page
            found.extend(page)
        assert [entry.index for entry in found] == list(range(1, 10))
        assert log.entries(10, 10, 100) == ()


def test_the_terms_bounds_are_found_across_truncation_and_append() -> None:
    log = RaftLog(Disk(log_of(1, 1, 2, 2, 5)))
    assert (log.first_index_of_term_at(4), log.last_index_of_term(2)) == (3, 4)
    log.truncate(4)
    log.append([Entry(4, 6, 1, b""), Entry(5, 6, 1, b"")])
    assert [log.term(i) for i in range(6)] == [0, 1, 1, 2, 6, 6]
    assert (log.last_index_of_term(2), log.last_index_of_term(5), log.last_index_of_term(6)) == (3, None, 5)
    assert log.first_index_of_term_at(5) == 4
    log.truncate(1)
    assert (log.last_index, log.last_term) == (0, 0)


def test_what_was_truncated_is_not_read_from_the_disk_that_still_has_it() -> None:
    log = RaftLog(Disk(log_of(1, 1, 1)))
    log.truncate(2)
    log.append([Entry(2, 4, 1, b"new")])
    assert [entry.term for entry in (*log.entries(1, 3, 1000), *log.entries(2, 3, 1000))] == [1, 4]


def test_an_append_that_leaves_a_gap_or_lowers_the_term_is_a_bug() -> None:
    log = RaftLog(Disk(log_of(1, 3)))
    with pytest.raises(InvariantViolation):
        log.append([Entry(4, 3, EntryKind.COMMANDS, b"")])
    with pytest.raises(InvariantViolation):
        log.append([Entry(3, 2, EntryKind.COMMANDS, b"")])
