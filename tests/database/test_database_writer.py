"""The fenced writes: replays, reordering, deposed leaders move nothing backwards (mongomock and server)."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
from database_support import Address, Model, stored
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from database.client import new_client
from database.documents import reward_document
from database.writer import (
    Checkpoint,
    ForeignDataError,
    InterruptedWriteError,
    LedgerWriter,
    RefusedDocumentError,
)
from ledger.rows import ProjectionBatch


def writer_of(either: Any, name: str, node_id: int = 1, **options: Any) -> LedgerWriter:
    client, bulk = either
    return LedgerWriter(client, name, "test", node_id, bulk=bulk, chunk_rows=7, **options)


def batches(model: Model, intervals: int) -> list[ProjectionBatch]:
    """One batch per interval, each with the followers as they stood then."""
    made = []
    for _ in range(intervals):
        model.close_interval()
        model.claim("w1", 1)
        batch = model.batch(2, full=False)
        assert batch is not None
        made.append(batch)
        model.trim(batch.upto_index)
    return made


def write(writer: LedgerWriter, batch: ProjectionBatch) -> int:
    return writer.insert_outcomes(batch.intervals, batch.claims) + writer.write_rewards(batch.rewards)


def test_a_batch_is_written_as_it_is(either: Any, name: str) -> None:
    model = Model()
    written = [write(writer_of(either, name), batch) for batch in batches(model, 4)]
    assert stored(either[0][name]) == model.documents()
    assert written == [11, 11, 11, 11]  # 5 outcomes, 1 claim, 5 followers


def test_a_replay_changes_nothing_and_is_counted_as_nothing(either: Any, name: str) -> None:
    model = Model()
    all_batches = batches(model, 3)
    writer = writer_of(either, name)
    for batch in all_batches:
        write(writer, batch)
    assert [write(writer, batch) for batch in all_batches] == [0, 0, 0]
    assert stored(either[0][name]) == model.documents()


def test_batches_in_reverse_order_end_in_the_newest_state(either: Any, name: str) -> None:
    model = Model()
    writer = writer_of(either, name)
    for batch in reversed(batches(model, 4)):
        write(writer, batch)
    assert stored(either[0][name]) == model.documents()


def test_a_deposed_writer_moves_nothing_backwards(either: Any, name: str) -> None:
    model = Model()
    old, new = batches(model, 2)
    deposed, leader = writer_of(either, name, 1), writer_of(either, name, 2)
    write(leader, old)
    write(leader, new)
    assert leader.write_checkpoint(new.upto_index, 2000, expected=None)
    before = stored(either[0][name])
    assert write(deposed, old) == 0
    assert not deposed.write_checkpoint(old.upto_index, 1000, expected=None)
    assert stored(either[0][name]) == before
    found = leader.read_checkpoint()
    assert found is not None
    assert (found.applied_index, found.written_by) == (new.upto_index, 2)


def test_a_stored_outcome_is_never_changed(either: Any, name: str) -> None:
    """Even by a writer that believes otherwise; it is told that the data are foreign."""
    model = Model()
    (batch,) = batches(model, 1)
    writer = writer_of(either, name)
    write(writer, batch)
    other = tuple(msgspec.structs.replace(row, outcome="excused", delta=0) for row in batch.intervals)
    with pytest.raises(ForeignDataError, match=r"outcome 'hit'|outcome 'missed'"):
        writer.insert_outcomes(other, ())
    assert stored(either[0][name]) == model.documents()


def test_a_claim_of_another_life_is_foreign(either: Any, name: str) -> None:
    (batch,) = batches(Model(), 1)
    writer = writer_of(either, name)
    write(writer, batch)
    other = msgspec.structs.replace(batch.claims[0], at=1)
    with pytest.raises(ForeignDataError, match="claims 'claim-2' is stored with at"):
        writer.insert_outcomes((), (other,))


def test_a_refusal_that_was_a_race_with_an_older_writer_is_tried_again(either: Any, name: str) -> None:
    """Two upserts of a missing document: the newer can be refused because the older made it just now."""
    model = Model()
    old, new = batches(model, 2)
    client, _ = either
    writer = writer_of(either, name)

    class Racing:
        """`rewards`, where the older leader makes the documents just before the first upsert arrives."""

        def __init__(self, collection: Any) -> None:
            self.collection, self.raced = collection, False

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.collection, attribute)

        def _race(self) -> bool:
            if self.raced:
                return False
            self.raced = True
            self.collection.insert_many([reward_document(row) for row in old.rewards])
            return True

        def update_one(self, query: dict, change: dict, upsert: bool = False) -> Any:
            if self._race():
                raise DuplicateKeyError("E11000", 11000)
            return self.collection.update_one(query, change, upsert=upsert)

        def bulk_write(self, requests: list[UpdateOne], ordered: bool) -> Any:
            if self._race():
                failures = [
                    {"index": n, "code": 11000, "keyPattern": {"_id": 1}} for n in range(len(requests))
                ]
                raise BulkWriteError({"writeErrors": failures})
            return self.collection.bulk_write(requests, ordered=ordered)

    writer._rewards = Racing(client[name]["rewards"])  # type: ignore[assignment]
    writer.insert_outcomes(new.intervals, new.claims)
    writer.write_rewards(new.rewards)
    assert stored(client[name])["rewards"] == model.documents()["rewards"]


def test_two_leaders_writing_at_once_leave_the_newest_of_each_follower(server: Any, name: str) -> None:
    model = Model(followers=30)
    many = batches(model, 8)
    failures: list[BaseException] = []

    def lead(order: list[ProjectionBatch], node_id: int) -> None:
        try:
            with new_client(Address(server.uri)) as client:
                writer = LedgerWriter(client, name, "test", node_id, chunk_rows=11)
                for batch in order:
                    write(writer, batch)
        except Exception as problem:  # noqa: BLE001  the main thread looks at it
            failures.append(problem)

    threads = [
        threading.Thread(target=lead, args=(order, number))
        for number, order in enumerate([many, many[::-1], many[::2] + many[1::2]], 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with new_client(Address(server.uri)) as client:
        assert stored(client[name]) == model.documents()


# --- the checkpoint ---


def test_the_checkpoint_moves_forward_and_may_be_repeated(either: Any, name: str) -> None:
    writer = writer_of(either, name)
    assert writer.read_checkpoint() is None
    assert writer.write_checkpoint(5, 1000, expected=None)
    at_5 = writer.read_checkpoint()
    assert at_5 is not None
    assert (at_5.applied_index, at_5.written_by) == (5, 1)
    assert writer.write_checkpoint(5, 1000, expected=at_5)
    assert writer.write_checkpoint(9, 2000, expected=at_5)
    found = writer.read_checkpoint()
    assert found is not None
    assert found.applied_index == 9


def test_a_checkpoint_known_to_be_ahead_is_left_and_is_no_surprise(either: Any, name: str) -> None:
    """A leader elected again, whose ~PROJECTED got lost, replays what MongoDB has."""
    writer = writer_of(either, name)
    writer.write_checkpoint(9, 1000, expected=None)
    known = writer.read_checkpoint()
    assert writer.write_checkpoint(5, 2000, expected=known)
    assert writer.read_checkpoint() == known


@pytest.mark.parametrize("expected", [None, Checkpoint(3, 1, None)])
def test_a_checkpoint_that_another_leader_moved_on_is_reported(
    either: Any, name: str, expected: Checkpoint | None
) -> None:
    writer_of(either, name, 2).write_checkpoint(9, 1000, expected=None)
    assert not writer_of(either, name, 1).write_checkpoint(5, 2000, expected=expected)


def test_a_checkpoint_that_vanished_is_not_made_anew(either: Any, name: str) -> None:
    writer = writer_of(either, name)
    assert not writer.write_checkpoint(5, 1000, expected=Checkpoint(3, 1, None))
    assert writer.read_checkpoint() is None


@pytest.mark.parametrize("value", [None, "12", 1.5, {}])
def test_a_document_that_is_no_checkpoint_is_refused(either: Any, name: str, value: object) -> None:
    either[0][name]["projection"].insert_one({"_id": "test", "applied_index": value})
    with pytest.raises(RefusedDocumentError, match="is no checkpoint"):
        writer_of(either, name).read_checkpoint()


# --- refusals ---


def test_a_unique_index_that_somebody_added_is_no_benign_duplicate(client: Any, name: str) -> None:
    client[name]["intervals"].create_index("outcome", unique=True)
    (batch,) = batches(Model(), 1)
    with pytest.raises(RefusedDocumentError, match=r"intervals .*code 11000"):
        LedgerWriter(client, name, "test", 1).insert_outcomes(batch.intervals, ())


@pytest.mark.parametrize("change", [{"amount": 2**63}, {"address": "\ud800"}, {"address": "x" * (17 << 20)}])
def test_what_cannot_be_encoded_names_its_collection(client: Any, name: str, change: dict[str, Any]) -> None:
    (batch,) = batches(Model(followers=2), 1)
    row = msgspec.structs.replace(batch.rewards[0], **change)
    with pytest.raises(RefusedDocumentError, match="rewards"):
        LedgerWriter(client, name, "test", 1).write_rewards([row])


def test_it_stops_between_chunks_when_told(either: Any, name: str) -> None:
    (batch,) = batches(Model(followers=20), 1)
    asked = iter([True, False])
    writer = writer_of(either, name, keep_going=lambda: next(asked))
    with pytest.raises(InterruptedWriteError):
        write(writer, batch)
    assert either[0][name]["intervals"].count_documents({}) == 7
