"""Agreement: the members compare digests of their replicated state at the same log index.

Replication makes the logs alike. That the same log makes the same state relies on a deterministic machine and
on memory that keeps what it was given; this finds out when either fails. At intervals the leader proposes
~DIGEST. Each member that applies it, and is not catching up, takes the digest of its state right after that
entry and sends it to all others. Each judges by itself, once it has its own:

* a majority of the voters has one digest and this node another: this node has diverged;
* no majority has one (two nodes, or all differ), and nobody is left who could make one: who differs from the
  leader of that entry's term has diverged; the leader says so and goes on, for somebody has to;
* a voter that took no digest (it is catching up, or could not fork) may be the one that knows better: no
  verdict without a majority until the next comparison.

Whoever has diverged raises DivergedError, which ends the node (rule 5): it must not serve, vote, lead or hand
on its state. A voter whose report is missing is asked for it; after WAIT_MS it counts as absent. Learners
report and judge themselves, but are not counted. A single peer can end nobody by what it reports, but for the
leader in the second case.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from raft.core.core import RaftCore
from raft.core.membership import Configuration
from raft.machine.machine import Machine
from raft.runtime.digesting import Digesting, Taken
from raft.transport.node_messages import DigestReport, PeerMessage

log = logging.getLogger(__name__)

SHARE = 100  # of the time between two comparisons, one part at most goes into a digest: 1 % of a core
ROUNDS_KEPT = 8
ASK_MS = 1000.0
WAIT_MS = 5000.0  # for a voter that says nothing, however often it is asked
LONGEST_WAIT_MS = 120_000.0  # for one that says that its digest comes later
NONE, LATER = "", "?"
_DIGEST = re.compile(r"[0-9a-f]{64}|\??")


class DivergedError(Exception):
    """This node's state is not the cluster's. Fatal."""


@dataclass(slots=True)
class _Round:
    """One comparison on this node. leader: of the entry's term, if it is known. began, ask_at: monotonic ms.

    settled: judged; only a majority that shows itself later can still change that.
    """

    index: int
    leader: int | None
    digest: str
    began: float
    ask_at: float
    settled: bool = False
    told: set[int] = field(default_factory=set)  # who differs, and was named in the log


class Agreement:
    """Owned by the worker. send(peer, message): False if it cannot be sent. interval_s: 0 for never (this
    node then proposes none; those that another leader proposes it answers)."""

    def __init__(
        self,
        core: RaftCore,
        machine: Machine,
        send: Callable[[int, PeerMessage], bool],
        *,
        interval_s: float,
        digesting: Digesting | None = None,
    ) -> None:
        self._state = core.state
        self._machine = machine
        self._send = send
        self._interval_ms = interval_s * 1000.0
        self._digesting = digesting or Digesting(machine)
        self._now = core.state.now
        self._next_ms = self._now + self._interval_ms
        self._last_index = 0  # of the last entry with ~DIGEST that was applied
        self._leader: int | None = None  # of the term of the entry whose digest is being taken
        self._rounds: dict[int, _Round] = {}  # oldest first
        self._forgotten = 0  # rounds up to this index are over
        self._heard: dict[int, dict[int, str]] = {}  # by peer and index, ROUNDS_KEPT a peer at most
        self._news = False
        self.agreed_index = 0  # the last at which this node was found to agree with a majority of the voters

    # --- the leader ---

    def due(self, now: float) -> bool:
        """Whether to propose ~DIGEST now; True once. To be asked by an established leader with a quorum."""
        if not self._interval_ms or now < self._next_ms:
            return False
        alone = not self._configuration.peers(self._state.node_id)
        idle = self._machine.applied_index == self._last_index  # what was compared is still all there is
        if alone or idle or self._digesting.running is not None:
            return False
        self._next_ms = now + self._interval_ms
        return True

    # --- everyone ---

    def applied(self, live: bool) -> None:
        """The entry just applied holds ~DIGEST. live: this node is not catching up. Raises InvariantError."""
        state, index = self._state, self._machine.applied_index
        self._last_index = index
        if not live:
            return
        # Everyone counts from here: a new leader does not hurry either.
        self._next_ms = max(self._next_ms, self._now + self._interval_ms)
        if self._digesting.running is None:
            self._leader = state.leader_id if state.term == self._machine.applied_term else None
        taken = self._digesting.begin()
        if taken is not None:
            self._take(taken)

    def on_report(self, sender: int, report: DigestReport) -> None:
        """A peer has reported, or asks. Whatever it says, it is kept within bounds and judged in poll()."""
        if not self._configuration.has(sender) or sender == self._state.node_id:
            return
        if report.index < 1 or not _DIGEST.fullmatch(report.digest):
            log.error("dropped a digest of node %d that is none", sender)
            return
        if report.wanted:
            self._send(sender, DigestReport(report.index, self._own(report.index)))
        if report.index <= self._forgotten:
            return
        heard = self._heard.setdefault(sender, {})
        if heard.get(report.index, LATER) in (NONE, LATER):  # the first digest stands
            heard.pop(report.index, None)
            heard[report.index] = report.digest
            if len(heard) > ROUNDS_KEPT:
                del heard[next(iter(heard))]
            self._news = True

    def poll(self, now: float) -> None:
        """Take up what a child has found and judge what has arrived. Once a turn, before anything is served.

        Raises DivergedError and InvariantError: the node must stop.
        """
        self._now = now
        taken = self._digesting.poll()
        if taken is not None:
            self._take(taken)
        news, self._news = self._news, False
        for one in self._rounds.values():
            if news or (not one.settled and now >= one.ask_at):
                self._judge(one)

    def close(self) -> None:
        """The node stops."""
        self._digesting.close()

    # --- inside ---

    @property
    def _configuration(self) -> Configuration:
        return self._state.configuration

    def _own(self, index: int) -> str:
        """What this node has to say of that index."""
        if index in self._rounds:
            return self._rounds[index].digest
        if index > self._machine.applied_index or index == self._digesting.running:
            return LATER
        return NONE

    def _take(self, taken: Taken) -> None:
        """This node's own digest: tell everyone."""
        now = self._now
        self._next_ms = max(self._next_ms, now + taken.cost_s * 1000 * SHARE)
        log.debug("digest at %d: %s, in %.1f ms", taken.index, taken.digest, taken.cost_s * 1000)
        self._rounds[taken.index] = _Round(taken.index, self._leader, taken.digest, now, now + ASK_MS)
        while len(self._rounds) > ROUNDS_KEPT:
            self._forgotten = next(iter(self._rounds))
            del self._rounds[self._forgotten]
        configuration = self._configuration
        for peer in self._heard.keys() - set(configuration.peers(self._state.node_id)):
            del self._heard[peer]
        for heard in self._heard.values():
            for index in [index for index in heard if index <= self._forgotten]:
                del heard[index]
        for peer in configuration.peers(self._state.node_id):
            self._send(peer, DigestReport(taken.index, taken.digest))
        self._news = True

    def _reports(self, index: int) -> dict[int, str]:
        """What every member has said of that index, this node included. Members that said nothing are not in
        it, nor are those that were removed meanwhile."""
        configuration = self._configuration
        said = {
            peer: heard[index]
            for peer, heard in self._heard.items()
            if index in heard and configuration.has(peer)
        }
        said[self._state.node_id] = self._rounds[index].digest
        return said

    def _judge(self, one: _Round) -> None:
        configuration, said = self._configuration, self._reports(one.index)
        by_digest: dict[str, list[int]] = {}
        for member, digest in sorted(said.items()):
            if digest not in (NONE, LATER):
                by_digest.setdefault(digest, []).append(member)
        majority = next((d for d, who in by_digest.items() if configuration.has_quorum(who)), None)
        if majority is not None:
            if majority != one.digest:
                raise self._diverged(one, majority, f"nodes {by_digest[majority]}, a majority,")
            one.settled = True
            self.agreed_index = max(self.agreed_index, one.index)
            self._name_others(one, said)
        elif not one.settled:
            self._judge_without_majority(one, said, by_digest)

    def _judge_without_majority(
        self, one: _Round, said: dict[int, str], by_digest: dict[str, list[int]]
    ) -> None:
        configuration = self._configuration
        waiting = [voter for voter in configuration.voters if said.get(voter, LATER) == LATER]
        if any(configuration.has_quorum([*who, *waiting]) for who in by_digest.values()):
            patience = LONGEST_WAIT_MS if any(voter in said for voter in waiting) else WAIT_MS
            if self._now < one.began + patience:
                self._ask(one, waiting)
                return
        one.settled = True
        if len(by_digest) == 1:
            return
        silent = [voter for voter in configuration.voters if said.get(voter) in (NONE, LATER)]
        me, leader = self._state.node_id, one.leader
        leaders = NONE if leader is None else said.get(leader, NONE)
        if silent or leaders in (NONE, LATER):
            log.error(
                "the members' states differ at index %d (%s), no majority agrees, nodes %s took no digest: "
                "no verdict before the next comparison", one.index, _shown(by_digest), silent or [leader],
            )  # fmt: skip
        elif leader == me:
            log.critical(
                "the members' states differ at index %d (%s) and no majority agrees: this node leads, so its "
                "state counts, the others end. It may be the wrong one: compare the data before they return",
                one.index, _shown(by_digest),
            )  # fmt: skip
        elif leaders != one.digest:
            raise self._diverged(one, leaders, f"node {leader}, the leader (no majority has one digest),")

    def _ask(self, one: _Round, waiting: list[int]) -> None:
        if self._now < one.ask_at:
            return
        one.ask_at = self._now + ASK_MS
        for voter in waiting:
            self._send(voter, DigestReport(one.index, one.digest, wanted=True))

    def _name_others(self, one: _Round, said: dict[int, str]) -> None:
        """This node agrees with a majority: tell who does not."""
        for peer, digest in said.items():
            if digest not in (NONE, LATER, one.digest) and peer not in one.told:
                one.told.add(peer)
                log.error(
                    "node %d differs: at index %d the digest of its state is %s, a majority's is %s. It ends "
                    "by itself; what to do then stands in its log", peer, one.index, digest, one.digest,
                )  # fmt: skip

    def _diverged(self, one: _Round, theirs: str, who: str) -> DivergedError:
        me = self._state.node_id
        return DivergedError(
            f"the state of node {me} has diverged: at index {one.index} its digest is {one.digest}, but "
            f"that of {who} is {theirs}. It stops, so that nobody is served from it. Do not start it again "
            "on this data: keep a copy of its data directory for analysis, then on another node RAFT REMOVE "
            f"{me}, empty the directory, and RAFT ADD {me} …; it gets everything anew"
        )


def _shown(by_digest: dict[str, list[int]]) -> str:
    return ", ".join(f"nodes {who}: {digest[:12]}…" for digest, who in by_digest.items())
