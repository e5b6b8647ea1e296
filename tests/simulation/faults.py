"""What may go wrong in one schedule: drawn from the seed, so that every seed mixes the faults differently."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from raft.core.membership import Configuration
from raft.core.state import CoreOptions


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
    power_cut: float  # share of crashes that lose unsynced writes
    down_ms: float  # mean time that a crashed node stays down


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


def draw_scenario(rng: random.Random) -> Scenario:
    """Swarm testing: every kind of fault is off in some schedules, so that none hides another."""
    voters = tuple(range(1, rng.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5)) + 1))
    learners = tuple(range(len(voters) + 1, len(voters) + 1 + rng.choice((0, 0, 0, 1, 2))))
    lease_reads = rng.random() < 0.35
    nodes = voters + learners
    # A lease holds as long as clocks differ by less than lease_drift (0.1); ReadIndex needs no clock at all.
    skew = 0.045 if lease_reads else rng.choice((0.0, 0.05, 0.2))
    return Scenario(
        Configuration(voters, learners),
        draw_options(rng, lease_reads),
        draw_faults(rng, lease_reads),
        {node: 1 + rng.uniform(-skew, skew) for node in nodes},
        {node: rng.uniform(0, 1e6) for node in nodes},
        clients=rng.randint(1, 2),
    )


def draw_read_race(rng: random.Random) -> Scenario:
    """Who still leads, and who may answer reads? A leader is cut off while late answers reach it, voters
    restart quickly, the others elect a successor as early as they may, and clients ask everybody."""
    scenario = draw_scenario(rng)
    calm = replace(scenario.faults, drop=0.0, duplicate=0.0, disk_hang=0.0, pause=0.0, clock_jump=0.0)
    faults = replace(
        calm,
        ordered=rng.random() < 0.3,
        long_delay=rng.uniform(0.05, 0.4),
        long_delay_ms=rng.choice((100.0, 250.0)),
        delay_ms=(0.1, 3.0),
        fsync_ms=(0.1, 0.2),
        interleave=0.0,
        fault_every_ms=rng.choice((60.0, 150.0)),
        crash=rng.choice((0.0, 0.5)),
        suspect=rng.choice((0.0, 0.5)),
        partition=1.0,
        heal=0.5,
        down_ms=10.0,
    )
    options = replace(
        scenario.options,
        election_timeout_max_ms=160,
        max_append_bytes=1 << 20,
        max_probe_bytes=1 << 16,
        max_inflight_bytes=1 << 20,
        max_inflight_messages=128,
        lease_reads=rng.random() < 0.7,
    )
    voters = tuple(range(1, rng.choice((2, 3, 3, 3, 4, 5)) + 1))
    return replace(
        scenario,
        configuration=Configuration(voters),
        options=options,
        faults=faults,
        clock_rates={node: 1 + rng.uniform(-0.045, 0.045) for node in voters},
        clock_starts={node: rng.uniform(0, 1e6) for node in voters},
        client_every_ms=15.0,
        isolate_leader=True,
    )


def draw_options(rng: random.Random, lease_reads: bool) -> CoreOptions:
    """Short timeouts, so that a schedule sees many elections; small windows, so that they fill up."""
    return CoreOptions(
        election_timeout_min_ms=150,
        election_timeout_max_ms=rng.choice((180, 300)),
        heartbeat_interval_ms=rng.choice((40, 60)),
        lease_reads=lease_reads,
        max_append_bytes=rng.choice((1, 40, 1 << 20)),
        max_probe_bytes=rng.choice((1, 40, 1 << 16)),
        max_inflight_bytes=rng.choice((1, 60, 1 << 20)),
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
        power_cut=rng.choice((0.0, 0.5, 1.0)),
        down_ms=rng.choice((20.0, 150.0, 500.0)),
    )
