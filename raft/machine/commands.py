"""The command table: every command a client may send, who answers it, and how many words it takes.

One row per command; `lookup` finds the row of a request and words the errors as Redis does. What `arity`
leaves open is judged by whoever executes the command. System commands (names beginning with "~") stand in
no table: a client that sends one hears that it is unknown. Everything here is immutable after import: any
thread may read it.
"""

from __future__ import annotations

import sys
from enum import Enum

import msgspec

from raft.replies import Error

_SHOWN_LENGTH = 128  # how much of a client's words an error repeats, as in Redis


class Kind(Enum):
    """Who answers a command."""

    LOCAL = "local"  # the client handler thread, from the connection itself
    STATUS = "status"  # the client handler thread, from the published NodeStatus
    READ = "read"  # the machine, linearizably
    WRITE = "write"  # the machine, through the log
    TRANSACTION = "transaction"  # the client handler thread, which sends the worker ~EXEC and asks ~VERSION
    CONTROL = "control"  # the worker itself, the leader's or this node's, never through the log


class CommandSpec(msgspec.Struct, frozen=True, gc=False):
    """One command. arity counts all words, negative means "at least"; key positions are as in COMMAND INFO.

    name is the upper-case key in COMMANDS (b"SET", b"FOLLOWER JOIN"); last_key -1 means the last argument;
    first_key 0 means that the command has no keys.
    """

    name: bytes
    kind: Kind
    arity: int
    first_key: int
    last_key: int
    step: int
    summary: str
    group: str

    @property
    def container(self) -> bytes | None:
        """b"FOLLOWER" for b"FOLLOWER JOIN"; None for a command of one word."""
        head, space, _ = self.name.partition(b" ")
        return head if space else None

    @property
    def shown_name(self) -> str:
        """The name as Redis shows it: 'set', 'follower|join'."""
        return self.name.decode("ascii").replace(" ", "|").lower()


_L, _S, _R, _W, _T = Kind.LOCAL, Kind.STATUS, Kind.READ, Kind.WRITE, Kind.TRANSACTION
_C = Kind.CONTROL

# First words of reads that go through all keys: the worker answers one a turn (RAFT stands for RAFT DIGEST).
SLOW_READS = frozenset((b"KEYS", b"RAFT"))
_NO_KEY, _ONE_KEY, _ALL_KEYS, _KEY_VALUES = (0, 0, 0), (1, 1, 1), (1, -1, 1), (1, -1, 2)

_Row = tuple[str, Kind, int, tuple[int, int, int], str]
_TABLE: dict[str, tuple[_Row, ...]] = {
    "connection": (
        ("PING", _L, -1, _NO_KEY, "Answers PONG, or the message given"),
        ("ECHO", _L, 2, _NO_KEY, "Answers the message given"),
        ("HELLO", _L, -1, _NO_KEY, "Chooses RESP2 or RESP3 and describes the server"),
        ("AUTH", _L, -2, _NO_KEY, "Authenticates the connection"),
        ("SELECT", _L, 2, _NO_KEY, "Chooses the database; there is only database 0"),
        ("QUIT", _L, -1, _NO_KEY, "Closes the connection"),
        ("RESET", _L, 1, _NO_KEY, "Puts the connection back to how it began"),
        ("CLIENT ID", _L, 2, _NO_KEY, "Answers this connection's number"),
        ("CLIENT SETNAME", _L, 3, _NO_KEY, "Names this connection"),
        ("CLIENT GETNAME", _L, 2, _NO_KEY, "Answers this connection's name"),
        ("CLIENT SETINFO", _L, 4, _NO_KEY, "Notes the client library's name or version"),
        ("CLIENT LIST", _L, -2, _NO_KEY, "Lists this node's connections"),
        ("CLIENT INFO", _L, 2, _NO_KEY, "Describes this connection"),
    ),
    "server": (
        ("COMMAND", _L, -1, _NO_KEY, "Describes every command"),
        ("COMMAND COUNT", _L, 2, _NO_KEY, "Answers the number of commands"),
        ("COMMAND DOCS", _L, -2, _NO_KEY, "Documents commands"),
        ("COMMAND INFO", _L, -2, _NO_KEY, "Describes the commands named, or all"),
        ("COMMAND LIST", _L, -2, _NO_KEY, "Lists the names of the commands"),
        ("INFO", _S, -1, _NO_KEY, "Describes this node as INFO sections"),
        ("CONFIG GET", _L, -3, _NO_KEY, "Answers the settings whose names match"),
        ("TIME", _L, 1, _NO_KEY, "Answers this node's clock as seconds and microseconds"),
        ("DBSIZE", _R, 1, _NO_KEY, "Counts the keys"),
        ("FLUSHALL", _W, -1, _NO_KEY, "Removes all keys; followers and rewards stay"),
    ),
    "string": (
        ("GET", _R, 2, _ONE_KEY, "Answers the value of a key"),
        ("SET", _W, -3, _ONE_KEY, "Sets a key, if need be only under a condition or for a time"),
        ("GETDEL", _W, 2, _ONE_KEY, "Answers the value of a key and removes the key"),
        ("GETEX", _W, -2, _ONE_KEY, "Answers the value of a key and changes its expiry"),
        ("MGET", _R, -2, _ALL_KEYS, "Answers the values of several keys"),
        ("MSET", _W, -3, _KEY_VALUES, "Sets several keys at once"),
        ("MSETNX", _W, -3, _KEY_VALUES, "Sets several keys at once if none of them exists"),
        ("INCR", _W, 2, _ONE_KEY, "Adds one to a number"),
        ("DECR", _W, 2, _ONE_KEY, "Takes one from a number"),
        ("INCRBY", _W, 3, _ONE_KEY, "Adds to a number"),
        ("DECRBY", _W, 3, _ONE_KEY, "Takes from a number"),
        ("APPEND", _W, 3, _ONE_KEY, "Adds bytes at the end of a value"),
        ("STRLEN", _R, 2, _ONE_KEY, "Answers the length of a value in bytes"),
    ),
    "generic": (
        ("DEL", _W, -2, _ALL_KEYS, "Removes keys and counts those that existed"),
        ("EXISTS", _R, -2, _ALL_KEYS, "Counts the keys that exist"),
        ("TYPE", _R, 2, _ONE_KEY, "Answers the type of a key: string or none"),
        ("EXPIRE", _W, -3, _ONE_KEY, "Lets a key expire after a number of seconds"),
        ("PEXPIRE", _W, -3, _ONE_KEY, "Lets a key expire after a number of milliseconds"),
        ("TTL", _R, 2, _ONE_KEY, "Answers the seconds a key has left"),
        ("PTTL", _R, 2, _ONE_KEY, "Answers the milliseconds a key has left"),
        ("PERSIST", _W, 2, _ONE_KEY, "Removes the expiry of a key"),
        ("SCAN", _R, -2, _NO_KEY, "Walks through the keys a page at a time"),
        ("KEYS", _R, 2, _NO_KEY, "Answers all keys that match a pattern"),
    ),
    "transactions": (
        ("MULTI", _T, 1, _NO_KEY, "Begins a transaction"),
        ("EXEC", _T, 1, _NO_KEY, "Carries out the transaction as one log entry"),
        ("DISCARD", _T, 1, _NO_KEY, "Drops the transaction"),
        ("WATCH", _T, -2, _ALL_KEYS, "Lets EXEC fail if one of these keys changes"),
        ("UNWATCH", _T, 1, _NO_KEY, "Forgets the watched keys"),
        ("ONCE", _W, -4, _NO_KEY, "Runs a command at most once per session and sequence number"),
    ),
    "pubsub": (
        ("SUBSCRIBE", _L, -2, _NO_KEY, "Listens to channels"),
        ("PSUBSCRIBE", _L, -2, _NO_KEY, "Listens to channels that match patterns"),
        ("UNSUBSCRIBE", _L, -1, _NO_KEY, "Stops listening to channels"),
        ("PUNSUBSCRIBE", _L, -1, _NO_KEY, "Stops listening to patterns"),
    ),
    "cluster": (
        ("RAFT INFO", _S, 2, _NO_KEY, "Describes this node's part in consensus"),
        ("RAFT LEADER", _S, 2, _NO_KEY, "Answers who leads"),
        ("RAFT MEMBERS", _S, 2, _NO_KEY, "Lists the members of the cluster"),
        ("RAFT ADD", _C, -7, _NO_KEY, "Adds a member as a learner; AUTO: a voter once it has caught up"),
        ("RAFT PROMOTE", _C, 3, _NO_KEY, "Gives a learner its vote"),
        ("RAFT REMOVE", _C, 3, _NO_KEY, "Removes a member"),
        ("RAFT TRANSFER", _C, -2, _NO_KEY, "Hands the leadership over"),
        ("RAFT SNAPSHOT", _C, 2, _NO_KEY, "Has this node take a snapshot now"),
        ("RAFT BACKUP", _C, -3, _NO_KEY, "Streams this node's newest snapshot: OPEN, READ, CLOSE"),
        ("RAFT DIGEST", _R, 2, _NO_KEY, "Answers the applied index and the hash of all replicated state"),
        ("CLUSTER SLOTS", _S, 2, _NO_KEY, "Answers the slot ranges and their nodes"),
        ("CLUSTER SHARDS", _S, 2, _NO_KEY, "Answers the shards and their nodes"),
        ("CLUSTER NODES", _S, 2, _NO_KEY, "Lists the nodes, one a line"),
        ("CLUSTER INFO", _S, 2, _NO_KEY, "Describes the cluster as a cluster client expects it"),
        ("CLUSTER MYID", _S, 2, _NO_KEY, "Answers this node's cluster id"),
        ("CLUSTER KEYSLOT", _L, 3, _NO_KEY, "Answers the hash slot of a key"),
        ("READONLY", _L, 1, _NO_KEY, "Accepted for cluster clients; reads stay linearizable"),
        ("READWRITE", _L, 1, _NO_KEY, "Accepted for cluster clients"),
        ("ASKING", _L, 1, _NO_KEY, "Accepted for cluster clients"),
    ),
    "followers": (
        ("FOLLOWER JOIN", _W, -4, _NO_KEY, "Admits a follower: id, version, address"),
        ("FOLLOWER REPORT", _W, 5, _NO_KEY, "Answers a turn: id, interval, data"),
        ("FOLLOWER LEAVE", _W, 3, _NO_KEY, "Takes a follower out"),
        ("FOLLOWER INFO", _R, 3, _NO_KEY, "Describes a follower"),
        ("FOLLOWER LIST", _R, -2, _NO_KEY, "Lists followers a page at a time"),
        ("FOLLOWER PARDON", _W, 4, _NO_KEY, "Ends a ban early and keeps the reason"),
    ),
    "rewards": (
        ("REWARD BALANCE", _R, 3, _NO_KEY, "Answers a follower's balance"),
        ("REWARD CLAIM", _W, 5, _NO_KEY, "Takes an amount off a balance, once per claim id"),
        ("REWARD TOP", _R, -2, _NO_KEY, "Answers the followers with the highest balances"),
        ("REWARD HISTORY", _R, -3, _NO_KEY, "Answers a follower's last outcomes"),
        ("INTERVAL CURRENT", _R, 2, _NO_KEY, "Describes the open interval, or the last one"),
        ("INTERVAL SHOW", _R, 3, _NO_KEY, "Describes an interval"),
    ),
}


def _build() -> dict[bytes, CommandSpec]:
    """The table by upper-case name, in the order above."""
    commands: dict[bytes, CommandSpec] = {}
    for group, rows in _TABLE.items():
        for name, kind, arity, keys, summary in rows:
            key = name.encode("ascii")
            if key in commands:
                raise ValueError(f"{name} stands twice in the command table")
            commands[key] = CommandSpec(key, kind, arity, *keys, summary, group)
    for spec in tuple(commands.values()):
        if spec.container is not None:
            key = spec.container + b" HELP"
            about = "Explains the subcommands"
            commands.setdefault(key, CommandSpec(key, Kind.LOCAL, 2, *_NO_KEY, about, spec.group))
    return commands


COMMANDS: dict[bytes, CommandSpec] = _build()
CONTAINERS: dict[bytes, tuple[CommandSpec, ...]] = {
    container: tuple(spec for spec in COMMANDS.values() if spec.container == container)
    for container in dict.fromkeys(spec.container for spec in COMMANDS.values())
    if container is not None
}

_Bounds = tuple[int, int, CommandSpec]  # fewest words, most words


def word_bounds(spec: CommandSpec) -> _Bounds:
    """The fewest and the most words of a command, from its arity, and its row."""
    return (spec.arity, spec.arity, spec) if spec.arity > 0 else (-spec.arity, sys.maxsize, spec)


# What `lookup` asks first: commands of one word, in both usual cases, so that no folding is paid for.
_DIRECT: dict[bytes, _Bounds] = {
    spelling: word_bounds(spec)
    for name, spec in COMMANDS.items()
    if spec.container is None and name not in CONTAINERS
    for spelling in (name, name.lower())
}


def lookup(args: list[bytes]) -> CommandSpec | Error:
    """The row of a request (its words, the command first), or the error to answer. Any thread.

    Errors, in Redis' wording: unknown command, unknown subcommand, wrong number of arguments. Quick (about
    200 ns) for a command of one word in upper or lower case.
    """
    try:
        found = _DIRECT.get(args[0])
    except IndexError:
        return Error("ERR empty command")
    if found is not None:
        fewest, most, spec = found
        if fewest <= len(args) <= most:
            return spec
    return _look_up_slowly(args)


def _look_up_slowly(args: list[bytes]) -> CommandSpec | Error:
    """The same for mixed case, containers and errors."""
    name = args[0].upper()
    if name in CONTAINERS:
        if len(args) > 1:
            return _look_up_subcommand(name, args)
        whole = COMMANDS.get(name)  # COMMAND is also a command by itself
        return whole if whole is not None else wrong_arity(name.decode("ascii").lower())
    found = COMMANDS.get(name)
    if found is None or found.container is not None:  # b"FOLLOWER JOIN" sent as one word is no command
        return _unknown_command(args)
    return _judge_arity(found, args)


def _look_up_subcommand(container: bytes, args: list[bytes]) -> CommandSpec | Error:
    spec = COMMANDS.get(container + b" " + args[1].upper())
    if spec is None:
        return Error(f"ERR unknown subcommand '{_shown(args[1])}'. Try {container.decode('ascii')} HELP.")
    return _judge_arity(spec, args)


def _judge_arity(spec: CommandSpec, args: list[bytes]) -> CommandSpec | Error:
    fewest, most, _ = word_bounds(spec)
    return spec if fewest <= len(args) <= most else wrong_arity(spec.shown_name)


def wrong_arity(shown_name: str) -> Error:
    """Redis' error for a wrong count of words; shown_name as 'set' or 'follower|join'."""
    return Error(f"ERR wrong number of arguments for '{shown_name}' command")


def help_lines(container: bytes) -> list[str]:
    """The answer of `FOLLOWER HELP` and its like (status lines in Redis); container in upper case."""
    lines = [f"{container.decode('ascii')} <subcommand> [<arg> ...]. Subcommands are:"]
    for spec in CONTAINERS[container]:
        lines += [spec.name.partition(b" ")[2].decode("ascii"), f"    {spec.summary}"]
    return lines


def _shown(word: bytes) -> str:
    """A client's word inside an error line: cut, and without what would break the line."""
    return word[:_SHOWN_LENGTH].decode("utf-8", "backslashreplace").translate(_ONE_LINE)


_ONE_LINE = dict.fromkeys((*range(32), 127), " ")


def _unknown_command(args: list[bytes]) -> Error:
    shown = ""
    for word in args[1:]:
        if len(shown) >= _SHOWN_LENGTH:
            break
        shown += f"'{_shown(word)[: _SHOWN_LENGTH - len(shown)]}' "
    return Error(f"ERR unknown command '{_shown(args[0])}', with args beginning with: {shown}")
