"""CLIENT LIST and CLIENT INFO: one line a connection, in Redis' fields."""

from __future__ import annotations

import time

from raft.clients.connection import Connection
from raft.clients.shared import ServerState
from raft.replies import Error, Reply

_TYPES = (b"NORMAL", b"PUBSUB", b"MASTER", b"REPLICA", b"SLAVE")


def describe(connection: Connection) -> str:
    """One connection's line, without its end. Any thread: it may mix two moments of a busy connection."""
    now = time.monotonic()
    queue = connection.queue
    fields = {
        "id": connection.number,
        "addr": connection.address,
        "laddr": connection.local_address,
        "fd": connection.sock.fileno(),
        "name": connection.name.decode("ascii"),
        "age": int(now - connection.created_s),
        "idle": int(now - connection.last_s),
        "flags": (("P" if connection.subscribed else "") + ("x" if queue is not None else "")) or "N",
        "db": 0,
        "sub": len(connection.channels),
        "psub": len(connection.patterns),
        "multi": -1 if queue is None else len(queue.commands),
        "qbuf": connection.parser.buffered,
        "obl": 0,
        "oll": 0,
        "omem": connection.output_bytes,
        "cmd": connection.last_command[:64].decode("utf-8", "replace").lower().translate(_NO_GAPS),
        "user": "default",
        "resp": connection.protocol,
        "lib-name": connection.library.decode("ascii"),
        "lib-ver": connection.library_version.decode("ascii"),
    }
    return " ".join(f"{key}={value}" for key, value in fields.items())


_NO_GAPS = dict.fromkeys((*range(33), 127, 0x85, 0xA0, 0x2028, 0x2029), "?")


def list_clients(_connection: Connection, args: list[bytes], server: ServerState) -> Reply:
    """CLIENT LIST [TYPE normal|pubsub|master|replica] [ID id ...]."""
    chosen = list(server.connections.values())
    option = args[2].upper() if len(args) > 2 else None
    if option == b"TYPE" and len(args) == 4:
        wanted = args[3].upper()
        if wanted not in _TYPES:
            return Error(f"ERR Unknown client type '{args[3][:128].decode('utf-8', 'backslashreplace')}'")
        subscribed = wanted == b"PUBSUB"
        if wanted in (b"NORMAL", b"PUBSUB"):
            chosen = [client for client in chosen if client.subscribed == subscribed]
        else:
            chosen = []  # peers speak on another port
    elif option == b"ID" and len(args) > 3:
        try:
            numbers = {int(word) for word in args[3:]}
        except ValueError:
            return Error("ERR Invalid client ID")
        chosen = [client for client in chosen if client.number in numbers]
    elif option is not None:
        return Error("ERR syntax error")
    return "".join(describe(client) + "\n" for client in chosen)
