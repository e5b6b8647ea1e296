"""The writes of one leader: each outcome once, nothing moved backwards, however often a batch is replayed.

Three rules make a replay, a reordering or a deposed leader harmless:

- an outcome (interval or claim) is inserted and never changed; finding it there already is success;
- a follower's `rewards` document is replaced only by one of a higher applied_index (the fence);
- the checkpoint moves only forward, and only after everything that it vouches for was acknowledged.

Outcomes that are there already are compared, by sample, with the ledger's: an outcome of the same interval
and follower that differs comes from another life of a cluster with this name (ForeignDataError).

Only the projector thread uses a LedgerWriter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from bson.errors import BSONError
from pymongo import MongoClient, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteConcernError, WriteError

from database.documents import (
    Document,
    checkpoint_document,
    claim_document,
    interval_document,
    reward_document,
)
from database.indexes import ensure_indexes
from ledger.rows import ClaimRow, IntervalRow, RewardRow

_Row = TypeVar("_Row")

DUPLICATE_KEY = 11000
# The server was interrupted, is shutting down or lost its primary: worth another try, nobody's mistake.
TRANSIENT_CODES = frozenset(
    {6, 7, 50, 64, 89, 91, 112, 134, 189, 262, 9001, 10058, 10107, 11600, 11602, 13435, 13436}
)


class RefusedDocumentError(Exception):
    """MongoDB (or the BSON encoding) does not take a document; trying again will not help by itself."""


class ForeignDataError(Exception):
    """The database holds the ledger of another cluster, or of an earlier life of this one."""


class InterruptedWriteError(Exception):
    """`keep_going` said no between two chunks."""


class Checkpoint(msgspec.Struct, frozen=True):
    """The document of `projection`, as found."""

    applied_index: int
    written_by: int | None
    at: datetime | None


class LedgerWriter:
    """Writes rows to one database. Every method raises PyMongoError when MongoDB is away.

    bulk: False writes one document at a time, for mongomock, whose bulk_write breaks with pymongo 4.11.
    chunk_rows: documents in one request; keep_going is asked before each.
    """

    def __init__(
        self,
        client: MongoClient[Document],
        database_name: str,
        cluster_name: str,
        node_id: int,
        *,
        bulk: bool = True,
        chunk_rows: int = 1000,
        keep_going: Callable[[], bool] = lambda: True,
    ) -> None:
        self._database = client[database_name]
        self._rewards = self._database["rewards"]
        self._intervals = self._database["intervals"]
        self._claims = self._database["claims"]
        self._projection = self._database["projection"]
        self._cluster_name = cluster_name
        self._node_id = node_id
        self._bulk = bulk
        self._chunk_rows = chunk_rows
        self._keep_going = keep_going

    def ensure_indexes(self, intervals_ttl_days: int) -> None:
        """Create or correct the indexes of `intervals`."""
        ensure_indexes(self._database, intervals_ttl_days)

    def read_checkpoint(self) -> Checkpoint | None:
        """How far the projection got; None when nothing was ever written (or all of it is gone).

        Raises RefusedDocumentError when the document is there but is not a checkpoint.
        """
        found = self._projection.find_one({"_id": self._cluster_name})
        if found is None:
            return None
        applied_index = found.get("applied_index")
        if not isinstance(applied_index, int):
            raise RefusedDocumentError(
                f"the document {self._cluster_name!r} in collection `projection` is no checkpoint: "
                f"its applied_index is {applied_index!r}; delete that document"
            )
        return Checkpoint(applied_index, found.get("written_by"), found.get("at"))

    def has_reward_beyond(self, applied_index: int) -> bool:
        """Whether a `rewards` document is newer than that log index."""
        return self._rewards.find_one({"applied_index": {"$gt": applied_index}}) is not None

    def insert_outcomes(self, intervals: Sequence[IntervalRow], claims: Sequence[ClaimRow]) -> int:
        """Insert what is not there yet. Returns how many documents were new.

        Raises RefusedDocumentError; ForeignDataError when what is there already says something else.
        """
        new = 0
        for some_intervals in self._chunks(intervals):
            with _encoding(self._intervals.name):
                documents = [interval_document(row) for row in some_intervals]
                known = self._insert(self._intervals, documents)
            new += len(documents) - len(known)
            for document in _sample(known):
                # Found through the index (node, interval); an _id of two keys has no fast way everywhere.
                query = {"node": document["node"], "interval": document["interval"]}
                self._compare(self._intervals, query, document, ("opened_at", "outcome", "applied_index"))
        for some_claims in self._chunks(claims):
            with _encoding(self._claims.name):
                documents = [claim_document(row) for row in some_claims]
                known = self._insert(self._claims, documents)
            new += len(documents) - len(known)
            for document in _sample(known):
                self._compare(
                    self._claims, {"_id": document["_id"]}, document, ("node", "at", "applied_index")
                )
        return new

    def write_rewards(self, rows: Sequence[RewardRow]) -> int:
        """Bring followers up to date, behind the fence. Returns how many documents changed."""
        changed = 0
        for some in self._chunks(rows):
            with _encoding(self._rewards.name):
                documents = [reward_document(row) for row in some]
                refused = self._upsert(documents)
                # A refusal means that the document exists – but it may have been made by an older leader at
                # the very same moment. Without upsert the fence decides, and no error is possible.
                changed += len(documents) - len(refused) + self._update_existing(refused)
        return changed

    def write_checkpoint(self, applied_index: int, at_ms: int, *, expected: Checkpoint | None) -> bool:
        """Vouch for everything up to applied_index. False: the stored one is not what was expected.

        expected: what is known to be stored. None: the document may have to be made. Otherwise it must be
        there; a missing one would mean that the database was wiped meanwhile, which must not be papered over.
        """
        document = checkpoint_document(self._cluster_name, applied_index, self._node_id, at_ms)
        # "lte": the same checkpoint may be written again, which waits for the write concern once more.
        query = {"_id": self._cluster_name, "applied_index": {"$lte": applied_index}}
        with _encoding(self._projection.name):
            try:
                result = self._projection.update_one(
                    query, {"$set": _fields(document)}, upsert=expected is None
                )
            except DuplicateKeyError:
                return False
        if result.matched_count or result.upserted_id is not None:
            return True
        return expected is not None and expected.applied_index > applied_index

    # --- one chunk ---

    def _chunks(self, rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
        for start in range(0, len(rows), self._chunk_rows):
            if not self._keep_going():
                raise InterruptedWriteError
            yield rows[start : start + self._chunk_rows]

    def _insert(self, collection: Collection[Document], documents: list[Document]) -> list[Document]:
        """Insert each document; returns those whose _id was there already."""
        if self._bulk:
            try:
                collection.insert_many(documents, ordered=False)
            except BulkWriteError as problem:
                return _already_there(collection.name, documents, problem)
            return []
        known = []
        for document in documents:
            try:
                collection.insert_one(document)
            except DuplicateKeyError:
                known.append(document)
        return known

    def _upsert(self, documents: list[Document]) -> list[Document]:
        """Make or replace `rewards` documents; returns those that the fence (or a race) refused."""
        if self._bulk:
            updates = [UpdateOne(_fence(d), {"$set": _fields(d)}, upsert=True) for d in documents]
            try:
                self._rewards.bulk_write(updates, ordered=False)
            except BulkWriteError as problem:
                return _already_there(self._rewards.name, documents, problem)
            return []
        refused = []
        for document in documents:
            try:
                self._rewards.update_one(_fence(document), {"$set": _fields(document)}, upsert=True)
            except DuplicateKeyError:
                refused.append(document)
        return refused

    def _update_existing(self, documents: list[Document]) -> int:
        """Replace those `rewards` documents that are older; returns how many were."""
        if not documents:
            return 0
        if self._bulk:
            updates = [UpdateOne(_fence(d), {"$set": _fields(d)}) for d in documents]
            try:
                return self._rewards.bulk_write(updates, ordered=False).matched_count
            except BulkWriteError as problem:
                _already_there(self._rewards.name, documents, problem)
                raise
        return sum(self._rewards.update_one(_fence(d), {"$set": _fields(d)}).matched_count for d in documents)

    def _compare(
        self, collection: Collection[Document], query: Document, ours: Document, fields: tuple[str, ...]
    ) -> None:
        stored = collection.find_one(query)
        # None: the TTL (or a person) took it away since the insert was refused.
        differing = [] if stored is None else [name for name in fields if stored.get(name) != ours[name]]
        if stored is not None and differing:
            name = differing[-1]
            raise ForeignDataError(
                f"{collection.name} {ours['_id']!r} is stored with {name} {stored.get(name)!r}, "
                f"this cluster's ledger has {ours[name]!r}"
            )


def _fence(document: Document) -> Document:
    return {"_id": document["_id"], "applied_index": {"$lt": document["applied_index"]}}


def _fields(document: Document) -> Document:
    return {name: value for name, value in document.items() if name != "_id"}


def _sample(documents: list[Document]) -> list[Document]:
    """First, middle and last: in another life all outcomes differ, so a few show it."""
    if len(documents) <= 3:
        return documents
    return [documents[0], documents[len(documents) // 2], documents[-1]]


def _already_there(collection: str, documents: list[Document], problem: BulkWriteError) -> list[Document]:
    """The documents that were refused because their _id exists; raises for every other kind of refusal."""
    details: dict[str, Any] = dict(problem.details or {})
    for failure in details.get("writeErrors", ()):
        # A unique index that somebody added also answers 11000, and that outcome would be lost.
        by_id = failure.get("keyPattern", {"_id": 1}) == {"_id": 1}
        if failure.get("code") == DUPLICATE_KEY and by_id:
            continue
        message = f"{collection} {documents[failure['index']]['_id']!r}: {failure.get('errmsg')}"
        if failure.get("code") in TRANSIENT_CODES:
            raise WriteConcernError(message, failure.get("code"), failure) from problem
        raise RefusedDocumentError(f"{message} (code {failure.get('code')})") from problem
    for failure in details.get("writeConcernErrors", ()):
        raise WriteConcernError(str(failure.get("errmsg")), failure.get("code"), failure) from problem
    return [documents[failure["index"]] for failure in details.get("writeErrors", ())]


@contextmanager
def _encoding(collection: str) -> Iterator[None]:
    """Documents that cannot be encoded, and single writes that the server refuses, as one typed error."""
    try:
        yield
    except (BSONError, OverflowError, UnicodeError) as problem:
        raise RefusedDocumentError(f"a document of {collection} cannot be encoded: {problem}") from problem
    except WriteError as problem:
        if problem.code in TRANSIENT_CODES:
            raise
        raise RefusedDocumentError(f"{collection}: {problem} (code {problem.code})") from problem
