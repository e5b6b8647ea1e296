"""Commands that a handler thread answers from the connection and the server alone, as Redis answers them."""

from __future__ import annotations

import binascii
import time

from raft.clients.client_list import describe, list_clients
from raft.clients.command_docs import command, command_count, command_docs, command_info, command_list
from raft.clients.connection import Connection
from raft.clients.pubsub import SubscriptionError
from raft.clients.resp import encode_push
from raft.clients.shared import REDIS_VERSION, Command, Raw, ServerState
from raft.machine.glob import PatternTooLongError, glob_matcher
from raft.replies import OK, Error, Reply, Simple

SYNTAX_ERROR = Error("ERR syntax error")
_SLOTS = 16384


def _ping(connection: Connection, args: list[bytes], _server: ServerState) -> Reply | Raw:
    if len(args) > 2:
        return Error("ERR wrong number of arguments for 'ping' command")
    if connection.protocol == 2 and connection.subscribed:
        return Raw(encode_push([b"pong", args[1] if len(args) == 2 else b""], 2))
    return args[1] if len(args) == 2 else Simple("PONG")


def _echo(_connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    return args[1]


def _select(_connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    try:
        index = int(args[1])
    except ValueError:
        return Error("ERR value is not an integer or out of range")
    return OK if index == 0 else Error("ERR DB index is out of range")


def _quit(connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    connection.closing = True
    return OK


def _reset(connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    connection.owner.subscriptions.remove(connection)
    connection.forget_session()
    return Simple("RESET")


def _accepted(_connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    return OK


def _time(_connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return [b"%d" % seconds, b"%d" % (nanoseconds // 1000)]


def _key_slot(_connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    return key_slot(args[2])


def key_slot(key: bytes) -> int:
    """The hash slot of a key: CRC16 (XMODEM) of it, or of what stands in its first non-empty {braces}."""
    _, opening, rest = key.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if opening and closing and tag else key, 0) % _SLOTS


def _auth_error(words: list[bytes]) -> Error | None:
    """What AUTH with these words answers while no password is set: as Redis with an open default user."""
    if len(words) == 1:
        return Error(
            "ERR AUTH <password> called without any password configured for the default user. "
            "Are you sure your configuration is correct?"
        )
    if len(words) != 2:
        return SYNTAX_ERROR
    if words[0] != b"default":
        return Error("WRONGPASS invalid username-password pair or user is disabled.")
    return None


def _auth(_connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    return _auth_error(args[1:]) or OK


def _hello(connection: Connection, args: list[bytes], server: ServerState) -> Reply:
    """Nothing changes unless all of it is right. Redis checks in the same order."""
    protocol = connection.protocol
    if len(args) > 1:
        if not args[1].isdigit():
            return Error("ERR Protocol version is not an integer or out of range")
        if args[1] not in (b"2", b"3"):
            return Error("NOPROTO unsupported protocol version")
        protocol = int(args[1])
    name: bytes | None = None
    position = 2
    while position < len(args):
        option, left = args[position].upper(), len(args) - position - 1
        if option == b"AUTH" and left >= 2:
            error = _auth_error(args[position + 1 : position + 3])
            position += 3
        elif option == b"SETNAME" and left >= 1:
            name = args[position + 1]
            error = _name_error("Client names", name)
            position += 2
        else:
            shown = args[position][:128].decode("utf-8", "backslashreplace")
            error = Error(f"ERR Syntax error in HELLO option '{shown}'")
        if error is not None:
            return error
    connection.protocol = protocol
    if name is not None:
        connection.name = name
    leads = server.backend.status().role == "leader"
    return {
        "server": "redis",
        "version": REDIS_VERSION,
        "proto": protocol,
        "id": connection.number,
        "mode": "cluster",
        "role": "master" if leads else "replica",
        "modules": [],
    }


def _name_error(what: str, name: bytes) -> Error | None:
    """Names stand in CLIENT LIST, where a space or a line end would forge fields."""
    if all(33 <= letter <= 126 for letter in name) and len(name) <= 1024:
        return None
    return Error(f"ERR {what} cannot contain spaces, newlines or special characters.")


def _client_id(connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    return connection.number


def _client_set_name(connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    error = _name_error("Client names", args[2])
    if error is None:
        connection.name = args[2]
    return error or OK


def _client_get_name(connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    return connection.name or None


def _client_set_info(connection: Connection, args: list[bytes], _server: ServerState) -> Reply:
    attribute = args[2].lower()
    if attribute not in (b"lib-name", b"lib-ver"):
        return Error(f"ERR Unrecognized option '{args[2][:128].decode('utf-8', 'backslashreplace')}'")
    error = _name_error(attribute.decode(), args[3])
    if error is None:
        if attribute == b"lib-name":
            connection.library = args[3]
        else:
            connection.library_version = args[3]
    return error or OK


def _client_info(connection: Connection, _args: list[bytes], _server: ServerState) -> Reply:
    return describe(connection) + "\n"


def _config_get(_connection: Connection, args: list[bytes], server: ServerState) -> Reply:
    limits, storage = server.settings.limits, server.settings.storage
    known = {
        "appendfsync": "always" if storage.fsync else "no",
        "appendonly": "yes",
        "bind": server.host,
        "cluster-enabled": "yes",
        "databases": "1",
        "maxclients": str(limits.max_clients),
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "port": str(server.port),
        "proto-max-bulk-len": str(limits.max_request_bytes),
        "save": "",
        "tcp-keepalive": "300",
        "timeout": "0",
    }
    try:
        matchers = [glob_matcher(pattern.lower()) for pattern in args[2:]]
    except PatternTooLongError as error:
        return Error(f"ERR {error}")
    found: dict[str, Reply] = {
        key: value for key, value in known.items() if any(matches(key.encode()) for matches in matchers)
    }
    return found


def _subscription(word: str) -> Command:
    """SUBSCRIBE, PSUBSCRIBE, UNSUBSCRIBE or PUNSUBSCRIBE."""
    pattern, adds = word.startswith("P"), "UN" not in word

    def run(connection: Connection, args: list[bytes], _server: ServerState) -> Reply | Raw:
        subscriptions = connection.owner.subscriptions
        if not adds:
            return Raw(subscriptions.unsubscribe(connection, args[1:], pattern))
        try:
            return Raw(subscriptions.subscribe(connection, args[1:], pattern))
        except SubscriptionError as error:
            return Error(str(error))

    return run


LOCAL_COMMANDS: dict[bytes, Command] = {
    b"PING": _ping,
    b"ECHO": _echo,
    b"HELLO": _hello,
    b"AUTH": _auth,
    b"SELECT": _select,
    b"QUIT": _quit,
    b"RESET": _reset,
    b"TIME": _time,
    b"CLIENT ID": _client_id,
    b"CLIENT SETNAME": _client_set_name,
    b"CLIENT GETNAME": _client_get_name,
    b"CLIENT SETINFO": _client_set_info,
    b"CLIENT LIST": list_clients,
    b"CLIENT INFO": _client_info,
    b"COMMAND": command,
    b"COMMAND COUNT": command_count,
    b"COMMAND DOCS": command_docs,
    b"COMMAND INFO": command_info,
    b"COMMAND LIST": command_list,
    b"CONFIG GET": _config_get,
    b"CLUSTER KEYSLOT": _key_slot,
    b"READONLY": _accepted,
    b"READWRITE": _accepted,
    b"ASKING": _accepted,
    **{
        word.encode(): _subscription(word)
        for word in ("SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE")
    },
}
