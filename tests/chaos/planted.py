"""Bugs to put into a node (CHAOS_BUG=name), to see that a run finds them.

`slow-projector` is no bug but the delay that `unfenced-projector` comes with: no run may complain of it."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from typing import Any

from database import writer
from ledger import history, turns
from raft.clients.handler import Handler
from raft.core import reads
from raft.core.membership import Configuration
from raft.core.state import Role
from raft.machine.sessions import SessionTable
from raft.node import RaftNode
from raft.runtime.disk_watch import DiskWatch
from raft.storage.log_store import LogStore
from raft.storage.watched_disk import WatchedDisk


def stale_reads() -> None:
    """Every node answers reads with what it has (BUGS 30)."""

    def request_read(core: Any, request_id: int) -> None:
        core.effects.reads_ready.append((request_id, core.commit_index))

    reads.request_read = request_read


def follower_reads() -> None:
    """The leader asks its quorum, a follower answers reads from its own state, without ReadIndex."""
    straight = reads.request_read

    def request_read(core: Any, request_id: int) -> None:
        if core.role is Role.LEADER:
            straight(core, request_id)
        else:
            core.effects.reads_ready.append((request_id, core.commit_index))

    reads.request_read = request_read


def forgotten_sessions() -> None:
    """No node remembers what it did for a session (BUGS 52)."""
    SessionTable.recall = lambda *_: None  # type: ignore[method-assign]


def lonely_quorum() -> None:
    """What one voter has is taken for what a majority has."""

    def quorum_value(self: Configuration, values: Any) -> Any:
        return max(values)

    Configuration.quorum_value = quorum_value  # type: ignore[method-assign]


def unsynced_acks() -> None:
    """Entries are acknowledged, and counted by the leader, before they are on disk (BUGS 29, 50). Found only
    where a kill takes what is not synced (--power)."""

    def sync(self: Any) -> None:
        self._durable_index = self._last_index

    LogStore.sync = sync  # type: ignore[method-assign]


def ignored_eio() -> None:
    """A failed fdatasync passes for a good one (BUGS 46, 51)."""
    straight = WatchedDisk.fdatasync

    def fdatasync(self: WatchedDisk, fd: int) -> None:
        with contextlib.suppress(OSError):
            straight(self, fd)

    WatchedDisk.fdatasync = fdatasync  # type: ignore[method-assign]


def unwatched_disk() -> None:
    """Nobody looks at calls that do not return (BUGS 45)."""
    DiskWatch.look = lambda *_: None  # type: ignore[method-assign]


def slow_projector() -> None:
    """Some writes to `rewards` are on their way for a while, longer than an election takes."""
    straight = writer.LedgerWriter._upsert

    def upsert(self: Any, documents: Any) -> Any:
        if random.random() < 0.3:
            time.sleep(random.uniform(1.0, 4.0))
        return straight(self, documents)

    writer.LedgerWriter._upsert = upsert  # type: ignore[method-assign]


def unfenced_projector() -> None:
    """A leader that was deposed meanwhile writes over what its successor has written."""
    slow_projector()
    writer._fence = lambda document: {"_id": document["_id"]}


def penal_ledger() -> None:
    """Who could not answer because the leader changed is punished all the same."""
    turns.EXCUSED = history.MISSED  # type: ignore[misc]


def dead_thread() -> None:
    """A thread ends, silently, a while after the start (BUGS 54)."""
    RaftNode.ping_nodes = lambda self: None  # type: ignore[method-assign]


def leaked_descriptors() -> None:
    """A descriptor more for every client that is taken (BUGS 57)."""
    straight = Handler.adopt

    def adopt(self: Any, *arguments: Any) -> None:
        os.open(os.devnull, os.O_RDONLY)
        straight(self, *arguments)

    Handler.adopt = adopt  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    "stale-reads": stale_reads,
    "follower-reads": follower_reads,
    "forgotten-sessions": forgotten_sessions,
    "lonely-quorum": lonely_quorum,
    "unsynced-acks": unsynced_acks,
    "ignored-eio": ignored_eio,
    "unwatched-disk": unwatched_disk,
    "slow-projector": slow_projector,
    "unfenced-projector": unfenced_projector,
    "penal-ledger": penal_ledger,
    "dead-thread": dead_thread,
    "leaked-descriptors": leaked_descriptors,
}
