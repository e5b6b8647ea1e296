"""What the threads of one ClientServer share, and what they want of the node behind it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Protocol

from raft.clients.batch import Batch
from raft.clients.connection import Connection
from raft.config import Settings
from raft.replies import Reply
from raft.status import NodeStatus

REDIS_VERSION = "7.2.0"  # the Redis whose behaviour clients may rely on


SINGLE_BYTES = 8192  # a longer command goes the long way, which costs it little more: raft/clients/single.py


class Backend(Protocol):
    """The node, as its clients' threads see it. Both methods may be called by any handler thread."""

    def submit(self, batch: Batch) -> bool:
        """Hands a batch to the worker, which answers every slot. False, taking nothing: the queue is full."""

    def status(self) -> NodeStatus:
        """The newest published snapshot."""


class Raw(bytes):
    """An answer that is encoded already (several confirmations in one, say)."""

    __slots__ = ()


class ServerState:
    """One per ClientServer. connections: added to by whoever accepts, taken from by the handler that closes.

    Counters are for people: each has one writer, or a lost count does not matter.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend = backend
        self.settings = settings
        self.connections: dict[int, Connection] = {}  # by Connection.number
        self.numbers = itertools.count(1)
        self.single_bytes = min(SINGLE_BYTES, settings.limits.max_request_bytes)
        self.host = ""
        self.port = 0  # 0: not listening
        self.started_s = time.monotonic()
        self.accepted = 0
        self.rejected = 0
        self.commands = 0


Command = Callable[[Connection, list[bytes], ServerState], Reply | Raw]
"""Answers one command on the handler thread of the connection; args includes the command's own words."""
