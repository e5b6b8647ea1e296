"""A transaction in the log: [~EXEC, data], carried out as one command; data says what was watched and queued.

Format (msgpack): array of [watched: array of [key, index], commands: array of [name, argument, ...]]. The
reply is an array with one reply per command, or None when a watched key changed after its index: then nothing
is carried out. An error of one command stands in the array and stops no other, as in Redis.

Besides reads and writes a few commands of the connection may stand in a transaction, those that have no
effect and need no node: HERE. The machine answers them so that replies come from one place; TIME says the
log's time, which is the same on every node. All of this is pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from raft.machine.arguments import integer
from raft.machine.batch import BatchFormatError
from raft.machine.commands import wrong_arity
from raft.replies import OK, Error, Reply, Simple

_PONG = Simple("PONG")


class Transaction(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """watched: keys with the applied index at which they were watched. commands: in their order."""

    watched: list[tuple[bytes, int]]
    commands: list[list[bytes]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Transaction)


def encode_transaction(watched: Iterable[tuple[bytes, int]], commands: list[list[bytes]]) -> bytes:
    """The data of a ~EXEC. Inverse of decode_transaction."""
    return _encoder.encode(([*watched], commands))


def decode_transaction(data: bytes) -> Transaction:
    """The transaction in these bytes. Raises BatchFormatError for what encode_transaction never makes."""
    try:
        transaction = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BatchFormatError(f"not a transaction: {error}") from error
    if not all(transaction.commands):
        raise BatchFormatError("a transaction holds an empty command")
    return transaction


# --- commands of the connection inside a transaction ---


def _ping(words: list[bytes]) -> Reply:
    if len(words) > 2:
        return wrong_arity("ping")
    return words[1] if len(words) == 2 else _PONG


def _echo(words: list[bytes]) -> Reply:
    return words[1]


def _select(words: list[bytes]) -> Reply:
    return OK if integer(words[1]) == 0 else Error("ERR DB index is out of range")


def _ok(_words: list[bytes]) -> Reply:
    return OK


HERE: dict[bytes, Callable[[list[bytes]], Reply]] = {
    b"PING": _ping,
    b"ECHO": _echo,
    b"SELECT": _select,
    b"UNWATCH": _ok,  # EXEC has forgotten the watched keys already
    b"READONLY": _ok,
    b"READWRITE": _ok,
    b"ASKING": _ok,
}
"""Commands of the connection that may stand in a transaction, and who answers; TIME is the machine's."""

_INSIDE_ALSO = frozenset((*HERE, b"TIME"))
_NEVER_INSIDE = frozenset((b"ONCE", b"RAFT DIGEST"))


def may_stand_inside(name: bytes, logged: bool) -> bool:
    """Whether a command may stand in a transaction. logged: it is a read or a write of the machine."""
    return name not in _NEVER_INSIDE if logged else name in _INSIDE_ALSO
