"""The clients of the simulation: numbered commands and linearizable reads, and what they may rely on.

Since every node applies one and the same log (the checker proves it), a read is linearizable if the node that
answers it has applied everything that any client had seen acknowledged or read before the read began.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.checker import demand, violated
from tests.simulation.node import Node


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """A command that a leader took at (index, term) and has not answered."""

    number: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class PendingReadCheck:
    """A read that began at began_ms, when `floor` was the highest index that any client had seen."""

    node_id: int
    incarnation: int
    floor: int
    began_ms: float


class Workload:
    """Issues operations at nodes and checks their answers."""

    def __init__(self) -> None:
        self.next_number = 0
        self.floor = 0  # every index up to here has been shown to some client
        self.writes: dict[int, list[PendingWrite]] = {}  # by node that took them
        self.acknowledged: dict[int, int] = {}  # command -> index
        self.reads: dict[int, PendingReadCheck] = {}
        self.last_read_answered: dict[int, int] = {}  # by node
        self.reads_answered = 0
        self.reads_refused = 0

    def write(self, node: Node, count: int = 1, size: int = 0) -> bool:
        """Propose numbered commands at a node. False: it is no leader."""
        payloads = [f"{self.next_number + i}".encode().ljust(size, b".") for i in range(count)]
        first = node.propose(payloads)
        if first is None:
            return False
        term = node.running.state.term
        taken = [PendingWrite(self.next_number + i, first + i, term) for i in range(count)]
        self.writes.setdefault(node.node_id, []).extend(taken)
        self.next_number += count
        return True

    def read(self, node: Node, now_ms: float) -> int:
        """Begin a linearizable read at a node. Returns its id, which is never used again."""
        request_id = self.next_number
        self.next_number += 1
        self.reads[request_id] = PendingReadCheck(node.node_id, node.incarnation, self.floor, now_ms)
        node.read(request_id)
        return request_id

    def forget(self, node: Node) -> None:
        """The node died: its clients will never know."""
        self.writes.pop(node.node_id, None)
        self.reads = {key: read for key, read in self.reads.items() if read.node_id != node.node_id}
        node.reads_ready.clear()
        node.reads_failed.clear()

    def collect_answers(self, node: Node) -> None:
        """After a turn: which of the node's operations are answered now, and rightly so?"""
        waiting = self.writes.get(node.node_id)
        applied = len(node.applied)
        if waiting and waiting[0].index <= applied:
            for write in waiting:
                if write.index <= applied and node.applied[write.index - 1].term == write.term:
                    self._acknowledge(node, write)
            self.writes[node.node_id] = [write for write in waiting if write.index > applied]
        for request_id, read_index in node.reads_ready:
            read = self.reads.pop(request_id)
            demand(read.incarnation == node.incarnation, f"read {request_id} answered by a later incarnation")
            if applied < read.floor:
                violated(
                    f"stale read {request_id} at {node.node_id}: index {read_index}, applied {applied}, "
                    f"clients had seen {read.floor}"
                )
            self.floor = max(self.floor, applied)
            self.last_read_answered[node.node_id] = request_id
            self.reads_answered += 1
        for request_id in node.reads_failed:
            demand(self.reads.pop(request_id, None) is not None, f"read {request_id} failed twice")
            self.reads_refused += 1
        node.reads_ready.clear()
        node.reads_failed.clear()

    def _acknowledge(self, node: Node, write: PendingWrite) -> None:
        entry = node.applied[write.index - 1]
        demand(entry.data.rstrip(b".") == f"{write.number}".encode(), f"{write} is answered with {entry}")
        self.acknowledged[write.number] = write.index
        self.floor = max(self.floor, write.index)
