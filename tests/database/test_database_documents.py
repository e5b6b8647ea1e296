"""Documents: exactly the contract's fields and BSON types."""

from __future__ import annotations

from datetime import UTC, datetime

import bson
import pytest
from bson import Binary, Int64
from bson.codec_options import CodecOptions
from hypothesis import given
from hypothesis import strategies as st

from database.documents import (
    checkpoint_document,
    claim_document,
    interval_document,
    reward_document,
    to_data,
    to_date,
)
from ledger.rows import ClaimRow, IntervalRow, RewardRow

AWARE: CodecOptions = CodecOptions(tz_aware=True)
NOON = datetime(2026, 1, 2, 12, 0, 0, 7000, tzinfo=UTC)
NOON_MS = 1_767_355_200_007


def through_bson(document: dict) -> dict:
    return bson.decode(bson.encode(document), codec_options=AWARE)


def reward(**changes: object) -> RewardRow:
    fields: dict = {
        "node": "w1", "kind": "worker", "address": "10.0.0.1:9", "state": "banned", "amount": -5,
        "earned": 10, "penalties": 15, "claimed": 0, "misses_in_row": 3, "spam": 1, "banned_until": NOON_MS,
        "joined_at": NOON_MS, "updated_at": NOON_MS, "applied_index": 9,
    }  # fmt: skip
    return RewardRow(**(fields | changes))


def test_a_rewards_document_has_the_contracts_fields() -> None:
    assert through_bson(reward_document(reward())) == {
        "_id": "w1", "node": "w1", "kind": "worker", "address": "10.0.0.1:9", "state": "banned", "amount": -5,
        "earned": 10, "penalties": 15, "claimed": 0, "misses_in_row": 3, "spam": 1, "banned_until": NOON,
        "pardon_reason": None, "joined_at": NOON, "updated_at": NOON, "applied_index": 9,
    }  # fmt: skip


def test_a_follower_never_banned_has_null_and_a_pardon_keeps_its_reason() -> None:
    document = reward_document(reward(banned_until=None, pardon_reason="apologised"))
    assert document["banned_until"] is None
    assert document["pardon_reason"] == "apologised"


def test_an_intervals_document_has_the_contracts_fields_and_key_order() -> None:
    row = IntervalRow(7, "w1", NOON_MS, NOON_MS, NOON_MS, "hit", 10, 20, b"ok", 2, 3, 11)
    document = through_bson(interval_document(row))
    assert document == {
        "_id": {"interval": 7, "node": "w1"}, "interval": 7, "node": "w1", "opened_at": NOON, "due_at": NOON,
        "closed_at": NOON, "outcome": "hit", "delta": 10, "amount": 20, "data": "ok", "leader": 2, "term": 3,
        "applied_index": 11,
    }  # fmt: skip
    assert list(document["_id"]) == ["interval", "node"]


def test_a_claims_document_has_the_contracts_fields() -> None:
    document = through_bson(claim_document(ClaimRow("c1", "w1", 5, NOON_MS, False, 3, 12)))
    assert document == {
        "_id": "c1", "node": "w1", "amount": 5, "at": NOON, "accepted": False, "balance": 3,
        "applied_index": 12,
    }  # fmt: skip


def test_the_checkpoint_has_the_contracts_fields() -> None:
    document = through_bson(checkpoint_document("super-node", 12, 3, NOON_MS))
    assert document == {"_id": "super-node", "applied_index": 12, "written_by": 3, "at": NOON}


@pytest.mark.parametrize("amount", [0, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1])
def test_amounts_are_int64_whatever_their_size(amount: int) -> None:
    document = through_bson(reward_document(reward(amount=amount, earned=abs(amount))))
    assert document["amount"] == amount
    assert {
        type(document[name]) for name in ("amount", "earned", "penalties", "claimed", "applied_index")
    } == {Int64}


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (None, None),
        (b"", ""),
        (b"plain", "plain"),
        ("grün ✓".encode(), "grün ✓"),
        (b"nul\x00inside", "nul\x00inside"),
        (b"\xff\xfe", Binary(b"\xff\xfe")),
        (b"half \xe2\x82", Binary(b"half \xe2\x82")),
        (b"\xed\xa0\x80", Binary(b"\xed\xa0\x80")),  # a surrogate: no valid UTF-8
    ],
)
def test_data_is_text_where_it_is_utf8_else_binary(data: bytes | None, stored: object) -> None:
    assert to_data(data) == stored
    assert type(to_data(data)) is type(stored)
    # Binary of the general subtype is read back as bytes.
    assert through_bson({"data": to_data(data)})["data"] == (data if isinstance(stored, bytes) else stored)


@given(st.binary())
def test_any_reported_data_can_be_stored_and_read_back(data: bytes) -> None:
    back = through_bson({"data": to_data(data)})["data"]
    assert (back.encode() if isinstance(back, str) else back) == data


@given(st.integers(min_value=-(10**13), max_value=2 * 10**14))
def test_dates_are_exact_to_the_millisecond(at_ms: int) -> None:
    date = to_date(at_ms)
    assert date is not None
    back = through_bson({"at": date})["at"]
    assert back == date
    assert (back - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000 == pytest.approx(at_ms, abs=0.5)
