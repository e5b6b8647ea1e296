"""More nodes, more keys, greater values, and what a million values take in memory."""

from __future__ import annotations

from contextlib import ExitStack

from bench import rig
from bench.cluster import bare_redis, cluster, fill
from bench.context import OURS, Case, Context, Group, Options
from bench.processes import memory_mb
from bench.rig import Server

REDIS = "redis"
NODES = (3, 5, 7)
KEYS = (1_000, 10_000, 100_000, 1_000_000)
SIZES = (16, 64, 256, 1024, 4096, 16384)
_FEWEST = 200


def _loaded(server: Server, case: rig.Case, seconds: float) -> rig.Measured:
    """Two loads: the first is short, and tells how many requests the second one needs."""
    first = rig.run(server, case, _FEWEST)
    first = rig.run(server, case, max(_FEWEST, int(first.rate * min(0.5, seconds))))
    return rig.run(server, case, max(_FEWEST, int(first.rate * seconds)))


def _add(context: Context, name: str, number: int, system: str, measured: rig.Measured) -> None:
    figures = {"rate": measured.rate, "p50_ms": measured.p50_ms, "p99_ms": measured.p99_ms}
    context.results.add(name, number, system, **figures)


# --- nodes


def run_nodes(context: Context, wanted: frozenset[str]) -> None:
    """A new cluster for each measurement: fifteen idle nodes would disturb."""
    for number in range(1, context.options.rounds + 1):
        for count in NODES:
            if (name := f"nodes-{count}") in wanted:
                context.tell(f"{name}: round {number}")
                with cluster(context.directory / f"{name}-{number}", count) as nodes:
                    measured = _loaded(nodes.server(), rig.Case(name, "set", 50), context.options.seconds)
                _add(context, name, number, OURS, measured)
                context.step()


NODES_GROUP = Group(
    "nodes",
    tuple(Case(f"nodes-{count}", f"SET 50 clients, {count} nodes") for count in NODES),
    run_nodes,
    lambda options, wanted: options.rounds * len(wanted) * (options.seconds + 6.0),
    lambda options, wanted: options.rounds * len(wanted),
    ("redis-benchmark",),
)


# --- keys


def _key_counts(options: Options) -> list[int]:
    return [count for count in KEYS if count <= options.most_keys] or [options.most_keys]


def run_keys(context: Context, wanted: frozenset[str]) -> None:
    """Ever more keys in the same servers; all of them are there before it is measured."""
    options = context.options
    with ExitStack() as stack:
        redis = stack.enter_context(bare_redis(context.directory))
        nodes = stack.enter_context(cluster(context.directory / "nodes"))
        for count in _key_counts(options):
            if (name := f"keys-{count}") not in wanted:
                continue
            context.tell(f"{name}: filling")
            for port in (redis.port, nodes.server().port):
                fill(port, count)
            case = rig.Case(name, "set", 50, keys=count)
            for number in range(1, options.rounds + 1):
                context.tell(f"{name}: round {number}")
                _add(context, name, number, OURS, _loaded(nodes.server(), case, options.seconds))
                _add(context, name, number, REDIS, _loaded(redis, case, options.seconds))
            context.step()


KEYS_GROUP = Group(
    "keys",
    tuple(Case(f"keys-{count}", f"SET 50 clients, {count:,} keys") for count in KEYS),
    run_keys,
    lambda options, wanted: 10 + len(wanted) * (2 * options.rounds * (options.seconds + 1.0) + 10),
    lambda options, wanted: len(wanted & {f"keys-{count}" for count in _key_counts(options)}),
    ("redis-server", "redis-benchmark"),
)


# --- values


def run_values(context: Context, wanted: frozenset[str]) -> None:
    """1,000 keys: what counts is how many bytes go through, not how many stay."""
    options = context.options
    with ExitStack() as stack:
        redis = stack.enter_context(bare_redis(context.directory))
        nodes = stack.enter_context(cluster(context.directory / "nodes"))
        for number in range(1, options.rounds + 1):
            for size in SIZES:
                if (name := f"values-{size}") in wanted:
                    context.tell(f"{name}: round {number}")
                    case = rig.Case(name, "set", 50, keys=1000, size=size)
                    _add(context, name, number, OURS, _loaded(nodes.server(), case, options.seconds))
                    _add(context, name, number, REDIS, _loaded(redis, case, options.seconds))
                    context.step()


VALUES_GROUP = Group(
    "values",
    tuple(Case(f"values-{size}", f"SET 50 clients, {size:,} bytes") for size in SIZES),
    run_values,
    lambda options, wanted: 10 + len(wanted) * 2 * options.rounds * (options.seconds + 1.0),
    lambda options, wanted: options.rounds * len(wanted),
    ("redis-server", "redis-benchmark"),
)


# --- memory


def run_memory(context: Context, _wanted: frozenset[str]) -> None:
    """Resident memory of the leader, a follower and Redis: empty, and with all values."""
    keys = context.options.memory_keys
    with ExitStack() as stack:
        redis = stack.enter_context(bare_redis(context.directory))
        nodes = stack.enter_context(cluster(context.directory / "nodes"))
        ours = nodes.server()
        empty = [memory_mb(pid) for pid in (*ours.pids, *redis.pids)]
        context.tell(f"memory: {keys:,} values")
        for port in (ours.port, redis.port):
            fill(port, keys)
            context.step()
        ours = nodes.server()
        filled = [memory_mb(pid) for pid in (*ours.pids, *redis.pids)]
    add = context.results.add
    add("memory", 1, OURS, memory_mb=filled[0], empty_mb=empty[0], follower_mb=filled[1], keys=keys)
    add("memory", 1, REDIS, memory_mb=filled[-1], empty_mb=empty[-1], keys=keys)


MEMORY_GROUP = Group(
    "memory",
    (Case("memory", "Memory with 1,000,000 values of 64 bytes"),),
    run_memory,
    lambda options, _wanted: 15 + options.memory_keys / 30_000,
    lambda _options, _wanted: 2,
    ("redis-server",),
)
