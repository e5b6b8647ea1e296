"""How long a node takes to be back: opening its directory, loading the snapshot, applying the log behind it.

    .venv/bin/python bench/restart.py [--keys 1000000] [--entries 1000000] [--value-bytes 64] [--json]

Builds the data directory of one node in a temporary directory (a snapshot of so many keys, behind it so many
log entries of one SET each) and measures the steps of a start in a process of its own, so that nothing of
the building is in its memory. The files are in the page cache, as after the restart of a process; after that
of a machine add the time to read them. The goal for a million of each: 5 s.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # also when started by its path

from raft.core.effects import HardState  # noqa: E402
from raft.core.entry import Entry, EntryKind  # noqa: E402
from raft.core.membership import Configuration, encode_configuration  # noqa: E402
from raft.machine.batch import encode_batch  # noqa: E402
from raft.machine.machine import Machine  # noqa: E402
from raft.runtime.applier import BYTES_PER_READ  # noqa: E402
from raft.storage.node_storage import NodeStorage  # noqa: E402

CLUSTER, TERM, AT_MS = "bench", 1, 1_750_000_000_000
AT_ONCE = 1000  # keys that one command of the building sets; entries that it appends at once


def build(directory: Path, keys: int, entries: int, value_bytes: int) -> None:
    """Make the data directory. The log begins right behind the snapshot, as after a compaction."""
    rng = random.Random(1)
    storage = NodeStorage.open(directory, CLUSTER, 1, fsync=False)
    storage.save_hard_state(HardState(TERM, 1))
    machine = Machine(CLUSTER)
    for first in range(0, keys, AT_ONCE):
        commands = [_set(key, rng, value_bytes) for key in range(first, min(keys, first + AT_ONCE))]
        machine.apply_commands(machine.applied_index + 1, TERM, AT_MS, commands, want_replies=False)
    index = max(1, machine.applied_index)
    if not keys:
        machine.apply_commands(index, TERM, AT_MS, [])
    writer = storage.snapshots.writer(index, TERM, encode_configuration(Configuration((1,))))
    for chunk in machine.dump():
        writer.write(chunk)
    writer.commit()
    storage.log.reset(index, TERM)
    for piece in _pieces(index + 1, entries, max(1, keys), value_bytes, rng):
        storage.log.append(piece)
        storage.log.sync()
    storage.close()


def _set(key: int, rng: random.Random, value_bytes: int) -> list[bytes]:
    return [b"SET", b"key:%012d" % key, rng.randbytes(value_bytes)]


def _pieces(first: int, count: int, keys: int, value_bytes: int, rng: random.Random) -> Iterator[list[Entry]]:
    for start in range(first, first + count, AT_ONCE):
        yield [
            Entry(
                index,
                TERM,
                EntryKind.COMMANDS.value,
                encode_batch(AT_MS + index, [_set(rng.randrange(keys), rng, value_bytes)]),
            )
            for index in range(start, min(first + count, start + AT_ONCE))
        ]


def measure(directory: Path) -> dict[str, float]:
    """The seconds of each step of a start; at the end megabytes of memory and keys in the machine."""
    began = time.perf_counter()
    storage = NodeStorage.open(directory, CLUSTER, 1, prepare_ahead=False)
    opened = time.perf_counter()
    snapshot = storage.snapshots.latest()
    assert snapshot is not None
    machine = Machine.load(CLUSTER, storage.snapshots.open_chunks(snapshot))
    loaded = time.perf_counter()
    log = storage.log
    while machine.applied_index < log.last_index:
        for entry in log.entries(machine.applied_index + 1, log.last_index + 1, BYTES_PER_READ):
            machine.apply(entry, want_replies=False)
    applied = time.perf_counter()
    storage.close()
    return {
        "open_s": opened - began,
        "load_s": loaded - opened,
        "apply_s": applied - loaded,
        "total_s": applied - began,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "keys": len(machine.kv.values),
    }


def main() -> int:
    """Exit code 0, also when the goal is missed: it is for people to judge."""
    parser = argparse.ArgumentParser(description="How long a node takes to be back after a restart.")
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys in the snapshot")
    parser.add_argument("--entries", type=int, default=1_000_000, help="log entries behind it, one SET each")
    parser.add_argument("--value-bytes", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the process of its own
    asked = parser.parse_args()
    if asked.measure is not None:
        print(json.dumps(measure(asked.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="restart-") as temporary:
        directory = Path(temporary) / "node-1"
        build(directory, asked.keys, asked.entries, asked.value_bytes)
        command = [sys.executable, __file__, "--measure", str(directory)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        size = sum(path.stat().st_size for path in directory.iterdir())
    result = {"keys": asked.keys, "entries": asked.entries, "disk_mb": size / 2**20} | json.loads(done.stdout)
    if asked.json:
        print(json.dumps(result))
        return 0
    print(f"{asked.keys:,} keys and {asked.entries:,} entries, {size / 2**20:.0f} MiB on disk")
    steps = ("open", "open the directory"), ("load", "load the snapshot"), ("apply", "apply the log")
    for step, name in (*steps, ("total", "in all")):
        print(f"  {name:<20}{result[step + '_s']:>7.2f} s")
    print(f"  {'memory':<20}{result['memory_mb']:>7.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
