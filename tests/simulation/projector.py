"""MongoDB and the nodes' projectors in the simulation: the real LedgerWriter on collections in memory.

A projector goes through the steps of database/projection.py one at a time – ask, take, outcomes, followers,
checkpoint, report – so that a deposed leader's writes come between its successor's, and MongoDB may be away
before or after any single write. Whoever wrote: what the checkpoint vouches for must be there, and be what
the ledger says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

from pymongo.errors import AutoReconnect, DuplicateKeyError, PyMongoError

from database.documents import Document
from database.writer import Checkpoint, ForeignDataError, LedgerWriter
from ledger.ledger import Ledger
from ledger.rows import ProjectionBatch
from tests.simulation.books import Books
from tests.simulation.checker import violated
from tests.simulation.service import CLUSTER, Service

FAILS = 0.03  # share of writes at which MongoDB goes away: half of them before, half after they are done


@dataclass(frozen=True, slots=True)
class Updated:
    """What update_one answers."""

    matched_count: int
    upserted_id: object


class Table:
    """One collection, as far as LedgerWriter (bulk=False) uses it."""

    def __init__(self, mongo: Mongo, name: str) -> None:
        self.mongo = mongo
        self.name = name
        self.documents: dict[object, Document] = {}

    def insert_one(self, document: Document) -> None:
        """See pymongo."""
        done = self.mongo.lose()
        key = _key(document["_id"])
        if key in self.documents:
            raise DuplicateKeyError("there already")
        self.documents[key] = document
        done()

    def find_one(self, query: Document) -> Document | None:
        """See pymongo; query: fields that are equal, or {"$gt": value}."""
        self.mongo.lose()()
        if set(query) == {"_id"}:
            return self.documents.get(_key(query["_id"]))
        return next((each for each in self.documents.values() if _fits(each, query)), None)

    def update_one(self, query: Document, update: Document, upsert: bool = False) -> Updated:
        """See pymongo; query: an _id and a bound of applied_index."""
        done = self.mongo.lose()
        key, found = _key(query["_id"]), self.documents.get(_key(query["_id"]))
        if found is not None and _fits(found, {"applied_index": query["applied_index"]}):
            if update["$set"]["applied_index"] < found["applied_index"]:
                violated(f"MongoDB's {self.name} {key} goes back from {found} to {update['$set']}")
            found.update(update["$set"])
            result = Updated(1, None)
        elif upsert and found is None:
            self.documents[key] = {"_id": query["_id"], **update["$set"]}
            result = Updated(0, key)
        elif upsert:
            raise DuplicateKeyError("there already, and not older")
        else:
            result = Updated(0, None)
        done()
        return result


class Mongo:
    """The database: four tables, and what must hold between them and the ledger."""

    def __init__(self, rng: random.Random, books: Books) -> None:
        self.rng = rng
        self.books = books
        self.calm = False
        self.tables = {n: Table(self, n) for n in ("rewards", "intervals", "claims", "projection")}
        self.checkpoint = 0  # the last one that a projector has written, as far as it was looked at

    def lose(self) -> Any:
        """Raises AutoReconnect, or returns what does so after the operation, or does nothing."""
        if self.calm or self.rng.random() >= FAILS:
            return _nothing
        if self.rng.random() < 0.5:
            raise AutoReconnect("away")
        return _away

    def look(self) -> None:
        """A checkpoint may have been written: everything up to it must be there."""
        found = self.tables["projection"].documents.get(CLUSTER)
        upto = 0 if found is None else int(found["applied_index"])
        if upto < self.checkpoint:
            violated(f"MongoDB's checkpoint went from {self.checkpoint} to {upto}")
        intervals, claims = self.tables["intervals"].documents, self.tables["claims"].documents
        for turn, index in self.books.judged_between(self.checkpoint, upto):
            stored = intervals.get(("interval", turn[0], "node", turn[1]))
            if stored is None or (stored["outcome"], stored["applied_index"]) != (
                self.books.outcomes[turn],
                index,
            ):
                violated(f"MongoDB's checkpoint is {upto}, but of {turn} at {index} it has {stored}")
        for claim_id, index in self.books.claims.items():
            if self.checkpoint < index <= upto and claim_id not in claims:
                violated(f"MongoDB's checkpoint is {upto}, but it lacks {claim_id} of {index}")
        self.checkpoint = upto

    def check_rows(self, ledger: Ledger) -> None:
        """At the end: no follower's row is from another life than the ledger's, nor behind the checkpoint."""
        for follower in ledger._state.followers.by_id.values():
            row = self.tables["rewards"].documents.get(follower.id)
            if row is None:
                if follower.applied_index <= self.checkpoint:
                    violated(f"MongoDB has everything to {self.checkpoint}, but not {follower.id}")
            elif row["applied_index"] == follower.applied_index and row["amount"] != follower.balance:
                violated(f"MongoDB has {row}, the ledger {follower}")
            elif row["applied_index"] < follower.applied_index <= self.checkpoint:
                violated(f"MongoDB's checkpoint is {self.checkpoint}, but {follower.id} is as of {row}")


class Projector:
    """One process' projector. See database/projection.py: its rounds, cut into steps."""

    def __init__(self, service: Service, mongo: Mongo) -> None:
        self.service, self.mongo = service, mongo
        database: Any = {"sim": mongo.tables}
        self.writer = LedgerWriter(database, "sim", CLUSTER, service.node.node_id, bulk=False)
        self.in_contact = False
        self.checkpoint: Checkpoint | None = None
        self.asked = False
        self.batch: ProjectionBatch | None = None
        self.stage = 0

    @property
    def busy(self) -> bool:
        """Whether it is in the middle of a batch, leader or not."""
        return self.batch is not None

    def act(self) -> None:
        """The next step."""
        try:
            if self.batch is not None:
                self._write(self.batch)
            elif self.service.feed.applied_index() is None:
                self.in_contact, self.checkpoint, self.asked = False, None, False
            elif not self.in_contact:
                self._make_contact()
            elif not self.asked:
                self.asked = True
                self.service.feed.ask(False)
            else:
                self.batch, self.stage = cast("ProjectionBatch | None", self.service.feed.take()), 0
                self.asked = self.batch is None
        except PyMongoError:
            self.in_contact, self.batch = False, None
        except ForeignDataError as error:
            violated(
                f"the projector of {self.service.node.node_id} takes MongoDB for another cluster's: {error}"
            )

    def _make_contact(self) -> None:
        checkpoint = self.writer.read_checkpoint()
        applied = self.service.feed.applied_index()
        if applied is not None and (checkpoint is None or checkpoint.applied_index <= applied):
            self.checkpoint, self.in_contact = (
                checkpoint,
                True,
            )  # else deposed without knowing it: later again

    def _write(self, batch: ProjectionBatch) -> None:
        self.stage += 1
        if self.stage == 1:
            self.writer.insert_outcomes(batch.intervals, batch.claims)
        elif self.stage == 2:
            self.writer.write_rewards(batch.rewards)
        else:
            self.batch = None
            written = self.writer.write_checkpoint(
                batch.upto_index, self.service.wall(), expected=self.checkpoint
            )
            if not written:
                self.in_contact = False
                return
            self.mongo.look()
            self.checkpoint = Checkpoint(batch.upto_index, self.service.node.node_id, None)
            self.service.feed.written(batch.upto_index)


def _key(identity: Any) -> object:
    if isinstance(identity, dict):
        return tuple(part for item in identity.items() for part in item)
    return identity


def _fits(document: Document, query: Document) -> bool:
    for name, wanted in query.items():
        value = document[name]
        if isinstance(wanted, dict):
            (how, bound), *_ = wanted.items()
            if not {"$gt": value > bound, "$lt": value < bound, "$lte": value <= bound}[how]:
                return False
        elif value != wanted:
            return False
    return True


def _nothing() -> None:
    pass


def _away() -> None:
    raise AutoReconnect("away")
