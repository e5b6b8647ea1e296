"""Builds the parts of a node and closes them in the right order. Nothing here runs; RaftNode starts it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from database.client import new_client
from database.projection import Projector
from ledger.ledger import Policy
from raft.clients.server import Backend, ClientServer
from raft.config import RaftSettings, RewardSettings, Settings
from raft.core.core import RaftCore
from raft.core.membership import Configuration
from raft.core.state import CoreOptions
from raft.machine.machine import Machine
from raft.runtime.applier import Applier
from raft.runtime.clock import Clock
from raft.runtime.desk import Desk
from raft.runtime.feed import Feed
from raft.runtime.pings import PingBoard
from raft.runtime.turns import Turns
from raft.runtime.worker import Hooks, Worker
from raft.storage.node_storage import NodeStorage
from raft.transport.network import PeerNetwork

PROJECTOR_S = 0.5  # how long to wait for it: it may sit in a call to an absent MongoDB, with nothing to lose


class Owner(Hooks, Backend, Protocol):
    """What the parts need of the node that they belong to."""

    def on_fatal(self, thread: str, error: BaseException) -> None: ...

    def publish(self, channel: str, payload: str) -> None: ...

    def ping_all(self) -> None: ...

    def lease_ended(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """One node's parts. Their owners stand in raft/node.py's table."""

    configuration: Configuration
    storage: NodeStorage
    core: RaftCore
    network: PeerNetwork
    server: ClientServer
    worker: Worker
    projector: Projector
    feed: Feed
    pings: PingBoard

    def close(self) -> None:
        """End everything but the worker, which must have ended: clients first, the disk last."""
        self.server.stop()
        self.feed.close()
        self.projector.stop(PROJECTOR_S)
        self.network.close()
        self.storage.close()


def open_parts(
    owner: Owner, settings: Settings, node_id: int, run_id: str, clock: Clock, rng: random.Random
) -> Parts:
    """Open the data directory and build everything on it. Raises StorageError, IdentityError, ValueError."""
    storage = NodeStorage.open(
        settings.storage.node_dir(node_id), settings.cluster.name, node_id, fsync=settings.storage.fsync
    )
    try:
        return _build(owner, settings, node_id, run_id, clock, rng, storage)
    except BaseException:
        storage.close()
        raise


def _build(
    owner: Owner,
    settings: Settings,
    node_id: int,
    run_id: str,
    clock: Clock,
    rng: random.Random,
    storage: NodeStorage,
) -> Parts:
    members, me = settings.cluster.nodes, settings.member(node_id)
    configuration = Configuration(tuple(sorted(member.id for member in members)))
    core = RaftCore(
        node_id,
        configuration,
        storage.log,
        hard_state=storage.hard_state,
        options=core_options(settings.raft),
        rng=rng,
        now=clock.monotonic_ms(),
    )
    machine = Machine(settings.cluster.name)
    network = PeerNetwork(
        node_id,
        settings.cluster.name,
        {member.id: (member.host, member.raft_port) for member in members},
        me.host,
        me.raft_port,
        owner.on_fatal,
        run_id=run_id,
    )
    desk = Desk(
        core,
        machine,
        send=network.queue,
        wake=network.wake,
        max_pending=settings.limits.max_pending_requests,
        first_request_id=random.SystemRandom().getrandbits(48) << 14,  # never one of an earlier run
        origin=f"{node_id}.{run_id[:20]}",
        lease_ended=owner.lease_ended if settings.raft.lease_reads else None,
    )
    pings = PingBoard()
    feed = Feed(network.wake)
    applier = Applier(core, machine, desk.proposals, owner.publish, storage.log.last_index)
    turns = Turns(core, machine, desk.proposals, pings, policy(settings.rewards), members, owner.ping_all)
    return Parts(
        configuration=configuration,
        storage=storage,
        core=core,
        network=network,
        server=ClientServer(owner, settings, me.host, me.client_port, on_fatal=owner.on_fatal),
        worker=Worker(owner, core, storage, network, machine, desk, applier, turns, feed, pings, clock),
        projector=_projector(owner, settings, node_id, feed),
        feed=feed,
        pings=pings,
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
