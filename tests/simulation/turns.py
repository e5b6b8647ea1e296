"""How a host of the simulation lives: it starts, takes its turns, carries out their effects, and crashes."""

from __future__ import annotations

import random
from collections.abc import Callable

from raft.storage.errors import DiskFullError, StorageError
from raft.transport.node_messages import PeerMessage
from tests.simulation import disk_faults
from tests.simulation.checker import Checker
from tests.simulation.faults import Faults, Scenario
from tests.simulation.hosts import Host, Refused
from tests.simulation.members import Members
from tests.simulation.network import Link, Network
from tests.simulation.stored_node import StoredNode
from tests.simulation.workload import Workload
from tests.storage.memory_disk import PowerLoss

DISK_FULL_RETRY_MS = 200.0  # Worker._outlast_full_disk


class Turns:
    """A part of Simulation, which has what is declared here."""

    now: float
    calm: bool
    scenario: Scenario
    faults: Faults
    hosts: dict[int, Host]
    nodes: dict[int, StoredNode]
    checker: Checker
    members: Members
    network: Network
    workload: Workload
    refusals: list[str]
    _at: Callable[[float, Callable[[], None]], None]

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
            self.wake(host)

    def _break_link(self, link: Link) -> None:
        self.network.broken.discard(link)
        host = self.hosts[link[0]]
        if host.up:
            host.broken_peers.append(link[1])
            self.wake(host)

    def wake(self, host: Host) -> None:
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
        if host.stall_ms:
            stalled, host.stall_ms = host.stall_ms, 0.0
            self._then(host, self.now + stalled, self._finish_turn)
            return
        self._advance(host)

    def _finish_turn(self, host: Host) -> None:
        self._guard(host, self._advance)

    def _advance(self, host: Host) -> None:
        host.node.advance()
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
        if host.inbox or host.broken_peers or service.has_requests or service.desk.reads.unfinished:
            self._wake_at(host, self.now)
        else:
            deadline = host.node.next_deadline_ms()
            when = max(self.now, (deadline - host.clock_start) / host.rate + 1e-6)
            self._wake_at(host, min(when, self.now + service.wait_ms() / host.rate))

    def _resume_at(self, host: Host, when: float) -> None:
        self._then(host, when, self._go_on)

    def _then(self, host: Host, when: float, go_on: Callable[[Host], None]) -> None:
        """The turn goes on at a later time, if the process lives."""
        incarnation = host.node.incarnation

        def resume() -> None:
            if host.node.incarnation == incarnation and host.up:
                if self.now < host.paused_until:
                    self._then(host, host.paused_until, go_on)
                else:
                    go_on(host)

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

    # --- its end, and what comes after it ---------------------------------------------------------------

    def _crash(self, host: Host) -> None:
        rng = host.crash_rng
        host.turn = None
        host.inbox.clear()
        host.broken_peers.clear()
        host.wake_at = float("inf")
        host.loading = False
        host.stall_ms = 0.0
        self.workload.forget(host.node)
        host.node.crash(rng, power_cut=rng.random() < self.faults.power_cut)
        down = rng.expovariate(1 / self.faults.down_ms)
        self._at(self.now + down, lambda: self._restart(host))

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
