"""Ledger rows to MongoDB documents: pure, and the only place that knows what a document looks like.

Amounts, log indexes and terms are always int64, so a field never changes its BSON type as it grows; small
counts and the interval number (part of an `_id`) are plain ints. Times are BSON dates: aware UTC datetimes of
millisecond precision. Every function is pure and may be called by any thread.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bson import Binary, Int64

from ledger.rows import ClaimRow, IntervalRow, RewardRow

Document = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_date(at_ms: int | None) -> datetime | None:
    """Milliseconds since the epoch as a date; None stays None. Exact: no float is involved."""
    return None if at_ms is None else _EPOCH + timedelta(milliseconds=at_ms)


def to_data(data: bytes | None) -> str | Binary | None:
    """What a follower reported: text if it is valid UTF-8, else binary."""
    if data is None:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return Binary(data)


def reward_document(row: RewardRow) -> Document:
    """A document of `rewards`: one follower as it stands."""
    return {
        "_id": row.node,
        "node": row.node,
        "kind": row.kind,
        "address": row.address,
        "state": row.state,
        "amount": Int64(row.amount),
        "earned": Int64(row.earned),
        "penalties": Int64(row.penalties),
        "claimed": Int64(row.claimed),
        "misses_in_row": row.misses_in_row,
        "spam": row.spam,
        "banned_until": to_date(row.banned_until),
        "pardon_reason": row.pardon_reason,
        "joined_at": to_date(row.joined_at),
        "updated_at": to_date(row.updated_at),
        "applied_index": Int64(row.applied_index),
    }


def interval_document(row: IntervalRow) -> Document:
    """A document of `intervals`: one follower's outcome in one interval, for ever the same."""
    return {
        # The order of the two keys is part of the identity in MongoDB.
        "_id": {"interval": row.interval, "node": row.node},
        "interval": row.interval,
        "node": row.node,
        "opened_at": to_date(row.opened_at),
        "due_at": to_date(row.due_at),
        "closed_at": to_date(row.closed_at),
        "outcome": row.outcome,
        "delta": Int64(row.delta),
        "amount": Int64(row.amount),
        "data": to_data(row.data),
        "leader": row.leader,
        "term": Int64(row.term),
        "applied_index": Int64(row.applied_index),
    }


def claim_document(row: ClaimRow) -> Document:
    """A document of `claims`: one claim with its first and only answer."""
    return {
        "_id": row.claim_id,
        "node": row.node,
        "amount": Int64(row.amount),
        "at": to_date(row.at),
        "accepted": row.accepted,
        "balance": Int64(row.balance),
        "applied_index": Int64(row.applied_index),
    }


def checkpoint_document(cluster_name: str, applied_index: int, written_by: int, at_ms: int) -> Document:
    """The document of `projection`: everything up to log index applied_index is in MongoDB."""
    return {
        "_id": cluster_name,
        "applied_index": Int64(applied_index),
        "written_by": written_by,
        "at": to_date(at_ms),
    }
