"""The door to the ledger: commands in, replies, events and rows for MongoDB out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

from ledger import commands, schedule, snapshot
from ledger.context import Context
from ledger.followers import Follower
from ledger.outbox import DEFAULT_BYTES, Outbox
from ledger.policy import Policy
from ledger.rows import ProjectionBatch
from ledger.state import InvariantError, LedgerState
from raft.replies import Reply

__all__ = ["Context", "Hasher", "InvariantError", "Ledger", "Policy"]


class Hasher(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Feed data."""


class Ledger:
    """Followers, intervals and rewards as the log made them.

    Owned by one thread, the one that applies entries: no method may be called by any other. Rows and events
    that it hands out are immutable and may travel. outbox_bytes bounds the outcomes kept for MongoDB; it
    shapes the replicated state, so every node must use the same, and only tests use another.
    """

    def __init__(self, outbox_bytes: int = DEFAULT_BYTES) -> None:
        self._state = LedgerState(Outbox(outbox_bytes))

    def execute(self, args: list[bytes], context: Context) -> Reply:
        """Carry out a FOLLOWER, REWARD or INTERVAL command, or ~TERM ~MEMBERS ~OPEN ~CLOSE ~PROJECTED.

        args: the words as sent. context: the entry that holds the command; its index never falls. Whatever
        is wrong with args is an Error reply and changes nothing (but NOTURN and OVERCLAIM are on record). A
        reading command changes nothing and may be given the context of the last entry.
        """
        return commands.execute(self._state, args, context)

    def take_events(self) -> list[tuple[str, str]]:
        """(channel, payload) of all that happened since the last call, in order."""
        return self._state.events.take()

    def next_system_command(
        self, now_ms: int, leader_id: int, answered_members: Collection[str], excused: bool, policy: Policy
    ) -> list[bytes] | None:
        """What the leader should propose now, if anything: see ledger/schedule.py."""
        return schedule.next_system_command(self._state, now_ms, leader_id, answered_members, excused, policy)

    def pull(self, max_rows: int, full: bool = False) -> ProjectionBatch | None:
        """What MongoDB may not have yet, oldest first, or None when it has everything.

        Whole entries with at most max_rows outcomes and claims, but at least one entry; with it, as they
        are now, all followers that changed since the last ~PROJECTED (full: all followers there are, and
        never None). Once written, propose ~PROJECTED upto_index.
        """
        state = self._state
        if not full and state.outbox.lag() == 0:
            return None
        pulled = state.outbox.pull(max_rows)
        by_id, claims = state.followers.by_id, state.claims.by_id
        followers: Collection[Follower] = by_id.values()
        if not full:
            followers = [by_id[follower_id] for follower_id in state.outbox.touched]
        return ProjectionBatch(
            upto_index=pulled.upto_index,
            rewards=tuple([follower.row() for follower in followers]),
            intervals=tuple([row for record in pulled.records for row in record.rows()]),
            claims=tuple([claims[claim_id].row() for claim_id in pulled.claim_ids]),
            full=full,
        )

    def projection_lag(self) -> int:
        """Rows that MongoDB may not have yet: outcomes, claims and changed followers."""
        return self._state.outbox.lag()

    @property
    def projected_index(self) -> int:
        """MongoDB has everything up to this log index."""
        return self._state.outbox.projected_index

    @property
    def dropped_rows(self) -> int:
        """Outcomes that were given up because the outbox was full, ever."""
        return self._state.outbox.dropped_rows

    @property
    def policy(self) -> Policy | None:
        """The latest policy, None before the first ~TERM."""
        return self._state.policy

    @property
    def open_interval(self) -> int | None:
        """The number of the open interval, None when none is."""
        interval = self._state.intervals.open
        return None if interval is None else interval.number

    def counts(self) -> dict[str, int]:
        """How many followers are active, banned and left (members included)."""
        return dict(self._state.followers.counts)

    def check(self) -> None:
        """Raises InvariantError unless balance = earned − penalties − claimed for every follower (rule 8)."""
        self._state.check()

    def newest_index(self) -> int:
        """The entry of the newest change that MongoDB has or waits for: never behind the last one applied."""
        outbox = self._state.outbox
        waiting = [*(record.index for record in outbox.records), *(index for index, _ in outbox.claims)]
        return max(outbox.projected_index, *waiting, *outbox.touched.values(), 0)

    def row_count(self) -> int:
        """How many rows export() has, for progress."""
        return snapshot.row_count(self._state)

    def export(self) -> Iterator[tuple[int, bytes]]:
        """(rows, bytes) of each piece of the complete replicated state: see ledger/snapshot.py."""
        return snapshot.export(self._state)

    @classmethod
    def restore(cls, pieces: Iterable[bytes]) -> Ledger:
        """The ledger that gave these pieces. Raises LedgerFormatError."""
        ledger = cls()
        ledger._state = snapshot.restore(pieces)
        return ledger

    def digest_into(self, hasher: Hasher) -> None:
        """Feed the complete replicated state to hasher. Raises InvariantError if it contradicts itself."""
        self._state.check()
        for part in self._state.parts():
            hasher.update(part)
