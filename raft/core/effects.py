"""What the core asks its node to do, in the order in which it must be done.

1. hard_state      written and fsynced before anything else leaves or is stored
2. early_messages  the leader's AppendEntries: may leave while the disk works (thesis 10.2.1)
3. log             truncations and appends, in this order; then ONE fsync
4. disk_done()     told to the core, which may commit; its further effects come with the next take
   healed          what was lost is there again: the marker that says so may go
5. messages        votes and acknowledgements: promises that rest on 1 and 3
6. committed       entries up to here may be applied; a leader does so before 3 if it writes: whatever it
                   commits, it has synced in an earlier turn
7. snapshots       wanted by peers, or arriving: streamed by raft/runtime/install.py
8. reads, answers  last
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from raft.core.entry import Entry
from raft.core.messages import InstallSnapshot, Message


class HardState(msgspec.Struct, frozen=True):
    """currentTerm and votedFor: on disk before any answer that depends on them (paper figure 2)."""

    term: int = 0
    voted_for: int | None = None


class LostEntries(msgspec.Struct, frozen=True):
    """Entries from from_index on that this server may have acknowledged in terms up to term, the one on its
    disk at the time, are lost (raft/core/recovery.py). On disk before anything of the log is changed."""

    from_index: int
    term: int


class TruncateLog(msgspec.Struct, frozen=True, gc=False):
    """Remove all entries from from_index on: they conflict with the leader's (paper 5.3)."""

    from_index: int


class AppendLog(msgspec.Struct, frozen=True):
    """Append these entries, which follow directly on the log's last."""

    entries: list[Entry]


class ResetLog(msgspec.Struct, frozen=True, gc=False):
    """Empty the log: the snapshot of the entry at index, already durable, stands for it (paper figure 13)."""

    index: int
    term: int


LogOperation: TypeAlias = TruncateLog | AppendLog | ResetLog
Envelope: TypeAlias = tuple[int, Message]


@dataclass(slots=True, init=False)
class Effects:
    """One turn's effects. Lists are handed over: the core does not touch them after take_effects()."""

    hard_state: HardState | None
    early_messages: list[Envelope]
    log: list[LogOperation]
    healed: bool
    messages: list[Envelope]
    committed: int | None
    reads_ready: list[tuple[int, int]]  # (request id, read index)
    reads_failed: list[int]
    snapshots_wanted: list[int]  # peers whose next entry is compacted away
    snapshot_chunks: list[tuple[int, InstallSnapshot]]  # from this term's leader
    role_changed: bool
    configuration_changed: bool  # one was appended, taken back, committed or installed
    news: list[str]  # one line each for the log: the story of an election

    def __init__(self) -> None:
        # Written out: one or two are made each turn, and default factories take five times as long.
        self.hard_state = self.committed = None
        self.early_messages, self.log, self.messages = [], [], []
        self.reads_ready, self.reads_failed = [], []
        self.snapshots_wanted, self.snapshot_chunks = [], []
        self.healed = self.role_changed = self.configuration_changed = False
        self.news = []
