"""What the ledger hands to the MongoDB projection: one frozen row per document.

The fields are those of the documents that users read in mongosh. Times are milliseconds since the epoch
(or None); amounts are integers. Rows are immutable: the worker makes them, the projector thread reads them.
"""

from __future__ import annotations

import msgspec


class RewardRow(msgspec.Struct, frozen=True, gc=False):
    """One follower as it stands: a document of `rewards`. applied_index: the last entry that changed it."""

    node: str
    kind: str  # member | worker
    address: str
    state: str  # active | banned | left
    amount: int
    earned: int
    penalties: int
    claimed: int
    misses_in_row: int
    spam: int
    banned_until: int | None
    joined_at: int
    updated_at: int
    applied_index: int
    pardon_reason: str | None = None


class IntervalRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One follower's outcome in one interval: a document of `intervals`. amount: the balance after it."""

    interval: int
    node: str
    opened_at: int
    due_at: int
    closed_at: int
    outcome: str  # hit | missed | excused
    delta: int
    amount: int
    data: bytes | None
    leader: int
    term: int
    applied_index: int


class ClaimRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One claim with its first and only answer: a document of `claims`. balance: after it."""

    claim_id: str
    node: str
    amount: int
    at: int
    accepted: bool
    balance: int
    applied_index: int


class ProjectionBatch(msgspec.Struct, frozen=True, gc=False):
    """A piece of work for the projector: all outcomes up to upto_index that MongoDB may not have yet."""

    upto_index: int
    rewards: tuple[RewardRow, ...]
    intervals: tuple[IntervalRow, ...]
    claims: tuple[ClaimRow, ...]
    full: bool = False
