"""The faults. Each knows how to begin and how to end; whom it strikes is drawn from the run's seed.

begin() answers what it did, or None if it cannot be done just now (nothing is then to be ended). Faults of
one node leave nodes alone that another such fault holds (`held`).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable

import redis

from database.embedded import EmbeddedServer
from tests.chaos.network import Network
from tests.chaos.node_program import DRIFT
from tests.chaos.nodes import ChaosCluster
from tests.chaos.proxy import Link


class Scene:
    """What faults work on."""

    def __init__(self, cluster: ChaosCluster, rng: random.Random, mongo: EmbeddedServer | None) -> None:
        self.cluster, self.network, self.rng, self.mongo = cluster, cluster.network, rng, mongo
        self.held: set[int] = set()
        self.pending: dict[int, str] = {}  # members that are being added or removed
        self.next_id = max(cluster.ids) + 1
        self.blocks: dict[object, set[Link]] = {}
        self.delays: dict[object, dict[Link, float]] = {}
        self.losses: dict[object, dict[Link, float]] = {}
        self.size = len(cluster.ids)
        self.tally: Counter[str] = Counter()  # what nodes made of faults that leave them a choice
        self.wrong: list[str] = []  # what no fault of this kind may lead to

    def leader(self) -> int | None:
        """Who says that it leads, in the highest term."""
        best: tuple[int, int] | None = None
        for n in self.free():
            with contextlib.suppress(redis.RedisError, OSError, KeyError):
                info = self.info(n)
                if info["role"] == "leader":
                    best = max(best or (0, 0), (int(info["term"]), n))
        return best[1] if best else None

    def info(self, node: int) -> dict[str, str]:
        """RAFT INFO, without much patience."""
        address = self.cluster.addresses[node]
        with redis.Redis(
            host=address["host"], port=address["client_port"], socket_timeout=0.7, decode_responses=True,
            socket_connect_timeout=0.7, protocol=2, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        ) as client:  # fmt: skip
            told = client.execute_command("RAFT", "INFO")
        return dict(line.split(":", 1) for line in told.splitlines() if ":" in line)

    def free(self) -> list[int]:
        """Nodes that run and that no fault holds."""
        watch = self.cluster.watch
        return [n for n in self.cluster.ids if n not in self.held and n not in watch.down]

    def victim(self) -> int | None:
        """The leader, half of the time; else anyone."""
        if self.rng.random() < 0.5 and (leader := self.leader()) is not None:
            return leader
        free = self.free()
        return self.rng.choice(free) if free else None

    def weather(self) -> None:
        """Make the network what all faults of it together ask for."""
        state = self.network.state
        state.blocked = set().union(*self.blocks.values())
        state.delayed_s = {link: s for each in self.delays.values() for link, s in each.items()}
        state.lossy = {link: p for each in self.losses.values() for link, p in each.items()}
        self.network.apply()


class Fault:
    """One fault, from begin() to end(). lasts: seconds, at least and at most."""

    lasts = (1.0, 5.0)

    def __init__(self, scene: Scene) -> None:
        self.scene, self.cluster, self.rng = scene, scene.cluster, scene.rng
        self.network: Network = scene.network
        self.node = 0

    def begin(self) -> str | None:
        """See above."""
        raise NotImplementedError

    def tick(self) -> None:
        """Called now and then while it lasts."""

    def end(self) -> None:
        """Take it back."""

    def _hold(self) -> bool:
        self.node = self.scene.victim() or 0
        if self.node:
            self.scene.held.add(self.node)
        return bool(self.node)

    def _release(self) -> None:
        self.scene.held.discard(self.node)

    def _revive(self) -> None:
        """Start the node if it is down."""
        process = self.cluster.processes[self.node]
        if process.poll() is not None:
            self.cluster.start(self.node)
        self.cluster.watch.may_die.discard(self.node)


# --- processes --------------------------------------------------------------------------------------------


class Kill(Fault):
    """kill -9, and start again."""

    lasts = (0.2, 4.0)

    def begin(self) -> str | None:
        if not self._hold():
            return None
        self.cluster.crash(self.node)
        return f"node {self.node}"

    def end(self) -> None:
        self._revive()
        self._release()


class Blackout(Fault):
    """kill -9 for every node at once."""

    lasts = (0.2, 2.0)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.nodes: list[int] = []

    def begin(self) -> str | None:
        self.nodes = self.scene.free()
        self.scene.held.update(self.nodes)
        self.cluster.watch.down.update(self.nodes)
        for n in self.nodes:
            self.cluster.processes[n].kill()
        for n in self.nodes:
            self.cluster.crash(n)
        return f"nodes {self.nodes}"

    def end(self) -> None:
        for n in self.nodes:
            self.node = n
            self._revive()
            self._release()
        self.node = 0


class Pause(Fault):
    """SIGSTOP, SIGCONT."""

    lasts = (0.3, 4.0)

    def begin(self) -> str | None:
        if not self._hold():
            return None
        self.cluster.pause(self.node)
        return f"node {self.node}"

    def end(self) -> None:
        self.cluster.resume(self.node)
        self._release()


class Clock(Fault):
    """The wall clock jumps, and jumps back."""

    def begin(self) -> str | None:
        if not self.cluster.clocks or not (free := self.scene.free()):
            return None
        self.node = self.scene.leader() or self.rng.choice(free)
        offset = self.rng.choice((-60_000, -5_000, 2_000, 20_000, 60_000))
        self.cluster.set_clock(self.node, offset)
        return f"node {self.node} by {offset} ms"

    def end(self) -> None:
        self.cluster.set_clock(self.node)


class Drift(Fault):
    """Monotonic clocks run at different rates: the leader's slowly, so that its lease lasts, all others'
    fast, so that they stand for election early."""

    def begin(self) -> str | None:
        if not self.cluster.clocks:
            return None
        leader = self.scene.leader() or self.rng.choice(self.cluster.ids)
        for n in self.cluster.ids:
            self.cluster.set_clock(n, drift=-DRIFT if n == leader else DRIFT)
        return f"node {leader} by {-DRIFT:.1%}, all others by {DRIFT:.1%}"

    def end(self) -> None:
        for n in self.cluster.ids:
            self.cluster.set_clock(n)


# --- the network ------------------------------------------------------------------------------------------


class Cut(Fault):
    """Partitions: `links` says which directed links drop everything."""

    def begin(self) -> str | None:
        nodes = list(self.cluster.ids)
        self.rng.shuffle(nodes)
        drawn = self.links(nodes)
        if drawn is None:
            return None
        links, told = drawn
        self.scene.blocks[self] = set(links)
        self.scene.weather()
        return told

    def links(self, nodes: list[int]) -> tuple[Iterable[Link], str] | None:
        """The links and what to call them."""
        raise NotImplementedError

    def end(self) -> None:
        self.scene.blocks.pop(self, None)
        self.scene.weather()


def between(some: Iterable[int], others: Iterable[int]) -> set[Link]:
    """Links both ways between two groups."""
    others = list(others)
    return {link for a in some for b in others for link in ((a, b), (b, a))}


class Halves(Cut):
    """A majority here, a minority there."""

    def links(self, nodes: list[int]) -> tuple[Iterable[Link], str] | None:
        some, others = nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]
        return between(some, others), f"{sorted(some)} | {sorted(others)}"


class Alone(Cut):
    """The leader without anyone."""

    def links(self, nodes: list[int]) -> tuple[Iterable[Link], str] | None:
        alone = self.scene.leader() or nodes[0]
        return between([alone], [n for n in nodes if n != alone]), f"{alone} | all others"


class OneWay(Cut):
    """A node that is heard and hears nothing, or hears and is not heard."""

    def links(self, nodes: list[int]) -> tuple[Iterable[Link], str] | None:
        one, others = self.scene.victim() or nodes[0], nodes
        others = [n for n in nodes if n != one]
        if self.rng.random() < 0.5:
            return {(one, n) for n in others}, f"nobody hears {one}"
        return {(n, one) for n in others}, f"{one} hears nobody"


class Bridge(Cut):
    """Two groups that only one node sees both of."""

    def links(self, nodes: list[int]) -> tuple[Iterable[Link], str] | None:
        middle, rest = nodes[0], nodes[1:]
        some, others = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        return between(some, others), f"{sorted(some)} | {sorted(others)}, {middle} sees both"


class Ring(Cut):
    """Everyone sees two neighbours (with three nodes: a chain)."""

    def links(self, nodes: list[int]) -> tuple[Iterable[Link], str] | None:
        near = {(nodes[i - 1], nodes[i]) for i in range(0 if len(nodes) > 3 else 1, len(nodes))}
        near |= {(b, a) for a, b in near}
        return set(self.network.links(nodes)) - near, f"ring of {nodes}"


class Delay(Fault):
    """Bytes come late, on all links or on one node's."""

    lasts = (2.0, 6.0)

    def begin(self) -> str | None:
        links, told = self._some_links()
        seconds = self.rng.choice((0.01, 0.05, 0.15))
        self.scene.delays[self] = dict.fromkeys(links, seconds)
        self.scene.weather()
        return f"{told}: {seconds * 1000:.0f} ms"

    def _some_links(self) -> tuple[list[Link], str]:
        nodes = self.cluster.ids
        if self.rng.random() < 0.4:
            return self.network.links(nodes), "all links"
        one = self.scene.victim() or nodes[0]
        return [link for link in self.network.links(nodes) if one in link], f"links of {one}"

    def end(self) -> None:
        self.scene.delays.pop(self, None)
        self.scene.losses.pop(self, None)
        self.scene.weather()


class Loss(Delay):
    """Packets are lost."""

    def begin(self) -> str | None:
        links, told = self._some_links()
        share = self.rng.choice((0.05, 0.15, 0.3))
        self.scene.losses[self] = dict.fromkeys(links, share)
        self.scene.weather()
        return f"{told}: {share:.0%}"


class Resets(Fault):
    """Connections between nodes break with RST, again and again."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._next = 0.0

    def begin(self) -> str | None:
        self.tick()
        return "any links"

    def tick(self) -> None:
        if time.monotonic() >= self._next:
            links = self.network.links(self.cluster.ids)
            self.network.reset(self.rng.sample(links, max(1, len(links) // 3)))
            self._next = time.monotonic() + 0.2 + self.rng.random() * 0.6


# --- the cluster's own commands ---------------------------------------------------------------------------


class Command(Fault):
    """A command to some node, asked in a thread of its own, so that the schedule goes on."""

    lasts = (0.1, 1.0)

    def begin(self) -> str | None:
        free = self.scene.free()
        if not free:
            return None
        node = self.rng.choice(free)
        words = self._words()
        threading.Thread(target=self._ask, args=(node, words), daemon=True).start()
        return f"node {node}: {' '.join(map(str, words))}"

    def _words(self) -> list[str | int]:
        raise NotImplementedError

    def _ask(self, node: int, words: list[str | int]) -> None:
        address = self.cluster.addresses[node]
        with contextlib.suppress(redis.RedisError, OSError), redis.Redis(
            host=address["host"], port=address["client_port"], socket_timeout=10, protocol=2,
        ) as client:  # fmt: skip
            client.execute_command(*words)


class Transfer(Command):
    """Leadership handed over."""

    def _words(self) -> list[str | int]:
        return ["RAFT", "TRANSFER", self.rng.choice(self.cluster.ids)]


class Snapshot(Command):
    """A snapshot at once."""

    def _words(self) -> list[str | int]:
        return ["RAFT", "SNAPSHOT"]


class Mongo(Fault):
    """MongoDB dies and comes back."""

    lasts = (2.0, 6.0)

    def begin(self) -> str | None:
        if self.scene.mongo is None or not self.scene.mongo.running:
            return None
        self.scene.mongo.kill()
        return "killed"

    def end(self) -> None:
        assert self.scene.mongo is not None
        self.scene.mongo.start()
