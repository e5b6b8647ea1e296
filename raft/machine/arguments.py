"""Reading the words of value commands as Redis does: integers, SET and GETEX options, EXPIRE conditions.

Everything here is pure and raises RefusedError, whose text is the error the client gets.
"""

from __future__ import annotations

from enum import Flag, auto

import msgspec

from raft.replies import Error

_ZERO = ord("0")
LEAST, MOST = -(2**63), 2**63 - 1  # 64-bit signed, as Redis counts

NOT_AN_INTEGER = Error("ERR value is not an integer or out of range")
SYNTAX_ERROR = Error("ERR syntax error")


class RefusedError(Exception):
    """A command that cannot be carried out; nothing has changed."""

    def __init__(self, error: Error) -> None:
        super().__init__(error)
        self.error = error


def integer(word: bytes) -> int:
    """A 64-bit integer in its one canonical spelling: no plus, no leading zeros, no blanks."""
    if word.isdigit() and len(word) < 19 and (word[0] != _ZERO or word == b"0"):  # almost always
        return int(word)
    if len(word) <= 20:
        try:
            number = int(word)
        except ValueError:
            raise RefusedError(NOT_AN_INTEGER) from None
        if b"%d" % number == word and LEAST <= number <= MOST:
            return number
    raise RefusedError(NOT_AN_INTEGER)


def invalid_expire_time(command: str) -> RefusedError:
    """Redis' error for a time that is zero, negative or beyond 64 bits; command in lower case."""
    return RefusedError(Error(f"ERR invalid expire time in '{command}' command"))


class SetOptions(msgspec.Struct, frozen=True, gc=False):
    """What stands behind SET key value, or GETEX key. time: the option's unit and its argument, not yet
    read.
    """

    condition: bytes | None = None  # NX | XX | IFEQ
    expected: bytes | None = None  # IFEQ's argument
    get: bool = False
    keep_expiry: bool = False
    persist: bool = False
    time: tuple[bytes, bytes] | None = None  # (EX | PX | EXAT | PXAT, number)


_TIMES = frozenset((b"EX", b"PX", b"EXAT", b"PXAT"))


def set_options(words: list[bytes]) -> SetOptions:
    """SET's options. Contradictions are a syntax error; of repeated ones the last holds."""
    condition: bytes | None = None
    expected: bytes | None = None
    get = keep_expiry = False
    time: tuple[bytes, bytes] | None = None
    at = 0
    while at < len(words):
        option = words[at].upper()
        if option in (b"NX", b"XX", b"IFEQ") and condition in (None, option):
            condition = option
            if option == b"IFEQ":
                at += 1
                expected = _argument(words, at)
        elif option == b"GET":
            get = True
        elif option == b"KEEPTTL" and time is None:
            keep_expiry = True
        elif option in _TIMES and not keep_expiry and (time is None or time[0] == option):
            at += 1
            time = (option, _argument(words, at))
        else:
            raise RefusedError(SYNTAX_ERROR)
        at += 1
    return SetOptions(condition, expected, get, keep_expiry, False, time)


def getex_options(words: list[bytes]) -> SetOptions:
    """GETEX's options: at most one time, or PERSIST."""
    persist = False
    time: tuple[bytes, bytes] | None = None
    at = 0
    while at < len(words):
        option = words[at].upper()
        if option == b"PERSIST" and time is None:
            persist = True
        elif option in _TIMES and not persist and (time is None or time[0] == option):
            at += 1
            time = (option, _argument(words, at))
        else:
            raise RefusedError(SYNTAX_ERROR)
        at += 1
    return SetOptions(persist=persist, time=time)


def _argument(words: list[bytes], at: int) -> bytes:
    if at >= len(words):
        raise RefusedError(SYNTAX_ERROR)
    return words[at]


def expiry_ms(time: tuple[bytes, bytes], now_ms: int, command: str) -> int:
    """The absolute time that an EX, PX, EXAT or PXAT option of SET or GETEX means. command for the error
    text.
    """
    unit, word = time
    number = integer(word)
    if number <= 0:
        raise invalid_expire_time(command)
    if unit in (b"EX", b"EXAT"):
        number *= 1000
    if unit in (b"EX", b"PX"):
        number += now_ms
    if number > MOST:
        raise invalid_expire_time(command)
    return number


class ExpireIf(Flag):
    """Conditions of EXPIRE and PEXPIRE on the time the key has now."""

    ALWAYS = 0
    NX = auto()  # it has none
    XX = auto()  # it has one
    GT = auto()  # the new one is later (none counts as endless)
    LT = auto()  # the new one is earlier

    def hold(self, expires_at: int, before: int | None) -> bool:
        """Whether they hold, given the new time and the one the key has (None: never expires)."""
        if ExpireIf.NX in self:
            return before is None
        if ExpireIf.XX in self and before is None:
            return False
        if ExpireIf.GT in self:
            return before is not None and expires_at > before
        if ExpireIf.LT in self:
            return before is None or expires_at < before
        return True


_CONDITIONS = {b"NX": ExpireIf.NX, b"XX": ExpireIf.XX, b"GT": ExpireIf.GT, b"LT": ExpireIf.LT}


def expire_conditions(words: list[bytes]) -> ExpireIf:
    """The conditions behind EXPIRE key seconds."""
    conditions = ExpireIf.ALWAYS
    for word in words:
        condition = _CONDITIONS.get(word.upper())
        if condition is None:
            shown = word.decode("utf-8", "backslashreplace").replace("\r", " ").replace("\n", " ")
            raise RefusedError(Error(f"ERR Unsupported option {shown}"))
        conditions |= condition
    if ExpireIf.NX in conditions and conditions != ExpireIf.NX:
        text = "ERR NX and XX, GT or LT options at the same time are not compatible"
        raise RefusedError(Error(text))
    if ExpireIf.GT in conditions and ExpireIf.LT in conditions:
        raise RefusedError(Error("ERR GT and LT options at the same time are not compatible"))
    return conditions
