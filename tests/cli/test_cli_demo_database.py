"""Which database the demo takes where a MongoDB answers: its own, and never somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mongomock
import pytest

from cli import demo_database
from cli.demo import readable_news
from cli.demo_database import DemoDatabase
from cli.demo_plan import CLUSTER_NAME, DemoError
from raft.config import DatabaseSettings


@pytest.fixture
def mongo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The MongoDB that answers at database.uri."""
    client: Any = mongomock.MongoClient()
    monkeypatch.setattr(demo_database, "answers", lambda uri, timeout_s: True)
    monkeypatch.setattr(demo_database, "new_client", lambda settings: client)
    return client


def fill(database: Any, owner: str | None) -> None:
    database.rewards.insert_one({"_id": "a", "amount": 5})
    if owner is not None:
        database.projection.insert_one({"_id": owner, "applied_index": 1})


def chosen(tmp_path: Path, keep: bool = False) -> DemoDatabase:
    database = DemoDatabase(DatabaseSettings(uri="mongodb://u:hunter2@h:1/?w=1"), tmp_path, keep)
    assert "hunter2" not in database.start()
    return database


def test_an_empty_database_is_taken(mongo: Any, tmp_path: Path) -> None:
    database = chosen(tmp_path)
    assert database.name == "super_node"
    assert database.shell_uri == "mongodb://u:hunter2@h:1/super_node?w=1"


@pytest.mark.parametrize(("keep", "left"), [(True, 1), (False, 0)])
def test_its_own_is_emptied_unless_kept(mongo: Any, tmp_path: Path, keep: bool, left: int) -> None:
    fill(mongo.super_node, CLUSTER_NAME)
    assert chosen(tmp_path, keep).name == "super_node"
    assert mongo.super_node.rewards.count_documents({}) == left


@pytest.mark.parametrize("owner", ["super-node", None])
def test_somebody_elses_is_left_alone(mongo: Any, tmp_path: Path, owner: str | None) -> None:
    fill(mongo.super_node, owner)
    fill(mongo.super_node_demo, CLUSTER_NAME)
    assert chosen(tmp_path).name == "super_node_demo"
    assert mongo.super_node.rewards.count_documents({}) == 1
    assert mongo.super_node_demo.rewards.count_documents({}) == 0


def test_with_no_place_left_it_says_so(mongo: Any, tmp_path: Path) -> None:
    fill(mongo.super_node, "super-node")
    fill(mongo.super_node_demo, "other")
    with pytest.raises(DemoError, match="SUPER_NODE_DATABASE__NAME"):
        chosen(tmp_path)
    assert mongo.super_node_demo.rewards.count_documents({}) == 1


def test_news_tell_the_time_of_day() -> None:
    shown = readable_news("banned flaky-01 until 1795314567167 misses")
    assert shown.startswith("banned flaky-01 until ")
    assert "1795314567167" not in shown
    assert readable_news("joined reliable-01") == "joined reliable-01"
