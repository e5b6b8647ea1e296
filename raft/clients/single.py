"""The commonest case by a shorter way: a connection with nothing under way has sent exactly one command.

Most clients send one command and wait for its answer. The long way (parser, plan, batch) can do everything
and took 930 bytecodes for such a command, this one 270; whatever is out of the ordinary goes the long way.
"""

from __future__ import annotations

import time

from raft.clients.batch import Batch
from raft.clients.connection import Connection
from raft.clients.dispatch import HOT
from raft.clients.requests import encoded
from raft.clients.shared import ServerState
from raft.replies import Error

BUSY = Error("BUSY too many requests are pending on this node, try again")


def single_command(data: bytes) -> list[bytes] | None:
    """The words, if the data are one command of two or three words as every client library writes it; None
    for anything else."""
    words = data.split(b"\r\n", 7)[2::2]
    return words if len(words) >= 2 and data == encoded(words) else None


def submit_single(connection: Connection, data: bytes, server: ServerState) -> bool:
    """Hand over what an idle connection has sent, if it is one plain read or write; False: it is not, and
    nothing was done. Handler thread."""
    words = single_command(data) if len(data) <= server.single_bytes else None
    row = None if words is None else HOT.get(words[0])
    if words is None or row is None or not row[0] <= len(words) <= row[1]:
        return False
    connection.last_s = time.monotonic()
    connection.last_command = words[0]
    connection.batch_size = 1
    server.commands += 1
    connection.busy = True  # before submit: the answer may come before submit returns
    batch = Batch(connection.protocol, [(0, words)], row[2], [None], connection.deliver)
    if not server.backend.submit(batch):
        batch.fail(BUSY)
    return True
