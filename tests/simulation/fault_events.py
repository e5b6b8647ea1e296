"""The single faults of a schedule: what happens at each, and what is told of it."""

from __future__ import annotations

import random

from raft.core.state import Role
from tests.simulation import disk_faults
from tests.simulation.events import Plan
from tests.simulation.hosts import Host
from tests.simulation.races import Races
from tests.simulation.turns import Turns


class FaultEvents(Turns):
    """A part of Simulation, which has what is declared here."""

    plan: Plan
    races: Races

    def _fault(self, times: random.Random) -> None:
        if self.calm:
            return
        self._at(self.now + times.expovariate(1 / self.faults.fault_every_ms), lambda: self._fault(times))
        event = self.plan.next_event("f", self._fault_weights())
        if event is None:
            return
        name, kind, rng = event
        if told := getattr(self, f"_fault_{kind}")(rng):  # "": it had no effect
            self.plan.record(name, self.now, kind, told)

    def _fault_weights(self) -> dict[str, float]:
        """By the names of the methods below."""
        faults, snapshots, changes = self.faults, self.scenario.snapshots, self.scenario.changes
        disk = self.scenario.disk
        return {
            "crash": faults.crash,
            "partition": faults.partition,
            "heal": faults.heal,
            "pause": faults.pause,
            "suspect": faults.suspect,
            "clock_jump": faults.clock_jump,
            "wall_jump": faults.wall_jump,
            "abort": snapshots.abort if snapshots is not None else 0.0,
            "wipe": changes.wipe if changes is not None else 0.0,
            "disk_error": disk.error,
            "disk_full": disk.full,
            "damage": disk.damage,
            "race": faults.race,
        }

    def _any_host(self, rng: random.Random) -> Host:
        leaders = [host for host in self.hosts.values() if host.node.role is Role.LEADER]
        return rng.choice(leaders if leaders and rng.random() < 0.6 else list(self.hosts.values()))

    def _fault_crash(self, rng: random.Random) -> str:
        victims = list(self.hosts.values()) if rng.random() < 0.1 else [self._any_host(rng)]
        told = []
        for host in victims:
            if host.up and host.crash_in is None:
                host.crash_in = rng.choice((0, 0, 1, 2, 3, 5, 8))
                host.crash_rng = random.Random(rng.random())
                told.append(f"{host.node.node_id}")
                if rng.random() < self.scenario.disk.dies_in_call:
                    host.crash_in, host.node.disk.platter.dies_in = (
                        1 << 30,
                        rng.choice((0, 1, 2, 3, 5, 8, 13, 21)),
                    )
                    continue
                if host.turn is None and rng.random() < 0.5:
                    self._crash(host)
        return f"node {', '.join(told)}" if told else ""

    def _fault_race(self, rng: random.Random) -> str:
        return self.races.begin(rng)

    def _fault_heal(self, rng: random.Random) -> str:
        blocked = len(self.network.blocked)
        self.network.heal()
        return f"{blocked} links" if blocked else ""

    def _fault_abort(self, rng: random.Random) -> str:
        host = self._any_host(rng)
        if not host.up:
            return ""
        unfinished = 0

        def abort(host: Host) -> None:
            nonlocal unfinished
            unfinished = host.node.abort_snapshot()

        self._guard(host, abort)
        return f"node {host.node.node_id} after {unfinished} bytes" if unfinished else ""

    def _fault_wipe(self, rng: random.Random) -> str:
        """A disk is lost."""
        host = self._any_host(rng)
        if host.crash_in is not None or not self.members.may_be_wiped(host.node.node_id):
            return ""
        if host.up:
            host.crash_rng = rng
            self._crash(host)
        self._wipe(host)
        return f"node {host.node.node_id}"

    def _fault_disk_error(self, rng: random.Random) -> str:
        return disk_faults.let_fail(self._any_host(rng), rng)

    def _fault_disk_full(self, rng: random.Random) -> str:
        host = self._any_host(rng)
        told = disk_faults.fill(host, rng)
        if told:
            until = self.now + rng.expovariate(1 / self.scenario.disk.full_ms)
            self._at(until, lambda: self._free_disk(host))
        return told

    def _free_disk(self, host: Host) -> None:
        host.node.disk.platter.free = None

    def _fault_damage(self, rng: random.Random) -> str:
        """A node is down, or goes down, and comes back to a file that is not as it was."""
        host = self._any_host(rng)
        if host.crash_in is not None or not disk_faults.may_be_damaged(host.node.node_id, self.members):
            return ""
        if host.up:
            host.crash_rng = rng
            self._crash(host)
        return disk_faults.damage(host, rng, self.members)

    def _fault_partition(self, rng: random.Random) -> str:
        leaders = [n for n, host in self.hosts.items() if host.node.role is Role.LEADER]
        before = self.network.blocked
        if self.scenario.isolate_leader and leaders:
            told = self.network.isolate(rng, rng.choice(leaders), list(self.hosts))
        else:
            told = self.network.partition(rng, list(self.hosts))
        return told if self.network.blocked != before else ""

    def _fault_pause(self, rng: random.Random) -> str:
        host, pause = self._any_host(rng), rng.choice((50, 200, 700))
        host.paused_until = self.now + pause
        return f"node {host.node.node_id} for {pause} ms"

    def _fault_suspect(self, rng: random.Random) -> str:
        host = self._any_host(rng)
        if not host.up or host.turn is not None or self.now < host.paused_until:
            return ""
        leader = host.node.running.state.leader_id
        suspected = leader if leader is not None else self._any_host(rng).node.node_id
        host.node.suspect(suspected)
        self.wake(host)
        return f"node {host.node.node_id} suspects {suspected}"

    def _fault_clock_jump(self, rng: random.Random) -> str:
        host, jump = self._any_host(rng), rng.uniform(10, 1000)
        host.clock_start += jump
        return f"node {host.node.node_id} by {jump:.0f} ms"

    def _fault_wall_jump(self, rng: random.Random) -> str:
        host, jump = self._any_host(rng), rng.choice((-5000, -300, 300, 5000, 30_000))
        if self.scenario.service.sessions_expire and rng.random() < 0.2:
            jump = 2 * 60 * 60 * 1000
        host.wall_offset += jump
        return f"the wall clock of node {host.node.node_id} by {jump} ms"
