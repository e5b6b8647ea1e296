"""After the faults: a majority is healed, and must make progress; nothing may have been lost."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.checker import violated
from tests.simulation.events import Plan
from tests.simulation.faults import has_small_windows
from tests.simulation.machines import Machines
from tests.simulation.projector import Mongo
from tests.simulation.turns import Turns


class Aftermath(Turns):
    """A part of Simulation, which has what is declared here."""

    plan: Plan
    machines: Machines
    mongo: Mongo | None
    step: Callable[[], None]
    describe: Callable[[], str]

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
            self.wake(host)
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
        while self.now < until + 4 * self.scenario.options.election_timeout_max_ms:
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
