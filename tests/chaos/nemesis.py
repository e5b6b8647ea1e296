"""The nemesis: a schedule of faults drawn from a seed, several at a time, and who carries it out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos import disks, faults, members
from tests.chaos.faults import Fault, Scene

KINDS: dict[str, type[Fault]] = {
    "kill": faults.Kill,
    "pause": faults.Pause,
    "blackout": faults.Blackout,
    "halves": faults.Halves,
    "alone": faults.Alone,
    "oneway": faults.OneWay,
    "bridge": faults.Bridge,
    "ring": faults.Ring,
    "delay": faults.Delay,
    "loss": faults.Loss,
    "resets": faults.Resets,
    "full": disks.FullDisk,
    "eio": disks.FailingSync,
    "hang": disks.HangingSync,
    "clock": faults.Clock,
    "drift": faults.Drift,
    "transfer": faults.Transfer,
    "snapshot": faults.Snapshot,
    "grow": members.Grow,
    "shrink": members.Shrink,
    "mongo": faults.Mongo,
    "rot": members.Rot,
}
CALM = ("rot",)  # faults that only strike a cluster that is well otherwise
GROUPS = {
    "partition": ("halves", "alone", "oneway", "bridge", "ring"),
    "network": ("halves", "alone", "oneway", "bridge", "ring", "delay", "loss", "resets"),
    "process": ("kill", "pause", "blackout", "transfer", "snapshot"),
    "disk": ("full", "eio", "hang", "rot"),
    "members": ("grow", "shrink", "transfer"),
    "all": tuple(KINDS),
}
NEEDS = {"eio": "strace", "hang": "strace", "full": "mount"}
# What the logs may say when such a fault was there.
EXPECTED = {
    "eio": (
        "fatal in thread",
        "stopped by a fatal fault",
        "thread .* failed",
        "fsync failed",
        "preparer failed",
        "cannot start: .*Errno 5",
    ),
    "hang": ("fatal in thread", "stopped by a fatal fault"),
    "full": ("waiting for space", "disk is full", "the disk of .* is full", "[Nn]o space"),
    "rot": ("cannot start: ", "damaged", "data directory", "refuses this node"),
    "grow": ("refuses this node", "not a member"),
    "shrink": ("refuses this node", "not a member"),
    "mongo": ("MongoDB",),
}
FAR_REACHING = ("rot", "grow", "shrink", "mongo")  # other nodes speak of these, and later, too
EXCUSES = ("kill", "pause", "full", "eio", "hang", "rot")  # a node under these may be silent


def kinds_of(words: Iterable[str]) -> list[str]:
    """The kinds that a list of kinds and groups names. ValueError names what is unknown."""
    found: list[str] = []
    for word in words:
        if word not in KINDS and word not in GROUPS:
            raise ValueError(f"no fault {word!r}; there are {', '.join([*GROUPS, *KINDS])}")
        found += [kind for kind in GROUPS.get(word, (word,)) if kind not in found]
    return found


@dataclass
class Strike:
    """A fault that was carried out. Times are nanoseconds of the monotonic clock."""

    kind: str
    told: str
    node: int
    began: int
    ended: int = 0


@dataclass(frozen=True)
class Planned:
    """A fault to come: seconds from the start of its round."""

    at_s: float
    lasts_s: float
    kind: str


def plan(rng: random.Random, kinds: list[str], seconds: float, together: int = 4) -> list[Planned]:
    """The schedule of one round: each kind in turn in a shuffled order, at most `together` at a time."""
    usable = [kind for kind in kinds if kind not in CALM]
    found: list[Planned] = []
    order: list[str] = []
    at = 0.3
    while usable and at < seconds:
        if sum(p.at_s + p.lasts_s > at for p in found) < together:
            if not order:
                order = rng.sample(usable, len(usable))
            kind = order.pop()
            lasts = rng.uniform(*KINDS[kind].lasts)
            found.append(Planned(at, min(lasts, max(0.2, seconds - at)), kind))
        at += rng.uniform(0.1, 1.3)
    return found


class Nemesis:
    """Carries out plans. Main thread only."""

    def __init__(self, scene: Scene, watch: Callable[[], None]) -> None:
        self.scene, self._watch = scene, watch
        self.strikes: list[Strike] = []
        self.counts: dict[str, int] = {}
        self._going: list[tuple[Strike, Fault, float]] = []
        self.skipped = 0

    def carry_out(self, planned: list[Planned], seconds: float, progress: Callable[[str], None]) -> None:
        """One round of faults; whatever has not ended by then is ended."""
        start = time.monotonic()
        queue = sorted(planned, key=lambda p: p.at_s)
        try:
            while (now := time.monotonic() - start) < seconds:
                while queue and queue[0].at_s <= now:
                    self._begin(queue.pop(0), start)
                self._tick(now + start)
                self._watch()
                progress(" ".join(strike.kind for strike, _, _ in self._going) or "-")
                time.sleep(0.05)
        finally:
            self.end_all()

    def strike(self, kind: str) -> None:
        """One fault alone, from beginning to end."""
        self._begin(Planned(0, 0, kind), time.monotonic())
        self.end_all()

    def end_all(self) -> None:
        """End what goes on, the latest first."""
        for going in reversed(list(self._going)):
            self._end(going)

    def _begin(self, planned: Planned, start: float) -> None:
        fault = KINDS[planned.kind](self.scene)
        began = time.monotonic_ns()
        told = fault.begin()
        if told is None:
            self.skipped += 1
            return
        strike = Strike(planned.kind, told, fault.node, began)
        self.strikes.append(strike)
        self.counts[planned.kind] = self.counts.get(planned.kind, 0) + 1
        self._going.append((strike, fault, start + planned.at_s + planned.lasts_s))

    def _tick(self, now: float) -> None:
        for going in list(self._going):
            if now >= going[2]:
                self._end(going)
            else:
                going[1].tick()

    def _end(self, going: tuple[Strike, Fault, float]) -> None:
        self._going.remove(going)
        going[1].end()
        going[0].ended = time.monotonic_ns()

    def table(self) -> list[dict[str, Any]]:
        """The strikes as they were, for the record."""
        return [asdict(strike) for strike in self.strikes]
