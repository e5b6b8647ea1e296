"""Fixtures of the database tests: a real wire-protocol server for the session, mongomock for unit tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mongomock
import pytest
from database_support import Address, Projectors, free_port

from database.client import new_client
from database.embedded import EmbeddedServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for all tests that do not harm it."""
    with EmbeddedServer(tmp_path_factory.mktemp("mongo"), port=free_port()) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Any) -> Iterator[EmbeddedServer]:
    """A server, not yet started, that the test may kill."""
    own = EmbeddedServer(tmp_path / "mongo", port=free_port())
    yield own
    own.kill()


_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A database of the test's own."""
    return f"super_node_{next(_numbers)}"


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Any]:
    with new_client(Address(server.uri)) as connected:
        yield connected


@pytest.fixture(params=["mongomock", "server"])
def either(request: pytest.FixtureRequest) -> Any:
    """(client, bulk): the same test with mongomock in single-operation mode and with the real protocol."""
    if request.param == "mongomock":
        return mongomock.MongoClient(tz_aware=True), False
    return request.getfixturevalue("client"), True


@pytest.fixture
def projectors() -> Iterator[Projectors]:
    made = Projectors()
    yield made
    ended = [projector.stop(10) for projector in made.made]
    assert all(ended), "a projector did not stop"
    assert made.fatal == []
