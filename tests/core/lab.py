"""A laboratory for the core: some nodes on one table, messages in queues that only the test moves.

Nothing happens by itself. Time is a number, `lab.now`; a link is a list of messages; every event given to a
node is followed by its effects, carried out in the documented order on a disk in memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from raft.core.effects import HardState
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server
from raft.core.messages import AppendEntries, AppendEntriesResponse, Message, RequestVote, RequestVoteResponse
from raft.core.state import CoreOptions, CoreState, Role
from tests.simulation.disk import Disk
from tests.simulation.node import Node
from tests.simulation.streaming import Library

Kind = TypeVar("Kind", bound=Message)
TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT = 300.0, 600.0, 60.0


def log_of(*terms: int) -> list[Entry]:
    """A log whose entry i has terms[i - 1] as its term; its data names both, as log matching wants it."""
    return [
        Entry(i, term, EntryKind.COMMANDS, f"{i}.{term}".encode()) for i, term in enumerate(terms, start=1)
    ]


def terms_of(entries: Iterable[Entry]) -> list[int]:
    """The inverse of log_of."""
    return [entry.term for entry in entries]


def identity(node_id: int) -> str:
    """The name of a node's first data directory."""
    return f"disk {node_id}"


def server(node_id: int, identity: str = "") -> Server:
    """A member's addresses."""
    return Server(node_id, f"host{node_id}", 1, 2, 3, identity)


class Lab:
    """Nodes 1 to `voters`, then learners. Those not in `up` are played by the test itself."""

    def __init__(
        self,
        voters: int = 3,
        *,
        learners: int = 0,
        spares: int = 0,
        identities: str = "",
        up: Sequence[int] | None = None,
        logs: Mapping[int, Sequence[int]] | None = None,
        hard_states: Mapping[int, HardState] | None = None,
        options: CoreOptions | None = None,
    ) -> None:
        """logs: the terms of each node's stored log. hard_states: default the log's last term, no vote.
        spares: nodes that are no members. identities: "" for none, "recorded", or "founding": not yet."""
        ids = range(1, voters + learners + spares + 1)
        members = tuple(ids)[: voters + learners]
        recorded = identities == "recorded"
        self.configuration = Configuration(
            members[:voters],
            members[voters:],
            tuple(server(n, identity(n) if recorded else "") for n in members) if identities else (),
        )
        self.has_identities = bool(identities)
        self.options = options or CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT)
        self.now = 1000.0
        self.links: dict[tuple[int, int], list[Message]] = {(a, b): [] for a in ids for b in ids if a != b}
        self.blocked: set[tuple[int, int]] = set()  # links that lose everything
        self.nodes: dict[int, Node] = {}
        self.library = Library()
        self.requests = 0
        for node_id in ids:
            self.nodes[node_id] = Node(
                node_id,
                self.configuration,
                options=self.options,
                clock=lambda: self.now,
                send=self._send,
                disk=Disk(log_of(*(logs or {}).get(node_id, ())), (hard_states or {}).get(node_id)),
                identity=identity(node_id) if identities else "",
                library=self.library,
            )
            if up is None or node_id in up:
                self.start(node_id)

    def _send(self, sender: int, receiver: int, message: Message) -> None:
        if (sender, receiver) not in self.blocked:
            self.links[sender, receiver].append(message)

    # --- one node ---------------------------------------------------------------------------------------

    def state(self, node_id: int) -> CoreState:
        return self.nodes[node_id].running.state

    def log_terms(self, node_id: int) -> list[int]:
        """The terms of the log on the node's disk."""
        return terms_of(self.nodes[node_id].disk.log)

    def start(self, node_id: int) -> None:
        """(Re)start a node's process on its disk."""
        self.nodes[node_id].start(random.Random(node_id))

    def crash(self, node_id: int, *, power_cut: bool = True) -> None:
        """End a node's process between two turns."""
        self.nodes[node_id].crash(random.Random(0), power_cut=power_cut)

    def wipe(self, node_id: int) -> None:
        """A node that is down gets an empty disk, with another identity."""
        node = self.nodes[node_id]
        node.disk = Disk()
        node.identity = f"{node.identity}'" if self.has_identities else ""

    def lose(self, node_id: int, from_index: int) -> None:
        """A node that is down loses its log from there on, and knows it."""
        self.nodes[node_id].disk.lose(from_index)

    def change(self, node_id: int, configuration: Configuration) -> int | str:
        """Order a leader to change the configuration; its effects are carried out."""
        answer = self.nodes[node_id].change_configuration(configuration)
        self.settle(node_id)
        return answer

    def settle(self, node_id: int) -> list[str]:
        """Carry out the node's effects; returns the steps' names in order."""
        return list(self.nodes[node_id].carry_out())

    def receive(self, node_id: int, sender: int, *messages: Message) -> list[str]:
        """Messages reach a node in one turn; returns the steps of its effects."""
        for message in messages:
            self.nodes[node_id].receive(sender, message)
        return self.settle(node_id)

    def propose(self, node_id: int, *payloads: bytes) -> int | None:
        """Propose at a node and carry out the effects; returns the first index."""
        first = self.nodes[node_id].propose(list(payloads))
        self.settle(node_id)
        return first

    def read(self, node_id: int) -> int:
        """Begin a read at a node; returns its request id."""
        self.requests += 1
        self.nodes[node_id].read(self.requests)
        self.settle(node_id)
        return self.requests

    def was_read(self, node_id: int, request_id: int) -> int | None:
        """The read index with which a read was answered; None if it was not."""
        return dict(self.nodes[node_id].reads_ready).get(request_id)

    def sent(self, sender: int, receiver: int, kind: type[Kind]) -> list[Kind]:
        """Take everything from a link; the messages of one kind."""
        messages = self.links[sender, receiver]
        self.links[sender, receiver] = []
        return [message for message in messages if isinstance(message, kind)]

    def clear(self) -> None:
        """Lose everything that is under way."""
        for messages in self.links.values():
            messages.clear()

    # --- time -------------------------------------------------------------------------------------------

    def tick(self, node_id: int) -> list[str]:
        self.nodes[node_id].tick()
        return self.settle(node_id)

    def advance(self, ms: float, *node_ids: int) -> None:
        """Time passes; these nodes (default: all that run) notice."""
        self.now += ms
        for node_id in node_ids or self.up():
            self.tick(node_id)

    def up(self) -> list[int]:
        return [node_id for node_id, node in self.nodes.items() if node.core is not None]

    # --- the network ------------------------------------------------------------------------------------

    def deliver(self, sender: int, receiver: int, count: int | None = None) -> int:
        """Deliver the oldest `count` messages of a link (default: those there now), one turn each."""
        link = self.links[sender, receiver]
        count = len(link) if count is None else count
        for _ in range(count):
            message = link.pop(0)
            if self.nodes[receiver].core is not None:
                self.receive(receiver, sender, message)
        return count

    def exchange(self, *among: int) -> int:
        """Deliver between these nodes (default: all) until nothing is under way; returns the number."""
        ids = among or tuple(self.nodes)
        total = 0
        while moved := sum(self.deliver(a, b) for a, b in self.links if a in ids and b in ids):
            total += moved
            assert total < 100_000, "the nodes do not come to rest"
        return total

    # --- elections --------------------------------------------------------------------------------------

    def campaign(self, node_id: int) -> None:
        """Every earlier leader has long been silent; this node's timeout passes first."""
        self.now += 2 * TIMEOUT_MAX
        self.tick(node_id)

    def elect(self, node_id: int, *among: int) -> None:
        """Make a node leader with the votes of `among` (default: all that run), and let its no-op commit."""
        self.clear()
        self.campaign(node_id)
        self.exchange(*(among or self.up()))
        assert self.state(node_id).role is Role.LEADER, f"{node_id} was not elected"
        self.exchange(*(among or self.up()))


def leader_alone(
    voters: int = 3,
    *,
    learners: int = 0,
    log: Sequence[int] = (),
    options: CoreOptions | None = None,
    answer_no_op: bool = True,
) -> Lab:
    """Node 1 leads; the test plays the others. With answer_no_op a quorum has acknowledged the no-op."""
    lab = Lab(voters, learners=learners, up=[1], logs={1: log}, options=options)
    lab.campaign(1)
    term = lab.state(1).term + 1
    for pre_vote in (True, False):
        for peer in range(2, voters + 1):
            lab.receive(1, peer, RequestVoteResponse(term, True, pre_vote))
    assert lab.state(1).role is Role.LEADER
    if answer_no_op:
        for peer in lab.configuration.peers(1):
            acknowledge_all(lab, peer)
    return lab


def acknowledge_all(lab: Lab, peer: int) -> list[AppendEntries]:
    """The peer, played by the test, accepts all that node 1 sent it; returns what that was."""
    accepted: list[AppendEntries] = []
    while requests := lab.sent(1, peer, AppendEntries):
        for request in requests:
            match = request.prev_log_index + len(request.entries)
            accepted.append(request)
            lab.receive(1, peer, AppendEntriesResponse(request.term, True, match, request.round))
    return accepted


def append(
    term: int,
    prev: int,
    prev_term: int,
    terms: Sequence[int] = (),
    commit: int = 0,
    round: int = 0,
    leader: int = 2,
) -> AppendEntries:
    """AppendEntries with entries of these terms after prev."""
    entries = tuple(
        Entry(i, t, EntryKind.COMMANDS, f"{i}.{t}".encode()) for i, t in enumerate(terms, start=prev + 1)
    )
    return AppendEntries(term, leader, prev, prev_term, entries, commit, round)


def ask_vote(lab: Lab, voter: int, candidate: int, request: RequestVote) -> RequestVoteResponse | None:
    """Ask for a vote; the answer, or None for silence."""
    lab.receive(voter, candidate, request)
    answers = lab.sent(voter, candidate, RequestVoteResponse)
    return answers[-1] if answers else None
