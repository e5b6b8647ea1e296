"""What every test may use: the project root on sys.path, free ports, and tools that pip does not bring."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
# Nodes run as the sources say, whatever lies in compiled/: who wants that tested names it in the variable.
os.environ.setdefault("SUPER_NODE_COMPILED", "0")


def require_tool(name: str) -> str:
    """The path of the program `name`; where it is missing the test skips with the reason.

    With SUPER_NODE_REQUIRE_TOOLS set (.ci/run sets it) the test fails instead: there nothing may skip.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"{name} is not installed here (.ci/run installs it)"
    if os.environ.get("SUPER_NODE_REQUIRE_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """@pytest.mark.needs_tool("redis-cli"): require_tool before the test."""
    for mark in item.iter_markers("needs_tool"):
        require_tool(mark.args[0])


@pytest.fixture(name="require_tool", scope="session")
def _require_tool() -> Callable[[str], str]:
    """require_tool(name) for tests that cannot import conftest."""
    return require_tool


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """free_ports(n): n different TCP ports on 127.0.0.1 that nobody listens on at the moment.

    They are taken from below the ephemeral range, so that an outgoing connection does not get one of them
    between this call and the test's own bind.
    """
    return take_free_ports


def take_free_ports(count: int) -> list[int]:
    """See the fixture free_ports. Different processes start at different places."""
    first, last = 15_000, 32_000
    start = first + (os.getpid() * 97 + take_free_ports.__dict__.setdefault("given", 0)) % (last - first)
    found: list[int] = []
    for step in range(last - first):
        port = first + (start - first + step) % (last - first)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            take_free_ports.__dict__["given"] += step + 1
            return found
    raise RuntimeError(f"no {count} free ports on 127.0.0.1")
