"""The projector on the wire protocol: outages, crashes, changes of leader, wiped and foreign databases."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import mongomock
import pytest
from database_support import Model, NodeSource, Projectors, free_port, stored, wait_until
from pymongo import monitoring

from database.client import new_client
from database.embedded import EmbeddedServer
from database.writer import LedgerWriter


class At(monitoring.CommandListener):
    """Does something just before the nth command of that name on that collection is sent."""

    def __init__(self, command: str, collection: str, nth: int, action: Any) -> None:
        self.wanted, self.left, self.action = (command, collection), nth, action
        self.done = threading.Event()

    def started(self, event: Any) -> None:
        if (event.command_name, event.command.get(event.command_name)) != self.wanted:
            return
        self.left -= 1
        if self.left == 0:
            self.action()
            self.done.set()

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "database.projection" and r.levelno >= level]


def caught_up(model: Model) -> bool:
    return model.projected == model.index and not model.touched


def open_client(server: EmbeddedServer) -> Any:
    class Address:
        uri = server.uri

    return new_client(Address())


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "database.projection")


# --- the plain way ---


def test_mongodb_follows_the_ledger(client: Any, server: Any, name: str, projectors: Projectors) -> None:
    model = Model()
    projector = projectors(NodeSource(model, max_entries=3), server.uri, name)
    projector.start()
    for _ in range(10):
        model.close_interval()
        model.claim("w2", 1)
    wait_until(lambda: caught_up(model), "everything is projected")
    assert stored(client[name]) == model.documents()
    checkpoint = client[name]["projection"].find_one({"_id": "test"})
    assert (checkpoint["applied_index"], checkpoint["written_by"]) == (20, 1)
    assert {"node_1_interval_-1", "closed_at_1"} <= set(client[name]["intervals"].index_information())
    stats = projector.stats()
    assert (stats.state, stats.last_error, stats.outages, stats.checkpoint) == ("ok", None, 0, 20)
    assert stats.documents >= 50 + 10 + 5
    assert stats.last_written_at_ms is not None


def test_single_operations_do_the_same_on_mongomock(projectors: Projectors) -> None:
    model, fake = Model(), mongomock.MongoClient(tz_aware=True)
    projectors(NodeSource(model), "mongodb://mock", "ledger", factory=lambda: fake, bulk=False).start()
    for _ in range(5):
        model.close_interval()
        model.claim("w1", 2)
    wait_until(lambda: caught_up(model), "everything is projected")
    assert stored(fake["ledger"]) == model.documents()


def test_a_node_that_does_not_lead_writes_nothing(
    client: Any, server: Any, name: str, projectors: Projectors
) -> None:
    model = Model()
    model.close_interval()
    source = NodeSource(model, leader=False)
    projectors(source, server.uri, name).start()
    leader = NodeSource(model)
    projectors(leader, server.uri, name, node_id=2).start()
    wait_until(lambda: caught_up(model), "the leader projected")
    assert source.acknowledged == []
    assert client[name]["projection"].find_one()["written_by"] == 2


def test_another_ttl_setting_reaches_the_index(
    client: Any, server: Any, name: str, projectors: Projectors
) -> None:
    for days in (30, 7):
        model = Model()
        model.close_interval()
        projector = projectors(NodeSource(model, leader=True), server.uri, name, intervals_ttl_days=days)
        projector.start()

        def ttl_s() -> Any:
            return (
                client[name]["intervals"].index_information().get("closed_at_1", {}).get("expireAfterSeconds")
            )

        wait_until(lambda days=days: ttl_s() == days * 86_400, f"the TTL is {days} days")
        projector.stop()


# --- MongoDB away ---


def test_away_at_the_start_then_started(
    own_server: EmbeddedServer, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    model.close_interval()
    projector = projectors(NodeSource(model), own_server.uri, "ledger", timeout_ms=100)
    projector.start()
    wait_until(lambda: projector.state == "away", "the outage is noticed")
    for _ in range(5):
        model.close_interval()  # nothing blocks
    wait_until(lambda: projector._retry_s >= 0.8, "several more attempts")
    (warning,) = lines(caplog)
    assert f"mongodb://127.0.0.1:{own_server.port}/" in warning
    assert "Connection refused" in warning
    assert "start it or correct database.uri" in warning
    assert projector.stats().last_error in warning

    caplog.clear()
    own_server.start()
    wait_until(lambda: caught_up(model), "everything is projected")
    wait_until(lambda: projector.state == "ok", "the state is ok again")
    (news,) = lines(caplog)
    assert "takes writes again after" in news
    assert projector.stats().outages == 1
    with open_client(own_server) as client:
        assert stored(client["ledger"]) == model.documents()


def test_the_password_in_the_uri_stays_out_of_the_log(
    projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    uri = f"mongodb://joe:hunter2@127.0.0.1:{free_port()}/"
    projector = projectors(NodeSource(model), uri, "ledger", timeout_ms=100)
    projector.start()
    wait_until(lambda: projector.state == "away", "the outage is noticed")
    (warning,) = lines(caplog)
    assert "joe:***@127.0.0.1" in warning
    assert "hunter2" not in warning + str(projector.stats())


def test_killed_under_load_and_restarted(own_server: EmbeddedServer, projectors: Projectors) -> None:
    """SIGKILL in mid-batch, three times at different commands; in the end MongoDB equals the model."""
    own_server.start()
    model = Model(followers=20)
    kills = [
        At("insert", "intervals", 4, own_server.kill),
        At("update", "rewards", 9, own_server.kill),
        At("insert", "claims", 12, own_server.kill),
    ]
    source = NodeSource(model, max_entries=4)
    projector = projectors(source, own_server.uri, "ledger", chunk_rows=15, listeners=kills)
    projector.start()
    for kill in kills:
        while not kill.done.wait(0.01):
            if model.index - model.projected < 40:
                model.close_interval()
                model.claim("w3", 1)
        own_server.start()
    wait_until(lambda: caught_up(model), "everything is projected", 40)
    assert projector.stats().outages == 3
    with open_client(own_server) as client:
        assert stored(client["ledger"]) == model.documents()


def test_killed_between_write_and_checkpoint(own_server: EmbeddedServer, projectors: Projectors) -> None:
    own_server.start()
    model = Model()
    kill = At("update", "projection", 1, own_server.kill)
    source = NodeSource(model)
    model.close_interval()
    projectors(source, own_server.uri, "ledger", listeners=[kill]).start()
    assert kill.done.wait(20)
    assert source.acknowledged == []
    model.close_interval()
    own_server.start()
    wait_until(lambda: caught_up(model), "everything is projected")
    with open_client(own_server) as client:
        assert stored(client["ledger"]) == model.documents()


def test_stop_does_not_wait_for_an_absent_mongodb(own_server: EmbeddedServer, projectors: Projectors) -> None:
    model = Model()
    model.close_interval()
    projector = projectors(NodeSource(model), own_server.uri, "ledger", poll_s=0.1)
    projector.start()
    wait_until(lambda: projector.state == "away", "the outage is noticed")
    projector._retry_s = 5.0  # as after a long outage
    started_s = time.monotonic()
    assert projector.stop()
    assert time.monotonic() - started_s < 3


# --- the leader fails ---


@pytest.mark.parametrize("step", ["write_rewards", "write_checkpoint", "written"])
def test_a_leader_that_dies_between_two_steps_is_succeeded_without_a_trace(
    client: Any, server: Any, name: str, step: str, projectors: Projectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    for _ in range(3):
        model.close_interval()
        model.claim("w1", 1)
    source = NodeSource(model)

    def die(*_: object, **__: object) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(source if step == "written" else LedgerWriter, step, die)
        first = projectors(source, server.uri, name)
        first.start()
        wait_until(lambda: projectors.fatal, "the first leader is dead")
    (thread, problem) = projectors.fatal.pop()
    assert thread == "projector"
    assert str(problem) == "killed here"
    assert model.projected == 0

    model.close_interval(term=2, leader=2)
    projectors(NodeSource(model), server.uri, name, node_id=2).start()
    wait_until(lambda: caught_up(model), "the second leader caught up")
    assert stored(client[name]) == model.documents()


def test_a_deposed_leader_that_does_not_know_it_moves_nothing_backwards(
    client: Any, server: Any, name: str, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    """It still believes in an old state of the ledger while its successor goes on."""
    old, new = Model(started_ms=int(time.time() * 1000)), Model(started_ms=int(time.time() * 1000))
    new.started_ms = old.started_ms
    for model in (old, new):
        for _ in range(3):
            model.close_interval()
    for _ in range(4):
        new.close_interval()
    projectors(NodeSource(new), server.uri, name, node_id=2).start()
    wait_until(lambda: caught_up(new), "the successor projected")
    before = client[name]["projection"].find_one()

    stale_source = NodeSource(old)
    stale = projectors(stale_source, server.uri, name, node_id=1, foreign_confirm_s=60)
    stale.start()
    wait_until(lambda: stale._suspected_since_s is not None, "it sees a checkpoint ahead of its ledger")
    stale_source.leader = False
    assert stale.state == "ok"
    assert lines(caplog, logging.WARNING) == []  # a short doubt is nobody's business
    assert stored(client[name]) == new.documents()
    assert client[name]["projection"].find_one() == before
    assert stale_source.acknowledged == []


def test_a_leader_elected_again_replays_what_mongodb_has_and_trims_the_outbox(
    client: Any, server: Any, name: str, projectors: Projectors
) -> None:
    model = Model()
    for _ in range(6):
        model.close_interval()
    lost = NodeSource(model, max_entries=2)
    lost.written = lambda upto_index: lost.acknowledged.append(upto_index)  # type: ignore[method-assign]
    whole = NodeSource(model)
    whole.written = lambda upto_index: whole.acknowledged.append(upto_index)  # type: ignore[method-assign]
    first = projectors(whole, server.uri, name)
    first.start()
    wait_until(lambda: whole.acknowledged, "MongoDB has it all, the ledger does not know")
    first.stop()
    projectors(NodeSource(model, max_entries=2), server.uri, name, node_id=2).start()
    wait_until(lambda: caught_up(model), "the outbox is trimmed")
    assert stored(client[name]) == model.documents()
    assert client[name]["projection"].find_one()["applied_index"] == 6


# --- a database that is not what it was ---


def test_a_wiped_database_gets_every_follower_again(
    client: Any, server: Any, name: str, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    for _ in range(3):
        model.close_interval()
    first = projectors(NodeSource(model), server.uri, name)
    first.start()
    wait_until(lambda: caught_up(model), "everything is projected")
    first.stop()
    lost = model.index
    client.drop_database(name)

    source = NodeSource(model)
    projectors(source, server.uri, name, node_id=2).start()
    wait_until(lambda: source.acknowledged, "the full rewrite is done")
    assert stored(client[name]) == model.documents(intervals_from=lost)
    assert source.asked_full == 1
    (warning,) = lines(caplog, logging.WARNING)
    assert "wiped or restored" in warning
    assert "log indexes 1 to 3 may be missing" in warning
    model.close_interval()
    wait_until(lambda: caught_up(model), "it goes on")
    assert stored(client[name]) == model.documents(intervals_from=lost)
    assert source.asked_full == 1


def test_a_database_wiped_behind_the_leaders_back_is_noticed_at_the_next_checkpoint(
    client: Any, server: Any, name: str, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    source = NodeSource(model)
    model.close_interval()
    projectors(source, server.uri, name).start()
    wait_until(lambda: caught_up(model), "everything is projected")
    model.names = ["w0"]  # the others will not be touched again by themselves
    client.drop_database(name)
    model.close_interval()
    wait_until(lambda: caught_up(model) and source.asked_full, "the full rewrite is done")
    wait_until(lambda: stored(client[name]) == model.documents(intervals_from=1), "MongoDB equals the ledger")
    assert len(lines(caplog, logging.WARNING)) == 1
    assert "closed_at_1" in client[name]["intervals"].index_information()


def test_a_database_restored_from_a_backup_gets_every_follower_again(
    client: Any, server: Any, name: str, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    model.close_interval()
    first = projectors(NodeSource(model), server.uri, name)
    first.start()
    wait_until(lambda: caught_up(model), "everything is projected")
    backup = {c: list(client[name][c].find()) for c in client[name].list_collection_names()}
    model.close_interval()
    wait_until(lambda: caught_up(model), "everything is projected")
    first.stop()
    for collection, documents in backup.items():
        client[name][collection].delete_many({})
        client[name][collection].insert_many(documents)

    source = NodeSource(model)
    projectors(source, server.uri, name).start()
    wait_until(lambda: source.acknowledged, "the full rewrite is done")
    assert stored(client[name])["rewards"] == model.documents()["rewards"]
    (warning,) = lines(caplog, logging.WARNING)
    assert "log indexes up to 1, the ledger had written up to 2" in warning
    assert "log indexes 2 to 2 may be missing" in warning


def foreign_database(
    client: Any, server: Any, name: str, projectors: Projectors, intervals: int
) -> dict[str, Any]:
    """Fill the database in an earlier life of the cluster; returns what is in it."""
    earlier = Model(started_ms=int(time.time() * 1000) - 3_600_000)
    for _ in range(intervals):
        earlier.close_interval()
    projector = projectors(NodeSource(earlier), server.uri, name)
    projector.start()
    wait_until(lambda: caught_up(earlier), "the earlier life is projected")
    projector.stop()
    return stored(client[name])


def test_a_database_ahead_of_the_ledger_is_foreign_until_it_is_dropped(
    client: Any, server: Any, name: str, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    before = foreign_database(client, server, name, projectors, 9)
    model = Model()
    model.close_interval()
    projector = projectors(NodeSource(model), server.uri, name)
    projector.start()
    wait_until(lambda: projector.state == "foreign", "the foreign database is noticed")
    model.close_interval()
    (error,) = lines(caplog, logging.ERROR)
    assert "checkpoint is at log index 9, written by node 1" in error
    assert "set database.name to a new name" in error
    assert f"db.getSiblingDB('{name}').dropDatabase()" in error
    assert stored(client[name]) == before
    assert model.projected == 0

    client.drop_database(name)
    wait_until(lambda: caught_up(model), "the new life is projected")
    wait_until(lambda: projector.state == "ok", "the state is ok")
    assert stored(client[name]) == model.documents()


def test_another_life_that_this_ledger_has_overtaken_is_still_foreign(
    client: Any, server: Any, name: str, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    """The log indexes alone do not show it any more: the outcomes of the same intervals differ."""
    before = foreign_database(client, server, name, projectors, 2)
    model = Model()
    for _ in range(8):
        model.close_interval()
    source = NodeSource(model, max_entries=2)
    projector = projectors(source, server.uri, name)
    projector.start()
    wait_until(lambda: projector.state == "foreign", "the foreign database is noticed")
    (error,) = lines(caplog, logging.ERROR)
    assert "is stored with" in error
    assert stored(client[name]) == before
    assert source.acknowledged == []


def test_followers_from_the_future_are_foreign_even_without_a_checkpoint(
    client: Any, server: Any, name: str, projectors: Projectors
) -> None:
    foreign_database(client, server, name, projectors, 9)
    for collection in ("projection", "intervals"):
        client[name].drop_collection(collection)
    model = Model()
    model.close_interval()
    projector = projectors(NodeSource(model), server.uri, name)
    projector.start()
    wait_until(lambda: projector.state == "foreign", "the foreign database is noticed")


# --- refusals and bugs ---


def test_a_refused_document_is_loud_and_nothing_is_skipped(
    client: Any, server: Any, name: str, projectors: Projectors, caplog: pytest.LogCaptureFixture
) -> None:
    client[name]["rewards"].create_index("kind", unique=True)
    model = Model()
    model.close_interval()
    now_s = [0.0]
    source = NodeSource(model)
    projector = projectors(source, server.uri, name, monotonic_s=lambda: now_s[0])
    projector.start()
    wait_until(lambda: projector.state == "refused", "the refusal is noticed")
    time.sleep(0.5)  # more attempts
    (error,) = lines(caplog, logging.ERROR)
    assert "refuses: rewards 'w" in error
    assert "code 11000" in error
    assert source.acknowledged == []
    now_s[0] = 61.0
    wait_until(lambda: len(lines(caplog, logging.ERROR)) == 2, "the operator is reminded")

    client[name]["rewards"].drop_index("kind_1")
    wait_until(lambda: caught_up(model), "everything is projected")
    assert stored(client[name]) == model.documents()


@pytest.mark.parametrize("method", ["pull", "written", "applied_index", "projected_index"])
def test_any_other_exception_is_a_bug_and_stops_the_node(
    server: Any, name: str, projectors: Projectors, method: str
) -> None:
    model = Model()
    model.close_interval()
    source = NodeSource(model)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    setattr(source, method, fail)
    projector = projectors(source, server.uri, name)
    projector.start()
    wait_until(lambda: projectors.fatal, "the bug is reported")
    (thread, problem) = projectors.fatal.pop()
    assert thread == "projector"
    assert isinstance(problem, ZeroDivisionError)


def test_a_partial_batch_where_a_full_one_was_asked_for_is_a_bug(
    client: Any, server: Any, name: str, projectors: Projectors
) -> None:
    model = Model()
    model.close_interval()
    model.trim(1)
    model.close_interval()
    source = NodeSource(model)
    source.pull = lambda full, timeout_s: model.batch(9, full=False)  # type: ignore[method-assign]
    projectors(source, server.uri, name).start()
    wait_until(lambda: projectors.fatal, "the bug is reported")
    assert "partial batch" in str(projectors.fatal.pop()[1])
    assert client[name]["projection"].find_one() is None


def test_it_starts_once(server: Any, name: str, projectors: Projectors) -> None:
    projector = projectors(NodeSource(Model()), server.uri, name)
    projector.start()
    with pytest.raises(RuntimeError, match="started before"):
        projector.start()
