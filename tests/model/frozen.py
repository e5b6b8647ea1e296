"""One node as a value: freeze() takes a real core and its disk apart into a tuple, thaw() builds them again.

The tuple is copy and fingerprint in one: two nodes with equal tuples behave alike for ever, within a scope.
So it holds everything that a decision of raft/core can depend on, and nothing else:

- Absolute time is gone. `heard` says whether the leader was heard less than an election timeout ago,
  PeerView.recent the same of an answer to a leader. Deadlines are gone: they are whatever the search wants
  (tests/model/turns.py), and with them the random numbers, which set nothing else.
  Without pre-votes both are gone, too: who does not answer because of them might as well not have been asked,
  and that a leader has lost its quorum may come to its mind at any time.
- What only a leader reads is gone from nodes that lead not: become_leader() sets it anew. Refused votes are
  gone: they count as none. So are a leader's votes.
- The in-flight window is gone: in a scope of a few messages it is never full, and nothing else looks at it.
- Rounds acknowledged are kept only in scopes with reads: nothing else (leases are off) asks for them.
- The log is kept once, as on disk: between turns the core's view of it is that of a log opened anew on that
  disk, which freeze() checks.

KNOWN_* name every attribute there is: a test fails when raft/core gets another.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from raft.core.core import RaftCore
from raft.core.effects import Effects, HardState
from raft.core.entry import Entry
from raft.core.log import RaftLog
from raft.core.membership import Configuration
from raft.core.state import CoreOptions, CoreState, PendingRead, Progress, Role
from tests.simulation.disk import Disk
from tests.simulation.node import Node

NOW = 10_000.0  # the time at which every thawed node begins its turn
OPTIONS = CoreOptions()
NEVER = float("-inf")

_STATE = """node_id identity founded configurations options rng term voted_for log role leader_id commit_index
    durable_index now last_leader_contact_ms leader_suspected election_deadline_ms no_votes_before_ms votes
    progress heartbeat_due_ms quorum_near_until_ms round quorum_round rounds_sent lease_from_ms
    term_first_index broadcast_index reads early_reads departing transfer_target
    transfer_deadline_ms transfer_sent lease_void follower_reads
    effects"""
_PROGRESS = """next_index match_index match_round probing probe_sent inflight inflight_bytes acked_round
    last_contact_ms full catch_up_to catch_up_began_ms caught_up"""
KNOWN_STATE, KNOWN_PROGRESS = frozenset(_STATE.split()), frozenset(_PROGRESS.split())
KNOWN_READ = frozenset(("origin", "request_id", "read_index", "needed_round"))
KNOWN_LOG = frozenset(
    (
        "reader",
        "last_index",
        "last_term",
        "tail",
        "tail_first",
        "operations",
        "floor",
        "run_firsts",
        "run_terms",
    )
)
KNOWN_CORE = frozenset(("state",))


class NotAtRest(AssertionError):
    """A node that has not finished its turn, or whose view of its log is not what is on its disk."""


class MiddleNumbers(random.Random):
    """Instead of random numbers, whose only use is to spread deadlines: here there are none."""

    def random(self) -> float:
        return 0.5


NUMBERS = MiddleNumbers()


class PeerView(NamedTuple):
    """What a leader knows of a peer."""

    peer: int
    next_index: int
    match_index: int
    match_round: int
    probing: bool
    probe_sent: bool
    acked_round: int
    recent: bool
    full: bool


class Frozen(NamedTuple):
    """A node between two turns. stored_*: its disk; log: there, too, and all of it synced."""

    node_id: int
    stored_term: int
    stored_vote: int | None
    log: tuple[Entry, ...]
    term: int
    voted_for: int | None
    role: Role
    leader_id: int | None
    heard: bool
    leader_suspected: bool
    commit_index: int
    durable_index: int
    configurations: tuple[tuple[int, Configuration], ...]
    votes: tuple[int, ...]
    progress: tuple[PeerView, ...]
    round: int
    quorum_round: int
    term_first_index: int
    broadcast_index: int
    reads: tuple[PendingRead | tuple[int | None, int, int, int], ...]
    early_reads: tuple[tuple[int | None, int, int, int], ...]
    departing: bool
    transfer_target: int | None
    transfer_sent: bool
    lease_void: bool
    follower_reads: tuple[int, ...]


def freeze(node: Node, *, reads: bool, pre_votes: bool) -> Frozen:
    """The node between two turns. reads, pre_votes: whether there are any in the scope.

    Raises NotAtRest if something is left undone that the tuple could not hold."""
    state, disk = node.running.state, node.disk
    _check_rest(state, disk)
    recent = state.now - OPTIONS.election_timeout_min_ms
    leads = state.role is Role.LEADER
    views = tuple(
        PeerView(
            peer,
            *(each.next_index, each.match_index, each.match_round, each.probing, each.probe_sent),
            each.acked_round if reads else 0,
            not pre_votes or each.last_contact_ms > recent,
            each.full,
        )
        for peer, each in sorted(state.progress.items())
    )
    voted = () if leads else tuple(sorted(voter for voter, granted in state.votes.items() if granted))
    return Frozen(
        *(state.node_id, disk.hard_state.term, disk.hard_state.voted_for, tuple(disk.log)),
        *(state.term, state.voted_for, state.role, state.leader_id),
        pre_votes and state.leader_id is not None and not leads and state.last_leader_contact_ms > recent,
        *(state.leader_suspected, state.commit_index, state.durable_index),
        *(tuple(state.configurations), voted, views),
        *((state.round, state.quorum_round if reads else 0) if leads else (0, 0)),
        *((state.term_first_index, state.broadcast_index) if leads else (0, 0)),
        tuple((each.origin, each.request_id, each.read_index, each.needed_round) for each in state.reads),
        tuple(
            (each.origin, each.request_id, each.read_index, each.needed_round) for each in state.early_reads
        ),
        leads and state.departing,
        state.transfer_target if leads else None,
        leads and state.transfer_target is not None and state.transfer_sent,
        leads and state.lease_void,
        tuple(state.follower_reads),
    )


def _check_rest(state: CoreState, disk: Disk) -> None:
    if state.effects != Effects() or disk.unsynced or state.log.operations:
        raise NotAtRest(f"node {state.node_id} has effects left: {state.effects}")
    if vars(state.log) != vars(RaftLog(disk)):
        raise NotAtRest(f"node {state.node_id} takes its log for another than is on its disk")
    if any(each.catch_up_to or each.caught_up for each in state.progress.values()):
        raise NotAtRest("learners are beyond this model")
    if state.identity or state.founded or disk.snapshot.index:
        raise NotAtRest("identities and snapshots are beyond this model")


def thaw(frozen: Frozen, node: Node) -> None:
    """Put the frozen core and disk into the node, at the time NOW."""
    disk = Disk(frozen.log, HardState(frozen.stored_term, frozen.stored_vote))
    state = CoreState.__new__(CoreState)
    vars(state).update(
        node_id=frozen.node_id,
        identity="",
        founded=False,
        configurations=list(frozen.configurations),
        options=OPTIONS,
        rng=NUMBERS,
        term=frozen.term,
        voted_for=frozen.voted_for,
        log=RaftLog(disk),
        role=frozen.role,
        leader_id=frozen.leader_id,
        commit_index=frozen.commit_index,
        durable_index=frozen.durable_index,
        now=NOW,
        last_leader_contact_ms=NOW if frozen.heard else NEVER,
        leader_suspected=frozen.leader_suspected,
        election_deadline_ms=NOW + OPTIONS.election_timeout_min_ms,
        no_votes_before_ms=NEVER,
        votes=dict.fromkeys(frozen.votes, True),
        progress={view.peer: _progress(view) for view in frozen.progress},
        heartbeat_due_ms=NOW + OPTIONS.heartbeat_interval_ms,
        quorum_near_until_ms=NEVER,  # what was found by an earlier look is found again
        round=frozen.round,
        quorum_round=frozen.quorum_round,
        rounds_sent=deque(),
        lease_from_ms=NEVER,
        term_first_index=frozen.term_first_index,
        broadcast_index=frozen.broadcast_index,
        reads=deque(PendingRead(*each) for each in frozen.reads),
        early_reads=[PendingRead(*each) for each in frozen.early_reads],
        departing=frozen.departing,
        transfer_target=frozen.transfer_target,
        transfer_deadline_ms=NOW + OPTIONS.election_timeout_max_ms,
        transfer_sent=frozen.transfer_sent,
        lease_void=frozen.lease_void,
        follower_reads=dict.fromkeys(frozen.follower_reads, NOW),
        effects=Effects(),
    )
    core = RaftCore.__new__(RaftCore)
    core.state = state
    node.core, node.disk = core, disk
    node.applied = list(frozen.log[: frozen.commit_index])
    node.reads_ready, node.reads_failed, node.reads_waiting, node.news = [], [], [], []


def _progress(view: PeerView) -> Progress:
    return Progress(
        next_index=view.next_index,
        match_index=view.match_index,
        match_round=view.match_round,
        probing=view.probing,
        probe_sent=view.probe_sent,
        acked_round=view.acked_round,
        last_contact_ms=NOW if view.recent else NEVER,
        full=view.full,
    )


def renamed(frozen: Frozen, names: Mapping[int | None, int | None]) -> Frozen:
    """The node under other names for all nodes; names maps None to None. For configurations that hold all
    names, as the founding one does: another's data would have to be written anew."""
    return frozen._replace(
        node_id=names[frozen.node_id],
        stored_vote=names[frozen.stored_vote],
        voted_for=names[frozen.voted_for],
        leader_id=names[frozen.leader_id],
        votes=tuple(sorted(names[voter] for voter in frozen.votes)),
        progress=tuple(sorted(view._replace(peer=names[view.peer]) for view in frozen.progress)),
        reads=tuple((names[origin], *rest) for origin, *rest in frozen.reads),
        early_reads=tuple((names[origin], *rest) for origin, *rest in frozen.early_reads),
        transfer_target=names[frozen.transfer_target],
    )
