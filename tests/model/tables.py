"""Numbers for nodes, inboxes, messages and records, and the two reductions that work on them: names and dead
messages (search.py says why they are sound)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from msgspec import structs

from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.core.state import Role
from tests.model.frozen import Frozen, renamed
from tests.model.properties import Record, View, view_of
from tests.model.turns import Sent
from tests.simulation.checker import violated

T = TypeVar("T")
Names: TypeAlias = dict[int | None, int | None]
State: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int]  # nodes, inboxes, record: as numbers
Ignores: TypeAlias = Callable[[int, Sent], bool]
BITS = 22


class Numbers(Generic[T]):
    """Values and their numbers, in the order in which they came."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def of(self, value: T) -> int:
        """The value's number."""
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self.values)
            self.values.append(value)
        return number


class Gate(NamedTuple):
    """What decides which messages to and from a node are dead."""

    term: int
    vote: int | None
    role: Role
    settled: bool  # term and vote are as stored
    matches: tuple[tuple[int, int, int], ...]  # a leader's: peer, match_index, match_round


class Order(NamedTuple):
    """A renaming of a tuple of nodes: its number, the nodes then, and at which position each stood before."""

    number: int
    nodes: tuple[int, ...]
    origins: tuple[int, ...]


class Table(NamedTuple):
    """What is remembered of a tuple of nodes. gates: the number of theirs. orders: the renamings under which
    it is smallest. voted: all are in the scope's last term."""

    gates: int
    orders: list[Order]
    voted: bool


class Tables:
    """The numbers of one search, which mean something within it only."""

    def __init__(
        self, ids: Sequence[int], *, last_term: int, symmetric: bool, exact: bool, ignores: Ignores
    ) -> None:
        """exact: see is_dead. ignores: whether a node, by number, makes nothing of a message."""
        self.exact, self._is_ignored = exact, ignores
        self.ids, self.last_term = tuple(ids), last_term
        orders = permutations(self.ids) if symmetric else [self.ids]
        self.names: list[Names] = [{None: None, 0: 0, **dict(zip(self.ids, o, strict=True))} for o in orders]
        # Where the node at each position goes.
        self.places = [tuple(int(names[each] or 0) - 1 for each in self.ids) for names in self.names]
        self.nodes: Numbers[Frozen] = Numbers()
        self.messages: Numbers[Sent] = Numbers()
        self.inboxes: Numbers[frozenset[int]] = Numbers()
        self.records: Numbers[Record] = Numbers()
        self.views: Numbers[View] = Numbers()
        self.gates: Numbers[Gate] = Numbers()
        self.view_of: dict[int, int] = {}
        self.gate_of: dict[int, int] = {}
        self._node_names: dict[int, tuple[int, ...]] = {}
        self._inbox_names: dict[int, tuple[int, ...]] = {}
        self._record_names: dict[int, tuple[int, ...]] = {}
        self.gate_sets: Numbers[tuple[int, ...]] = Numbers()
        self._tables: dict[tuple[int, ...], Table] = {}
        self._pruned: dict[int, int] = {}
        self._voteless: dict[int, int] = {}

    def number_of(self, node: Frozen) -> int:
        """The node's number; its view and gate are known afterwards."""
        number = self.nodes.of(node)
        if number not in self.view_of:
            self.view_of[number] = self.views.of(view_of(node))
            self.gate_of[number] = self.gates.of(gate_of(node))
        return number

    # --- names ------------------------------------------------------------------------------------------

    def names_of_node(self, number: int) -> tuple[int, ...]:
        """The node's numbers under all renamings."""
        known = self._node_names.get(number)
        if known is None:
            node = self.nodes.values[number]
            known = tuple(self.number_of(renamed(node, names)) for names in self.names)
            self._node_names[number] = known
        return known

    def names_of_inbox(self, number: int) -> tuple[int, ...]:
        """The same of an inbox."""
        known = self._inbox_names.get(number)
        if known is None:
            inbox = [self.messages.values[each] for each in self.inboxes.values[number]]
            known = tuple(
                self.inboxes.of(frozenset(self.messages.of(renamed_message(sent, names)) for sent in inbox))
                for names in self.names
            )
            self._inbox_names[number] = known
        return known

    def names_of_record(self, number: int) -> tuple[int, ...]:
        """The same of a record."""
        known = self._record_names.get(number)
        if known is None:
            record = self.records.values[number]
            known = tuple(
                self.records.of(record._replace(leaders=tuple(names[each] or 0 for each in record.leaders)))
                for names in self.names
            )
            self._record_names[number] = known
        return known

    def _least_orders(self, nodes: tuple[int, ...]) -> list[Order]:
        """The renamings under which the tuple of nodes is smallest."""
        results = []
        for order, places in enumerate(self.places):
            moved = [0] * len(nodes)
            for place, node in zip(places, nodes, strict=True):
                moved[place] = self.names_of_node(node)[order]
            origins = sorted(range(len(places)), key=places.__getitem__)
            results.append(Order(order, tuple(moved), tuple(origins)))
        least = min(each.nodes for each in results)
        return [each for each in results if each.nodes == least]

    def table(self, nodes: tuple[int, ...]) -> Table:
        """What is remembered of these nodes together."""
        known = self._tables.get(nodes)
        if known is None:
            gates = tuple(self.gate_of[node] for node in nodes)
            votes = all(self.gates.values[gate].term == self.last_term for gate in gates)
            settled = votes and all(self.gates.values[gate].settled for gate in gates)
            known = Table(self.gate_sets.of(gates), self._least_orders(nodes), settled)
            self._tables[nodes] = known
        return known

    def canonical(self, nodes: tuple[int, ...], inboxes: Sequence[int], record: int) -> tuple[int, int]:
        """The state without dead messages and votes, under its least names, as one number; and the number of
        the renaming."""
        table = self._tables.get(nodes) or self.table(nodes)
        gates, pruned = table.gates << BITS, self._pruned
        boxes = []
        for box in inboxes:
            known = pruned.get(gates | box)
            boxes.append(self._prune(gates | box, nodes) if known is None else known)
        if table.voted:
            forgetful = tuple([self._without_vote(*each) for each in zip(nodes, boxes, strict=True)])
            if forgetful != nodes:
                table = self._tables.get(forgetful) or self.table(forgetful)
        box_names, record_names = self._inbox_names, self._record_names
        least, which = -1, 0
        for order, renumbered, origins in table.orders:
            packed = (record_names.get(record) or self.names_of_record(record))[order]
            for node, origin in zip(renumbered, origins, strict=True):
                box = boxes[origin]
                names = box_names.get(box) or self.names_of_inbox(box)
                packed = (packed << BITS | node) << BITS | names[order]
            if least < 0 or packed < least:
                least, which = packed, order
        return least, which

    def unpack(self, packed: int) -> State:
        """The inverse of canonical's packing."""
        mask = (1 << BITS) - 1
        nodes, inboxes = [], []
        for _ in self.ids:
            inboxes.append(packed & mask)
            nodes.append(packed >> BITS & mask)
            packed >>= 2 * BITS
        return tuple(reversed(nodes)), tuple(reversed(inboxes)), packed

    # --- dead messages ----------------------------------------------------------------------------------

    def _prune(self, key: int, nodes: tuple[int, ...]) -> int:
        """The inbox without dead messages; key is the gates' number and its own. Raises SafetyViolation if
        the real core makes something of an answer that should be dead at these nodes."""
        gates, inbox = self.gate_sets.values[key >> BITS], self.inboxes.values[key & ((1 << BITS) - 1)]
        by_id = {node_id: self.gates.values[gate] for node_id, gate in zip(self.ids, gates, strict=True)}
        dead = []
        for number in inbox:
            sent = self.messages.values[number]
            if is_dead(sent, by_id, self.last_term, exact=self.exact):
                dead.append(number)
                answer = isinstance(sent[2], RequestVoteResponse | AppendEntriesResponse | TimeoutNow)
                if answer and not self._is_ignored(nodes[self.ids.index(sent[1])], sent):
                    violated(f"{sent[1]} does not ignore a dead message of {sent[0]}: {sent[2]}")
        self._pruned[key] = self.inboxes.of(inbox.difference(dead))
        return self._pruned[key]

    def _without_vote(self, node: int, inbox: int) -> int:
        """In the scope's last term, once all are in it: nobody will ask for votes any more but by the
        messages that are under way. Who gets none of these may forget whom it voted for."""
        key = node << BITS | inbox
        known = self._voteless.get(key)
        if known is None:
            known, frozen = node, self.nodes.values[node]
            messages = (self.messages.values[each][2] for each in self.inboxes.values[inbox])
            if frozen.role is Role.FOLLOWER and not any(isinstance(each, RequestVote) for each in messages):
                known = self.number_of(frozen._replace(voted_for=None, stored_vote=None))
            self._voteless[key] = known
        return known


def gate_of(node: Frozen) -> Gate:
    """The node's gate."""
    settled = (node.term, node.voted_for) == (node.stored_term, node.stored_vote)
    matches = tuple((each.peer, each.match_index, each.match_round) for each in node.progress)
    return Gate(node.stored_term, node.stored_vote, node.role, settled, matches)


def renamed_message(sent: Sent, names: Mapping[int | None, int | None]) -> Sent:
    """The message under other names for all nodes."""
    sender, receiver, message = sent
    if isinstance(message, RequestVote):
        message = structs.replace(message, candidate_id=names[message.candidate_id])
    elif isinstance(message, AppendEntries):
        message = structs.replace(message, leader_id=names[message.leader_id])
    return names[sender] or 0, names[receiver] or 0, message


def is_dead(sent: Sent, gates: Mapping[int, Gate], last_term: int, *, exact: bool) -> bool:
    """Whether the message can change nothing any more, whatever happens.

    Stored terms never go back (turns.py checks that), also not over a crash. So an answer of an earlier term
    is ignored for ever (core.py, election.py, replication.py); a refused vote tells nothing to who is in that
    term; a vote is for a candidate, an acknowledgement for a leader or who may become one in that term. While
    it leads, it knows for good what is acknowledged: less than that, and refusals from before, say nothing.
    (exact: in scopes with reads, pre-votes or broken
    connections they do.)

    In the last term of the scope nobody becomes a candidate again. Then also dead are: a request of an
    earlier term whose answer would be dead on arrival; a request for a vote in this term that cannot be
    given, or would be given to a candidate that is none any more (whoever gives it then could only refuse it
    to another, and that is the same as never hearing of the other).
    """
    sender, receiver, message = sent
    at, source = gates[receiver], gates[sender]
    if not at.settled or not source.settled:
        return False
    term = message.term
    if isinstance(message, RequestVoteResponse):
        if term < at.term or (term == at.term and (message.pre_vote or not message.vote_granted)):
            return True
        return term == at.term and at.role is not Role.CANDIDATE
    if isinstance(message, AppendEntriesResponse):
        if term != at.term or at.role not in (Role.CANDIDATE, Role.LEADER):
            return term <= at.term
        return not exact and at.role is Role.LEADER and _is_old_news(sender, message, at)
    if isinstance(message, TimeoutNow):
        return term < at.term
    if at.term != last_term or source.term != last_term:
        return False
    if isinstance(message, RequestVote):
        gone = message.pre_vote or term < last_term or source.role is not Role.CANDIDATE
        return gone or at.vote not in (None, sender)
    if isinstance(message, AppendEntries):
        return term < last_term and source.role not in (Role.CANDIDATE, Role.LEADER)
    return False


def _is_old_news(sender: int, answer: AppendEntriesResponse, leader: Gate) -> bool:
    for peer, match_index, match_round in leader.matches:
        if peer == sender:
            if answer.success:
                return answer.match_index < match_index
            return answer.prev_log_index <= match_index and answer.round <= match_round
    return True


def is_stale_term(message: Message, last_term: int) -> bool:
    """Whether delivering the message would begin a term beyond the scope."""
    return isinstance(message, TimeoutNow) and message.term >= last_term
