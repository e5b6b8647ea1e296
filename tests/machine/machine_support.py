"""What the state machine's tests talk to: a machine fed as a leader would, and a real redis-server."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import redis

from raft.machine.machine import Machine
from raft.replies import Error, Reply

START_MS = 1_700_000_000_000


class Driver:
    """Feeds one command per entry to a machine, as a leader would."""

    def __init__(self) -> None:
        self.machine = Machine("test")
        self.now_ms = START_MS

    def __call__(self, *words: str | bytes | int) -> Reply:
        (reply,) = self.batch([as_bytes(word) for word in words])
        return reply

    def batch(self, *commands: list[bytes]) -> list[Reply]:
        return self.machine.apply_commands(self.machine.applied_index + 1, 1, self.now_ms, list(commands))


def as_bytes(word: str | bytes | int) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


class RealRedis:
    """One connection to a redis-server; replies in the project's own types."""

    def __init__(self, port: int) -> None:
        connect_to: Any = redis.Connection  # redis-py leaves its connections untyped
        self._connection = connect_to(port=port, protocol=2)
        self._connection.connect()

    def __call__(self, *words: str | bytes | int) -> Reply:
        self._connection.send_command(*words)
        try:
            reply: Reply = self._connection.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            text = str(error)
            return Error(text if text.startswith("ERR ") else f"ERR {text}")
        return reply

    def close(self) -> None:
        self._connection.disconnect()


def connect(port: int, server: subprocess.Popen[bytes]) -> RealRedis:
    deadline = time.monotonic() + 15
    while True:
        try:
            connection = RealRedis(port)
            connection("PING")
        except redis.ConnectionError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # the server is starting
        else:
            return connection
