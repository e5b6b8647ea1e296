"""The way to a violation, written down in the manner of tests/scripts: what happens to whom, and indented
what came of it. (Not to be played as such: there a link hands out its messages in order, once.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raft.core.messages import Message
from raft.core.state import Role
from tests.core.transcript import INDENT, describe, label, members_of
from tests.model.frozen import Frozen, renamed
from tests.model.search import Result, Search, Step
from tests.model.tables import renamed_message
from tests.model.turns import Event

Names = Mapping[int | None, int | None]


def transcript(search: Search, result: Result) -> str:
    """The path, under the names that the nodes have at its beginning."""
    lines = [f"# {result.scope.describe()}", f"nodes {result.scope.nodes}"]
    names: dict[int | None, int | None] = {None: None, 0: 0, **{each: each for each in search.tables.ids}}
    for step in result.path:
        lines.extend(_turn(search, step, names))
        # The state after it stands under other names: undo that renaming, too.
        there = search.tables.names[step.order]
        names = {there[each]: names[each] for each in names}
    lines.append(f"# {result.violation}")
    return "\n".join(lines) + "\n"


def _turn(search: Search, step: Step, names: Names) -> Iterator[str]:
    move = step.move
    before = renamed(search.tables.nodes.values[step.state[0][step.position]], names)
    after = renamed(search.tables.nodes.values[move.node], names)
    for event in move.events:
        yield _event(before.node_id, event, names)
    if move.outcome.crashed and move.events[0].name != "crash":
        yield f"crash {before.node_id} in the middle of it; restart {before.node_id}"
    for text in _changes(before, after):
        yield f"{INDENT}{before.node_id} {text}"
    for sent in move.outcome.sent:
        sender, receiver, message = renamed_message(sent, names)
        yield f"{INDENT}{sender}->{receiver} {describe(message)}"
    if move.outcome.read is not None:
        yield f"{INDENT}{before.node_id} answers the read at index {move.outcome.read}"


def _event(node_id: int, event: Event, names: Names) -> str:
    peer = names.get(event.peer)
    if event.name in ("deliver", "late"):
        assert event.message is not None
        return f"deliver {peer}->{node_id}: {_renamed(event.message, names)}"
    if event.name == "crash":
        return f"crash {node_id}; restart {node_id}"
    if event.name == "change":
        assert event.configuration is not None
        return f"change at {node_id}: {members_of(event.configuration)}"
    words = {
        "timeout": "campaign",
        "heartbeat": "heartbeat of",
        "lost": "disconnect",
        "give up": "give up at",
    }
    return f"{words.get(event.name, event.name)} {node_id}" + (f" {peer}" if event.peer else "")


def _renamed(message: Message, names: Names) -> str:
    return describe(renamed_message((0, 0, message), names)[2])


def _changes(before: Frozen, after: Frozen) -> Iterator[str]:
    if (before.stored_term, before.stored_vote) != (after.stored_term, after.stored_vote):
        vote = f"vote {after.stored_vote}" if after.stored_vote is not None else "no vote"
        yield f"stores term {after.stored_term}, {vote}"
    if before.role is not after.role or before.term != after.term:
        leader = f", leader {after.leader_id}" if after.role is Role.FOLLOWER and after.leader_id else ""
        yield f"is {after.role.value} in term {after.term}{leader}"
    if before.log != after.log:
        yield f"has on disk: {' '.join(map(label, after.log)) or 'nothing'}"
    if before.commit_index != after.commit_index:
        yield f"commits {after.commit_index}"
