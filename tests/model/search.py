"""Breadth-first search over all states of a small cluster of real cores.

A state is, for each node, the frozen core with its disk (frozen.py) and all messages ever sent to it, and the
record (properties.py). A message once sent stays: it may be delivered at any time, again, or never. So loss,
duplication and reordering have no bound, and need no actions of their own. What makes the space finite are
the scope's bounds on terms, entries and rounds.

Everything is a number here. A turn depends on the node alone, so each (node, event) is carried out by the
real core once and remembered; the rest of the search puts remembered turns together.

Two reductions, besides those of frozen.py and turns.py:

Dead messages are forgotten: those that, whatever happens to their receiver, change nothing there and bring
forth no message that changes anything (tables.is_dead says which, and why).

Names do not matter: of states that differ only by a permutation of the nodes' names one is kept. The core
compares ids only for equality, with two exceptions. It goes through its peers in ascending order, which
orders what it sends; but a message sent and one that may never arrive differ in nothing but a crash between
the two, which then is one where the rest never arrives. And where several voters are equally far a leader
that chooses (transfer without a target, its own removal) takes the first: scopes with those are not
symmetric.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import NamedTuple

from raft.core.membership import Configuration
from raft.core.state import Role
from tests.model.frozen import Frozen
from tests.model.properties import NO_READ, READ_DONE, Record, Spent, check, recorded, spent_by
from tests.model.scopes import Scope
from tests.model.tables import Numbers, State, Tables, is_stale_term
from tests.model.turns import Event, Outcome, Sent, Turns, deliveries
from tests.simulation.checker import SafetyViolation
from tests.simulation.disk import Disk


class Move(NamedTuple):
    """A turn that changes something. sent: (receiver's position, number of a set of messages)."""

    node: int
    sent: tuple[tuple[int, int], ...]
    spent: int
    events: tuple[Event, ...]
    outcome: Outcome


class Step(NamedTuple):
    """One step of a path: the state before it, who moves, and under which renaming the next state stands."""

    state: State
    position: int
    move: Move
    order: int


@dataclass
class Result:
    """What a search found. reached: what happened, and how many states were known when it first did."""

    scope: Scope
    states: int = 0
    transitions: int = 0
    turns: int = 0
    depth: int = 0
    seconds: float = 0.0  # of processor time
    exhausted: bool = False
    violation: str = ""
    path: list[Step] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)


Progress = Callable[[Result, int], None]  # what is known, and how many states wait


class Search:
    """One scope's search."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        ids = tuple(range(1, scope.nodes + 1))
        self.turns = Turns(Configuration(ids), pre_votes=scope.pre_votes, reads=scope.reads > 0)
        exact = scope.lost or scope.pre_votes or scope.reads > 0
        self.tables = Tables(
            ids,
            last_term=scope.terms,
            symmetric=scope.symmetric,
            exact=exact,
            ignores=self._ignores,
        )
        self.result = Result(scope)
        self.spents: Numbers[Spent] = Numbers()
        self.parents: dict[int, int] = {}
        self._turns: dict[tuple[int, tuple[Event, ...]], tuple[Move, ...]] = {}
        self._moves: dict[tuple[int, int], tuple[Move, ...]] = {}
        self._merged: dict[tuple[int, int], int] = {}
        self._recorded: dict[tuple[int, int], int | str | None] = {}
        self._checked: dict[tuple[int, ...], str] = {}

    # --- the search -------------------------------------------------------------------------------------

    def run(
        self, *, states: int = 1 << 62, seconds: float = float("inf"), progress: Progress | None = None
    ) -> Result:
        """Search until all is seen, a property breaks, or states or seconds of processor time are used up."""
        began = time.process_time()
        result = self.result
        first = self._first_state()
        self.parents[first] = -1
        level = [first]
        while level and not result.violation:
            coming: list[int] = []
            for count, packed in enumerate(level):
                self._expand(packed, coming)
                if result.violation:
                    break
                if not count & 1023:
                    result.states, result.seconds = len(self.parents), time.process_time() - began
                    if progress is not None:
                        progress(result, len(level) - count + len(coming))
                    if result.states >= states or result.seconds >= seconds:
                        return self._finish(began)
            result.depth += bool(coming)
            level = coming
        result.exhausted = not result.violation
        return self._finish(began)

    def _finish(self, began: float) -> Result:
        result = self.result
        result.states, result.seconds = len(self.parents), time.process_time() - began
        result.turns = len(self._turns)
        return result

    def _first_state(self) -> int:
        scope, tables = self.scope, self.tables
        nodes = tuple(tables.number_of(self.turns.started(node_id, Disk())) for node_id in tables.ids)
        budget = (scope.crashes, scope.proposals, scope.reads, scope.changes, scope.transfers)
        record = Record((0,) * scope.terms, (), NO_READ, *budget)
        empty = [tables.inboxes.of(frozenset())] * scope.nodes
        return tables.canonical(nodes, empty, tables.records.of(record))[0]

    def _expand(self, packed: int, coming: list[int]) -> None:
        """Add the states behind this one to `coming`, or stop at a violation."""
        state = nodes, inboxes, _ = self.tables.unpack(packed)
        parents, result = self.parents, self.result
        for position, node in enumerate(nodes):
            moves = self._moves.get((node, inboxes[position]))
            if moves is None:
                moves = self._moves[node, inboxes[position]] = self._find_moves(node, inboxes[position])
            for move in moves:
                after = self._after(state, position, move)
                if after is None:
                    continue
                if isinstance(after, str):
                    self._stop(packed, position, move, after)
                    return
                result.transitions += 1
                following = after[0]
                if following in parents:  # perhaps this very state: what was sent anew is dead
                    continue
                parents[following] = packed
                coming.append(following)
                if broken := self._check(following):
                    self._stop(packed, position, move, broken)
                    return

    def _after(self, state: State, position: int, move: Move) -> tuple[int, int] | str | None:
        """The state after the move and its renaming; None if it is the same, or cannot be paid for; a text if
        something breaks."""
        if move.outcome.violation:
            return self._affordable(state, move) and move.outcome.violation
        nodes, inboxes, record = state
        key = (record, move.spent)
        record_after = self._recorded.get(key, -1)
        if record_after == -1:
            record_after = self._recorded[key] = self._record(*key)
        if record_after is None or isinstance(record_after, str):
            return record_after
        tables = self.tables
        changed = move.node != nodes[position]
        nodes_after = nodes
        if changed:
            nodes_after = (*nodes[:position], move.node, *nodes[position + 1 :])
        boxes = list(inboxes)
        for receiver, sent in move.sent:
            both = (boxes[receiver], sent)
            merged = self._merged.get(both)
            if merged is None:
                union = tables.inboxes.values[both[0]] | tables.inboxes.values[sent]
                merged = self._merged[both] = tables.inboxes.of(union)
            boxes[receiver] = merged
        if not changed and record_after == record and boxes == list(inboxes):
            return None
        try:
            return tables.canonical(nodes_after, boxes, record_after)
        except SafetyViolation as violation:
            return str(violation)

    def _affordable(self, state: State, move: Move) -> str | None:
        """An empty text if there is enough left for the move."""
        costs = self.spents.values[move.spent]._replace(led=0, committed=(), read=None)
        return None if recorded(self.tables.records.values[state[2]], costs) is None else "yes"

    def _record(self, record: int, spent: int) -> int | str | None:
        try:
            after = recorded(self.tables.records.values[record], self.spents.values[spent])
        except SafetyViolation as violation:
            return str(violation)
        if after is None:
            return None
        self._note(after)
        return self.tables.records.of(after)

    def _check(self, packed: int) -> str:
        nodes, _, record = self.tables.unpack(packed)
        view_of = self.tables.view_of
        key = (*[view_of[node] for node in nodes], record)
        known = self._checked.get(key)
        if known is None:
            views = [self.tables.views.values[number] for number in key[:-1]]
            known = self._checked[key] = check(views, self.tables.records.values[record])
        return known

    def _note(self, record: Record) -> None:
        led = {leader for leader in record.leaders if leader}
        for name, happened in (
            ("a leader", bool(led)),
            ("leaders in two terms", sum(map(bool, record.leaders)) >= 2),
            ("another leader", len(led) >= 2),
            ("a committed entry", bool(record.committed)),
            ("commits in two terms", len({done.in_term for done in record.committed}) >= 2),
            ("a crash", record.crashes < self.scope.crashes),
            ("a read answered or refused", record.floor == READ_DONE),
            ("a change of members committed", any(done.entry.kind == 2 for done in record.committed)),
        ):
            if happened:
                self.result.reached.setdefault(name, len(self.parents))

    # --- what a node can do -----------------------------------------------------------------------------

    def _find_moves(self, number: int, inbox: int) -> tuple[Move, ...]:
        """All turns of the node that change anything."""
        node = self.tables.nodes.values[number]
        events = self._events(node, inbox)
        single: dict[Event, tuple[Move, ...]] = {event: self._turn(number, (event,)) for event in events}
        moves = [move for each in single.values() for move in each]
        if self.scope.batch > 1:
            works = [event for event in events if single[event] and event.name != "crash"]
            for pair in permutations(works, 2):
                moves.extend(self._turn(number, pair))
        return tuple(dict.fromkeys(moves))

    def _events(self, node: Frozen, inbox: int) -> list[Event]:
        scope = self.scope
        leads = node.role is Role.LEADER
        events = [Event("crash")] if scope.crashes else []
        alone = node.configurations[-1][1].has_quorum((node.node_id,))  # loses no quorum
        if (not alone) if leads else node.term < scope.terms:
            events.append(Event("timeout"))
        if leads:
            events += [Event("heartbeat")] if node.round < scope.rounds else []
            events += [Event("propose")] if scope.proposals else []
            events += [Event("lost", view.peer) for view in node.progress] if scope.lost else []
            if scope.transfers:
                events += [Event("transfer", peer) for peer in self.tables.ids if peer != node.node_id]
                events += [Event("give up")] if node.transfer_target is not None else []
            if scope.changes:
                events += [Event("change", configuration=each) for each in self._changes(node)]
        if scope.reads:
            events.append(Event("read"))
        for message in sorted(self.tables.inboxes.values[inbox]):
            sender, _, content = self.tables.messages.values[message]
            if not is_stale_term(content, scope.terms):
                events += deliveries(node, sender, content, pre_votes=scope.pre_votes)
        return events

    def _changes(self, node: Frozen) -> list[Configuration]:
        now = node.configurations[-1][1]
        one = [now.without(each) for each in now.voters]
        two = [each.without(gone) for each in one for gone in each.voters]
        return [each for each in dict.fromkeys((*one, *two)) if each.voters]

    def _turn(self, number: int, events: tuple[Event, ...]) -> tuple[Move, ...]:
        known = self._turns.get((number, events))
        if known is not None:
            return known
        before = self.tables.nodes.values[number]
        moves = []
        for outcome in self.turns.outcomes(before, events, crashes=self.scope.crashes > 0):
            if outcome.node.term > self.scope.terms:
                continue  # beyond the scope: a timeout behind a message of the last term
            after = self.tables.number_of(outcome.node)
            sent = tuple(
                (position, self._inbox_of(outcome, node_id))
                for position, node_id in enumerate(self.tables.ids)
                if any(each[1] == node_id for each in outcome.sent)
            )
            spent = spent_by(before, [event.name for event in events], outcome)
            idle = spent_by(before, [], Outcome(before))
            refused = events[0].name in ("propose", "change", "transfer")
            if after == number and not sent and (refused or spent == idle) and not outcome.violation:
                continue
            if self.tables.nodes.values[after].log[: len(before.log)] != before.log and not outcome.crashed:
                self.result.reached.setdefault("a conflict truncated", len(self.parents))
            outcome = outcome._replace(node=before)  # it has a number
            moves.append(Move(after, sent, self.spents.of(spent), events, outcome))
        self._turns[number, events] = tuple(moves)
        return self._turns[number, events]

    def _ignores(self, number: int, sent: Sent) -> bool:
        moves = self._turn(number, (Event("deliver", sent[0], sent[2]),))
        return not any(move for move in moves if not move.outcome.crashed)

    def _inbox_of(self, outcome: Outcome, receiver: int) -> int:
        to_it = frozenset(self.tables.messages.of(each) for each in outcome.sent if each[1] == receiver)
        return self.tables.inboxes.of(to_it)

    # --- the way to a violation -------------------------------------------------------------------------

    def _stop(self, packed: int, position: int, move: Move, violation: str) -> None:
        """Something broke in this move: find the way there."""
        chain = [packed]
        while (parent := self.parents[chain[-1]]) >= 0:
            chain.append(parent)
        chain.reverse()
        steps = [self._step(before, after) for before, after in pairwise(chain)]
        self.result.violation = violation
        self.result.path = [*steps, Step(self.tables.unpack(packed), position, move, 0)]

    def _step(self, before: int, after: int) -> Step:
        """The move that leads from one state to the other."""
        state = self.tables.unpack(before)
        for position, (node, inbox) in enumerate(zip(state[0], state[1], strict=True)):
            for move in self._moves[node, inbox]:
                result = self._after(state, position, move)
                if isinstance(result, tuple) and result[0] == after:
                    return Step(state, position, move, result[1])
        raise AssertionError("a state without the move that led to it")
