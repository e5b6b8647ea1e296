"""Followers of the simulated cluster: they join, answer their turns in time, late, twice or not at all,
leave, come back, claim what they have; an operator pardons some. All through whatever node, again until
answered.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis

from tests.simulation.books import Turn

if TYPE_CHECKING:
    from tests.simulation.workload import Workload

ATTEMPTS = 6
RETRY_MS = (15.0, 80.0)
VERSION = b"1.0"


@dataclass(frozen=True, slots=True)
class Habits:
    """Chances, per turn."""

    answers: float
    late: float
    twice: float
    out_of_turn: float


HABITS = (
    Habits(1.0, 0.0, 0.1, 0.0),  # reliable
    Habits(0.6, 0.2, 0.2, 0.05),
    Habits(0.1, 0.3, 0.0, 0.0),  # hardly ever there: banned for misses
    Habits(0.9, 0.1, 0.5, 0.6),  # a babbler: banned for spam
)


@dataclass(slots=True, eq=False)
class Follower:
    """One follower. joined: as far as it knows."""

    name: bytes
    habits: Habits
    joined: bool = False
    heard: int = 0  # the newest interval it knows of


class Crowd:
    """All followers, and who pardons them."""

    def __init__(self, workload: Workload, count: int) -> None:
        self.workload = workload
        self.followers = [Follower(b"f%d" % n, HABITS[n % len(HABITS)]) for n in range(count)]
        self.claims: list[list[bytes]] = []
        self.reported = 0

    def anyone(self, rng: random.Random) -> bytes:
        """Some follower's name, or a member's."""
        return rng.choice((b"node-1", b"node-2", *(each.name for each in self.followers)))

    def claim(self, rng: random.Random) -> list[bytes]:
        """A claim, now and then one that was made before."""
        if self.claims and rng.random() < 0.3:
            return rng.choice(self.claims)
        name, amount = self.anyone(rng), rng.choice((1, 5, 5, 40))
        words = [b"REWARD", b"CLAIM", name, b"%d" % amount, b"claim-%d" % len(self.claims)]
        self.claims.append(words)
        return words

    # --- turns ------------------------------------------------------------------------------------------

    def hear(self, number: int, rng: random.Random) -> None:
        """An interval is open; whoever is subscribed somewhere hears so, each in its own time."""
        length = float(self.workload.machines.books.policy.interval_ms)
        for follower in self.followers:
            if number <= follower.heard:
                continue
            follower.heard = number
            self._plan(follower, number, length, rng)

    def _plan(self, follower: Follower, number: int, length: float, rng: random.Random) -> None:
        habits, cluster = follower.habits, self.workload.cluster
        if not follower.joined:
            version = VERSION if rng.random() < 0.9 else b"0.9"
            at = cluster.now + rng.uniform(0, 0.3 * length)
            cluster.at(at, lambda: self._join(follower, version, rng, ATTEMPTS))
            return
        late = rng.random() < habits.late
        if late or rng.random() < habits.answers:
            times = 2 if rng.random() < habits.twice else 1
            for _ in range(times):
                at = cluster.now + rng.uniform(0, 0.7 * length) + (length if late else 0.0)
                cluster.at(at, lambda: self._report(follower, number, rng, ATTEMPTS))
        if rng.random() < habits.out_of_turn:
            other = max(1, number + rng.choice((-2, -1, 1, 5)))
            at = cluster.now + rng.uniform(0, length)
            cluster.at(at, lambda: self._report(follower, other, rng, 1))
        if rng.random() < 0.03:
            at = cluster.now + rng.uniform(0, length)
            cluster.at(at, lambda: self._leave(follower, rng))

    def _report(self, follower: Follower, number: int, rng: random.Random, attempts: int) -> None:
        node = self.workload.cluster.any_node(rng)
        if node is None or (follower.heard > number + 2 and attempts < ATTEMPTS):
            return
        words = [b"FOLLOWER", b"REPORT", follower.name, b"%d" % number, b"data of %d" % number]
        again = partial(self._again, rng, attempts, partial(self._report, follower, number, rng))
        answered = partial(self._reported, follower, words, number, rng, again)
        self.workload.ask(node, [words], True, answered, again)

    def _again(self, rng: random.Random, attempts: int, action: Any) -> None:
        """After silence, or a refusal that says nothing: through another node, a few times."""
        if attempts > 1:
            cluster = self.workload.cluster
            cluster.at(cluster.now + rng.uniform(*RETRY_MS), lambda: action(attempts - 1))

    def _reported(
        self,
        follower: Follower,
        words: list[bytes],
        number: int,
        rng: random.Random,
        again: Any,
        replies: Any,
    ) -> None:
        reply, workload = replies[0], self.workload
        if reply == b"OK":
            turn: Turn = (number, follower.name.decode())
            workload.shown(workload.machines.index_of(tuple(words), reply))
            workload.machines.books.acknowledge(turn)
            self.reported += 1
        elif str(reply).startswith(("CLUSTERDOWN", "BUSY", "INDETERMINATE")):
            again()
        elif str(reply).startswith("NOFOLLOWER"):
            follower.joined = False
        elif str(reply).startswith("BANNED"):
            follower.joined = False
            if rng.random() < 0.3:
                workload.cluster.at(workload.cluster.now, lambda: self._pardon(follower, rng))

    def _join(self, follower: Follower, version: bytes, rng: random.Random, attempts: int) -> None:
        def answered(replies: list[Any]) -> None:
            reply = replies[0]
            if reply == b"OK":
                self.workload.shown(self.workload.machines.index_of(tuple(words), reply))
                follower.joined = True
            elif isinstance(reply, hiredis.ReplyError) and not str(reply).startswith(("BANNED", "VERSION")):
                again()

        node = self.workload.cluster.any_node(rng)
        if node is None:
            return
        words = [b"FOLLOWER", b"JOIN", follower.name, version]
        again = partial(self._again, rng, attempts, partial(self._join, follower, version, rng))
        self.workload.ask(node, [words], True, answered, again)

    def _leave(self, follower: Follower, rng: random.Random) -> None:
        def answered(replies: list[Any]) -> None:
            follower.joined = False

        node = self.workload.cluster.any_node(rng)
        if node is not None:
            self.workload.ask(node, [[b"FOLLOWER", b"LEAVE", follower.name]], True, answered, _nothing)

    def _pardon(self, follower: Follower, rng: random.Random) -> None:
        def answered(replies: list[Any]) -> None:
            follower.joined = follower.joined or replies[0] == b"OK"

        node = self.workload.cluster.any_node(rng)
        if node is not None:
            words = [b"FOLLOWER", b"PARDON", follower.name, b"spoken up for"]
            self.workload.ask(node, [words], True, answered, _nothing)


def _nothing() -> None:
    pass
