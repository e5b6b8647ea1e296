"""RESP2 and RESP3 as a Redis server writes them: replies and pub/sub messages to bytes. Sans-I/O.

The way in, from bytes to commands, is raft/clients/requests.py. Everything here is pure: any thread may call
it. Replies are what raft/replies.py describes. `encode_reply` stands on the hot path (once per command, on
the worker): the common cases come first, and headers and fixed answers are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from raft.replies import OK, Error, Reply, Simple

OK_BYTES = b"+OK\r\n"
NULL_BYTES = (b"", b"", b"$-1\r\n", b"_\r\n")  # by protocol
_BULK_HEADERS = tuple(b"$%d\r\n" % length for length in range(2048))
_SMALL_INTEGERS = tuple(b":%d\r\n" % number for number in range(1024))
_BREAKS = str.maketrans("\r\n", "  ")


def encode_reply(reply: Reply, protocol: int) -> bytes:
    """The bytes of one reply in RESP version `protocol` (2 or 3).

    A map becomes a flat field, value array in RESP2; CR and LF in a status or an error become spaces, so that
    no text can break the framing. Raises TypeError for what is not a Reply: a bug in who made it.
    """
    if reply is OK:
        return OK_BYTES
    if reply is None:
        return NULL_BYTES[protocol]
    encoder = _ENCODERS.get(type(reply))
    if encoder is not None:
        return encoder(reply)
    parts: list[bytes] = []
    _append(parts, reply, protocol)
    return b"".join(parts)


def encode_push(items: Iterable[Reply], protocol: int) -> bytes:
    """An out-of-band message: a push in RESP3, an array in RESP2 (as Redis sends pub/sub messages)."""
    parts = [encode_reply(item, protocol) for item in items]
    mark = b">%d\r\n" if protocol == 3 else b"*%d\r\n"
    return mark % len(parts) + b"".join(parts)


def _bulk(data: bytes) -> bytes:
    length = len(data)
    if length < 2048:
        return _BULK_HEADERS[length] + data + b"\r\n"
    return b"$%d\r\n%b\r\n" % (length, data)


def _integer(number: int) -> bytes:
    return _SMALL_INTEGERS[number] if 0 <= number < 1024 else b":%d\r\n" % number


def _text(text: str) -> bytes:
    return _bulk(_utf8(text))


def _simple(text: str) -> bytes:
    return b"+" + _utf8(_one_line(text)) + b"\r\n"


def _error(text: str) -> bytes:
    return b"-" + _utf8(_one_line(text)) + b"\r\n"


def _one_line(text: str) -> str:
    return text.translate(_BREAKS) if "\r" in text or "\n" in text else text


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate: show it rather than fail
        return text.encode("utf-8", "backslashreplace")


# What encodes without knowing the protocol, by exact type.
_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    bytes: _bulk,
    int: _integer,
    str: _text,
    Simple: _simple,
    Error: _error,
}


def _append(parts: list[bytes], reply: Reply, protocol: int) -> None:
    """Appends the encoding of any reply, nested ones too."""
    encoder = _ENCODERS.get(type(reply))
    if encoder is not None:
        parts.append(encoder(reply))
    elif reply is None:
        parts.append(NULL_BYTES[protocol])
    elif isinstance(reply, list):
        parts.append(b"*%d\r\n" % len(reply))
        for item in reply:
            _append(parts, item, protocol)
    elif isinstance(reply, dict):
        parts.append(b"%%%d\r\n" % len(reply) if protocol == 3 else b"*%d\r\n" % (2 * len(reply)))
        for field, value in reply.items():
            _append(parts, field, protocol)
            _append(parts, value, protocol)
    elif isinstance(reply, (Error, Simple)):
        parts.append(_error(reply) if isinstance(reply, Error) else _simple(reply))
    elif isinstance(reply, str):  # an enumeration's member, say
        parts.append(_text(reply))
    elif isinstance(reply, int) and not isinstance(reply, bool):
        parts.append(_integer(int(reply)))
    else:
        raise TypeError(f"{type(reply).__name__} is no reply: {reply!r:.100}")
