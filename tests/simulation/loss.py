"""Schedules in which disks lose the end of a log, and say so: python -m tests.simulation.loss [--seeds N] …

A node that is down loses its log from some entry on, acknowledged or not (raft/core/recovery.py). Never so
many at a time that the others could not elect a leader: they would have to wait for ever. Everything that the
simulation does otherwise goes on: delayed answers from before the loss, crashes, partitions, snapshots.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import replace

from raft.core.state import Role
from tests.simulation.checker import Checker
from tests.simulation.faults import Scenario, draw_read_race, draw_scenario
from tests.simulation.node import Node
from tests.simulation.simulation import Simulation


def draw_loss(rng: random.Random) -> Scenario:
    """Three voters or more, who stay what they are; every fourth schedule is full of late answers. In two of
    three a node is soon back, and leaders live long enough to give it again what it has lost."""
    draw = draw_read_race if rng.random() < 0.25 else draw_scenario
    quiet = rng.random() < 0.7
    while True:
        scenario = draw(rng)
        if scenario.changes is not None or len(scenario.configuration.voters) < 3:
            continue
        scenario = replace(scenario, disk=replace(scenario.disk, damage=0.0))  # there is loss enough
        if not quiet:
            return scenario
        faults = replace(
            scenario.faults,
            drop=scenario.faults.drop / 10,
            crash=scenario.faults.crash / 3,
            partition=scenario.faults.partition / 3,
            heal=1.0,
            down_ms=15.0,
            fault_every_ms=250.0,
        )
        return replace(scenario, faults=faults)


class LossChecker(Checker):
    """Knows who has lost what: a leader may find out that a match went back, and may count for a while what
    was acknowledged and is lost."""

    def lost(self, node: Node) -> None:
        """The node is about to lose entries."""
        self.wiped[node.node_id] = max(self.wiped.get(node.node_id, 0), node.disk.synced_index())

    def changed(self, node: Node) -> None:
        for peer in self.wiped:
            self.seen[node.node_id].match.pop(peer, None)
        super().changed(node)


class LossSimulation(Simulation):
    """One schedule with losses."""

    def __init__(self, seed: int) -> None:
        self.losses = 0
        self.healthy: set[int] = set()  # whom the end of the schedule makes whole
        super().__init__(seed, draw_loss(random.Random(f"loss {seed}")))

    def _new_checker(self) -> Checker:
        return LossChecker(self.nodes)

    def _fault_weights(self) -> dict[str, float]:
        weights = super()._fault_weights()
        return {**weights, "loss": 0.5 * sum(weights.values())}

    def _recovering(self) -> set[int]:
        return {n for n, node in self.nodes.items() if node.disk.lost is not None}

    def _fault_loss(self, rng: random.Random) -> str:
        """A node goes down, and comes back without the end of its log."""
        followers = [host for host in self.hosts.values() if host.node.role is not Role.LEADER]
        host = rng.choice(followers) if followers and rng.random() < 0.8 else self._any_host(rng)
        node = host.node
        if host.crash_in is not None or not node.disk.hard_state.term:
            return ""  # who has never been in a term has nothing to lose, and no marker can say so
        if not self.members.is_available(set(self.nodes) - self._recovering() - {node.node_id}):
            return ""
        if host.up:
            host.crash_rng = rng
            self._crash(host)
        assert isinstance(self.checker, LossChecker)
        self.checker.lost(node)
        disk = node.disk
        first = max(disk.synced.base_index, disk.snapshot.index) + 1
        last = disk.synced.last_index
        lost_from = max(first, rng.choice((last, last - 1, rng.randint(min(first, last), last))))
        disk.lose(lost_from)
        self.losses += 1
        return f"node {node.node_id} from entry {lost_from} of {last} on"

    def _draw_healthy(self) -> set[int]:
        """Whom it can do without: the rest must be able to elect one without those who may not vote."""
        healthy, rng = set(self.hosts), self.plan.stream("healing")
        if rng.random() < 0.5:
            for node_id in rng.sample(sorted(healthy), len(healthy)):
                if self.members.is_available(healthy - {node_id} - self._recovering()):
                    healthy.discard(node_id)
        self.healthy = healthy
        return healthy

    def expect_progress(self) -> None:
        """Those who are left heal, too, and then have everything: nothing is excused any more."""
        super().expect_progress()
        what = f"healing of {sorted(self.healthy)}"
        self._until(lambda: not self._recovering() & self.healthy, self._patience_ms(), what)
        if not self._recovering():
            self.checker.wiped.clear()
            self.checker.check_everything_kept(self.scenario.configuration)


def main() -> int:
    """Exit 1 if a seed failed; every failing seed is printed with its reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.loss", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--steps", type=int, default=2000, help="steps with faults per seed")
    arguments = parser.parse_args()
    began, steps, losses, failed = time.monotonic(), 0, 0, 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        simulation = LossSimulation(seed)
        try:
            simulation.run(arguments.steps)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            failed += 1
            print(f"seed {seed}, step {simulation.steps}: {type(error).__name__}: {error}", flush=True)
        steps, losses = steps + simulation.steps, losses + simulation.losses
    spent = time.monotonic() - began
    print(f"{arguments.seeds} seeds, {failed} failed, {losses} losses, {steps} steps in {spent:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
