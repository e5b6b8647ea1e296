"""A follower's words under ONCE: whatever is sent again, through whichever node, keeps its number. No I/O."""

from __future__ import annotations

import secrets

_REMEMBERED = 32  # how far back a number may be repeated: the server tells the last 64 of a session apart


def expired(error: str) -> bool:
    """Whether this error asks for a session of another name. redis-py takes ERR off."""
    return error.removeprefix("ERR ").startswith("session expired")


class OnceSession:
    """A session of the cluster's (`ONCE session seq COMMAND`), of a new name in each life. One thread."""

    def __init__(self) -> None:
        self.name = ""
        self._number = 0
        self._open: dict[tuple[str, ...], int] = {}  # the number of what has no answer yet
        self._begin()

    def wrap(self, words: list[str]) -> list[str]:
        """The words to send: with the number they had, if they were sent before and are not answered."""
        number = self._open.get(tuple(words))
        if number is None:
            self._number = number = self._number + 1
            self._open[tuple(words)] = number
            oldest = next(iter(self._open))
            if self._open[oldest] <= number - _REMEMBERED:  # nobody has asked for it for long
                del self._open[oldest]
        return ["ONCE", self.name, str(number), *words]

    def settle(self, words: list[str], error: str | None) -> bool:
        """The answer to these words is there and final. False when they have to go under a new session, which
        has begun; what was open is sent under it, too."""
        if error is not None and expired(error):
            self._begin()
            return False
        self._open.pop(tuple(words), None)
        return True

    def _begin(self) -> None:
        self.name = secrets.token_hex(8)
        self._number = 0
        self._open.clear()
