"""What must hold in every state of the search (paper figure 3 and 5.4), for all nodes together.

A search has no run along which a checker could remember: what has to be remembered is the state's Record.
What can be judged by one node's turn alone is judged in turns.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raft.core.entry import Entry
from raft.core.membership import Configuration
from raft.core.state import Role
from tests.model.frozen import Frozen
from tests.model.turns import Outcome
from tests.simulation.checker import SafetyViolation, violated

NO_READ, READ_DONE = -1, -2


class Done(NamedTuple):
    """A committed entry: the term of the leader that was the first to commit it, and whom it counted."""

    entry: Entry
    in_term: int
    configuration: Configuration


class Record(NamedTuple):
    """What the state remembers of the way to it. leaders: who led term 1, 2, …; 0 for nobody. committed: by
    any leader, ever. floor: how many entries were committed when the read began. The rest is what is left."""

    leaders: tuple[int, ...]
    committed: tuple[Done, ...]
    floor: int
    crashes: int
    proposals: int
    reads: int
    changes: int
    transfers: int


class View(NamedTuple):
    """What the properties of a state ask of a node."""

    node_id: int
    leads: bool
    term: int
    stored_term: int
    commit_index: int
    log: tuple[Entry, ...]
    matches: tuple[tuple[int, int], ...]
    configuration: Configuration


class Spent(NamedTuple):
    """What a turn takes from the record, and adds to it."""

    node_id: int
    costs: tuple[int, int, int, int, int]  # crashes, proposals, reads, changes, transfers
    led: int
    committed: tuple[Entry, ...]
    configuration: Configuration
    read: int | None
    refused: bool


def view_of(node: Frozen) -> View:
    """The node as the properties see it."""
    leads = node.role is Role.LEADER
    matches = tuple((each.peer, each.match_index) for each in node.progress) if leads else ()
    return View(
        *(node.node_id, leads, node.term, node.stored_term, node.commit_index, node.log, matches),
        node.configurations[-1][1],
    )


def spent_by(before: Frozen, names: Sequence[str], outcome: Outcome) -> Spent:
    """What the turn with events of these names does to the record."""
    costs = (
        int(outcome.crashed),
        *(names.count(name) for name in ("propose", "read", "change", "transfer")),
    )
    configuration = (before if outcome.crashed else outcome.node).configurations[-1][1]
    committed = outcome.committed if len(outcome.committed) > before.commit_index else ()
    led = outcome.led if before.role is not Role.LEADER else 0
    return Spent(before.node_id, costs, led, committed, configuration, outcome.read, outcome.refused)


def recorded(record: Record, spent: Spent) -> Record | None:
    """The record after the turn; None if nothing is left for it. Raises SafetyViolation."""
    left = (record.crashes, record.proposals, record.reads, record.changes, record.transfers)
    after = tuple(have - cost for have, cost in zip(left, spent.costs, strict=True))
    if min(after) < 0:
        return None
    leaders, committed, floor = record.leaders, record.committed, record.floor
    if spent.led:
        other = leaders[spent.led - 1]
        if other not in (0, spent.node_id):
            violated(f"two leaders in term {spent.led}: {other} and {spent.node_id}")
        leaders = (*leaders[: spent.led - 1], spent.node_id, *leaders[spent.led :])
    if spent.costs[2]:
        floor = len(committed)
    for done, entry in zip(committed, spent.committed, strict=False):
        if done.entry != entry:
            violated(f"{spent.node_id} commits {entry}, but {done.entry} is committed")
    new = spent.committed[len(committed) :]
    if new:
        term = new[-1].term  # commits by counting end with an entry of the leader's own term (turns.py)
        committed = (*committed, *(Done(entry, term, spent.configuration) for entry in new))
    if spent.read is not None:
        if spent.read < floor:
            violated(f"a read at {spent.node_id} sees {spent.read} of {floor} entries committed before it")
        floor = READ_DONE
    elif spent.refused:
        floor = READ_DONE
    return Record(leaders, committed, floor, *after)


def check(views: Sequence[View], record: Record) -> str:
    """The property that does not hold in a state, or an empty string."""
    try:
        _check(views, record)
    except SafetyViolation as violation:
        return str(violation)
    return ""


def _check(views: Sequence[View], record: Record) -> None:
    by_id = {view.node_id: view for view in views}
    for position, one in enumerate(views):
        for other in views[position + 1 :]:
            _check_log_matching(one, other)
            if one.leads and other.leads and one.term == other.term:
                violated(f"two leaders in term {one.term}: {one.node_id} and {other.node_id}")
        _check_commits(one, record)
        if one.leads:
            _check_completeness(one, record)
            _check_matches(one, by_id)
    for done in record.committed:
        entry = done.entry
        holders = [v.node_id for v in views if len(v.log) >= entry.index and v.log[entry.index - 1] == entry]
        if not done.configuration.has_quorum(holders):
            violated(f"entry {entry.index} of term {entry.term} is committed, durable only on {holders}")


def _check_log_matching(one: View, other: View) -> None:
    """Equal index and term: equal entry, equal prefix (paper 5.3)."""
    for length in range(min(len(one.log), len(other.log)), 0, -1):
        if one.log[length - 1].term == other.log[length - 1].term:
            if one.log[:length] != other.log[:length]:
                violated(f"log matching: {one.node_id} and {other.node_id} differ before {length}")
            return


def _check_commits(view: View, record: Record) -> None:
    """State machine safety: what is committed here is what a leader has committed (paper 5.4.3)."""
    if view.commit_index > len(record.committed):
        violated(f"{view.node_id} knows of a commit of {view.commit_index} that no leader made")
    for entry, done in zip(view.log[: view.commit_index], record.committed, strict=False):
        if entry != done.entry:
            violated(f"{view.node_id} applies {entry}, but {done.entry} is committed")


def _check_completeness(view: View, record: Record) -> None:
    """Leader completeness: the log of a term's leader has all that was committed in earlier terms (5.4)."""
    for done in record.committed:
        entry = done.entry
        if done.in_term < view.term and view.log[entry.index - 1 : entry.index] != (entry,):
            violated(f"leader {view.node_id} of {view.term} lacks {entry}")


def _check_matches(leader: View, by_id: Mapping[int, View]) -> None:
    """What a leader counts as acknowledged is on the peer's disk, unless a later term has begun there."""
    for peer, match in leader.matches:
        view = by_id[peer]
        if view.stored_term <= leader.term and view.log[:match] != leader.log[:match]:
            violated(f"leader {leader.node_id} counts {match} entries at {peer}, which has {len(view.log)}")
