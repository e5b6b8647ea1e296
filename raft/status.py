"""NodeStatus: the snapshot of itself that a node publishes for every thread to read.

The worker builds a new one whenever enough has changed to be worth telling and replaces a reference; whoever
reads it sees one consistent moment. Nothing here decides anything in Raft.
"""

from __future__ import annotations

import msgspec

from raft.config import Member

VERSION = "0.1.0"


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of one node, as its worker saw it. Immutable; any thread may read it.

    Indexes count log entries from 1; 0 means none. All other units stand with their field.
    """

    node_id: int
    cluster_name: str
    run_id: str  # 40 hex digits, new at every start of the process
    version: str = VERSION
    started_monotonic_s: float  # time.monotonic() at the start of this process

    role: str  # "leader", "follower", "candidate", "pre-candidate", "learner" or "removed"
    term: int
    leader_id: int | None  # None: this node knows of no leader in its term
    voted_for: int | None  # in this term
    has_quorum: bool = True  # of the leader: a majority answered within the last election timeout

    commit_index: int
    applied_index: int
    last_log_index: int
    first_log_index: int  # oldest entry still in the log
    snapshot_index: int = 0  # last entry that the newest snapshot covers
    recovering_from: int = 0  # acknowledged entries from here on are lost: no vote until healed
    last_digest_index: int = 0  # the last entry after which a majority had this node's digest

    members: tuple[Member, ...]  # everybody's addresses, this node included
    voters: tuple[int, ...]  # ids, ascending
    learners: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()  # peers that do not answer this node's pings
    match: tuple[tuple[int, int], ...] = ()  # the leader's matchIndex: (peer id, index); empty elsewhere

    database_lag: int = 0  # ledger rows that are not yet known to be in MongoDB
    pending_requests: int = 0  # client operations taken and not yet answered
    keys: int = 0  # keys in the database
    keys_with_expiry: int = 0

    def uptime_s(self, now_monotonic_s: float) -> int:
        """Whole seconds since the process started; `now_monotonic_s` is time.monotonic()."""
        return max(0, int(now_monotonic_s - self.started_monotonic_s))

    def member(self, node_id: int | None) -> Member | None:
        """The member with this id, None if there is none."""
        return next((member for member in self.members if member.id == node_id), None)
