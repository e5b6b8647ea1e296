"""All of the ledger's replicated state in one place: what the rules change and what is hashed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from ledger.arguments import RefusedError
from ledger.claims import Claims
from ledger.context import Context
from ledger.events import Events
from ledger.followers import ACTIVE, BANNED, LEFT, Follower, Followers
from ledger.intervals import Intervals
from ledger.outbox import Outbox
from ledger.policy import Policy

_CHUNK = 1000  # followers encoded at a time: keeps the memory for a digest small


class InvariantError(Exception):
    """The ledger contradicts itself: a bug. The node must stop."""


class LedgerState:
    """The parts. Owned by the thread that applies entries; events alone are not replicated state."""

    def __init__(self, outbox: Outbox) -> None:
        self.policy: Policy | None = None  # the latest set by ~TERM or ~OPEN
        self.followers = Followers()
        self.intervals = Intervals()
        self.claims = Claims()
        self.outbox = outbox
        self.events = Events()

    def policy_in_force(self) -> Policy:
        """The latest policy. Raises RefusedError before the first leader has set one."""
        if self.policy is None:
            raise RefusedError("ERR the ledger has no policy yet: the first leader is still taking office")
        return self.policy

    def known(self, follower_id: str) -> Follower:
        """The follower of that id, whatever its state. Raises RefusedError (NOFOLLOWER)."""
        follower = self.followers.by_id.get(follower_id)
        if follower is None:
            raise RefusedError(f"NOFOLLOWER {follower_id} has never joined")
        return follower

    def changed(self, follower: Follower, context: Context) -> None:
        """Note that follower's row changed at context: MongoDB needs it again."""
        follower.updated_at = context.at_ms
        follower.applied_index = context.index
        self.outbox.touch(follower.id, context.index)

    def parts(self) -> Iterator[bytes]:
        """The complete state as canonical bytes, piece by piece; the same on every node at the same index.

        Claims and outbox records go in by the hashes taken when they were added.
        """
        encode = msgspec.msgpack.encode
        followers, intervals, outbox = self.followers, self.intervals, self.outbox
        yield encode(["ledger-1", self.policy, len(followers.by_id), followers.members, followers.counts])
        everyone = iter(followers.by_id.values())
        while chunk := list(islice(everyone, _CHUNK)):
            yield encode(chunk)
        yield encode([intervals.last, intervals.cursor, intervals.open])
        yield encode(list(intervals.closed.values()))
        yield encode([len(self.claims.by_id), self.claims.chain])
        yield encode([outbox.projected_index, outbox.dropped_rows, outbox.overflowing, outbox.max_bytes])
        yield encode([(each.index, each.heading, each.count, each.checksum) for each in outbox.records])
        yield encode(list(outbox.claims))
        yield encode(list(outbox.touched.items()))

    def check(self) -> None:
        """Rule 8 and what the code relies on. Raises InvariantError."""
        counts = {ACTIVE: 0, BANNED: 0, LEFT: 0}
        for ordinal, follower in enumerate(self.followers.by_id.values()):
            counts[follower.state] += 1
            due = follower.earned - follower.penalties - follower.claimed
            if follower.balance != due:
                raise InvariantError(f"balance of {follower.id} is {follower.balance}, its sums give {due}")
            if follower.ordinal != ordinal or self.followers.order[ordinal] != follower.id:
                raise InvariantError(f"{follower.id} is out of join order")
            if follower.state == BANNED and follower.banned_until is None:
                raise InvariantError(f"{follower.id} is banned without an end")
        if counts != self.followers.counts:
            raise InvariantError(f"states are counted as {self.followers.counts} but are {counts}")
        if any(number > self.intervals.last for number in self.intervals.closed):
            raise InvariantError("an interval is closed that was never opened")
        if self.intervals.open is not None and self.intervals.open.number in self.intervals.closed:
            raise InvariantError(f"interval {self.intervals.open.number} is open and closed")
        self._check_outbox()

    def _check_outbox(self) -> None:
        outbox = self.outbox
        if (
            outbox.bytes != sum(len(record.data) for record in outbox.records)
            or outbox.bytes > outbox.max_bytes
        ):
            raise InvariantError(f"the outbox counts {outbox.bytes} bytes of {outbox.max_bytes} wrongly")
        if outbox.outcome_rows != sum(record.count for record in outbox.records):
            raise InvariantError("the outbox counts its rows wrongly")
        for name, indexes in (
            ("outcomes", [record.index for record in outbox.records]),
            ("claims", [index for index, _ in outbox.claims]),
            ("changes", list(outbox.touched.values())),
        ):
            if indexes != sorted(indexes) or (indexes and indexes[0] <= outbox.projected_index):
                raise InvariantError(f"the outbox holds {name} out of order or already projected")
