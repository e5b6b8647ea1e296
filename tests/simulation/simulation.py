"""A seeded cluster: one number decides every message's fate, every crash, every clock.

    Simulation(seed).run(steps)      faults for that many steps, then a majority is healed and must progress

Everything happens in simulated time on an agenda of events; a step is one event. The checker looks at every
single change inside every core (tests/simulation/checker.py). The same seed always gives the same schedule.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

from raft.core.membership import encode_configuration
from raft.core.state import Role
from raft.storage.errors import DiskFullError, StorageError
from raft.transport.node_messages import PeerMessage
from tests.simulation import disk_faults
from tests.simulation.checker import Checker, violated
from tests.simulation.events import Plan
from tests.simulation.faults import Scenario, draw_read_race, draw_scenario, has_small_windows
from tests.simulation.machines import Machines
from tests.simulation.members import Members, leaders
from tests.simulation.network import Link, Network
from tests.simulation.node import Node
from tests.simulation.projector import Mongo, Projector
from tests.simulation.service import Service
from tests.simulation.stored import StoredDisk
from tests.simulation.stored_node import StoredNode
from tests.simulation.streaming import Library
from tests.simulation.workload import Workload
from tests.storage.memory_disk import PowerLoss

DISK_FULL_RETRY_MS = 200.0  # Worker._outlast_full_disk

WALL_START_MS = 1_700_000_000_000


def is_read_race(seed: int) -> bool:
    """Every fifth schedule is made for the races in which a stale read could be had."""
    return seed % 5 == 4


def scenario_of(seed: int) -> Scenario:
    """What the seed draws, before anything is left out."""
    return (draw_read_race if is_read_race(seed) else draw_scenario)(random.Random(seed))


class Host:
    """A machine in the simulation: a node's clock, inbox, and the turn that it is in the middle of."""

    def __init__(self, node: StoredNode, rate: float, start: float, plan: Plan) -> None:
        self.node = node
        self.rate = rate
        self.clock_start = start
        self.wall_offset = plan.stream(f"wall {node.node_id}").uniform(-2000, 2000)
        self.rng = plan.stream(f"core {node.node_id}")  # seeds the core's own generator at each start
        self.turn_rng = plan.stream(f"turns {node.node_id}")
        self.snapshot_rng = plan.stream(f"snapshots {node.node_id}")
        self.crash_rng = self.turn_rng  # of the fault event that lets it crash
        self.inbox: list[tuple[int, PeerMessage]] = []
        self.broken_peers: list[int] = []
        self.turn: Iterator[str] | None = None
        self.paused_until = 0.0
        self.down_until = 0.0
        self.crash_in: int | None = None  # crash after that many more effects
        self.wake_at = float("inf")
        self.next_snapshot = 0  # entries from the last one
        self.loading = False  # a received snapshot becomes the machine at some later time
        self.snapshot_step_at: float | None = None  # the child that writes one goes on then

    @property
    def up(self) -> bool:
        return self.node.core is not None

    def local_ms(self, now: float) -> float:
        return self.clock_start + now * self.rate

    def wall_ms(self, now: float) -> int:
        return int(WALL_START_MS + self.wall_offset + now * self.rate)


class Refused(Exception):
    """A node's storage does not open: it is damaged."""


class Simulation:
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

    # --- turns ------------------------------------------------------------------------------------------

    def _start(self, host: Host) -> None:
        host.crash_in = None
        if self._guard(host, self._open) and host.up:
            self._run_turn(host)

    def _open(self, host: Host) -> None:
        """Start the process. A storage that is damaged is refused, or loses what nobody needs."""
        node, disk = host.node, host.node.disk
        seed = random.Random(host.rng.random())
        was_damaged = disk.damaged
        try:
            node.start(seed)
        except StorageError as error:
            if disk.platter.free is not None and disk.platter.copies_on_write and not was_damaged:
                self._crash(host)  # what was found cannot be written again: it waits for space
                return
            if disk.platter.injected or not was_damaged:
                raise
            self.refusals.append(f"{was_damaged}: {error}")
            raise Refused from error
        except DiskFullError:
            if disk.platter.free is None:
                raise
            self._crash(host)  # there is not even space for a new data directory
            return
        self.members.damaged.discard(node.node_id)

    def _guard(self, host: Host, action: Callable[[Host], None]) -> bool:
        """Do what writes to the node's disk. False: its process did not survive."""
        try:
            action(host)
        except PowerLoss:
            self._crash(host)
        except Refused:
            self._replace(host)
        except StorageError:
            if not host.node.disk.platter.injected:
                raise
            host.crash_rng = host.turn_rng
            self._crash(host)
        else:
            return True
        return False

    def _deliver_at(self, at: float, link: Link, message: PeerMessage) -> None:
        if self.scenario.changes is None or not self.scenario.changes.wipe:
            self._at(at, lambda: self._deliver(link, message))
            return
        # A connection knows both ends' identities, and ends with either process.
        sender, receiver = (self.nodes[node_id] for node_id in link)
        identities = sender.identity, receiver.identity

        def deliver() -> None:
            if (sender.identity, receiver.identity) == identities and self._are_acquainted(sender, receiver):
                self._deliver(link, message)

        self._at(at, deliver)

    def _are_acquainted(self, sender: StoredNode, receiver: StoredNode) -> bool:
        """Neither has recorded another identity for the other, as the handshake would find out. A node
        without a leader believes the other, and goes on believing its leader: its record may be from before
        the other was removed and added."""
        for each, other in ((sender, receiver), (receiver, sender)):
            state = None if each.core is None else each.running.state
            if state is None or state.leader_id in (None, other.node_id):
                continue
            if self.members.is_lost(other.node_id, state.configuration):
                return False
        return True

    def _deliver(self, link: Link, message: PeerMessage) -> None:
        sender, receiver = link
        host = self.hosts[receiver]
        if host.up and (link not in self.network.blocked or not self.faults.ordered):
            host.inbox.append((sender, message))
            self._wake(host)

    def _break_link(self, link: Link) -> None:
        self.network.broken.discard(link)
        host = self.hosts[link[0]]
        if host.up:
            host.broken_peers.append(link[1])
            self._wake(host)

    def _wake(self, host: Host) -> None:
        """Let the node run, unless it is down, paused, or in the middle of its effects."""
        if not host.up or host.turn is not None:
            return
        if self.now < host.paused_until:
            self._wake_at(host, host.paused_until)
        elif host.turn_rng.random() < self.faults.interleave:
            # More arrives before it gets the processor.
            self._wake_at(host, self.now + host.turn_rng.uniform(0, 5))
        else:
            self._run_turn(host)

    def _wake_at(self, host: Host, when: float) -> None:
        if when >= host.wake_at:
            return
        host.wake_at = when
        incarnation = host.node.incarnation

        def wake() -> None:
            if host.wake_at == when:
                host.wake_at = float("inf")
            if host.node.incarnation == incarnation and host.up and host.turn is None:
                if self.now < host.paused_until:
                    self._wake_at(host, host.paused_until)
                else:
                    self._run_turn(host)

        self._at(when, wake)

    def _run_turn(self, host: Host) -> None:
        self._guard(host, self._turn)

    def _turn(self, host: Host) -> None:
        """One turn of the owner thread: everything that arrived, then the time, then the effects."""
        node = host.node
        inbox, host.inbox = host.inbox, []
        broken, host.broken_peers = host.broken_peers, []
        host.turn = node.carry_out()  # begun: whatever wakes this node from now on waits for the next turn
        node.begin_turn()
        for peer in broken:
            node.disconnected(peer)
        for sender, message in inbox:
            node.receive(sender, message)
        node.tick()
        node.advance()
        self._carry_on(host)

    def _go_on(self, host: Host) -> None:
        self._guard(host, self._carry_on)

    def _carry_on(self, host: Host) -> None:
        """Carry out effects until one takes time, the node crashes, or all are done."""
        turn, rng = host.turn, host.turn_rng
        assert turn is not None
        for step in turn:
            if host.crash_in is not None:
                host.crash_in -= 1
                if host.crash_in < 0:
                    self._crash(host)
                    return
            delay = 0.0
            if step == "fsync":
                delay = rng.uniform(*self.faults.fsync_ms)
                if not self.calm and self.faults.disk_hang and rng.random() < self.faults.disk_hang:
                    delay = self._hang(host)
                    if delay == float("inf"):
                        return
            elif step == "disk full":
                delay = DISK_FULL_RETRY_MS
            elif self.faults.interleave and rng.random() < self.faults.interleave:
                delay = rng.uniform(0, 2)
            if delay > 0.15:
                self._resume_at(host, self.now + delay)
                return
        host.node.end_turn()
        host.turn = None
        self.checker.settled(host.node)
        if self.scenario.snapshots is not None:
            self._maintain_snapshots(host)
        service = host.node.service
        assert service is not None
        if host.inbox or host.broken_peers or service.has_requests:
            self._wake_at(host, self.now)
        else:
            deadline = host.node.next_deadline_ms()
            when = max(self.now, (deadline - host.clock_start) / host.rate + 1e-6)
            self._wake_at(host, min(when, self.now + service.wait_ms() / host.rate))

    def _resume_at(self, host: Host, when: float) -> None:
        incarnation = host.node.incarnation

        def resume() -> None:
            if host.node.incarnation == incarnation and host.up:
                if self.now < host.paused_until:
                    self._resume_at(host, host.paused_until)
                else:
                    self._go_on(host)

        self._at(when, resume)

    def _hang(self, host: Host) -> float:
        """The disk hangs: for how long, ms; infinity if the node ends before."""
        rng = host.turn_rng
        delay, ends = disk_faults.hang_ms(rng, self.scenario.options.election_timeout_max_ms)
        if not ends or not self.scenario.disk.hangs:
            return delay
        incarnation = host.node.incarnation

        def end() -> None:
            if host.node.incarnation == incarnation and host.up:
                host.crash_rng = rng
                self._crash(host)

        self._at(self.now + delay, end)
        return float("inf")

    def _maintain_snapshots(self, host: Host) -> None:
        """Between turns: take a snapshot, compact the log, begin to load what arrived."""
        plan, node, rng = self.scenario.snapshots, host.node, host.snapshot_rng
        assert plan is not None
        before = node.disk.snapshot.index
        if node.child is None:
            if len(node.applied) - before >= host.next_snapshot and node.begin_snapshot():
                host.next_snapshot = rng.randint(*plan.every)
                host.snapshot_step_at = self.now
        elif self.now >= (host.snapshot_step_at or 0.0):
            host.snapshot_step_at = self.now + rng.choice((0.0, 0.0, 5.0))
            if node.advance_snapshot() and rng.random() < plan.compact:
                newest = node.disk.snapshot.index
                node.compact_to = rng.choice((before, newest, newest, newest - 1))
        if node.compact_to:
            node.compact()
        if node.load_job is not None and not host.loading:
            host.loading = True
            self._finish_loading_at(host, self.now + rng.uniform(*plan.load_ms))

    def _finish_loading_at(self, host: Host, when: float) -> None:
        incarnation = host.node.incarnation

        def finish() -> None:
            if host.node.incarnation != incarnation or not host.up:
                return
            if host.turn is not None or self.now < host.paused_until:
                self._finish_loading_at(host, max(self.now + 1, host.paused_until))
                return
            host.loading = False
            host.node.load_now()
            self._run_turn(host)

        self._at(when, finish)

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
            self._wake(host)

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
            self._wake(self.hosts[leader.node_id])

    def _can_take_clients(self, host: Host) -> bool:
        return host.up and host.turn is None and self.now >= host.paused_until

    # --- faults -----------------------------------------------------------------------------------------

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

    def _crash(self, host: Host) -> None:
        rng = host.crash_rng
        host.turn = None
        host.inbox.clear()
        host.broken_peers.clear()
        host.wake_at = float("inf")
        host.loading = False
        self.workload.forget(host.node)
        host.node.crash(rng, power_cut=rng.random() < self.faults.power_cut)
        down = rng.expovariate(1 / self.faults.down_ms)
        self._at(self.now + down, lambda: self._restart(host))

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

    def _replace(self, host: Host) -> None:
        """The storage was refused: its operator replaces the disk, or the node stays away for good."""
        node = host.node
        node.crash(host.turn_rng, power_cut=False)
        self.members.damaged.discard(node.node_id)
        if self.scenario.changes is not None and self.members.may_be_wiped(node.node_id) and node.identity:
            self._wipe(host)
        else:
            self.members.refused.add(node.node_id)
            self.checker.out_of_use.add(node.node_id)

    def _wipe(self, host: Host) -> None:
        """A replacement comes after long enough for a leader without it to have noticed."""
        self.members.wipe(host.node)
        host.down_until = self.now + 5 * self.scenario.options.election_timeout_max_ms
        self._at(host.down_until, lambda: self._restart(host))

    def _restart(self, host: Host) -> None:
        if not host.up and self.now >= host.down_until and host.node.node_id not in self.members.refused:
            self._start(host)

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
        self._wake(host)
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

    # --- after the faults -------------------------------------------------------------------------------

    def expect_progress(self) -> None:
        """No new faults; a majority is whole again. It must elect, commit, and answer, within bounded time.

        In half of the schedules the minority stays away, cut off as it is.
        """
        self.calm = self.network.calm = True
        healthy = self._draw_healthy()
        cut_off = set(self.hosts) - healthy
        self.network.heal(healthy)
        for host in self.hosts.values():
            platter = host.node.disk.platter
            platter.free, platter.failing, platter.dies_in = None, (), None
        for node_id in healthy:
            host = self.hosts[node_id]
            host.crash_in, host.paused_until = None, min(host.paused_until, self.now)
            host.down_until = 0.0
            self._restart(host)
            self._wake(host)
        for node_id in cut_off:
            self.network.blocked |= {(node_id, other) for other in healthy}
            self.network.blocked |= {(other, node_id) for other in healthy}
        self.workload.fresh = self.workload.next_number
        opened = len(self.machines.books.opened)
        limit = self._patience_ms()
        self._until(lambda: self._has_progress(healthy), limit, f"progress of {sorted(healthy)}")
        patience = 6 * self.scenario.options.election_timeout_max_ms
        self._until(lambda: self._is_answered(healthy), patience, "answers to old requests")
        self._until(self.workload.is_settled, limit, "answer to every command under ONCE")
        if self.scenario.service.policy.interval_ms <= 500:
            self._until(lambda: len(self.machines.books.opened) >= opened + 2, limit, "interval closed")
            self._expect_projection(self.machines.last_index, limit)
        self._check_machines()
        self.checker.check_everything_kept(self.scenario.configuration)
        if not cut_off and self.scenario.spares:
            self._expect_peace()

    def _expect_projection(self, index: int, limit_ms: float) -> None:
        mongo = self.mongo
        if mongo is not None:
            mongo.calm = True
            self._until(lambda: mongo.checkpoint >= index, limit_ms, f"projection of {index}")

    def _check_machines(self) -> None:
        """The real digests, and the ledger's own opinion of itself."""
        for node in self.nodes.values():
            if node.service is not None:
                self.machines.compare_digest(node, node.service.machine)
        newest = max(
            (node.service.machine for node in self.nodes.values() if node.service is not None),
            key=lambda machine: machine.applied_index,
        )
        newest.ledger.check()
        if self.mongo is not None:
            self.mongo.check_rows(newest.ledger)

    def _expect_peace(self) -> None:
        """Everybody is up, also who was removed, and thinks perhaps that he is a voter: the leader stays
        (thesis 4.2.3)."""
        self.network.heal()
        until = self.now + 3 * self.scenario.options.election_timeout_max_ms
        while self.now < until:
            self.step()
        terms = max(self.checker.leaders)
        while self.now < until + 8 * self.scenario.options.election_timeout_max_ms:
            self.step()
        if max(self.checker.leaders) > terms:
            violated(f"term {terms} did not last though nothing was wrong; {self.describe()}")

    def _draw_healthy(self) -> set[int]:
        """Everyone, or as few as can be elected and commit in whatever configuration may be in force."""
        healthy = set(self.hosts) - self.members.refused - self.members.damaged
        if not self.members.is_available(healthy):
            violated(f"not even all nodes are a majority of {self.members.possible()}; {self.describe()}")
        rng = self.plan.stream("healing")
        if rng.random() < 0.5:
            for node_id in rng.sample(sorted(healthy), len(healthy)):
                if self.members.is_available(healthy - {node_id}):
                    healthy.discard(node_id)
        return healthy

    def _patience_ms(self) -> float:
        """Time for some elections, to send a whole log entry by entry through the smallest window, and for
        clients to come to every node."""
        faults = self.faults
        per_entry = 2 * faults.delay_ms[1] + faults.fsync_ms[1] + 5
        entries = max(node.disk.last_index for node in self.nodes.values()) + 20
        elections = 25 * self.scenario.options.election_timeout_max_ms
        if self.scenario.snapshots is not None:
            elections += 10 * (per_entry + 100) + 2 * self.scenario.snapshots.load_ms[1]
        return elections + faults.long_delay_ms + entries * per_entry + 100 * self._client_every_ms()

    def _client_every_ms(self) -> float:
        """When calm, clients must not keep who lags behind from ever catching up."""
        slower = self.calm and has_small_windows(self.scenario)
        return self.scenario.client_every_ms * (4 if slower else 1)

    def _until(self, condition: Callable[[], bool], limit_ms: float, what: str) -> None:
        end = self.now + limit_ms
        while not condition():
            if self.now > end:
                violated(f"no {what} within {limit_ms:.0f} ms; {self.describe()}")
            self.step()

    @property
    def installs(self) -> int:
        """How many received snapshots have become a machine."""
        return self.checker.installs

    def _has_progress(self, healthy: set[int]) -> bool:
        """A new command is applied at every healthy member; each answered a new read."""
        workload, fresh = self.workload, self.workload.fresh
        if workload.fresh_index is None:
            return False
        configuration = self.members.committed()
        healthy = {n for n in healthy if configuration.has(n) and not self.members.is_lost(n, configuration)}
        last_read = workload.last_read_answered
        return all(
            len(self.nodes[n].applied) >= workload.fresh_index and last_read.get(n, -1) >= fresh
            for n in healthy
        )

    def _is_answered(self, healthy: set[int]) -> bool:
        """Whatever the outcome, nobody waits long for an answer."""
        patience = 4 * self.scenario.options.election_timeout_max_ms
        return self.workload.oldest_waiting(healthy) >= self.now - patience

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
