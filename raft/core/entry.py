"""A log entry: what Raft replicates (paper figure 2, "log[]")."""

from __future__ import annotations

from enum import IntEnum

import msgspec


class EntryKind(IntEnum):
    """What an entry's data means; the numbers stand on disk and on the wire and never change."""

    NOOP = 0  # a leader's first entry in its term (paper section 8)
    COMMANDS = 1  # a batch of client or ledger commands: raft/machine/batch.py
    CONFIGURATION = 2  # a cluster configuration (thesis chapter 4)


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One immutable entry. index and term start at 1; kind is an EntryKind; data is opaque to Raft."""

    index: int
    term: int
    kind: int
    data: bytes
