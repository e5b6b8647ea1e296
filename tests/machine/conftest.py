"""Fixtures for the state machine's tests."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine_support import Driver, RealRedis, connect


@pytest.fixture
def run() -> Driver:
    return Driver()


@pytest.fixture(scope="session")
def real_redis(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], str]
) -> Iterator[RealRedis]:
    program = require_tool("redis-server")
    directory: Path = tmp_path_factory.mktemp("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([*arguments, "--dir", str(directory)], stdout=log, stderr=log)
    try:
        connection = connect(port, server)
        yield connection
        connection.close()
    finally:
        server.terminate()
        server.wait(10)
