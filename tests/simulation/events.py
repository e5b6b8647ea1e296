"""Where a schedule's random numbers come from, and which of its fault events are to happen.

One seed decides everything, but not through one generator: every link, every node, every client and every
single fault event has one of its own. So a fault that is left out changes what follows from it, and nothing
else, and a failing schedule can be shrunk.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """A fault, or an order of the operator, that had an effect. name: "f7" is the eighth fault event of the
    schedule, "c0" its first change of members, whether or not those before them happened."""

    name: str
    at_ms: float
    kind: str
    told: str


class Plan:
    """A seed's random numbers and events."""

    def __init__(self, seed: int, variation: int = 0, only: frozenset[str] | None = None) -> None:
        """variation: another network, other clients and other timeouts under the same faults. only: the names
        of the events that happen, None for all."""
        self.seed = seed
        self.variation = variation
        self.only = only
        self.numbers: dict[str, int] = {}
        self.happened: list[Event] = []

    def stream(self, name: str) -> random.Random:
        """A generator that is nobody else's; always the same for the same name."""
        return random.Random(f"{self.seed}/{self.variation}/{name}")

    def schedule(self, series: str) -> random.Random:
        """For the times of a series of events."""
        return random.Random(f"{self.seed}/{series}")

    def next_event(self, series: str) -> tuple[str, random.Random] | None:
        """The name of the series' next event and what decides about it, None if it is left out."""
        number = self.numbers.get(series, 0)
        self.numbers[series] = number + 1
        name = f"{series}{number}"
        if self.only is not None and name not in self.only:
            return None
        return name, random.Random(f"{self.seed}/{name}")

    def record(self, name: str, at_ms: float, kind: str, told: str) -> None:
        """The event has happened, and was more than an attempt."""
        self.happened.append(Event(name, at_ms, kind, told))
