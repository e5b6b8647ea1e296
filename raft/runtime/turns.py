"""The leader's duties beside replication: opening and closing intervals, expiring keys.

A leadership begins with ~TERM, which brings policy and members into the log and closes what a former leader
left open. Only once that is applied does this leader know the ledger; then one system command is in the log
at a time. ~MEMBERS tells the ledger of a change of the cluster's members in between. What is proposed is
decided by ledger/schedule.py from the applied state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Protocol

from ledger.ledger import Policy
from raft.core.core import RaftCore
from raft.machine.machine import Machine
from raft.runtime.pings import PingBoard
from raft.runtime.proposals import Proposals


def member_name(node_id: int) -> str:
    """The follower id under which the ledger knows a cluster member."""
    return f"node-{node_id}"


class MemberAddress(Protocol):
    """What the ledger keeps of a member: raft.core.membership.Server or raft.config.Member."""

    @property
    def id(self) -> int: ...

    @property
    def host(self) -> str: ...

    @property
    def client_port(self) -> int: ...


class Turns:
    """Owned by the worker. members(): everyone in the configuration in force, for ~TERM. ping_all(): sends a
    ping to every peer now."""

    def __init__(
        self,
        core: RaftCore,
        machine: Machine,
        proposals: Proposals,
        pings: PingBoard,
        policy: Policy,
        members: Callable[[], Iterable[MemberAddress]],
        ping_all: Callable[[], None],
    ) -> None:
        self._state = core.state
        self._machine = machine
        self._proposals = proposals
        self._pings = pings
        self._policy = policy
        self._members = members
        self._ping_all = ping_all
        self._pending_index: int | None = None  # of the system command that is not applied yet
        self._opened_ms = 0.0
        self._due_at = 0
        self._excused = False
        self._told_members = b""  # what this leadership has put, or is about to put, into the log
        self._changed_members: bytes | None = None  # what ~MEMBERS has to say

    def begin_leadership(self, now: float, at_ms: int) -> None:
        """Propose ~TERM: the first commands of this leadership, before any client's."""
        leader, members = b"%d" % self._state.node_id, _members_json(self._members())
        self._proposals.add_system([b"~TERM", leader, self._policy.encode(), members])
        self._proposals.flush(now, at_ms)
        self._pending_index = self._state.log.last_index
        self._due_at = 0
        self._told_members, self._changed_members = members, None

    def members_changed(self, members: Iterable[MemberAddress]) -> None:
        """A configuration with these members (learners too) was committed while this node leads: ~MEMBERS is
        proposed as soon as nothing else of this kind is in flight. Only the latest counts."""
        told = _members_json(members)
        if told != self._told_members:
            self._told_members = self._changed_members = told

    def excuse(self) -> None:
        """The quorum, or this process, was away for a while: nobody is to blame for silence meanwhile."""
        self._excused = True

    @property
    def established(self) -> bool:
        """Whether this leader's ~TERM is applied: it knows everything that came before it."""
        return self._pending_index is None or self._machine.applied_index >= self._pending_index

    def advance(self, now: float, at_ms: int) -> None:
        """Propose what is due. Call while leading, before the turn's proposals are flushed.

        now: monotonic ms; at_ms: the stamp that this turn's entries get.
        """
        if not self.established:
            return
        self._pending_index = None
        expiry = self._machine.next_expiry_ms()
        proposed = expiry is not None and expiry <= at_ms
        if proposed:
            self._proposals.add_system([b"~EXPIRE"])
        if self._changed_members is not None:
            self._proposals.add_system([b"~MEMBERS", self._changed_members])
            self._changed_members = None
            proposed = True
        if at_ms >= self._due_at:
            proposed = self._propose_interval(now, at_ms) or proposed
        if proposed:
            self._proposals.flush(now, at_ms)
            self._pending_index = self._state.log.last_index

    def _propose_interval(self, now: float, at_ms: int) -> bool:
        answered = {member_name(peer) for peer in self._pings.answered_since(self._opened_ms)}
        answered.add(member_name(self._state.node_id))
        command = self._machine.ledger.next_system_command(
            at_ms, self._state.node_id, answered, self._excused, self._policy
        )
        if command is None:
            return False
        self._proposals.add_system(command)
        if command[0] == b"~OPEN":
            self._opened_ms = now
            self._due_at = int(command[2])
            self._excused = False
            self._ping_all()
        return True

    def next_due_ms(self) -> int:
        """Wall clock, ms: when advance() may have something to do; 0 while something is in flight."""
        if self._changed_members is not None:
            return 0
        expiry = self._machine.next_expiry_ms()
        return self._due_at if expiry is None else min(self._due_at, expiry)


def _members_json(members: Iterable[MemberAddress]) -> bytes:
    rows = [{"id": member_name(m.id), "address": f"{m.host}:{m.client_port}"} for m in members]
    return json.dumps(rows).encode()
