"""Builds the parts of a node and closes them in the right order. Nothing here runs; RaftNode starts it."""

from __future__ import annotations

import logging
import random
import uuid
from dataclasses import dataclass
from typing import Protocol

from database.client import new_client
from database.projection import Projector
from ledger.ledger import Policy
from raft.clients.server import Backend, ClientServer
from raft.config import RaftSettings, RewardSettings, Settings
from raft.core.core import RaftCore
from raft.core.membership import encode_configuration
from raft.core.state import CoreOptions
from raft.runtime.agreement import Agreement
from raft.runtime.applier import Applier
from raft.runtime.clock import Clock
from raft.runtime.desk import Desk
from raft.runtime.feed import Feed
from raft.runtime.founding import difference, founding_configuration, peer_addresses, servers_of
from raft.runtime.install import SnapshotReceiver, SnapshotSender
from raft.runtime.installs import Installs
from raft.runtime.pings import PingBoard
from raft.runtime.restore import restore
from raft.runtime.snapshots import Snapshots
from raft.runtime.status_board import StatusBoard
from raft.runtime.turns import Turns
from raft.runtime.worker import Hooks, Worker
from raft.storage.disk import Disk
from raft.storage.node_storage import NodeStorage
from raft.transport.network import PeerNetwork
from web.server import HttpServer

log = logging.getLogger(__name__)

PROJECTOR_S = 0.5  # how long to wait for it: it may sit in a call to an absent MongoDB, with nothing to lose


class Owner(Hooks, Backend, Protocol):
    """What the parts need of the node that they belong to."""

    def on_fatal(self, thread: str, error: BaseException) -> None: ...

    def publish(self, channel: str, payload: str) -> None: ...

    def ping_all(self) -> None: ...

    def lease_ended(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """One node's parts. Their owners stand in raft/node.py's table. configuration: in force at the start."""

    storage: NodeStorage
    core: RaftCore
    network: PeerNetwork
    server: ClientServer
    worker: Worker
    projector: Projector
    feed: Feed
    pings: PingBoard
    board: StatusBoard
    web: HttpServer

    def close(self) -> None:
        """End everything but the worker, which must have ended: clients first, the disk last."""
        self.web.stop()
        self.server.stop()
        self.feed.close()
        self.projector.stop(PROJECTOR_S)
        self.worker.snapshots.close()
        self.network.close()
        self.storage.close()

    def abandon(self, clients_s: float) -> None:
        """The disk hangs: let go of clients and peers, who would otherwise wait as long as it does, and leave
        the rest to the end of the process. A snapshot's child dies with its parent."""
        self.web.stop()
        self.server.stop(clients_s)
        self.worker.stop()
        self.network.close()


def open_parts(
    owner: Owner,
    settings: Settings,
    node_id: int,
    run_id: str,
    clock: Clock,
    rng: random.Random,
    disk: Disk | None = None,
) -> Parts:
    """Open the data directory and build everything on it. Raises StorageError, IdentityError, ValueError."""
    storage = NodeStorage.open(
        settings.storage.node_dir(node_id),
        settings.cluster.name,
        node_id,
        founding=servers_of(settings.cluster.nodes),
        fsync=settings.storage.fsync,
        segment_bytes=settings.storage.segment_bytes,
        repair=settings.storage.repair,
        disk=disk,
    )
    try:
        return _Builder(owner, settings, node_id, run_id, clock, rng, storage).build()
    except BaseException:
        storage.close()
        raise


class _Builder:
    """Builds one node's parts on its open storage, each once, those first that others need."""

    def __init__(
        self,
        owner: Owner,
        settings: Settings,
        node_id: int,
        run_id: str,
        clock: Clock,
        rng: random.Random,
        storage: NodeStorage,
    ) -> None:
        self._owner = owner
        self._settings = settings
        self._node_id = node_id
        self._run_id = run_id
        self._clock = clock
        self._storage = storage
        founding = founding_configuration(storage.identity)
        self._machine, applied, snapshot_index = restore(storage, settings.cluster.name, founding)
        self._applied = encode_configuration(applied)
        self._core = RaftCore(
            node_id,
            applied,
            storage.log,
            hard_state=storage.hard_state,
            options=core_options(settings.raft),
            rng=rng,
            now=clock.monotonic_ms(),
            identity=storage.identity.identity,
            snapshot_index=snapshot_index,
            later_configurations=storage.log.configurations(),
            lost=storage.lost_entries,
        )
        self._core.state.room = storage.log.room
        self._tell_difference()
        self._network = self._new_network()
        self._desk = Desk(
            self._core,
            self._machine,
            snapshots=storage.snapshots,
            send=self._network.queue,
            wake=self._network.wake,
            max_pending=settings.limits.max_pending_requests,
            first_request_id=random.SystemRandom().getrandbits(48) << 14,  # never one of an earlier run
            origin=f"{node_id}.{run_id[:20]}",
            lease_ended=owner.lease_ended if settings.raft.lease_reads else None,
            heard_identities=self._network.heard_identities,
            new_cluster_id=uuid.uuid4().hex,
        )
        self._pings = PingBoard()
        self._feed = Feed(self._network.wake)

    def build(self) -> Parts:
        settings, me = self._settings, self._settings.member(self._node_id)
        worker = self._new_worker()
        return Parts(
            storage=self._storage,
            core=self._core,
            network=self._network,
            server=ClientServer(
                self._owner, settings, me.host, me.client_port, on_fatal=self._owner.on_fatal
            ),
            worker=worker,
            projector=_projector(self._owner, settings, self._node_id, self._feed),
            feed=self._feed,
            pings=self._pings,
            board=StatusBoard(settings, self._run_id, self._core, worker, self._pings),
            web=HttpServer(self._owner.status, me.host, me.http_port, self._owner.on_fatal),
        )

    def _tell_difference(self) -> None:
        """config.yaml's members are used once: say so where they are not those of the log (any more)."""
        configuration = self._core.state.configuration
        differs = difference(servers_of(self._settings.cluster.nodes), configuration)
        if differs is not None:
            log.warning("%s", differs)
        if not configuration.has(self._node_id):
            log.warning(
                "node %d is not a member as far as its log goes: it waits for RAFT ADD", self._node_id
            )

    def _new_network(self) -> PeerNetwork:
        state, me = self._core.state, self._settings.member(self._node_id)
        return PeerNetwork(
            self._node_id,
            self._settings.cluster.name,
            peer_addresses(state),
            me.host,
            me.raft_port,
            self._owner.on_fatal,
            run_id=self._run_id,
            identity=self._storage.identity.identity,
            cluster_id=state.committed_configuration.cluster_id,
        )

    def _new_worker(self) -> Worker:
        core, machine, network, desk = self._core, self._machine, self._network, self._desk
        settings, storage = self._settings, self._storage
        agreement = Agreement(core, machine, network.queue, interval_s=settings.raft.digest_interval_s)
        applier = Applier(
            core,
            machine,
            desk.proposals,
            self._owner.publish,
            storage.log.last_index,
            self._applied,
            agreement.applied,
        )
        installs = Installs(
            core,
            machine,
            applier,
            SnapshotSender(storage.snapshots, self._node_id, network.queue),
            SnapshotReceiver(storage.snapshots, settings.cluster.name, network.queue, network.wake),
        )
        snapshots = Snapshots(
            machine,
            storage.snapshots,
            storage.log,
            desk.load,
            configuration=lambda: applier.configuration,
            every_entries=settings.storage.snapshot_every_entries,
            pinned=installs.pinned_index,
        )
        return Worker(
            *(self._owner, core, storage, network, machine, desk, applier),
            *(self._new_turns(), self._feed, snapshots, self._pings, self._clock, agreement, installs),
        )

    def _new_turns(self) -> Turns:
        return Turns(
            self._core,
            self._machine,
            self._desk.proposals,
            self._pings,
            policy(self._settings.rewards),
            lambda: self._core.state.configuration.servers,
            self._owner.ping_all,
        )


def core_options(raft: RaftSettings) -> CoreOptions:
    """The `raft` section as the core wants it."""
    low, high = raft.election_timeout_ms
    return CoreOptions(
        election_timeout_min_ms=low,
        election_timeout_max_ms=high,
        heartbeat_interval_ms=raft.heartbeat_interval_ms,
        lease_reads=raft.lease_reads,
    )


def policy(rewards: RewardSettings) -> Policy:
    """The `rewards` section as it travels in the log."""
    return Policy(
        interval_ms=rewards.interval_ms,
        reward=rewards.reward,
        penalty=rewards.penalty,
        ban_threshold=rewards.ban_threshold,
        ban_cooldown_s=rewards.ban_cooldown_s,
        max_spam=rewards.max_spam,
        follower_version=rewards.follower_version,
        followers_per_interval=rewards.followers_per_interval,
    )


def _projector(owner: Owner, settings: Settings, node_id: int, feed: Feed) -> Projector:
    database = settings.database
    return Projector(
        feed,
        lambda: new_client(database),
        database.name,
        settings.cluster.name,
        node_id,
        uri=database.uri,
        intervals_ttl_days=database.intervals_ttl_days,
        on_fatal=owner.on_fatal,
    )
