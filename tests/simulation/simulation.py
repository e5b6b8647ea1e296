"""A seeded cluster: one number decides every message's fate, every crash, every clock.

    Simulation(seed).run(steps)      faults for that many steps, then a majority is healed and must progress

Everything happens in simulated time on an agenda of events; a step is one event. The checker looks at every
single change inside every core (tests/simulation/checker.py). The same seed always gives the same schedule.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from raft.core.membership import encode_configuration
from raft.core.state import Role
from tests.simulation.aftermath import Aftermath
from tests.simulation.checker import Checker, violated
from tests.simulation.events import Plan
from tests.simulation.fault_events import FaultEvents
from tests.simulation.faults import Scenario, draw_read_race, draw_scenario
from tests.simulation.hosts import Host
from tests.simulation.machines import Machines
from tests.simulation.members import Members, leaders
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.projector import Mongo, Projector
from tests.simulation.races import Races
from tests.simulation.service import Service
from tests.simulation.stored import StoredDisk
from tests.simulation.stored_node import StoredNode
from tests.simulation.streaming import Library
from tests.simulation.workload import Workload


def is_read_race(seed: int) -> bool:
    """Every fifth schedule is made for the races in which a stale read could be had."""
    return seed % 5 == 4


def scenario_of(seed: int) -> Scenario:
    """What the seed draws, before anything is left out."""
    return (draw_read_race if is_read_race(seed) else draw_scenario)(random.Random(seed))


class Simulation(FaultEvents, Aftermath):
    """One schedule. Raises SafetyViolation, or whatever the core raises, at the step where it went wrong."""

    def __init__(self, seed: int, scenario: Scenario | None = None, plan: Plan | None = None) -> None:
        self.seed = seed
        self.plan = plan or Plan(seed)
        self.scenario = scenario or scenario_of(seed)
        self.faults = self.scenario.faults
        self.now = 0.0
        self.steps = 0
        self.steps_at_once = 0
        self.sequence = 0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.hosts: dict[int, Host] = {}
        self.nodes: dict[int, StoredNode] = {}
        self.checker = self._new_checker()
        self.checker.founding.add(encode_configuration(self.scenario.configuration))
        self.members = Members(self.nodes, self.checker, self.scenario.configuration)
        self.library = Library()
        self.refusals: list[str] = []  # of damaged disks
        self.machines = Machines(self.scenario.service)
        self.workload = Workload(self, self.scenario, self.machines)
        self.machines.listener = self._published
        self.crowd_rng = self.plan.stream("crowd")
        self.mongo = (
            Mongo(self.plan.stream("mongodb"), self.machines.books) if self.scenario.mongodb else None
        )
        self.calm = False
        self.network = Network(
            self.plan,
            self.faults,
            now=lambda: self.now,
            deliver_at=self._deliver_at,
            break_at=lambda at, link: self._at(at, lambda: self._break_link(link)),
        )
        self.races = Races(self)
        configuration = self.scenario.configuration
        for node_id in (*configuration.voters, *configuration.learners, *self.scenario.spares):
            self._add_host(node_id)
        for host in self.hosts.values():
            self._start(host)
        for number in range(self.scenario.clients):
            self._begin(self._client, self.plan.stream(f"client {number}"), 0, 50)
        self._begin(self._fault, self.plan.schedule("f"), 100, 600)
        if self.scenario.changes is not None:
            self._begin(self._change_members, self.plan.schedule("c"), 100, 600)
        if self.mongo is not None:
            self.machines.vouched_for = lambda: 0 if self.mongo is None else self.mongo.checkpoint
            self._begin(self._project, self.plan.stream("projectors"), 0, 50)
        if self.scenario.load_every_ms:
            self._begin(self._load, self.plan.stream("load"), 0, 50)

    def _begin(
        self, actor: Callable[[random.Random], None], rng: random.Random, low_ms: float, high_ms: float
    ) -> None:
        self._at(rng.uniform(low_ms, high_ms), lambda: actor(rng))

    def _new_checker(self) -> Checker:
        return Checker(self.nodes)

    def _add_host(self, node_id: int) -> None:
        scenario = self.scenario
        node = self.nodes[node_id] = StoredNode(
            node_id,
            scenario.configuration,
            options=scenario.options,
            clock=lambda: self.hosts[node_id].local_ms(self.now),
            send=self.network.send,
            disk=StoredDisk(node_id, scenario.storage, self.library),
            observer=self.checker,
            identity=f"{node_id}.1" if scenario.changes is not None and scenario.changes.identities else "",
            library=self.library,
            chunk_bytes=scenario.snapshots.chunk_bytes if scenario.snapshots is not None else 1 << 20,
        )
        node.make_service = self._new_service
        self.hosts[node_id] = Host(
            node,
            scenario.clock_rates[node_id],
            scenario.clock_starts[node_id],
            self.plan,
        )

    def _new_service(self, node: Node) -> Service:
        host = self.hosts[node.node_id]
        service = Service(
            node,
            self.scenario.service,
            wall=lambda: host.wall_ms(self.now),
            post=self.network.post,
            wake=lambda: self._wake_for_clients(host),
            watcher=self.machines,
        )
        if self.mongo is not None:
            service.projector = Projector(service, self.mongo)
        return service

    # --- the agenda -------------------------------------------------------------------------------------

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self.at(when, action)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have something done at a time, ms."""
        self.sequence += 1
        heapq.heappush(self.agenda, (when, self.sequence, action))

    def step(self) -> None:
        """The next event."""
        before = self.now
        self.now, _, action = heapq.heappop(self.agenda)
        self.steps += 1
        self.steps_at_once = self.steps_at_once + 1 if self.now == before else 0
        if self.steps_at_once > 1000:
            violated(f"a node is busy without end: time stands still; {self.describe()}")
        action()

    def run(self, steps: int) -> None:
        """`steps` events with faults, then healing; raises at the first thing that is not as it must be."""
        for _ in range(steps):
            self.step()
        self.expect_progress()

    # --- clients ----------------------------------------------------------------------------------------

    def _client(self, rng: random.Random) -> None:
        self._at(self.now + rng.expovariate(1 / self._client_every_ms()), lambda: self._client(rng))
        self.workload.act(rng)

    def _project(self, rng: random.Random) -> None:
        """One of the projectors that have something to do goes on."""
        self._at(self.now + rng.uniform(5, 40), lambda: self._project(rng))
        services = [host.node.service for host in self.hosts.values() if host.node.service is not None]
        ready = [each for each in services if each.projector.busy or each.state.role is Role.LEADER]
        if ready:
            rng.choice(ready).projector.act()

    def any_node(self, rng: random.Random) -> Node | None:
        """A node that a client can talk to: mostly a leader."""
        ready = [host.node for host in self.hosts.values() if host.up]
        leaders = [node for node in ready if node.role is Role.LEADER]
        to_leader = rng.random() < (0.3 if self.calm else 0.6)  # when calm, every node must answer soon
        return rng.choice(leaders if leaders and to_leader else ready) if ready else None

    def _wake_for_clients(self, host: Host) -> None:
        if host.turn_rng.random() < 0.8:  # else they wait for the turn that the next message brings
            self.wake(host)

    def _published(self, channel: str, payload: str) -> None:
        if channel == "turns":
            self.workload.crowd.hear(int(payload.split()[0]), self.crowd_rng)

    def _load(self, rng: random.Random) -> None:
        """A client that always has proposals in flight, so that a leader hardly ever owes a heartbeat."""
        self._at(self.now + rng.uniform(0.5, 1.0) * self.scenario.load_every_ms, lambda: self._load(rng))
        for host in self.hosts.values():
            if host.node.role is Role.LEADER and self._can_take_clients(host):
                self.workload.load(host.node)

    def _change_members(self, times: random.Random) -> None:
        changes = self.scenario.changes
        assert changes is not None
        self._at(self.now + times.expovariate(1 / changes.every_ms), lambda: self._change_members(times))
        event = self.plan.next_event("c", {"change": 1.0})
        ready = [node for node in leaders(self.nodes) if self._can_take_clients(self.hosts[node.node_id])]
        if event is None or not ready or self.calm:
            return
        name, kind, rng = event
        leader = rng.choice(ready)
        if told := self.members.change(rng, leader, changes):
            self.plan.record(name, self.now, kind, told)
            self.wake(self.hosts[leader.node_id])

    def _can_take_clients(self, host: Host) -> bool:
        return host.up and host.turn is None and self.now >= host.paused_until

    def describe(self) -> str:
        """The state of every node in one line each, for failure messages."""
        lines = [
            f"seed {self.seed}, step {self.steps}, {self.now:.0f} ms, blocked {sorted(self.network.blocked)}"
        ]
        for node_id, host in self.hosts.items():
            if not host.up:
                lines.append(f"{node_id}: down")
                continue
            state = host.node.running.state
            lines.append(
                f"{node_id} ({host.node.identity}): {state.role.value} of term {state.term}, "
                f"leader {state.leader_id}, "
                f"log {state.log.last_index}/{state.log.last_term}, commit {state.commit_index}, "
                f"applied {len(host.node.applied)}, reads {len(state.reads)}+{len(state.early_reads)}"
                f"+{len(state.follower_reads)} {dict(state.progress)}"
            )
        lines.append(f"configuration {self.members.committed()}")
        return "\n  ".join(lines)
