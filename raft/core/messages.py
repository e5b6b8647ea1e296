"""The messages of Raft (paper figure 2; thesis 4.2.3, 6.4, 9.6), one narrow type each.

A message names no sender: the connection it came over does, and the handshake proved it. Every message
carries its sender's term. The tag is the wire's type name; a field is only ever added at the end, with a
default.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from raft.core.entry import Entry


class RequestVote(msgspec.Struct, frozen=True, array_like=True, tag="rv", gc=False):
    """RequestVote RPC (paper 5.2, 5.4.1). pre_vote: only asks whether a vote would be given (thesis 9.6);
    term is then the term the candidate would start, not the one it is in. transfer: the leader itself asked
    for this election (thesis 3.10), so nobody need be loyal to it. voter_identity: what the candidate's
    configuration has recorded for the voter's data directory; "" for nothing. founding: it has
    recorded no voter's."""

    term: int
    candidate_id: int
    last_log_index: int
    last_log_term: int
    pre_vote: bool = False
    transfer: bool = False
    voter_identity: str = ""
    founding: bool = False


class RequestVoteResponse(msgspec.Struct, frozen=True, array_like=True, tag="rvr", gc=False):
    """Answer to RequestVote. A granted PreVote echoes the term asked for; else it is the voter's own."""

    term: int
    vote_granted: bool
    pre_vote: bool = False


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag="ae"):
    """AppendEntries RPC, also the heartbeat (paper 5.2, 5.3). round numbers the leader's broadcasts: an
    answer that echoes it proves that the follower knew this leader after the round began (thesis 6.4)."""

    term: int
    leader_id: int
    prev_log_index: int
    prev_log_term: int
    entries: tuple[Entry, ...]
    leader_commit: int
    round: int = 0


class AppendEntriesResponse(msgspec.Struct, frozen=True, array_like=True, tag="aer", gc=False):
    """Answer to AppendEntries.

    success: the logs agree up to match_index, and all of it is on the follower's disk. Otherwise
    prev_log_index echoes what was refused, and conflict_index (with conflict_term, 0 if the follower's log is
    too short) tells where to try next (paper 5.3, the optimisation at its end).

    full: the follower's disk is: send no entries until it says otherwise. It may have taken fewer than were
    sent, and match_index says how many.
    """

    term: int
    success: bool
    match_index: int
    round: int = 0
    prev_log_index: int = 0
    conflict_index: int = 0
    conflict_term: int = 0
    full: bool = False


class ReadIndexRequest(msgspec.Struct, frozen=True, array_like=True, tag="ri", gc=False):
    """A follower asks for a read index on behalf of its clients (thesis 6.4, last paragraph). log_end: it
    only wants to know where the leader's log ends, at once (raft/core/recovery.py)."""

    term: int
    request_id: int
    log_end: bool = False


class ReadIndexResponse(msgspec.Struct, frozen=True, array_like=True, tag="rir", gc=False):
    """The leader's answer: reads are linearizable once read_index is applied. ok False: not the leader.
    last_index: of its log, if it was asked for log_end; else 0."""

    term: int
    request_id: int
    read_index: int
    ok: bool
    last_index: int = 0


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag="tn", gc=False):
    """The leader hands over: campaign at once, without PreVote (thesis 3.10)."""

    term: int


class InstallSnapshot(msgspec.Struct, frozen=True, array_like=True, tag="is"):
    """A piece of a snapshot for a peer whose next entry is compacted away (paper section 7, figure 13).

    The snapshot covers all up to last_index; data are its file's bytes from offset on, of total bytes. The
    file's header carries the configuration.
    """

    term: int
    leader_id: int
    last_index: int
    last_term: int
    offset: int
    total: int
    data: bytes


class InstallSnapshotResponse(msgspec.Struct, frozen=True, array_like=True, tag="isr", gc=False):
    """How far the snapshot of last_index has arrived: wanted is the offset of the next byte. Once all of it
    is installed the follower says so with an AppendEntriesResponse."""

    term: int
    last_index: int
    wanted: int


Message: TypeAlias = (
    RequestVote
    | RequestVoteResponse
    | AppendEntries
    | AppendEntriesResponse
    | ReadIndexRequest
    | ReadIndexResponse
    | TimeoutNow
    | InstallSnapshot
    | InstallSnapshotResponse
)
