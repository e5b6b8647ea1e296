"""Fixtures of the client port's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from clients_support import Harness, Wire


@pytest.fixture
def make_harness() -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def make(**limits: int) -> Harness:
        made.append(Harness(**limits))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture
def harness(make_harness: Callable[..., Harness]) -> Harness:
    return make_harness()


@pytest.fixture
def wire(harness: Harness) -> Wire:
    return harness.connect()
