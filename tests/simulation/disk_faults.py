"""What goes wrong with the disks of a simulated cluster (plan S4 of docs/BUGS.md), and whom it may befall."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from raft.runtime.disk_watch import limit_ms
from raft.storage import segments, snapshot_format
from raft.storage.hard_state import NAME as HARD_STATE
from tests.simulation.members import Members
from tests.simulation.platter import Place

if TYPE_CHECKING:
    from tests.simulation.hosts import Host
    from tests.simulation.stored import StoredDisk

FAILING = (
    ("fdatasync",),
    ("fsync",),
    ("pwrite",),
    ("fsync_dir",),
    ("rename",),
    ("fdatasync", "fsync", "pwrite", "fsync_dir", "rename"),
)


def let_fail(host: Host, rng: random.Random) -> str:
    """One call to come fails with EIO."""
    platter = host.node.disk.platter
    if not host.up or platter.failing:
        return ""
    platter.failing, platter.fails_in = rng.choice(FAILING), rng.choice((0, 0, 0, 1, 2, 5, 12))
    return f"node {host.node.node_id}: {' or '.join(platter.failing)} fails after {platter.fails_in}"


def fill(host: Host, rng: random.Random) -> str:
    """So much is left on the disk."""
    platter = host.node.disk.platter
    if platter.free is not None:
        return ""
    platter.free = rng.choice((0, 0, 100, 1000, 2000, 6000))
    return f"node {host.node.node_id} has {platter.free} bytes left"


def hang_ms(rng: random.Random, longest_election_timeout_ms: float) -> tuple[float, bool]:
    """How long an fsync hangs, and whether the node ends meanwhile (raft/runtime/disk_watch.py)."""
    delay = rng.uniform(100, 1000) if rng.random() < 0.8 else rng.uniform(1000, 3000)
    limit = limit_ms(longest_election_timeout_ms)
    return min(delay, limit), delay > limit


def damage(host: Host, rng: random.Random, members: Members) -> str:
    """Damage a file of a node that is down, and of which nothing is needed: others have all that it has."""
    node_id, disk = host.node.node_id, host.node.disk
    files = [path for path in disk.platter.names if _kind(path) and disk.platter.names[path].content]
    if not files:
        return ""
    kind = rng.choice(("log", "log", "log", "log", "snapshot", "snapshot", "hard state"))
    kind = kind if any(_kind(path) == kind for path in files) else _kind(files[0])
    path = rng.choice(sorted(path for path in files if _kind(path) == kind))
    size = len(disk.platter.names[path].content)
    told = disk.platter.damage(rng, path)
    was_cut = len(disk.platter.names[path].content) < size
    if kind == "log":
        disk.lost_from = _lost_from(disk, path, was_cut, (p for p in files if _kind(p) == "log"))
    disk.snapshot_damaged = kind == "snapshot"
    disk.damaged = told
    members.damaged.add(node_id)
    return f"node {node_id}: {told}"


def _kind(path: Place) -> str:
    if segments.first_index_of(path.name) is not None:
        return "log"
    if snapshot_format.index_of(path.name) is not None:
        return "snapshot"
    return "hard state" if path.name == HARD_STATE else ""


def _lost_from(disk: StoredDisk, path: Place, was_cut: bool, log: Iterable[Place]) -> int:
    """Where the log may end now. A file that was cut has lost the evidence, too; later ones have theirs."""
    if was_cut and path == max(log):
        return segments.first_index_of(path.name) or 0
    return disk.may_lose_from()


def may_be_damaged(node_id: int, members: Members) -> bool:
    """Only one at a time; the others are available without it, and a quorum of them has all that it has."""
    possible, nodes = members.possible(), members.nodes
    if not members.committed().has(node_id):
        return False
    if any(members.is_lost(n, each) for each in possible for n in (*each.voters, *each.learners)):
        return False
    disk = nodes[node_id].disk
    last = disk.synced.last_index
    term = disk.synced.term(last)
    if disk.snapshot.index > last:
        last, term = disk.snapshot.index, disk.snapshot.term
    others = set(nodes) - {node_id}
    holders = {n for n in others if nodes[n].disk.holds(last, term)}
    return members.is_available(others) and all(
        each.has_quorum(holders & set(each.voters)) for each in possible
    )
