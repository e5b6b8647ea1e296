"""The indexes of `intervals`, on the wire protocol and on mongomock."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.errors import OperationFailure

from database.indexes import ensure_indexes

DAY_S = 86_400
HISTORY = [("node", 1), ("interval", -1)]
TTL = [("closed_at", 1)]


def keys(database: Any) -> list[list[tuple[str, int]]]:
    return sorted(list(index["key"]) for index in database["intervals"].index_information().values())


def ttl_s(database: Any) -> Any:
    found = [i for i in database["intervals"].index_information().values() if list(i["key"]) == TTL]
    assert len(found) == 1
    return found[0].get("expireAfterSeconds")


def test_both_are_made_once(either: Any, name: str) -> None:
    database = either[0][name]
    for _ in range(2):
        ensure_indexes(database, 30)
    assert keys(database) == sorted([[("_id", 1)], HISTORY, TTL])
    assert ttl_s(database) == 30 * DAY_S


@pytest.mark.parametrize("days", [7, 60])
def test_another_setting_changes_the_index(client: Any, name: str, days: int) -> None:
    ensure_indexes(client[name], 30)
    ensure_indexes(client[name], days)
    assert ttl_s(client[name]) == days * DAY_S


def test_indexes_that_people_made_are_used_under_their_names(client: Any, name: str) -> None:
    intervals = client[name]["intervals"]
    intervals.create_index(HISTORY, name="mine")
    intervals.create_index(TTL, name="old", expireAfterSeconds=5)
    intervals.create_index("outcome")
    ensure_indexes(client[name], 30)
    assert set(intervals.index_information()) == {"_id_", "mine", "old", "outcome_1"}
    assert ttl_s(client[name]) == 30 * DAY_S


def test_an_index_without_ttl_gets_one(client: Any, name: str) -> None:
    client[name]["intervals"].create_index(TTL)
    ensure_indexes(client[name], 30)
    assert ttl_s(client[name]) == 30 * DAY_S


@pytest.mark.parametrize("gone", [False, True])
def test_a_server_without_collmod_gets_the_index_anew(client: Any, name: str, gone: bool) -> None:
    ensure_indexes(client[name], 30)

    class WithoutCollMod:
        def __getitem__(self, collection: str) -> Any:
            return client[name][collection]

        def command(self, *_: Any, **__: Any) -> Any:
            if gone:  # another leader does the same at this moment
                client[name]["intervals"].drop_index("closed_at_1")
            raise OperationFailure("no such command: 'collMod'", 59)

    ensure_indexes(WithoutCollMod(), 3)  # type: ignore[arg-type]
    assert ttl_s(client[name]) == 3 * DAY_S


@pytest.mark.parametrize("days", [0, -1])
def test_a_ttl_that_would_delete_everything_is_refused(client: Any, name: str, days: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ensure_indexes(client[name], days)
    assert "intervals" not in client[name].list_collection_names()
