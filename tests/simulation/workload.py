"""The clients of the simulation as a whole: what they have asked, where, and what they have been shown.

Requests go to the real desk of a node (raft/runtime/desk.py) and come back as the bytes of RESP. Since every
node applies one and the same log, a read is linearizable if the node that answers it has applied everything
that any client had been shown before the read began; that the values say so too is checked beside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import hiredis

from raft.clients.batch import Batch
from tests.simulation.checker import violated
from tests.simulation.clients import Client
from tests.simulation.faults import Scenario
from tests.simulation.followers import Crowd
from tests.simulation.machines import Machines
from tests.simulation.node import Node


class Cluster(Protocol):
    """The simulation, as clients see it."""

    now: float

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have something done at a time, ms."""

    def any_node(self, rng: random.Random) -> Node | None:
        """A node that a client can talk to, with preference for a leader."""


@dataclass(slots=True, eq=False)
class Request:
    """Commands of one client at one node. number: never used again; floor: the highest index that any client
    had been shown when it began."""

    number: int
    node: Node
    incarnation: int
    commands: list[list[bytes]]
    writes: bool
    floor: int
    began_ms: float
    turn: int  # the node's, in which it began
    answered: Callable[[list[Any]], None]
    lost: Callable[[], None]


class Workload:
    """All requests; the clients and followers that make them."""

    def __init__(self, cluster: Cluster, scenario: Scenario, machines: Machines) -> None:
        self.cluster = cluster
        self.machines = machines
        self.next_number = 0
        self.floor = 0  # every index up to here has been shown to some client
        self.requests: dict[int, dict[int, Request]] = {}  # by node, then number
        self.fresh = float("inf")  # the first number after the faults
        self.fresh_index: int | None = None  # of the first write of those that was acknowledged
        self.writes_acknowledged = 0
        self.last_read_answered: dict[int, int] = {}  # by node
        self.reads_answered = 0
        self.reads_refused = 0
        self.watcher: Callable[[Request, list[Any] | None], None] | None = None
        self.clients = [Client(self, number) for number in range(2 * scenario.clients)]
        self.crowd = Crowd(self, scenario.followers)

    def act(self, rng: random.Random) -> None:
        """One of the clients does something."""
        rng.choice(self.clients).act(rng)

    def load(self, node: Node) -> None:
        """One more plain write at a leader, unless it has many already."""
        waiting = self.requests.get(node.node_id, {})
        if sum(request.writes for request in waiting.values()) < 12:
            self.ask(node, [[b"SET", b"load", b"%d" % self.next_number]], True, _ignore, _nothing)

    # --- requests ---------------------------------------------------------------------------------------

    def ask(
        self,
        node: Node,
        commands: list[list[bytes]],
        writes: bool,
        answered: Callable[[list[Any]], None],
        lost: Callable[[], None],
    ) -> int:
        """Submit commands at a node. Exactly one of answered(replies) and lost() is called, perhaps at once;
        an error is a hiredis.ReplyError among the replies. Returns the request's number."""
        number, self.next_number = self.next_number, self.next_number + 1
        service = node.service
        if service is None:  # it has died since it was chosen
            lost()
            return number
        request = Request(
            *(number, node, node.incarnation, commands, writes, self.floor, self.cluster.now),
            *(service.turn, answered, lost),
        )
        batch = Batch.of_commands(
            commands, len(commands) if writes else 0, 2, lambda data: self._take_answers(request, data)
        )
        self.requests.setdefault(node.node_id, {})[number] = request
        if self.watcher is not None:
            self.watcher(request, None)
        if not service.desk.submit(batch):
            del self.requests[node.node_id][number]
            answered([hiredis.ReplyError("BUSY")] * len(commands))
        return number

    def _take_answers(self, request: Request, data: list[bytes]) -> None:
        if self.requests[request.node.node_id].pop(request.number, None) is None:
            violated(f"{request} is answered twice")
        replies = [parse(each) for each in data]
        if self.watcher is not None:
            self.watcher(request, replies)
        if not request.writes:
            self._check_read(request, replies)
        request.answered(replies)

    def _check_read(self, request: Request, replies: list[Any]) -> None:
        if any(is_unexecuted(reply) or is_unknown(reply) for reply in replies):
            self.reads_refused += 1
            return
        node = request.node
        assert node.service is not None
        if node.service.passed_reads_in < request.turn:
            applied = node.service.machine.applied_index
            if applied < request.floor:
                violated(
                    f"stale read {request.number} at {node.node_id}: applied {applied}, "
                    f"clients had seen {request.floor}"
                )
            self.shown(applied)
        self.last_read_answered[node.node_id] = request.number
        self.reads_answered += 1

    def shown(self, index: int) -> None:
        """A client knows now what the entry at index has done."""
        self.floor = max(self.floor, index)

    def written(self, number: int, index: int) -> None:
        """A client knows that its write is the entry at index, or in it."""
        self.writes_acknowledged += 1
        if number >= self.fresh and self.fresh_index is None:
            self.fresh_index = index
        self.shown(index)

    def forget(self, node: Node) -> None:
        """The node died: its clients notice that the connection is gone, and will never know more."""
        for request in self.requests.pop(node.node_id, {}).values():
            request.lost()

    # --- what must come to an end -----------------------------------------------------------------------

    def oldest_waiting(self, node_ids: set[int]) -> float:
        """When the oldest request began that these nodes have not answered; infinity: there is none."""
        waiting = (request for n in node_ids for request in self.requests.get(n, {}).values())
        return min((request.began_ms for request in waiting), default=float("inf"))

    def is_settled(self) -> bool:
        """Whether every command under ONCE that began before the faults were over is answered."""
        return not any(client.waits_since_before(self.fresh) for client in self.clients)


def parse(data: bytes) -> Any:
    """One reply as a client's parser gives it; an error is a hiredis.ReplyError."""
    reader = hiredis.Reader()
    reader.feed(data)
    return reader.gets()


def is_unexecuted(reply: object) -> bool:
    """Whether the reply is an error that says that the command was certainly not executed."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith(("CLUSTERDOWN", "BUSY"))


def is_unknown(reply: object) -> bool:
    """Whether the reply is an error that says that nobody knows."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("INDETERMINATE")


def _ignore(_replies: list[Any]) -> None:
    pass


def _nothing() -> None:
    pass
