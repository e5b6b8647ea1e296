"""Where in the log a command stands: the only source of time in the rules."""

from __future__ import annotations

import msgspec


class Context(msgspec.Struct, frozen=True, gc=False):
    """The entry being applied: its index and term, and the leader's stamp at_ms (ms since the epoch)."""

    index: int
    term: int
    at_ms: int
