"""Fixtures for the simulation's tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The storage tells of each torn tail, full disk and damaged file: there are thousands."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
