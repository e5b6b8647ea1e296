"""Checked conversion of command arguments; whatever is wrong becomes one clear Error and changes nothing.

Only bytes rules that can never change with a Python release are used (no Unicode tables): two nodes on
different Pythons must agree on what is valid.
"""

from __future__ import annotations

import re

from raft.replies import Error

MAX_INT = 2**63 - 1
MEMBER_PREFIX = "node-"
MAX_ADDRESS_BYTES = 255
MAX_REASON_BYTES = 256
MAX_DATA_BYTES = 1024

_FOLLOWER_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_CLAIM_ID = re.compile(rb"[ -~]{1,128}")
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")


class RefusedError(Exception):
    """A command that is not carried out. error: the reply. Raised before anything was changed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.error = Error(text)


def shown(raw: bytes) -> str:
    """raw as it may stand in an error line: printable ASCII, at most 64 characters."""
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in raw[:64])


def follower_id(raw: bytes) -> str:
    """The id of any follower, member or worker. Raises RefusedError."""
    if _FOLLOWER_ID.fullmatch(raw) is None:
        raise RefusedError(f"ERR invalid follower id '{shown(raw)}': 1 to 64 of A-Z a-z 0-9 _ . : - wanted")
    return raw.decode("ascii")


def worker_id(raw: bytes) -> str:
    """The id of an outside follower: `node-…` belongs to the cluster's members. Raises RefusedError."""
    name = follower_id(raw)
    if name.startswith(MEMBER_PREFIX):
        raise RefusedError(f"ERR invalid follower id '{name}': ids beginning with node- are the members' own")
    return name


def claim_id(raw: bytes) -> str:
    """A claim's id. Raises RefusedError."""
    if _CLAIM_ID.fullmatch(raw) is None:
        raise RefusedError(f"ERR invalid claim id '{shown(raw)}': 1 to 128 printable ASCII characters wanted")
    return raw.decode("ascii")


def integer(raw: bytes, name: str, low: int = -(2**63), high: int = MAX_INT) -> int:
    """A decimal integer between low and high, written as Redis wants it. Raises RefusedError."""
    if _INTEGER.fullmatch(raw) is not None:
        value = int(raw)
        if low <= value <= high:
            return value
    raise RefusedError(f"ERR {name} is not an integer or out of range")


def line(raw: bytes, name: str, max_bytes: int) -> str:
    """One line of UTF-8 text without control characters. Raises RefusedError."""
    if len(raw) > max_bytes:
        raise RefusedError(f"ERR {name} is longer than {max_bytes} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(f"ERR {name} is not UTF-8 text") from None
    if any(character < " " or character == "\x7f" for character in text):
        raise RefusedError(f"ERR {name} has control characters")
    return text
