"""The little language of tests/scripts/*.txt: a conversation with a laboratory of nodes, written down.

A command stands at the start of a line, what came of it stands indented below; `#` begins a comment line.

    nodes N [learners=K] [spares=K] [identities=founding|recorded] [leases] [logI=1,1,2] [termI=T]
          [OPTION=VALUE]              a new table; logs and terms per node
    campaign I | elect I [J K ...]    I's timeout passes | and it wins, with the votes of those named
    propose I WORD ...                commands for the leader
    read I                            a linearizable read at node I
    deliver [A->B [COUNT]] | deliver I J ...    the messages of a link | among these, until all is quiet
    drop A->B [COUNT] | drop          lose the messages of a link | of all links
    cut I ... | heal                  links between these and the rest lose everything | all links work
    bridge B I ...                    the same, but B sees both sides
    lose A->B                         this link loses everything, too
    crash I | restart I               the process ends, with its unsynced writes | begins on its disk
    advance MS [I ...]                time passes at once; these nodes (else all) notice
    live MS [I ...]                   time passes in steps of 10 ms; these (else all) notice and talk
    add I J [promote] | promote I J | remove I J    order the leader I to change the members
    register I                        the leader I records the identities of all nodes that are up
    transfer I [J]                    the leader I hands over to J
    snapshot I [compact [INDEX]]      I takes a snapshot | and removes the log up to INDEX, else all
    chunks BYTES | hold I | load I | abort I    size of a chunk | I loads what it received only | when told |
                                      I forgets an unfinished one
    wipe I                            the node I, which is down, gets an empty disk
    rot I INDEX                       the node I, which is down, has lost its log from INDEX on, and knows it
    suspect I PEER | disconnect I PEER    what I's pings say | what I's connections say
    status | log | queue | members    all nodes | all logs on disk | all messages under way | configurations
    show messages | hide messages     whether messages are printed as they leave
    quietly COMMAND ...               a command whose course does not matter
"""

from __future__ import annotations

from collections.abc import Callable

from raft.core import reconfiguration
from raft.core.effects import AppendLog, HardState, LogOperation, ResetLog
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, decode_configuration
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.core.state import CoreOptions
from tests.core.lab import HEARTBEAT, TIMEOUT_MAX, TIMEOUT_MIN, Lab, server
from tests.simulation.disk import Snapshot
from tests.simulation.node import Node

INDENT = "    "


def play(script: str) -> str:
    """The script with what really happens under each command."""
    player = Player()
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith(INDENT):
            continue
        lines.append(line)
        if line.strip() and not line.startswith("#"):
            lines.extend(INDENT + text for text in player.run(line))
    return "\n".join(lines) + "\n"


class Player:
    """Runs commands and writes down what the nodes do (tests.simulation.node.Observer)."""

    def __init__(self) -> None:
        self.lab = Lab(1, up=())
        self.lines: list[str] = []
        self.show_messages = False
        self.seen: dict[int, tuple[HardState, int, int]] = {}  # stored term and vote, commit, lines of news
        self.commands: dict[str, Callable[[list[str]], None]] = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }

    def run(self, line: str) -> list[str]:
        """Carry out one command; returns what to write under it."""
        name, *arguments = line.split()
        if name not in self.commands:
            raise ValueError(f"no such command: {line}")
        self.lines = []
        self.commands[name](arguments)
        for node in self.lab.nodes.values():
            self._note(node)
            self._note_reads(node)
        return self.lines

    # --- Observer ---------------------------------------------------------------------------------------

    def started(self, node: Node) -> None:
        self.seen[node.node_id] = (node.disk.hard_state, node.running.state.commit_index, len(node.news))

    def changed(self, node: Node) -> None:
        self._note(node)

    def sending(self, node: Node, peer: int, message: Message) -> None:
        self._note(node)
        if self.show_messages:
            lost = " (lost)" if (node.node_id, peer) in self.lab.blocked else ""
            self.lines.append(f"{node.node_id}->{peer} {describe(message)}{lost}")

    def writing(self, node: Node, operation: LogOperation) -> None:
        self._note(node)
        if isinstance(operation, AppendLog):
            self.lines.append(f"{node.node_id} appends {' '.join(map(label, operation.entries))}")
        elif isinstance(operation, ResetLog):
            self.lines.append(f"{node.node_id} empties its log after {operation.index}.{operation.term}")
        else:
            self.lines.append(f"{node.node_id} truncates its log from {operation.from_index}")

    def applying(self, node: Node, entry: Entry) -> None:
        self._note(node)
        name = f"{node.node_id} applies "
        if self.lines and self.lines[-1].startswith(name):
            self.lines[-1] = self.lines[-1].split(" to ")[0] + f" to {entry.index}"
        else:
            self.lines.append(f"{name}{entry.index}")

    def saving(self, node: Node, snapshot: Snapshot) -> None:
        self._note(node)
        held = decode_configuration(snapshot.configuration) if snapshot.configuration else node.founding
        name = f"snapshot {snapshot.index}.{snapshot.term}, {members_of(held)}"
        self.lines.append(f"{node.node_id} stores {name}")

    def loading(self, node: Node, snapshot: Snapshot) -> None:
        self._note(node)
        self.lines.append(f"{node.node_id} becomes the snapshot of {snapshot.index}")

    def _note(self, node: Node) -> None:
        if node.core is None:
            return
        stored, commit, news = self.seen[node.node_id]
        state = node.running.state
        self.lines.extend(f"{node.node_id}: {text}" for text in node.news[news:])
        if node.disk.hard_state != stored:
            vote = node.disk.hard_state.voted_for
            voted = f"vote {vote}" if vote is not None else "no vote"
            self.lines.append(f"{node.node_id} stores term {node.disk.hard_state.term}, {voted}")
        if state.commit_index != commit:
            self.lines.append(f"{node.node_id} commits {state.commit_index}")
        self.seen[node.node_id] = (node.disk.hard_state, state.commit_index, len(node.news))

    def _note_reads(self, node: Node) -> None:
        for request_id, index in node.reads_ready:
            self.lines.append(f"{node.node_id} answers read {request_id} at index {index}")
        for request_id in node.reads_failed:
            self.lines.append(f"{node.node_id} refuses read {request_id}")
        node.reads_ready.clear()
        node.reads_failed.clear()

    # --- commands ---------------------------------------------------------------------------------------

    def do_nodes(self, arguments: list[str]) -> None:
        count, *settings = arguments
        values = dict(setting.partition("=")[::2] for setting in settings)
        logs = {n: [int(t) for t in v.split(",")] for k, v in values.items() if (n := numbered(k, "log"))}
        terms = {n: HardState(int(v)) for k, v in values.items() if (n := numbered(k, "term"))}
        learners = int(values.get("learners", 0))
        spares, identities = int(values.get("spares", 0)), values.get("identities", "")
        known = {
            "learners",
            "leases",
            "spares",
            "identities",
            *(f"log{n}" for n in logs),
            *(f"term{n}" for n in terms),
        }
        options = {key: int(value) for key, value in values.items() if key not in known}
        self.lab = Lab(
            int(count),
            learners=learners,
            spares=spares,
            identities=identities,
            logs=logs,
            hard_states=terms,
            options=CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT, "leases" in values, **options),
        )
        for node in self.lab.nodes.values():
            node.observer = self
            self.started(node)

    def do_campaign(self, arguments: list[str]) -> None:
        self.lab.campaign(int(arguments[0]))

    def do_elect(self, arguments: list[str]) -> None:
        self.lab.elect(*map(int, arguments))

    def do_propose(self, arguments: list[str]) -> None:
        node_id, *words = arguments
        if self.lab.propose(int(node_id), *(word.encode() for word in words)) is None:
            self.lines.append(f"{node_id} is not the leader")

    def do_read(self, arguments: list[str]) -> None:
        self.lab.read(int(arguments[0]))

    def do_deliver(self, arguments: list[str]) -> None:
        if arguments and "->" in arguments[0]:
            sender, receiver = link(arguments[0])
            count = int(arguments[1]) if len(arguments) > 1 else None
            self.lab.deliver(sender, receiver, count)
        else:
            self.lab.exchange(*map(int, arguments))

    def do_drop(self, arguments: list[str]) -> None:
        if not arguments:
            self.lab.clear()
            return
        messages = self.lab.links[link(arguments[0])]
        del messages[: int(arguments[1]) if len(arguments) > 1 else len(messages)]

    def do_cut(self, arguments: list[str]) -> None:
        side = set(map(int, arguments))
        self.lab.blocked = {pair for pair in self.lab.links if len(side & set(pair)) == 1}
        for pair in self.lab.blocked:
            self.lab.links[pair].clear()

    def do_bridge(self, arguments: list[str]) -> None:
        bridge, *side = arguments
        self.do_cut(side)
        self.lab.blocked = {pair for pair in self.lab.blocked if int(bridge) not in pair}

    def do_lose(self, arguments: list[str]) -> None:
        self.lab.blocked.add(link(arguments[0]))
        self.lab.links[link(arguments[0])].clear()

    def do_heal(self, arguments: list[str]) -> None:
        self.lab.blocked.clear()

    def do_crash(self, arguments: list[str]) -> None:
        node_id = int(arguments[0])
        self.lab.crash(node_id)
        for sender, receiver in self.lab.links:
            if node_id in (sender, receiver):
                self.lab.links[sender, receiver].clear()

    def do_restart(self, arguments: list[str]) -> None:
        self.lab.start(int(arguments[0]))

    def do_advance(self, arguments: list[str]) -> None:
        ms, *node_ids = map(int, arguments)
        self.lab.advance(ms, *node_ids)

    def do_live(self, arguments: list[str]) -> None:
        ms, *node_ids = map(int, arguments)
        for _ in range(ms // 10):
            self.lab.advance(10, *node_ids)
            self.lab.exchange(*(node_ids or self.lab.up()))

    def do_quietly(self, arguments: list[str]) -> None:
        self.commands[arguments[0]](arguments[1:])
        for node in self.lab.nodes.values():
            self._note(node)
        self.lines.clear()

    def _change(self, leader: int, change: Callable[[Configuration], Configuration]) -> None:
        answer = self.lab.change(leader, change(self.lab.state(leader).configuration))
        if isinstance(answer, str):
            self.lines.append(f"{leader} refuses: {answer}")

    def do_add(self, arguments: list[str]) -> None:
        leader, node_id = map(int, arguments[:2])
        newcomer = server(node_id, self.lab.nodes[node_id].identity)
        promote = "promote" in arguments
        self._change(leader, lambda now: now.with_learner(newcomer, promote=promote))

    def do_promote(self, arguments: list[str]) -> None:
        leader, node_id = map(int, arguments)
        if not reconfiguration.caught_up(self.lab.state(leader), node_id):
            self.lines.append(f"{leader} knows that {node_id} has not caught up")
            return
        self._change(leader, lambda now: now.with_voter(node_id))

    def do_remove(self, arguments: list[str]) -> None:
        leader, node_id = map(int, arguments)
        self._change(leader, lambda now: now.without(node_id))

    def do_register(self, arguments: list[str]) -> None:
        heard = {n: self.lab.nodes[n].identity for n in self.lab.up()}
        self._change(int(arguments[0]), lambda now: now.with_identities(heard, "c"))

    def do_transfer(self, arguments: list[str]) -> None:
        leader, *target = map(int, arguments)
        refusal = self.lab.nodes[leader].transfer(target[0] if target else None)
        if refusal is not None:
            self.lines.append(f"{leader} refuses: {refusal}")
        self.lab.settle(leader)

    def do_snapshot(self, arguments: list[str]) -> None:
        node = self.lab.nodes[int(arguments[0])]
        node.take_snapshot()
        if "compact" in arguments:
            node.disk.compact(int(arguments[2]) if len(arguments) > 2 else node.disk.snapshot.index)

    def do_chunks(self, arguments: list[str]) -> None:
        for node in self.lab.nodes.values():
            node.chunk_bytes = node.sender.chunk_bytes = int(arguments[0])

    def do_hold(self, arguments: list[str]) -> None:
        self.lab.nodes[int(arguments[0])].loads_at_once = False

    def do_load(self, arguments: list[str]) -> None:
        self.lab.nodes[int(arguments[0])].finish_loading()
        self.lab.settle(int(arguments[0]))

    def do_abort(self, arguments: list[str]) -> None:
        self.lab.nodes[int(arguments[0])].receiver.abort()

    def do_wipe(self, arguments: list[str]) -> None:
        self.lab.wipe(int(arguments[0]))

    def do_rot(self, arguments: list[str]) -> None:
        self.lab.lose(int(arguments[0]), int(arguments[1]))

    def do_members(self, arguments: list[str]) -> None:
        for node_id, node in self.lab.nodes.items():
            if node.core is None:
                continue
            state = node.running.state
            stack = "; before it ".join(
                f"entry {index}: {members_of(each)}" for index, each in reversed(state.configurations)
            )
            self.lines.append(f"{node_id} follows {stack}")

    def do_suspect(self, arguments: list[str]) -> None:
        node_id, peer = map(int, arguments)
        self.lab.nodes[node_id].suspect(peer)
        self.lab.settle(node_id)

    def do_disconnect(self, arguments: list[str]) -> None:
        node_id, peer = map(int, arguments)
        self.lab.nodes[node_id].disconnected(peer)
        self.lab.settle(node_id)

    def do_status(self, arguments: list[str]) -> None:
        for node_id, node in self.lab.nodes.items():
            if node.core is None:
                self.lines.append(f"{node_id} is down")
                continue
            state = node.running.state
            leader = f"leader {state.leader_id}" if state.leader_id is not None else "no leader"
            self.lines.append(
                f"{node_id} {state.role.value}, term {state.term}, {leader}, "
                f"log to {state.log.last_index}, commit {state.commit_index}"
            )

    def do_log(self, arguments: list[str]) -> None:
        for node_id, node in self.lab.nodes.items():
            log = node.disk.log
            base = f"(up to {log.base_index}.{log.base_term}: a snapshot) " if log.base_index else ""
            self.lines.append(f"{node_id} has {base}{' '.join(map(label, log)) or 'nothing'}")

    def do_queue(self, arguments: list[str]) -> None:
        for (sender, receiver), messages in self.lab.links.items():
            self.lines.extend(f"{sender}->{receiver} {describe(message)}" for message in messages)

    def do_show(self, arguments: list[str]) -> None:
        self.show_messages = True

    def do_hide(self, arguments: list[str]) -> None:
        self.show_messages = False


def numbered(key: str, prefix: str) -> int:
    """3 for key log3 and prefix log; 0 if the key is something else."""
    rest = key.removeprefix(prefix)
    return int(rest) if rest != key and rest.isdigit() else 0


def link(text: str) -> tuple[int, int]:
    """(1, 2) for 1->2."""
    sender, _, receiver = text.partition("->")
    return int(sender), int(receiver)


def members_of(configuration: Configuration) -> str:
    """Who votes, and who only listens."""
    voters = f"voters {' '.join(map(str, configuration.voters))}"
    if not configuration.learners:
        return voters
    return f"{voters}, learners {' '.join(map(str, configuration.learners))}"


def label(entry: Entry) -> str:
    """index.term:data of an entry; a no-op has no data."""
    if entry.kind == EntryKind.CONFIGURATION:
        return f"{entry.index}.{entry.term}:({members_of(decode_configuration(entry.data))})"
    data = "no-op" if entry.kind == EntryKind.NOOP else entry.data.decode()
    return f"{entry.index}.{entry.term}" + ("" if data == f"{entry.index}.{entry.term}" else f":{data}")


def describe(message: Message) -> str:
    """One message in words."""
    if isinstance(message, RequestVote):
        name = "pre-vote?" if message.pre_vote else "vote?"
        return f"{name} term {message.term}, log {message.last_log_index}.{message.last_log_term}"
    if isinstance(message, RequestVoteResponse):
        name = "pre-vote" if message.pre_vote else "vote"
        return f"{name} {'yes' if message.vote_granted else 'no'}, term {message.term}"
    if isinstance(message, AppendEntries):
        entries = " ".join(map(label, message.entries)) or "nothing"
        return (
            f"append {entries} after {message.prev_log_index}.{message.prev_log_term}, "
            f"term {message.term}, commit {message.leader_commit}, round {message.round}"
        )
    if isinstance(message, AppendEntriesResponse):
        if message.success:
            return f"matches to {message.match_index}, term {message.term}, round {message.round}"
        hint = f"try {message.conflict_index}, term there {message.conflict_term}"
        return f"no match at {message.prev_log_index}, {hint}, term {message.term}, round {message.round}"
    if isinstance(message, TimeoutNow):
        return f"campaign at once, term {message.term}"
    if isinstance(message, InstallSnapshot):
        part = f"bytes {message.offset} to {message.offset + len(message.data)} of {message.total}"
        return f"snapshot {message.last_index}.{message.last_term}, {part}, term {message.term}"
    if isinstance(message, InstallSnapshotResponse):
        return f"snapshot {message.last_index} has come to byte {message.wanted}, term {message.term}"
    if isinstance(message, ReadIndexRequest) and message.log_end:
        return f"where does your log end?, term {message.term}"
    if isinstance(message, ReadIndexRequest):
        return f"read index? for read {message.request_id}"
    assert isinstance(message, ReadIndexResponse)
    if message.last_index:
        return f"my log ends at {message.last_index}, term {message.term}"
    return f"read index {message.read_index if message.ok else 'refused'} for read {message.request_id}"
