"""The operator of a simulated cluster: adds, promotes, removes members, moves leadership, loses disks.

Also who must be up for a cluster to be available: a majority of every configuration that may be in force.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from raft.core import reconfiguration
from raft.core.membership import Configuration, Server, decode_configuration, encode_configuration
from raft.core.state import Role
from tests.simulation.checker import Checker
from tests.simulation.faults import Changes
from tests.simulation.node import Node


class Members:
    """Which configurations there are, who is a member, whose disk is still the one that made promises."""

    def __init__(self, nodes: Mapping[int, Node], checker: Checker, founding: Configuration) -> None:
        self.nodes = nodes
        self.checker = checker
        self.founding = founding
        self.lives: dict[int, int] = {}
        self.changes_made = 0
        self.wipes = 0
        self.damaged: set[int] = set()  # down, with a damaged file
        self.refused: set[int] = set()  # its storage was not opened, and never will be

    def committed(self) -> Configuration:
        """The newest committed configuration."""
        return self.checker.configuration() or self.founding

    def possible(self) -> list[Configuration]:
        """Every configuration that may be in force, or come into force without a new decision: not those
        in logs which lack something committed, so that they can never be a leader's."""
        committed = self.checker.committed
        last, last_term = len(committed), committed[-1].entry.term if committed else 0
        found = [self.committed()]
        for node in self.nodes.values():
            found.extend(
                decode_configuration(entry.data)
                for entry in node.disk.log.configurations
                if entry.index > last and entry.term >= last_term
            )
            if node.core is not None:
                state = node.running.state
                found.extend(
                    each
                    for index, each in state.configurations
                    if index > last and state.log.term(index) >= last_term
                )
        return found

    def is_lost(self, node_id: int, configuration: Configuration) -> bool:
        """Whether the member's disk is not the one that the configuration has recorded, or is of no use."""
        if node_id in self.refused or node_id in self.damaged:
            return True
        recorded = configuration.identity_of(node_id)
        return bool(recorded) and recorded != self.nodes[node_id].identity

    def is_available(self, nodes: set[int]) -> bool:
        """Whether these nodes alone can elect and commit, whatever configuration turns out to hold."""
        return all(
            each.has_quorum(n for n in nodes & set(each.voters) if self._may_vote(n, each))
            for now in self.possible()
            for each in self._promoted(now)
        )

    def _promoted(self, configuration: Configuration) -> list[Configuration]:
        """The configuration, and all that it becomes if some of its learners are promoted, one by one."""
        found = [configuration]
        for learner in configuration.promote:
            if self._may_be_promoted(learner, configuration):
                found += [each.with_voter(learner) for each in found]
        return found

    def _may_be_promoted(self, node_id: int, configuration: Configuration) -> bool:
        """Whether the learner may become a voter by itself: it has a log, and enough disks are recorded. Who
        has lost its disk, or may not start with it, never catches up."""
        if self.is_lost(node_id, configuration):
            return False
        refusal = reconfiguration.refuse_disks(configuration, configuration.with_voter(node_id))
        return (refusal is None or not self.nodes[node_id].identity) and self._is_settled(node_id)

    def _may_vote(self, node_id: int, configuration: Configuration) -> bool:
        """Whether the node's vote can be had: not if its disk is lost, or if nobody knows whether it is: it
        was away until now, and is not recorded, though others are."""
        node = self.nodes[node_id]
        unknown = bool(node.identity) and not configuration.identity_of(node_id)
        joining = unknown and not node.founding.has(node_id) and not self._is_settled(node_id)
        founded = any(configuration.identity_of(voter) for voter in configuration.voters)
        return not joining and not (unknown and founded) and not self.is_lost(node_id, configuration)

    def _knows(self, node_id: int, other: int) -> bool:
        """Whether the identity of the other's disk is recorded in what the node has on its own."""
        disk = self.nodes[node_id].disk
        configurations = disk.synced.configurations
        data = configurations[-1].data if configurations else disk.snapshot.configuration
        return bool(data) and bool(decode_configuration(data).identity_of(other))

    def _is_settled(self, node_id: int) -> bool:
        """Whether the node's log can never be empty again."""
        committed = self.checker.committed
        return bool(committed) and self.nodes[node_id].disk.holds(1, committed[0].entry.term)

    def may_be_wiped(self, node_id: int) -> bool:
        """Losing this disk is a fault that a cluster must survive: the identity is recorded and committed, it
        is the only one lost, and the others are a majority."""
        committed = self.committed()
        if not committed.has(node_id):
            return False
        possible = self.possible()
        if any(self.is_lost(n, each) for each in possible for n in (*each.voters, *each.learners)):
            return False
        if any(each.has(node_id) and not each.identity_of(node_id) for each in possible):
            return False
        if not all(self._knows(n, node_id) for n in committed.voters):
            return False  # who has not heard of the record would take the new disk for a founding member's
        settled = {n for n in self.nodes if self._is_settled(n)}
        return self.is_available(settled - {node_id})

    def wipe(self, node: Node) -> None:
        """The node, which is down, gets an empty disk with another identity.

        It begins as a founding member does, unless so many have lost their disks by now that they could found
        another cluster among themselves: then it knows that it is to join one."""
        self.checker.forget(node)
        fresh = {*self.lives, node.node_id} | {n for n in self.nodes if not self._knows(n, node.node_id)}
        joins = self.founding.has_quorum(fresh)
        node.founding = self.founding.without(node.node_id) if joins else self.founding
        self.checker.founding.add(encode_configuration(node.founding))
        self.lives[node.node_id] = self.lives.get(node.node_id, 1) + 1
        node.disk = node.disk.blank()
        node.identity = f"{node.node_id}.{self.lives[node.node_id]}"
        self.wipes += 1

    # --- the operator -----------------------------------------------------------------------------------

    def change(self, rng: random.Random, leader: Node, changes: Changes) -> str:
        """One order to a leader, which may refuse it. Returns what it took, "" for nothing."""
        state = leader.running.state
        configuration = state.configuration
        everyone = (*configuration.voters, *configuration.learners)
        lost = [n for n in everyone if self.is_lost(n, configuration)]
        if lost:  # who has lost a disk has no second voter to spare
            return self._order(leader, configuration.without(rng.choice(lost)))
        unknown = [s.id for s in configuration.servers if not s.identity] if changes.identities else []
        removable = len(everyone) > 1 and not unknown  # nobody knows whether these can vote
        strangers = [n for n in self.nodes if not configuration.has(n)]
        ready = [n for n in configuration.learners if reconfiguration.caught_up(state, n)]
        kinds: dict[Callable[[], Configuration | str], float] = {
            lambda: configuration.with_identities(self._heard(), "c"): 5.0 if unknown else 0.0,
            lambda: self._with_learner(rng, configuration, rng.choice(strangers)): 1.5 if strangers else 0.0,
            lambda: configuration.with_voter(rng.choice(ready)): 1.0 if ready else 0.0,
            lambda: configuration.without(self._leaver(rng, leader)): 1.0 if removable else 0.0,
            lambda: self._transfer(leader, rng.choice((None, *configuration.voters))): changes.transfer,
        }
        if not any(kinds.values()):
            return ""
        wanted = rng.choices(list(kinds), list(kinds.values()))[0]()
        if isinstance(wanted, str):
            return wanted
        return self._order(leader, wanted) if 1 <= len(wanted.voters) <= 7 else ""

    def _order(self, leader: Node, wanted: Configuration) -> str:
        if not isinstance(leader.change_configuration(wanted), int):
            return ""
        self.changes_made += 1
        learners = f", learners {list(wanted.learners)}" if wanted.learners else ""
        return f"leader {leader.node_id}: voters {list(wanted.voters)}{learners}"

    def _transfer(self, leader: Node, target: int | None) -> str:
        refused = leader.transfer(target) is not None
        return "" if refused else f"leader {leader.node_id} gives way to {target or 'anyone'}"

    def _heard(self) -> dict[int, str]:
        return {n: node.identity for n, node in self.nodes.items() if node.core is not None}

    def _with_learner(self, rng: random.Random, configuration: Configuration, node_id: int) -> Configuration:
        identity = self.nodes[node_id].identity if rng.random() < 0.5 else ""
        server = Server(node_id, f"host{node_id}", 1, 2, 3, identity)
        return configuration.with_learner(server, promote=rng.random() < 0.7)

    def _leaver(self, rng: random.Random, leader: Node) -> int:
        configuration = leader.running.state.configuration
        if rng.random() < 0.3 and configuration.has(leader.node_id):
            return leader.node_id
        return rng.choice((*configuration.voters, *configuration.learners))


def leaders(nodes: Mapping[int, Node]) -> list[Node]:
    """Those that take themselves for leaders."""
    return [node for node in nodes.values() if node.role is Role.LEADER]
