"""What may go wrong in one schedule: drawn from the seed, so that every seed mixes the faults differently."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from msgspec.structs import replace as replace_struct

from ledger.ledger import Policy
from raft.core.membership import Configuration, Server
from raft.core.state import CoreOptions
from raft.machine.sessions import Limits
from tests.simulation.service import ServicePlan
from tests.simulation.stored import DEFAULT_STORAGE, StorageOptions


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities per message or per fault event; times in ms of simulated time."""

    ordered: bool  # links are streams: no reordering or duplicates, and a loss is told to the sender
    drop: float
    duplicate: float
    delay_ms: tuple[float, float]
    long_delay: float  # share of messages that take up to long_delay_ms (unordered links only)
    long_delay_ms: float
    fsync_ms: tuple[float, float]
    disk_hang: float  # share of fsyncs that take up to a second
    interleave: float  # chance that other nodes run between two effects
    fault_every_ms: float  # mean time between fault events
    crash: float  # weights of the fault events
    partition: float
    heal: float
    pause: float
    suspect: float
    clock_jump: float
    wall_jump: float  # the wall clock is set, forwards or back
    power_cut: float  # share of crashes that lose unsynced writes
    down_ms: float  # mean time that a crashed node stays down
    race: float = 0.0  # weight of a race for a stale read (tests/simulation/races.py)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """When nodes take snapshots, and how these travel (plan S5 of docs/BUGS.md)."""

    every: tuple[int, int]  # entries
    compact: float  # share of snapshots that are followed by a compaction
    chunk_bytes: int
    load_ms: tuple[float, float]  # an installed one becomes the machine after so long
    abort: float  # weight of the fault that an unfinished one is forgotten


@dataclass(frozen=True, slots=True)
class Changes:
    """How often an operator changes the members, ms on the average (plan S6)."""

    every_ms: float
    transfer: float  # weight of a transfer of leadership among the changes
    wipe: float  # weight of the fault that a disk is lost
    identities: bool  # nodes have identities, which the leader records


@dataclass(frozen=True, slots=True)
class DiskFaults:
    """What goes wrong with disks (plan S4): weights of the fault events but for the first two.

    dies_in_call: share of the crashes that fall between two calls of the storage. hangs: share of the hangs
    in which the node gives up."""

    dies_in_call: float
    hangs: bool
    error: float  # a call fails with EIO
    full: float
    full_ms: float
    damage: float


NO_DISK_FAULTS = DiskFaults(0.0, False, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One schedule: cluster, options, clocks and faults."""

    configuration: Configuration
    options: CoreOptions
    faults: Faults
    clock_rates: dict[int, float]
    clock_starts: dict[int, float]
    clients: int
    client_every_ms: float = 40.0
    isolate_leader: bool = False  # partitions cut off the leader, and clients go on asking it
    spares: tuple[int, ...] = ()  # nodes that are no members yet
    snapshots: Snapshots | None = None
    changes: Changes | None = None
    storage: StorageOptions = DEFAULT_STORAGE
    disk: DiskFaults = NO_DISK_FAULTS
    load_every_ms: float = 0.0  # a client that always has proposals in flight; 0: there is none
    service: ServicePlan = field(default_factory=lambda: ServicePlan(policy_of(500)))
    followers: int = 0
    mongodb: bool = False  # the ledger is projected


def draw_scenario(rng: random.Random) -> Scenario:
    """Swarm testing: every kind of fault is off in some schedules, so that none hides another."""
    voters = tuple(range(1, rng.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5)) + 1))
    learners = tuple(range(len(voters) + 1, len(voters) + 1 + rng.choice((0, 0, 0, 1, 2))))
    lease_reads = rng.random() < 0.35
    nodes = voters + learners
    # A lease holds as long as clocks differ by less than lease_drift (0.1); ReadIndex needs no clock at all.
    skew = 0.045 if lease_reads else rng.choice((0.0, 0.05, 0.2))
    scenario = Scenario(
        Configuration(voters, learners),
        draw_options(rng, lease_reads),
        draw_faults(rng, lease_reads),
        {node: 1 + rng.uniform(-skew, skew) for node in nodes},
        {node: rng.uniform(0, 1e6) for node in nodes},
        clients=rng.randint(1, 2),
    )
    scenario = draw_load(rng, draw_members(rng, draw_snapshots(rng, scenario)))
    return draw_disk(rng, draw_service(rng, scenario))


def draw_disk(rng: random.Random, scenario: Scenario) -> Scenario:
    """Segments of a few entries each, so that files come and go all the time."""

    def sometimes(value: float, chance: float) -> float:
        return value if rng.random() < chance else 0.0

    storage = StorageOptions(
        segment_bytes=rng.choice((150, 150, 150, 300, 300, 600, 4096)),
        cache_bytes=rng.choice((0, 500, 1 << 20, 1 << 20)),
        sector=rng.choice((16, 64, 512)),
        copies_on_write=rng.random() < 0.3,
    )
    disk = DiskFaults(
        dies_in_call=rng.choice((0.3, 0.7, 1.0)),
        hangs=rng.random() < 0.5,
        error=sometimes(rng.uniform(0.1, 0.5), 0.5),
        full=sometimes(rng.uniform(0.1, 0.5), 0.4),
        full_ms=rng.choice((100.0, 500.0, 2000.0)),
        damage=sometimes(rng.uniform(0.2, 1.0), 0.5),
    )
    return replace(scenario, storage=storage, disk=disk)


def draw_snapshots(rng: random.Random, scenario: Scenario) -> Scenario:
    """In two of three schedules the log is compacted all the time."""
    if rng.random() < 0.35:
        return scenario
    low = rng.randint(3, 10)
    snapshots = Snapshots(
        every=(low, rng.choice((low, 20))),
        compact=rng.choice((0.5, 1.0)),
        chunk_bytes=rng.choice((1 << 20, 1 << 20, 100, 40)),
        load_ms=rng.choice(((0.0, 0.0), (0.0, 5.0), (0.0, 400.0))),
        abort=rng.choice((0.0, 0.0, 0.5)),
    )
    return replace(scenario, snapshots=snapshots)


def draw_members(rng: random.Random, scenario: Scenario) -> Scenario:
    """In every second schedule members come and go."""
    if rng.random() < 0.5:
        return scenario
    known = (*scenario.configuration.voters, *scenario.configuration.learners)
    spares = tuple(range(len(known) + 1, max(6, len(known) + 2)))
    skew = max(abs(rate - 1) for rate in scenario.clock_rates.values())
    identities = rng.random() < 0.6
    configuration = scenario.configuration
    if identities:
        servers = tuple(Server(node, f"host{node}", 1, 2, 3) for node in known)
        configuration = replace_struct(configuration, servers=servers)
    return replace(
        scenario,
        configuration=configuration,
        spares=spares,
        changes=Changes(
            every_ms=rng.choice((30.0, 80.0, 200.0)),
            transfer=rng.choice((0.0, 1.0)),
            wipe=rng.choice((0.0, 0.3, 1.0)) if identities else 0.0,
            identities=identities,
        ),
        clock_rates={**scenario.clock_rates, **{node: 1 + rng.uniform(-skew, skew) for node in spares}},
        clock_starts={**scenario.clock_starts, **{node: rng.uniform(0, 1e6) for node in spares}},
    )


def draw_load(rng: random.Random, scenario: Scenario) -> Scenario:
    """In every fifth schedule the leader never runs out of new proposals, not for a heartbeat's time."""
    if rng.random() < 0.8:
        return scenario
    options = replace(
        scenario.options,
        max_append_bytes=1 << 20,
        max_inflight_bytes=1 << 20,
        max_inflight_messages=rng.choice((8, 128)),
    )
    return replace(scenario, options=options, load_every_ms=rng.choice((3.0, 8.0, 20.0)))


def policy_of(interval_ms: int) -> Policy:
    """Some policy."""
    return Policy(
        interval_ms=interval_ms,
        reward=10,
        penalty=5,
        ban_threshold=3,
        ban_cooldown_s=1,
        max_spam=3,
        follower_version="1.0",
    )


def has_small_windows(scenario: Scenario) -> bool:
    """Whether a follower gets only a few entries per round trip: more of them would pile up without end."""
    options = scenario.options
    return (
        min(options.max_append_bytes, options.max_inflight_bytes) < 1000 or options.max_inflight_messages < 8
    )


def draw_service(rng: random.Random, scenario: Scenario) -> Scenario:
    """The ledger's policy; in every fourth schedule sessions expire; in some, nodes pass their reads on."""
    faults = scenario.faults
    interval_ms = rng.choice((120, 250, 500, 5000))
    if has_small_windows(scenario):
        interval_ms = max(interval_ms, int(30 * (2 * faults.delay_ms[1] + faults.fsync_ms[1])))
    policy = replace_struct(
        policy_of(interval_ms),
        ban_threshold=rng.choice((2, 4)),
        ban_cooldown_s=rng.choice((0, 1)),
        max_spam=rng.choice((2, 4)),
        followers_per_interval=rng.choice((0, 0, 2)),
    )
    limits = Limits()
    if rng.random() < 0.25:
        limits = Limits(sessions=rng.choice((3, 8, 1000)), idle_ms=rng.choice((300, 1500)))
    nodes = (*scenario.clock_rates,)
    passing = frozenset(rng.sample(nodes, rng.randint(1, len(nodes)))) if rng.random() < 0.1 else frozenset()
    return replace(
        scenario,
        service=ServicePlan(policy, limits, passing),
        followers=rng.choice((1, 3, 5)),
        mongodb=rng.random() < 0.35,
        faults=replace(scenario.faults, wall_jump=rng.choice((0.0, 0.2))),
    )


def draw_read_race(rng: random.Random) -> Scenario:
    """Who still leads, and who may answer reads? Races are staged (tests/simulation/races.py) while late
    answers arrive and voters restart quickly; clients ask everybody. All else is kept quiet and cheap."""
    scenario = draw_scenario(rng)
    calm = replace(scenario.faults, drop=0.0, duplicate=0.0, disk_hang=0.0, pause=0.0, clock_jump=0.0)
    faults = replace(
        calm,
        ordered=rng.random() < 0.3,
        long_delay=rng.choice((0.0, rng.uniform(0.01, 0.1))),
        long_delay_ms=rng.choice((100.0, 250.0)),
        delay_ms=(0.1, rng.choice((1.0, 3.0))),
        fsync_ms=(0.1, 0.2),
        interleave=0.0,
        fault_every_ms=rng.choice((60.0, 150.0)),
        crash=rng.choice((0.0, 0.2)),
        suspect=rng.choice((0.0, 0.2)),
        partition=0.1,
        heal=0.1,
        race=2.0,
        down_ms=10.0,
    )
    small = rng.random() < 0.5  # who lags behind catches up slowly: one entry per round trip
    options = replace(
        scenario.options,
        election_timeout_max_ms=rng.choice((160, 200, 400)),
        max_append_bytes=1 if small else 1 << 20,
        max_probe_bytes=1 if small else 1 << 16,
        max_inflight_bytes=1 << 20,
        max_inflight_messages=1 if small else 128,
        lease_reads=rng.random() < 0.65,
    )
    voters = tuple(range(1, rng.choice((2, 3, 3, 3, 3, 4, 5)) + 1))
    learners = (len(voters) + 1,) if rng.random() < 0.5 else ()
    nodes = (*voters, *learners)
    return replace(
        scenario,
        configuration=Configuration(voters, learners),
        spares=(),
        changes=None,
        load_every_ms=0.0,
        options=options,
        faults=faults,
        disk=NO_DISK_FAULTS,
        service=replace(scenario.service, policy=policy_of(5000)),
        followers=1,
        mongodb=False,
        clock_rates={node: 1 + rng.uniform(-0.045, 0.045) for node in nodes},
        clock_starts={node: rng.uniform(0, 1e6) for node in nodes},
        clients=1,
        client_every_ms=30.0,
        isolate_leader=True,
    )


def draw_options(rng: random.Random, lease_reads: bool) -> CoreOptions:
    """Short timeouts, so that a schedule sees many elections; small windows, so that they fill up."""
    return CoreOptions(
        election_timeout_min_ms=150,
        election_timeout_max_ms=rng.choice((180, 300)),
        heartbeat_interval_ms=rng.choice((40, 60)),
        lease_reads=lease_reads,
        max_append_bytes=rng.choice((1, 200, 1 << 20)),
        max_probe_bytes=rng.choice((1, 200, 1 << 16)),
        max_inflight_bytes=rng.choice((1, 300, 1 << 20)),
        max_inflight_messages=rng.choice((1, 2, 8, 128)),
    )


def draw_faults(rng: random.Random, lease_reads: bool) -> Faults:
    """See Faults; each drawn on its own."""

    def sometimes(value: float, chance: float = 0.6) -> float:
        return value if rng.random() < chance else 0.0

    ordered = rng.random() < 0.4
    return Faults(
        ordered=ordered,
        drop=sometimes(rng.uniform(0, 0.02 if ordered else 0.3)),
        duplicate=0.0 if ordered else sometimes(rng.uniform(0, 0.5)),
        delay_ms=(0.1, rng.choice((1.0, 5.0, 30.0))),
        long_delay=0.0 if ordered else sometimes(rng.uniform(0, 0.1)),
        long_delay_ms=rng.choice((100.0, 500.0, 3000.0)),
        fsync_ms=(0.1, rng.choice((0.2, 5.0, 30.0))),
        disk_hang=sometimes(0.01, 0.3),
        interleave=rng.choice((0.0, 0.05, 0.5)),
        fault_every_ms=rng.choice((60.0, 120.0, 250.0)),
        crash=sometimes(rng.uniform(0.2, 1), 0.8),
        partition=sometimes(rng.uniform(0.2, 1), 0.8),
        heal=rng.uniform(0.05, 0.4),
        pause=sometimes(rng.uniform(0.1, 0.5), 0.4),
        suspect=sometimes(rng.uniform(0.1, 0.5), 0.4),
        clock_jump=0.0 if lease_reads else sometimes(0.3, 0.2),
        wall_jump=0.0,
        power_cut=rng.choice((0.0, 0.5, 1.0)),
        down_ms=rng.choice((20.0, 150.0, 500.0)),
    )
