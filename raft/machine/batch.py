"""The data of a COMMANDS entry: one batch of commands with the leader's time.

Format (msgpack): array of [at_ms: int, commands: array of [name: bin, argument: bin, ...]]. It stands on disk
and on the wire. The commands that a node passes on to the leader stand in one command of such an entry,
[~ONCE, lane, number, commands], where commands is the same array in msgpack. An entry with more fields comes
from a newer version; this one refuses it. Pure; any thread.
"""

from __future__ import annotations

import msgspec


class BatchFormatError(ValueError):
    """Bytes that are no batch: a damaged or foreign entry. The node must stop, not guess."""


class CommandBatch(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """at_ms: the leader's wall clock in ms since the epoch. commands: each a name and its arguments."""

    at_ms: int
    commands: list[list[bytes]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CommandBatch)
_commands_decoder = msgspec.msgpack.Decoder(list[list[bytes]])
_LARGEST_MS = 2**53  # far beyond any clock; keeps arithmetic on times within 64 bits


def encode_batch(at_ms: int, commands: list[list[bytes]]) -> bytes:
    """The bytes of one batch. Inverse of decode_batch. A tuple encodes exactly as the struct would."""
    return _encoder.encode((at_ms, commands))


def decode_batch(data: bytes) -> CommandBatch:
    """The batch in these bytes. Raises BatchFormatError for anything else than what encode_batch makes."""
    try:
        batch = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BatchFormatError(f"not a command batch: {error}") from error
    if not 0 <= batch.at_ms <= _LARGEST_MS:
        raise BatchFormatError(f"time {batch.at_ms} of a command batch is out of range")
    _check(batch.commands)
    return batch


def encode_commands(commands: list[list[bytes]]) -> bytes:
    """The commands alone, for ~ONCE. Inverse of decode_commands."""
    return _encoder.encode(commands)


def decode_commands(data: bytes) -> list[list[bytes]]:
    """The commands in a ~ONCE. Raises BatchFormatError for anything else than what encode_commands makes."""
    try:
        commands = _commands_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BatchFormatError(f"not an array of commands: {error}") from error
    _check(commands)
    return commands


def _check(commands: list[list[bytes]]) -> None:
    if not all(commands):
        raise BatchFormatError("a command batch holds an empty command")
