"""The outbox: what MongoDB may not have yet, replicated like the rest, trimmed by ~PROJECTED.

Outcomes wait as one packed record per closed interval; claims wait by id, since the ledger keeps them anyway;
changed followers wait by id with the index of their last change. Past its bound in bytes the oldest outcomes
are dropped and counted; balances and claims never are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from heapq import merge
from itertools import groupby
from operator import itemgetter

import msgspec

from ledger.history import OUTCOME_NAMES
from ledger.rows import IntervalRow

DEFAULT_BYTES = 256 * 2**20

# (follower id, outcome code, delta, balance after, data)
PackedOutcome = tuple[str, int, int, int, bytes | None]


class _Heading(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What all outcomes of a closed interval share."""

    interval: int
    opened_at: int
    due_at: int
    closed_at: int
    leader: int
    term: int


class IntervalRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The outcomes of one closed interval. index: its entry; data: msgpack of the packed outcomes."""

    index: int
    heading: _Heading
    count: int
    data: bytes
    checksum: bytes

    def rows(self) -> Iterator[IntervalRow]:
        """The outcomes as documents of `intervals`."""
        head = self.heading
        for node, outcome, delta, amount, data in _decoder.decode(self.data):
            yield IntervalRow(
                interval=head.interval,
                node=node,
                opened_at=head.opened_at,
                due_at=head.due_at,
                closed_at=head.closed_at,
                outcome=OUTCOME_NAMES[outcome],
                delta=delta,
                amount=amount,
                data=data,
                leader=head.leader,
                term=head.term,
                applied_index=self.index,
            )


_decoder: msgspec.msgpack.Decoder[list[PackedOutcome]] = msgspec.msgpack.Decoder(list[PackedOutcome])


class Pulled(msgspec.Struct, frozen=True):
    """The oldest pending records. upto_index: their last entry; complete: nothing is left behind."""

    upto_index: int
    records: list[IntervalRecord]
    claim_ids: list[str]
    complete: bool


class Outbox:
    """max_bytes is part of the state machine: it must be the same on every node, so it is no setting."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.records: deque[IntervalRecord] = deque()
        self.claims: deque[tuple[int, str]] = deque()  # (index, claim id)
        self.touched: dict[str, int] = {}  # follower id -> index of its last change, lowest first
        self.bytes = 0
        self.outcome_rows = 0
        self.projected_index = 0
        self.dropped_rows = 0
        self.overflowing = False

    def touch(self, follower_id: str, index: int) -> None:
        """follower_id's row changed at index, the highest so far."""
        self.touched.pop(follower_id, None)  # so that it moves to the end
        self.touched[follower_id] = index

    def add_claim(self, claim_id: str, index: int) -> None:
        """A claim was answered at index."""
        self.claims.append((index, claim_id))

    def add_outcomes(
        self,
        index: int,
        outcomes: list[PackedOutcome],
        *,
        interval: int,
        opened_at: int,
        due_at: int,
        closed_at: int,
        leader: int,
        term: int,
    ) -> bool:
        """Keep a closed interval's outcomes; drop the oldest past the bound.

        Returns True when that began now: the news is told once, until the projection moves on.
        """
        heading = _Heading(interval, opened_at, due_at, closed_at, leader, term)
        data = msgspec.msgpack.encode(outcomes)
        checksum = blake2b(data, digest_size=16).digest()
        self.records.append(IntervalRecord(index, heading, len(outcomes), data, checksum))
        self.bytes += len(data)
        self.outcome_rows += len(outcomes)
        if self.bytes <= self.max_bytes:
            return False
        while self.bytes > self.max_bytes:
            self.dropped_rows += self._forget_oldest()
        began, self.overflowing = not self.overflowing, True
        return began

    def _forget_oldest(self) -> int:
        record = self.records.popleft()
        self.bytes -= len(record.data)
        self.outcome_rows -= record.count
        return record.count

    def trim(self, index: int) -> None:
        """MongoDB has everything up to index."""
        if index <= self.projected_index:
            return
        self.projected_index = index
        self.overflowing = False
        while self.records and self.records[0].index <= index:
            self._forget_oldest()
        while self.claims and self.claims[0][0] <= index:
            self.claims.popleft()
        for follower_id in self._touched_upto(index):
            del self.touched[follower_id]

    def _touched_upto(self, index: int) -> list[str]:
        done = []
        for follower_id, changed_at in self.touched.items():
            if changed_at > index:
                break
            done.append(follower_id)
        return done

    def pull(self, max_rows: int) -> Pulled:
        """The oldest whole entries: at most max_rows outcomes and claims, but at least one entry."""
        waiting = merge(
            ((record.index, record, "") for record in self.records),
            ((index, None, claim_id) for index, claim_id in self.claims),
            key=itemgetter(0),
        )
        records: list[IntervalRecord] = []
        claim_ids: list[str] = []
        upto_index, rows = self.projected_index, 0
        for index, group in groupby(waiting, key=itemgetter(0)):
            items = list(group)
            rows += sum(1 if record is None else record.count for _, record, _ in items)
            if rows > max_rows and (records or claim_ids):
                return Pulled(upto_index, records, claim_ids, complete=False)
            records += [record for _, record, _ in items if record is not None]
            claim_ids += [claim_id for _, record, claim_id in items if record is None]
            upto_index = index
        # Every pending record is in it, and the followers' rows are as of now: all changes are covered.
        newest_change = next(reversed(self.touched.values()), 0)
        return Pulled(max(upto_index, newest_change), records, claim_ids, complete=True)

    def lag(self) -> int:
        """How many rows wait: outcomes, claims, changed followers. 0 exactly if there is nothing to pull."""
        return self.outcome_rows + len(self.claims) + len(self.touched)
