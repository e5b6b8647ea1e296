"""Fixtures of the ledger's tests."""

from __future__ import annotations

import pytest
from ledger_driver import Driver


@pytest.fixture
def book() -> Driver:
    """A ledger whose first leader has set the policy; no members, nobody joined."""
    driver = Driver()
    driver.take_office()
    return driver
