"""The indexes of `intervals`: (node, interval desc) for histories, and a TTL on closed_at.

Changing `database.intervals_ttl_days` changes the index that exists; indexes that people added stay.
"""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database
from pymongo.errors import OperationFailure

HISTORY_KEY = [("node", ASCENDING), ("interval", DESCENDING)]
TTL_KEY = [("closed_at", ASCENDING)]

_DAY_S = 86_400
_INDEX_NOT_FOUND = 27


def ensure_indexes(database: Database[dict[str, Any]], intervals_ttl_days: int) -> None:
    """Create what is missing, correct the TTL. Idempotent; intervals_ttl_days must be at least 1.

    Raises PyMongoError when MongoDB is away or refuses. Only the projector thread calls this.
    """
    if intervals_ttl_days < 1:
        # expireAfterSeconds 0 would delete every outcome at once.
        raise ValueError(f"intervals_ttl_days must be at least 1, not {intervals_ttl_days}")
    expire_s = intervals_ttl_days * _DAY_S
    intervals = database["intervals"]
    existing = {tuple(index["key"]): (name, index) for name, index in intervals.index_information().items()}
    if tuple(HISTORY_KEY) not in existing:
        intervals.create_index(HISTORY_KEY)
    if tuple(TTL_KEY) not in existing:
        intervals.create_index(TTL_KEY, expireAfterSeconds=expire_s)
        return
    name, index = existing[tuple(TTL_KEY)]
    if index.get("expireAfterSeconds") != expire_s:
        _change_ttl(database, name, expire_s)


def _change_ttl(database: Database[dict[str, Any]], name: str, expire_s: int) -> None:
    try:
        database.command("collMod", "intervals", index={"name": name, "expireAfterSeconds": expire_s})
    except OperationFailure:
        # Without collMod, or before MongoDB 5.1 when the index had no TTL at all: build it anew.
        try:
            database["intervals"].drop_index(name)
        except OperationFailure as problem:
            if problem.code != _INDEX_NOT_FOUND:
                raise
        database["intervals"].create_index(TTL_KEY, expireAfterSeconds=expire_s)
