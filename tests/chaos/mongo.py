"""MongoDB says what the ledger says."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import Any

import redis

from database.client import new_client
from database.embedded import EmbeddedServer
from tests.chaos.audit import Record, audit
from tests.chaos.books import Book
from tests.chaos.listeners import DATABASE, Address
from tests.chaos.nodes import ChaosCluster
from tests.node.cluster import eventually

SHARED = ("earned", "penalties", "claimed", "misses_in_row", "spam", "state", "applied_index")


def check_mongo(
    cluster: ChaosCluster, mongo: EmbeddedServer, books: list[Book],
    heard: dict[tuple[str, int], tuple[str, int, int]],
) -> tuple[list[str], dict[str, int]]:  # fmt: skip
    """What is wrong between MongoDB, the ledger of the cluster, the followers' own books and what was
    published; and how many documents there are."""
    if not mongo.running:
        mongo.start()
    wrong: list[str] = []
    goal = int(cluster.execute(cluster.leader(), "RAFT", "DIGEST", idempotent=True)[0])
    with new_client(Address(mongo.uri)) as client:
        database = client[DATABASE]

        def written() -> bool:
            checkpoint = database["projection"].find_one()
            return checkpoint is not None and checkpoint["applied_index"] >= goal

        eventually(written, 90, "MongoDB having all outcomes")
        for book in books:
            wrong += _check_outcomes(book, list(database["intervals"].find({"node": book.name})))
            paid = sum(d["amount"] for d in database["claims"].find({"node": book.name}) if d["accepted"])
            if paid != book.claimed:
                wrong.append(f"MongoDB: claims of {book.name} come to {paid}, answered {book.claimed}")
        for document in list(database["rewards"].find({}, {"_id": 1})):  # members of the cluster as well
            wrong += _check_reward(cluster, database, document["_id"])
        record = Record(*(list(database[name].find()) for name in ("rewards", "intervals", "claims")))
    counts = {name: len(getattr(record, name)) for name in ("rewards", "intervals", "claims")}
    counts |= dict(Counter(d["outcome"] for d in record.intervals))
    return wrong + audit(record, books, heard), counts


def _check_outcomes(book: Book, stored: list[dict[str, Any]]) -> list[str]:
    found = {d["interval"]: (d["outcome"], d["delta"]) for d in stored}
    wrong = []
    if len(found) != len(stored):
        wrong.append(f"MongoDB: two outcomes of {book.name} for one interval")
    # Here all outcomes ever stand, those too that the follower did not look at in time.
    lost = sorted(n for n in book.reported if n <= max(found, default=0) and found.get(n, ("",))[0] != "hit")
    if lost:
        wrong.append(f"MongoDB: acknowledged reports of {book.name} that are no hits: {lost[:5]}")
    missing = [n for n, told in book.outcomes.items() if found.get(n) != told]
    if missing:
        n = missing[0]
        wrong.append(
            f"MongoDB: {len(missing)} outcomes of {book.name} differ, such as interval {n}: "
            f"{found.get(n)} instead of {book.outcomes[n]}"
        )
    return wrong


def _check_reward(cluster: ChaosCluster, database: Any, name: str) -> list[str]:
    """The document and FOLLOWER INFO at one applied index; they meet between two intervals."""
    deadline = time.monotonic() + 30
    told: dict[str, Any] = {}
    document: dict[str, Any] = {}
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            flat = cluster.client(cluster.ids[0]).execute_command("FOLLOWER", "INFO", name)
            told = dict(zip(flat[::2], flat[1::2], strict=True))
        document = database["rewards"].find_one({"_id": name}) or {}
        if document.get("applied_index") == told.get("applied_index", -1):
            same = all(document[field] == told[field] for field in SHARED)
            same = same and document["amount"] == told["balance"]
            return [] if same else [f"MongoDB: {name} is {document}, the ledger says {told}"]
        time.sleep(0.02)
    return [f"MongoDB: {name} never met the ledger: {document} and {told}"]
