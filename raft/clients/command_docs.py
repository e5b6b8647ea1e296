"""COMMAND and its subcommands, derived from the command table."""

from __future__ import annotations

from functools import cache

from raft.clients.connection import Connection
from raft.clients.shared import ServerState
from raft.machine.commands import COMMANDS, CONTAINERS, CommandSpec, Kind
from raft.replies import Error, Reply, Simple

_FLAGS = {Kind.READ: "readonly", Kind.WRITE: "write"}


@cache
def _names() -> tuple[bytes, ...]:
    """Top-level commands, containers once each, in the order of the table."""
    return tuple(dict.fromkeys(spec.container or name for name, spec in COMMANDS.items()))


@cache
def _entry(name: bytes) -> Reply:
    """What COMMAND INFO says of one top-level command: Redis 7's ten fields."""
    spec = COMMANDS.get(name)
    subcommands: list[Reply] = [_fields(sub, []) for sub in CONTAINERS.get(name, ())]
    if spec is not None:
        return _fields(spec, subcommands)
    return [name.decode().lower(), -2, [], 0, 0, 0, [], [], [], subcommands]


def _fields(spec: CommandSpec, subcommands: list[Reply]) -> Reply:
    flags: list[Reply] = [Simple(_FLAGS[spec.kind])] if spec.kind in _FLAGS else []
    if spec.group == "pubsub":
        flags.append(Simple("pubsub"))
    name, keys = spec.shown_name, (spec.first_key, spec.last_key, spec.step)
    return [name, spec.arity, flags, *keys, [], [], [], subcommands]


@cache
def _docs(name: bytes) -> dict[str, Reply]:
    """What COMMAND DOCS says of one top-level command."""
    spec = COMMANDS.get(name)
    docs: dict[str, Reply] = {
        "summary": spec.summary if spec is not None else f"The {name.decode()} commands",
        "since": "1.0.0",
        "group": (spec or CONTAINERS[name][0]).group,
    }
    if name in CONTAINERS:
        docs["subcommands"] = {
            sub.shown_name: {"summary": sub.summary, "since": "1.0.0", "group": sub.group}
            for sub in CONTAINERS[name]
        }
    return docs


def command(_connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    """COMMAND: every command's fields."""
    return [_entry(name) for name in _names()]


def command_count(_connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    """COMMAND COUNT: how many top-level commands there are."""
    return len(_names())


def command_list(_connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    """COMMAND LIST: the names; filters are not supported."""
    if len(args) > 2:
        return Error("ERR syntax error")
    return [name.decode().lower() for name in _names()]


def command_info(_connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    """COMMAND INFO [name ...]: null for what does not exist."""
    wanted = [word.upper() for word in args[2:]] or _names()
    return [_entry(name) if name in _names() else None for name in wanted]


def command_docs(_connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    """COMMAND DOCS [name ...]: a map that leaves out what does not exist."""
    wanted = [word.upper() for word in args[2:]] or _names()
    docs: dict[str, Reply] = {name.decode().lower(): _docs(name) for name in wanted if name in _names()}
    return docs
