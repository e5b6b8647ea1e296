"""A seeded cluster: one number decides every message's fate, every crash, every clock.

    Simulation(seed).run(steps)      faults for that many steps, then a majority is healed and must progress

Everything happens in simulated time on an agenda of events; a step is one event. The checker looks at every
single change inside every core (tests/simulation/checker.py). The same seed always gives the same schedule.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

from raft.core.messages import Message
from raft.core.state import Role
from tests.simulation.checker import Checker, violated
from tests.simulation.events import Plan
from tests.simulation.faults import Scenario, draw_read_race, draw_scenario
from tests.simulation.members import Members, leaders
from tests.simulation.network import Link, Network
from tests.simulation.node import Node
from tests.simulation.streaming import Library
from tests.simulation.workload import Workload


def is_read_race(seed: int) -> bool:
    """Every fifth schedule is made for the races in which a stale read could be had."""
    return seed % 5 == 4


def scenario_of(seed: int) -> Scenario:
    """What the seed draws, before anything is left out."""
    return (draw_read_race if is_read_race(seed) else draw_scenario)(random.Random(seed))


class Host:
    """A machine in the simulation: a node's clock, inbox, and the turn that it is in the middle of."""

    def __init__(self, node: Node, rate: float, start: float, plan: Plan) -> None:
        self.node = node
        self.rate = rate
        self.clock_start = start
        self.rng = plan.stream(f"core {node.node_id}")  # seeds the core's own generator at each start
        self.turn_rng = plan.stream(f"turns {node.node_id}")
        self.snapshot_rng = plan.stream(f"snapshots {node.node_id}")
        self.crash_rng = self.turn_rng  # of the fault event that lets it crash
        self.inbox: list[tuple[int, Message]] = []
        self.broken_peers: list[int] = []
        self.turn: Iterator[str] | None = None
        self.paused_until = 0.0
        self.down_until = 0.0
        self.crash_in: int | None = None  # crash after that many more effects
        self.wake_at = float("inf")
        self.next_snapshot = 0  # entries from the last one
        self.loading = False  # a received snapshot becomes the machine at some later time

    @property
    def up(self) -> bool:
        return self.node.core is not None

    def local_ms(self, now: float) -> float:
        return self.clock_start + now * self.rate


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
        self.nodes: dict[int, Node] = {}
        self.checker = self._new_checker()
        self.members = Members(self.nodes, self.checker, self.scenario.configuration)
        self.library = Library()
        self.workload = Workload()
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
        node = self.nodes[node_id] = Node(
            node_id,
            scenario.configuration,
            options=scenario.options,
            clock=lambda: self.hosts[node_id].local_ms(self.now),
            send=self.network.send,
            observer=self.checker,
            identity=f"{node_id}.1" if scenario.changes is not None and scenario.changes.identities else "",
            library=self.library,
            chunk_bytes=scenario.snapshots.chunk_bytes if scenario.snapshots is not None else 1 << 20,
        )
        node.loads_at_once = scenario.snapshots is None or scenario.snapshots.load_ms[1] == 0.0
        self.hosts[node_id] = Host(
            node,
            scenario.clock_rates[node_id],
            scenario.clock_starts[node_id],
            self.plan,
        )

    # --- the agenda -------------------------------------------------------------------------------------

    def _at(self, when: float, action: Callable[[], None]) -> None:
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
        host.node.start(random.Random(host.rng.random()))
        self._run_turn(host)

    def _deliver_at(self, at: float, link: Link, message: Message) -> None:
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

    def _are_acquainted(self, sender: Node, receiver: Node) -> bool:
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

    def _deliver(self, link: Link, message: Message) -> None:
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
        """One turn of the owner thread: everything that arrived, then the time, then the effects."""
        node = host.node
        inbox, host.inbox = host.inbox, []
        broken, host.broken_peers = host.broken_peers, []
        for peer in broken:
            node.disconnected(peer)
        for sender, message in inbox:
            node.receive(sender, message)
        node.tick()
        host.turn = node.carry_out()
        self._go_on(host)

    def _go_on(self, host: Host) -> None:
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
                    delay = rng.uniform(100, 1000)
            elif self.faults.interleave and rng.random() < self.faults.interleave:
                delay = rng.uniform(0, 2)
            if delay > 0.15:
                self._resume_at(host, self.now + delay)
                return
        host.turn = None
        self.checker.settled(host.node)
        self.workload.collect_answers(host.node)
        if self.scenario.snapshots is not None:
            self._maintain_snapshots(host)
        if host.inbox or host.broken_peers:
            self._wake_at(host, self.now)
        else:
            deadline = host.node.running.next_deadline_ms()
            self._wake_at(host, max(self.now, (deadline - host.clock_start) / host.rate + 1e-6))

    def _resume_at(self, host: Host, when: float) -> None:
        incarnation = host.node.incarnation

        def resume() -> None:
            if host.node.incarnation == incarnation and host.up:
                if self.now < host.paused_until:
                    self._resume_at(host, host.paused_until)
                else:
                    self._go_on(host)

        self._at(when, resume)

    def _maintain_snapshots(self, host: Host) -> None:
        """Between turns: take a snapshot, compact the log, begin to load what arrived."""
        plan, node, rng = self.scenario.snapshots, host.node, host.snapshot_rng
        assert plan is not None
        before = node.disk.snapshot.index
        if len(node.applied) - before >= host.next_snapshot:
            host.next_snapshot = rng.randint(*plan.every)
            if node.take_snapshot() is not None and rng.random() < plan.compact:
                newest = node.disk.snapshot.index
                node.disk.compact(rng.choice((before, newest, newest - 1)))
        if node.receiver.complete is not None and not host.loading:
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
            host.node.finish_loading()
            self._run_turn(host)

        self._at(when, finish)

    # --- clients ----------------------------------------------------------------------------------------

    def _client(self, rng: random.Random) -> None:
        self._at(self.now + rng.expovariate(1 / self.scenario.client_every_ms), lambda: self._client(rng))
        ready = [host for host in self.hosts.values() if self._can_take_clients(host)]
        if not ready:
            return
        leaders = [host for host in ready if host.node.role is Role.LEADER]
        to_leader = rng.random() < (0.3 if self.calm else 0.7)  # when calm, every node must answer soon
        host = rng.choice(leaders if leaders and to_leader else ready)
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.5:
                self.workload.write(host.node, rng.choice((1, 1, 3)), rng.choice((0, 0, 30)))
            else:
                self.workload.read(host.node, self.now)
        if rng.random() < 0.8:  # else the operations wait for the turn that the next message brings
            self._wake(host)

    def _load(self, rng: random.Random) -> None:
        """A client that always has proposals in flight, so that a leader hardly ever owes a heartbeat."""
        self._at(self.now + rng.uniform(0.5, 1.0) * self.scenario.load_every_ms, lambda: self._load(rng))
        for host in self.hosts.values():
            in_flight = len(self.workload.writes.get(host.node.node_id, ()))
            if host.node.role is Role.LEADER and self._can_take_clients(host) and in_flight < 12:
                self.workload.write(host.node)
                self._wake(host)

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
        return {
            "crash": faults.crash,
            "partition": faults.partition,
            "heal": faults.heal,
            "pause": faults.pause,
            "suspect": faults.suspect,
            "clock_jump": faults.clock_jump,
            "abort": snapshots.abort if snapshots is not None else 0.0,
            "wipe": changes.wipe if changes is not None else 0.0,
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
        unfinished = len(host.node.receiver.data)
        host.node.receiver.abort()
        return f"node {host.node.node_id} after {unfinished} bytes" if unfinished else ""

    def _fault_wipe(self, rng: random.Random) -> str:
        """A disk is lost; its replacement comes after long enough for a leader without it to have noticed."""
        host = self._any_host(rng)
        if host.crash_in is not None or not self.members.may_be_wiped(host.node.node_id):
            return ""
        if host.up:
            host.crash_rng = rng
            self._crash(host)
        self.members.wipe(host.node)
        host.down_until = self.now + 5 * self.scenario.options.election_timeout_max_ms
        self._at(host.down_until, lambda: self._restart(host))
        return f"node {host.node.node_id}"

    def _restart(self, host: Host) -> None:
        if not host.up and self.now >= host.down_until:
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

    # --- after the faults -------------------------------------------------------------------------------

    def expect_progress(self) -> None:
        """No new faults; a majority is whole again. It must elect, commit, and answer, within bounded time.

        In half of the schedules the minority stays away, cut off as it is.
        """
        self.calm = self.network.calm = True
        healthy = self._draw_healthy()
        cut_off = set(self.hosts) - healthy
        self.network.heal(healthy)
        for node_id in healthy:
            host = self.hosts[node_id]
            host.crash_in, host.paused_until = None, min(host.paused_until, self.now)
            host.down_until = 0.0
            self._restart(host)
            self._wake(host)
        for node_id in cut_off:
            self.network.blocked |= {(node_id, other) for other in healthy}
            self.network.blocked |= {(other, node_id) for other in healthy}
        fresh = self.workload.next_number
        limit = self._patience_ms()
        self._until(lambda: self._has_progress(healthy, fresh), limit, f"progress of {sorted(healthy)}")
        patience = 6 * self.scenario.options.election_timeout_max_ms
        self._until(lambda: self._no_old_reads(healthy), patience, "answers to old reads")
        self.checker.check_everything_kept(self.scenario.configuration)
        if not cut_off and self.scenario.spares:
            self._expect_peace()

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
        healthy = set(self.hosts)
        if not self.members.is_available(healthy):
            violated(f"not even all nodes are a majority of {self.members.possible()}; {self.describe()}")
        rng = self.plan.stream("healing")
        if rng.random() < 0.5:
            for node_id in rng.sample(sorted(healthy), len(healthy)):
                if self.members.is_available(healthy - {node_id}):
                    healthy.discard(node_id)
        return healthy

    def _patience_ms(self) -> float:
        """Time for some elections, and to send a whole log entry by entry through the smallest window."""
        faults = self.faults
        per_entry = 2 * faults.delay_ms[1] + faults.fsync_ms[1] + 5
        entries = max(node.disk.last_index for node in self.nodes.values()) + 20
        elections = 25 * self.scenario.options.election_timeout_max_ms
        if self.scenario.snapshots is not None:
            elections += 10 * (per_entry + 100) + 2 * self.scenario.snapshots.load_ms[1]
        return elections + faults.long_delay_ms + entries * per_entry

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

    def _has_progress(self, healthy: set[int], fresh: int) -> bool:
        """A command numbered from `fresh` on is applied at every healthy member; each answered a new read."""
        configuration = self.members.committed()
        healthy = {n for n in healthy if configuration.has(n) and not self.members.is_lost(n, configuration)}
        done = [index for number, index in self.workload.acknowledged.items() if number >= fresh]
        last_read = self.workload.last_read_answered
        return bool(done) and all(
            len(self.nodes[n].applied) >= done[0] and last_read.get(n, -1) >= fresh for n in healthy
        )

    def _no_old_reads(self, healthy: set[int]) -> bool:
        patience = 3 * self.scenario.options.election_timeout_max_ms
        catching_up = {request_id for n in healthy for request_id, _ in self.nodes[n].reads_waiting}
        return not any(
            read.node_id in healthy and read.began_ms < self.now - patience and request_id not in catching_up
            for request_id, read in self.workload.reads.items()
        )

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
