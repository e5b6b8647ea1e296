"""Random sequences of operations, restarts, full disks and power losses against a plain list."""

from __future__ import annotations

import contextlib
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from storage_helpers import make_disk, make_entries, open_store, read_log

from raft.core.entry import Entry
from raft.storage.errors import DiskFullError


class LogMachine(RuleBasedStateMachine):
    """model: what the log held from entry 1 on; promised: how many of its first entries must survive a power
    loss; snapshot: index and term of the last entry that a durable snapshot covers."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = make_disk(sector=32)
        self.store = open_store(self.disk, segment_bytes=400, cache_bytes=1500)
        self.model: list[Entry] = []
        self.promised = 0
        self.term = 1
        self.snapshot = (0, 0)

    def open(self, segment_bytes: int = 400) -> None:
        index, term = self.snapshot
        self.store = open_store(
            self.disk,
            segment_bytes=segment_bytes,
            cache_bytes=1500,
            snapshot_index=index,
            snapshot_term=term,
        )

    def more(self, count: int, size: int | None) -> list[Entry]:
        """Entries to append; now and then one is a configuration."""
        first = len(self.model) + 1
        return [
            Entry(entry.index, entry.term, 2 if entry.index % 5 == 0 else 1, entry.data)
            for entry in make_entries(first, first + count - 1, self.term, size)
        ]

    @rule(count=st.integers(1, 12), size=st.none() | st.integers(0, 700), newer=st.booleans())
    def append(self, count: int, size: int | None, newer: bool) -> None:
        self.term += newer
        entries = self.more(count, size)
        self.store.append(entries)
        self.model += entries

    @rule(count=st.integers(1, 12), size=st.none() | st.integers(0, 200), written=st.integers(0, 300))
    def append_on_a_full_disk(self, count: int, size: int | None, written: int) -> None:
        fault = self.disk.fail("pwrite", 28, written=written, skip=written % 2)
        entries = self.more(count, size)
        with contextlib.suppress(DiskFullError):
            self.store.append(entries)
            self.model += entries
        self.disk.faults.remove(fault)

    @rule()
    def sync(self) -> None:
        self.store.sync()
        self.promised = len(self.model)

    @rule(data=st.data(), most=st.none() | st.integers(0, 2))
    def compact(self, data: st.DataObject, most: int | None) -> None:
        index = data.draw(st.integers(max(self.snapshot[0], self.store.first_index - 1), len(self.model)))
        self.snapshot = (index, self.store.term(index))
        self.store.truncate_prefix(data.draw(st.integers(0, index)), max_files=most)

    @rule(ahead=st.integers(1, 30), back=st.booleans(), crash=st.booleans())
    def install(self, ahead: int, back: bool, crash: bool) -> None:
        """A leader's snapshot, ahead of the log or in place of entries that were never committed."""
        low = self.snapshot[0] + 1
        index = (
            min(low + ahead, len(self.model)) if back and low < len(self.model) else len(self.model) + ahead
        )
        self.term += 1
        self.snapshot = (index, self.term)
        self.model = make_entries(1, index - 1, 1) + make_entries(index, index, self.term)
        self.promised = index
        if crash:
            self.open()
        else:
            self.store.reset(index, self.term)

    @precondition(lambda self: len(self.model) > self.snapshot[0])
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        from_index = data.draw(st.integers(self.snapshot[0] + 1, len(self.model) + 1))
        self.store.truncate_suffix(from_index)
        del self.model[from_index - 1 :]
        self.promised = len(self.model)
        self.term += 1

    @rule(closed=st.booleans(), segment_bytes=st.sampled_from([200, 400, 3000]))
    def restart(self, closed: bool, segment_bytes: int) -> None:
        if closed:
            self.store.close()
        self.open(segment_bytes)
        self.promised = len(self.model)

    @rule(seed=st.integers(0, 2**32))
    def power_loss(self, seed: int) -> None:
        rng = random.Random(seed)
        share = rng.choice([0.0, 0.5, 0.9, 1.0])
        self.disk = self.disk.after_power_loss(lambda _: rng.random() < share)
        self.open()
        found, first = read_log(self.store), self.store.first_index
        assert found == self.model[first - 1 : self.store.last_index]
        assert self.store.last_index >= max(self.promised, self.snapshot[0])
        self.model = self.model[: self.store.last_index]
        self.promised = len(self.model)

    @rule(data=st.data(), max_bytes=st.integers(0, 2000))
    def read(self, data: st.DataObject, max_bytes: int) -> None:
        lo = data.draw(st.integers(self.store.first_index, len(self.model) + 1))
        hi = data.draw(st.integers(lo, len(self.model) + 1))
        found = self.store.entries(lo, hi, max_bytes)
        assert list(found) == self.model[lo - 1 : lo - 1 + len(found)]
        assert len(found) <= 1 or sum(len(entry.data) for entry in found) <= max_bytes
        assert bool(found) == (lo < hi)

    @invariant()
    def agrees(self) -> None:
        assert self.store.last_index == len(self.model)
        assert self.promised <= self.store.durable_index <= self.store.last_index
        assert self.store.first_index <= self.snapshot[0] + 1
        assert self.store.term(self.snapshot[0]) == self.snapshot[1]
        expected = self.model[self.store.first_index - 1 :]
        assert read_log(self.store) == expected
        assert self.store.configurations() == [entry for entry in expected if entry.kind == 2]


TestLogAgainstAList = LogMachine.TestCase
TestLogAgainstAList.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
