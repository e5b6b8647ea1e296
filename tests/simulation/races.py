"""Races in which a stale read could be had, staged: an old leader that does not know it, a successor elected
as early as the rules allow, a writer who is answered by the successor, and readers at the old leader at once.

A read is stale only against what was acknowledged before it began. So who is to be caught must take the read
after the successor's first acknowledgement: as a leader that is cut off, as one that has handed over, or in a
turn that began before and was stopped in between. A new leader is asked before its term's first commit.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis

from raft.core.state import Role
from tests.simulation.workload import is_unexecuted, is_unknown

if TYPE_CHECKING:
    from tests.simulation.hosts import Host
    from tests.simulation.network import Link
    from tests.simulation.simulation import Simulation

MOST_READS = 16  # that wait at one node
GOES_ON, HEARS_OF_SUCCESSOR, GIVES_WAY = "goes on", "hears of its successor", "gives way"


class Races:
    """One race at a time, among the faults of a schedule."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.rng = simulation.plan.stream("races")
        self.network, self.workload = simulation.network, simulation.workload
        self.until = 0.0
        self.number = 0
        self.old: Host | None = None
        self.cut: set[Link] = set()
        self.cut_at_answer = False  # the leader is cut off as soon as it has acknowledged the next write
        self.companion: int | None = None  # is cut off together with the old leader, and asks it
        self.next_turn = ""  # what the old leader does after it has stopped in mid-turn
        self.writing: set[int] = set()  # nodes that have a write of the race

    def begin(self, rng: random.Random) -> str:
        """Stage one. Returns what, "" if nobody leads, or another race is under way."""
        simulation, now = self.simulation, self.simulation.now
        old = self._newest_leader()
        if now < self.until or old is None or old.turn is not None or now < old.paused_until:
            return ""
        state = old.node.running.state
        if state.commit_index < state.term_first_index:
            return ""
        kinds = [self._depose]
        if len(simulation.scenario.configuration.voters) > 2:
            kinds += [self._depose, self._leave_behind, self._leave_behind, self._hand_over]
            if simulation.scenario.options.lease_reads:
                kinds += [self._stop, self._stop]
        self.old, self.rng = old, random.Random(rng.random())
        self.cut_at_answer, self.next_turn, self.companion = False, "", None
        self.writing.clear()
        self.until = now + 1.6 * simulation.scenario.options.election_timeout_min_ms + 100
        told = rng.choice(kinds)(old)
        self._stir()
        return f"node {old.node.node_id} {told}"

    # --- what becomes of the old leader -------------------------------------------------------------------

    def _depose(self, old: Host) -> str:
        self._cut_off(old)
        return "is cut off"

    def _leave_behind(self, old: Host) -> str:
        """Only as many as must be get the next entries; then the leader is gone. Who leads next needs the
        others' word, and does not know yet what was committed."""
        me = old.node.node_id
        others = [node_id for node_id in self.simulation.scenario.configuration.voters if node_id != me]
        behind = self.rng.sample(others, (len(others) + 1) // 2 if len(others) != 3 else 1)
        self._block({(me, node_id) for node_id in behind})
        self.simulation.at(self.simulation.now + self.rng.uniform(5, 40), self._await_answer)
        return f"leaves {', '.join(map(str, sorted(behind)))} behind"

    def _await_answer(self) -> None:
        self.cut_at_answer = True

    def _hand_over(self, old: Host) -> str:
        """Once the successor has been told to campaign, the old leader hears nothing any more."""
        refusal = old.node.transfer(None)
        self.simulation.wake(old)
        if refusal is None:
            self._until_told(old, old.node.incarnation)
        return "hands over"

    def _until_told(self, old: Host, incarnation: int) -> None:
        if old.node.incarnation != incarnation or not old.up or self.simulation.calm:
            return
        state = old.node.running.state
        if state.transfer_sent and old.turn is None:
            self._deafen(old)
        elif state.transfer_target is not None:
            self.simulation.at(self.simulation.now + 0.3, partial(self._until_told, old, incarnation))

    def _stop(self, old: Host) -> str:
        """The process stands still in mid-turn, after it has looked at the clock; what clients ask meanwhile
        is in time for that turn. Then it goes on, hears of its successor, or gives way to somebody whose
        acknowledgement it was waiting for: slow reads are left for that next turn."""
        stall_ms = self.rng.uniform(1.2, 1.8) * self.simulation.scenario.options.election_timeout_min_ms
        self.next_turn = self.rng.choice((GOES_ON, HEARS_OF_SUCCESSOR, GIVES_WAY, GIVES_WAY))
        if self.next_turn == GIVES_WAY:
            self._write(old)
            self._give_way(old, old.node.incarnation, stall_ms)
        else:
            self._stall(old, stall_ms)
        return f"stops for {stall_ms:.0f} ms and {self.next_turn}"

    def _give_way(self, old: Host, incarnation: int, stall_ms: float) -> None:
        """Once the write is on its way to the others: only its acknowledgement is lacking."""
        if old.node.incarnation != incarnation or not old.up or self.simulation.calm:
            return
        if old.turn is not None:
            again = partial(self._give_way, old, incarnation, stall_ms)
            self.simulation.at(self.simulation.now + 0.1, again)
        elif old.node.role is Role.LEADER:
            old.node.transfer(None)
            self._stall(old, stall_ms)

    def _stall(self, old: Host, stall_ms: float) -> None:
        old.stall_ms = stall_ms
        if self.next_turn != HEARS_OF_SUCCESSOR:
            self.simulation.at(self.simulation.now + 20, partial(self._deafen, old))
        self._suspect_soon(old)
        self.simulation.wake(old)

    def _deafen(self, old: Host) -> None:
        if self.simulation.now < self.until and not self.simulation.calm:
            self._block({(other, old.node.node_id) for other in self.simulation.hosts})

    def _cut_off(self, old: Host) -> None:
        """Alone, or with a companion: what the leader confirms to that one rests on nobody's second look."""
        me = old.node.node_id
        self.cut_at_answer = False
        self._heal()
        self.companion = self._draw_companion(me)
        inside = {me, self.companion}
        outside = [node_id for node_id in self.simulation.hosts if node_id not in inside]
        pairs = {(a, b) for a in inside if a is not None for b in outside}
        self._block(pairs | {(b, a) for a, b in pairs})
        self._suspect_soon(old)

    def _draw_companion(self, me: int) -> int | None:
        """One whom the successor does not need."""
        configuration = self.simulation.scenario.configuration
        voters = configuration.voters if len(configuration.voters) > 4 else ()
        spare = [node_id for node_id in (*configuration.learners, *voters) if node_id != me]
        return self.rng.choice(spare) if spare and self.rng.random() < 0.7 else None

    def _suspect_soon(self, old: Host) -> None:
        """Their connections to the leader break as well: nobody waits longer than he must."""
        for after_ms in (5, 50, 100, 145):  # again, since late heartbeats may have soothed them
            self.simulation.at(self.simulation.now + after_ms, partial(self._suspect, old))

    def _suspect(self, old: Host) -> None:
        for host in self.simulation.hosts.values():
            ready = host.up and host.turn is None and self.simulation.now >= host.paused_until
            if host is not old and ready and host.node.running.state.leader_id == old.node.node_id:
                host.node.suspect(old.node.node_id)
                self.simulation.wake(host)

    def _block(self, links: set[Link]) -> None:
        self.cut |= links
        self.network.blocked = self.network.blocked | links

    def _heal(self) -> None:
        self.network.blocked = self.network.blocked - self.cut
        self.cut = set()

    # --- writer and readers -----------------------------------------------------------------------------

    def _newest_leader(self) -> Host | None:
        leaders = [host for host in self.simulation.hosts.values() if host.node.role is Role.LEADER]
        return max(leaders, key=lambda host: host.node.running.state.term, default=None)

    def _stir(self) -> None:
        """The writer at the newest leader, the readers at all; often as long as something is at stake."""
        simulation = self.simulation
        if simulation.calm:
            return
        if simulation.now >= self.until:
            self._heal()
            return
        newest = self._newest_leader()
        if newest is not None:
            at_stake = newest is not self.old or bool(self.cut)
            if newest is not self.old:
                self._read(newest)
            self._write(newest)
            soon = 1.0 if at_stake and newest is not self.old else 5.0
        else:
            soon = 3.0
        simulation.at(simulation.now + self.rng.uniform(0.5, 1.0) * soon, self._stir)

    def _write(self, host: Host) -> None:
        node_id = host.node.node_id
        if node_id in self.writing or not host.up:
            return
        self.number += 1
        words = (b"SET", b"race", b"%d" % self.number)
        self.workload.machines.model.single.add(words)
        self.writing.add(node_id)
        number = self.workload.next_number
        answered = partial(self._written, host, number, words)
        self.workload.ask(host.node, [list(words)], True, answered, lambda: self.writing.discard(node_id))

    def _written(self, host: Host, number: int, words: tuple[bytes, ...], replies: list[Any]) -> None:
        self.writing.discard(host.node.node_id)
        machines, reply = self.workload.machines, replies[0]
        if is_unexecuted(reply):
            machines.refuse(words)
            return
        if is_unknown(reply):
            return
        answer = str(reply) if isinstance(reply, hiredis.ReplyError) else reply
        self.workload.written(number, machines.index_of(words, answer))
        if self.simulation.now >= self.until or self.simulation.calm:
            return
        if self.cut_at_answer and host is self.old:
            self._cut_off(host)
            return
        self.simulation.at(self.simulation.now + self.rng.uniform(0, 1), self._read_everywhere)

    def _read_everywhere(self) -> None:
        newest = self._newest_leader()
        for host in self.simulation.hosts.values():
            is_companion = host.up and host.node.node_id == self.companion
            if is_companion or (host.node.role is Role.LEADER and host is not newest):
                self._read(host)

    def _read(self, host: Host) -> None:
        if len(self.workload.requests.get(host.node.node_id, ())) >= MOST_READS:
            return
        is_slow = host is self.old and self.next_turn in (HEARS_OF_SUCCESSOR, GIVES_WAY)
        commands = [b"KEYS", b"*"] if is_slow else [b"MGET", b"race"]
        for _ in range(3 if is_slow else 1):
            if host.up:
                self.workload.ask(host.node, [commands], False, _ignore, _nothing)


def _ignore(_replies: list[Any]) -> None:
    pass


def _nothing() -> None:
    pass
