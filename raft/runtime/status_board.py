"""What a node publishes of itself: its worker builds a new NodeStatus whenever something in it changed."""

from __future__ import annotations

import time

from raft.config import Member, Settings
from raft.core.core import RaftCore
from raft.core.membership import Configuration
from raft.core.state import CoreState, Role
from raft.runtime.pings import PingBoard
from raft.runtime.worker import Worker
from raft.status import NodeStatus

_NEVER = float("inf")
EVERY_MS = 10.0


class StatusBoard:
    """Owned by the worker, but for `current`, which any thread may read."""

    def __init__(
        self,
        settings: Settings,
        run_id: str,
        core: RaftCore,
        worker: Worker,
        pings: PingBoard,
    ) -> None:
        self.current: NodeStatus | None = None
        self._settings = settings
        self._run_id = run_id
        self._started_s = time.monotonic()
        self._state = core.state
        self._machine = worker.machine
        self._pings = pings
        self._load = worker.desk.load
        self._snapshots = worker.snapshots
        self._agreement = worker.agreement
        self._key: object = None
        self._basics: object = None
        self._next_ms = 0.0
        self._members: tuple[Configuration, tuple[Member, ...]] | None = None

    def publish(self, now: float) -> float:
        """Replace `current` if anything in it changed: at once if it is role, term, leader, vote, members
        or snapshot (who hears that RAFT SNAPSHOT is done may look for it), other things at most every
        EVERY_MS (in every turn they took 10 % of a leader's time). now: monotonic ms. Returns when to call
        again at the latest; infinity if all is published."""
        state, snapshot = self._state, self._snapshots.index
        basics = (state.role, state.term, state.leader_id, state.voted_for, state.configuration, snapshot)
        if basics == self._basics and now < self._next_ms:
            return self._next_ms
        self._basics, self._next_ms = basics, now + EVERY_MS
        self._publish()
        return _NEVER

    def _publish(self) -> None:
        state, machine, log = self._state, self._machine, self._state.log
        configuration = state.configuration
        lag = machine.ledger.projection_lag()
        silent = tuple(peer for peer in configuration.peers(state.node_id) if self._pings.silent(peer))
        quorum = state.role is not Role.LEADER or state.leader_is_alive()
        taken, snapshot_index, first = self._load.taken, self._snapshots.index, log.first_index
        recovering = state.recovering.lost.from_index if state.recovering is not None else 0
        key = (
            *(silent, quorum, configuration, snapshot_index, first, self._agreement.agreed_index),
            *(state.role, state.term, state.leader_id, state.voted_for, log.last_index, state.commit_index),
            *(machine.applied_index, lag, taken, recovering),
        )
        if key == self._key:
            return
        self._key = key
        self.current = NodeStatus(
            node_id=state.node_id,
            cluster_name=self._settings.cluster.name,
            run_id=self._run_id,
            started_monotonic_s=self._started_s,
            role=_role_of(state),
            term=state.term,
            leader_id=state.leader_id,
            voted_for=state.voted_for,
            has_quorum=quorum,
            commit_index=state.commit_index,
            applied_index=machine.applied_index,
            last_log_index=log.last_index,
            first_log_index=first,
            snapshot_index=snapshot_index,
            recovering_from=recovering,
            members=self._members_of(configuration),
            voters=configuration.voters,
            learners=configuration.learners,
            silent=silent,
            match=tuple((peer, progress.match_index) for peer, progress in state.progress.items()),
            last_digest_index=self._agreement.agreed_index,
            database_lag=lag,
            pending_requests=taken,
            keys=len(machine.kv.values),
        )

    def _members_of(self, configuration: Configuration) -> tuple[Member, ...]:
        """Everybody's addresses: those of the configuration, before it has any those of config.yaml."""
        if not configuration.servers:
            return self._settings.cluster.nodes
        if self._members is None or self._members[0] is not configuration:
            members = tuple(
                Member(
                    id=server.id,
                    host=server.host,
                    raft_port=server.raft_port,
                    client_port=server.client_port,
                    http_port=server.http_port,
                )
                for server in configuration.servers
            )
            self._members = (configuration, members)
        return self._members[1]


def _role_of(state: CoreState) -> str:
    """The role as people call it: who has no vote is a learner, or does not belong (any more)."""
    configuration = state.configuration
    if state.role is not Role.FOLLOWER or state.node_id in configuration.voters:
        return state.role.value
    return "learner" if state.node_id in configuration.learners else "removed"
