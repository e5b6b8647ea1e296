"""Which commands a handler thread answers itself, and how each command steers its connection."""

from __future__ import annotations

import sys

from raft.clients.connection import Connection
from raft.clients.local_commands import LOCAL_COMMANDS
from raft.clients.shared import Command, Raw, ServerState
from raft.clients.status_commands import STATUS_COMMANDS
from raft.machine.arguments import RefusedError
from raft.machine.commands import (
    COMMANDS,
    CONTAINERS,
    CommandSpec,
    Kind,
    help_lines,
    lookup,
)
from raft.machine.sessions import session_and_number
from raft.replies import Error, Reply, Simple

# These change how later answers look or whether there are any: everything before them must be answered first.
BARRIERS = frozenset(
    (b"HELLO", b"AUTH", b"RESET", b"QUIT", b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE")
)
# What a RESP2 client may say while it is subscribed: it could not tell other answers from messages.
ALLOWED_WHILE_SUBSCRIBED = frozenset(
    (b"PING", b"RESET", b"QUIT", b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE")
)

HotRow = tuple[int, int, bool]  # fewest words, most words, whether it writes


def _hot_rows() -> dict[bytes, HotRow]:
    """Commands of one word for the worker, in both usual spellings: what `lookup` would say, in one step."""
    rows: dict[bytes, HotRow] = {}
    for name, spec in COMMANDS.items():
        if spec.kind in (Kind.READ, Kind.WRITE) and spec.container is None and name not in CONTAINERS:
            most = spec.arity if spec.arity > 0 else sys.maxsize
            rows[name] = rows[name.lower()] = (abs(spec.arity), most, spec.kind is Kind.WRITE)
    del rows[b"KEYS"], rows[b"keys"]  # goes alone: see Handler._plan
    del rows[b"ONCE"], rows[b"once"]  # the command inside must be looked up: see `once_error`
    return rows


HOT = _hot_rows()
_HERE: dict[bytes, Command] = {**LOCAL_COMMANDS, **STATUS_COMMANDS}


def once_error(args: list[bytes]) -> Error | None:
    """Why ONCE session seq COMMAND ... cannot go into the log; None if it can."""
    try:
        session_and_number(args)
    except RefusedError as refused:
        return refused.error
    spec = lookup(args[3:])
    if isinstance(spec, Error):
        return spec
    if spec.kind not in (Kind.READ, Kind.WRITE) or spec.name in (b"ONCE", b"RAFT DIGEST"):
        return Error(f"ERR '{spec.shown_name}' cannot stand in ONCE: it takes a read or a write of the data")
    return None


def answer_here(
    spec: CommandSpec, connection: Connection, args: list[bytes], server: ServerState
) -> Reply | Raw:
    """Answers a command that is neither a read nor a write of the machine. On the handler thread."""
    command = _HERE.get(spec.name)
    if command is not None:
        return command(connection, args, server)
    assert spec.container is not None and spec.name.endswith(b" HELP"), spec.name  # a test sees to it
    return [Simple(line) for line in help_lines(spec.container)]
