"""What a node does while its disk is full: it takes no entries, but goes on with all that needs none.

The segment preparer learns first that there is no room for another log file (raft/storage/preparer.py); the
last file has some left then. So no entry is taken that cannot be written, and the core never runs ahead of
the disk:

a follower     takes entries as long as they fit, then only acknowledges heartbeats; tells the leader, which
               sends it heartbeats only (raft/core/replication.py). It votes: its next hard state has a file
               already. What its clients want it passes on, reads too, for its own machine falls behind.
a leader       hands over to a voter that has space. Until one has taken over, or if none has, it refuses
               writes, and goes on serving reads.
any leader     refuses writes while a majority of the voters has no space: nothing could be committed. What
               is in the log already is answered INDETERMINATE after two election timeouts, as always.

Once there is space again everybody goes on by itself, at most a second later. What gets past all this (one
command as large as a log file, a file system that needs room to overwrite a file) still finds the worker's
older way: it waits in mid-turn until the write succeeds, see Worker._outlast_full_disk.
"""

from __future__ import annotations

import logging

from raft.core.core import RaftCore
from raft.core.state import Role
from raft.runtime.desk import Desk
from raft.runtime.errors import NO_SPACE, NOT_LEADER, UNKNOWN

log = logging.getLogger(__name__)


class Space:
    """Owned by the worker."""

    def __init__(self, core: RaftCore, desk: Desk) -> None:
        self._core = core
        self._state = core.state
        self._desk = desk
        self._patience_ms = core.state.options.election_timeout_max_ms
        self._low = False
        self._blocked_since: float | None = None
        self._hand_over_at = 0.0

    @property
    def blocked(self) -> bool:
        """Whether this node leads and takes no writes."""
        return self._blocked_since is not None

    def advance(self, now: float) -> None:
        """Once a turn, before the clients' batches are routed."""
        state = self._state
        low = state.room.low
        if low != self._low:
            self._low = low
            self._tell()
        leads = state.role is Role.LEADER
        self._desk.pass_reads_on = low and not leads
        if not leads or not (low or not state.quorum_has_room()):
            self._blocked_since, self._desk.refusal = None, None
            return
        if self._blocked_since is None:
            self._blocked_since, self._desk.refusal = now, NO_SPACE
            whose = "this leader" if low else "a majority of the voters"
            log.error("the disk of %s is full: writes are refused until there is space", whose)
        if now - self._blocked_since >= 2 * self._patience_ms:
            self._desk.proposals.fail_all(UNKNOWN, NOT_LEADER)
        if low and now >= self._hand_over_at:
            self._hand_over_at = now + 2 * self._patience_ms
            self._core.transfer(None, now)

    def _tell(self) -> None:
        if self._low:
            log.error("the disk is full: waiting for space, nothing is lost; free some on this disk")
        else:
            log.warning("there is space on the disk again: going on")
