"""A node to back up: a machine with values and a ledger, snapshots of it on disk, and the real RAFT BACKUP
behind a fake client port."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli_fakes import Encoded, FakeCluster, FakeError, FakeNode

from raft.clients.batch import Batch
from raft.core.membership import Configuration, encode_configuration
from raft.machine.machine import Machine
from raft.runtime.backups import Backups
from raft.runtime.load import Load
from raft.storage.snapshots import SnapshotStore

START_MS = 1_700_000_000_000
TERM = 4
POLICY = json.dumps(
    {
        "interval_ms": 2000,
        "reward": 10,
        "penalty": 5,
        "ban_threshold": 3,
        "ban_cooldown_s": 600,
        "max_spam": 4,
        "follower_version": "1.0",
    }
)
MEMBERS = json.dumps([{"id": "node-1", "address": "h:1"}])


class FilledMachine:
    """A machine that is fed one entry a call."""

    def __init__(self, cluster: str = "old") -> None:
        self.machine = Machine(cluster)
        self("~TERM", 1, POLICY, MEMBERS)
        for number in range(40):
            self("SET", f"key {number}", f"value {number}")
        self("SET", "passing", "by", "PX", 60_000)
        self("ONCE", "session", 1, "INCR", "counter")
        for name in ("good", "bad"):
            self("FOLLOWER", "JOIN", name, "1.0")
        for number in (1, 2):
            self("~OPEN", number, START_MS + 2000, 1, POLICY)
            self("FOLLOWER", "REPORT", "good", number, "done")
            self("~CLOSE", number, 1, 0, "node-1")
        self("REWARD", "CLAIM", "good", 7, "claim-1")

    def __call__(self, *words: str | int) -> Any:
        index = self.machine.applied_index + 1
        command = [str(word).encode() for word in words]
        (reply,) = self.machine.apply_commands(index, TERM, START_MS + index, [command])
        return reply


def write_snapshot(store: SnapshotStore, machine: Machine) -> Path:
    """As RAFT SNAPSHOT does; the path."""
    configuration = encode_configuration(Configuration((1, 2, 3)))
    writer = store.writer(machine.applied_index, machine.applied_term, configuration)
    for chunk in machine.dump():
        writer.write(chunk)
    return writer.commit().path


class SnapshotNode:
    """Node `node_id` of a fake cluster: it answers what `backup` asks. Commands run on the node's thread.

    before(words) may answer instead of it (anything but ...), kill the node or raise.
    """

    def __init__(
        self, cluster: FakeCluster, directory: Path, node_id: int = 1, role: str = "follower"
    ) -> None:
        self.data = FilledMachine()
        self.store = SnapshotStore.open(directory, "old")
        self.backups = Backups(self.store, Load(10**9))
        self.role = role
        self.asked: list[tuple[str, ...]] = []
        self.before: Callable[[tuple[str, ...]], Any] = lambda words: ...
        self.node_id = node_id
        self.node = cluster.add_node()
        self.address = self.node.address
        known = getattr(cluster, "snapshot_nodes", {})
        known[self.node] = self
        cluster.snapshot_nodes = known  # type: ignore[attr-defined]
        cluster.script = lambda node, words: known[node].answer(node, words) if node in known else ...

    def answer(self, node: FakeNode, words: tuple[str, ...]) -> Any:
        self.asked.append(words)
        scripted = self.before(words)
        if scripted is not ...:
            return scripted
        if words == ("DBSIZE",):
            return len(self.data.machine.kv.values)
        if words == ("RAFT", "INFO"):
            applied = self.data.machine.applied_index
            return f"node_id:{self.node_id}\r\nrole:{self.role}\r\napplied_index:{applied}\r\n"
        if words == ("RAFT", "SNAPSHOT"):
            write_snapshot(self.store, self.data.machine)
            self.store.prune()
            return "OK"
        if words[:2] == ("RAFT", "BACKUP"):
            return self._backup(words)
        return FakeError("ERR unexpected")

    def _backup(self, words: tuple[str, ...]) -> Encoded:
        answers: list[bytes] = []
        batch = Batch.of_commands([[word.encode() for word in words]], 1, 2, answers.extend)
        self.backups.take(batch, 0.0)
        return Encoded(answers[0])
