"""Where a schedule's random numbers come from, and which of its fault events are to happen.

One seed decides everything, but not through one generator: every link, every node, every client and every
single fault event has one of its own. So a fault that is left out changes what follows from it, and nothing
else, and a failing schedule can be shrunk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """A fault, or an order of the operator, that had an effect. name: "f7-crash" is what came of the eighth
    fault event of the schedule, "c0-change" its first change of members, whatever happened before."""

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
        self.kinds = None if only is None else dict(split_name(name) for name in only)
        self.numbers: dict[str, int] = {}
        self.happened: list[Event] = []
        self.tell: Callable[[Event], None] | None = None  # who wants to hear of each at once

    def stream(self, name: str) -> random.Random:
        """A generator that is nobody else's; always the same for the same name."""
        return random.Random(f"{self.seed}/{self.variation}/{name}")

    def schedule(self, series: str) -> random.Random:
        """For the times of a series of events: "f" or "c"."""
        return random.Random(f"{self.seed}/{series}")

    def next_event(self, series: str, weights: Mapping[str, float]) -> tuple[str, str, random.Random] | None:
        """Name and kind of the series' next event, and what decides all else about it; None if it is left
        out. The kind of an event that was asked for by name is not drawn again: what else is left out of the
        schedule may have changed the weights."""
        number = self.numbers.get(series, 0)
        self.numbers[series] = number + 1
        if self.kinds is not None and f"{series}{number}" not in self.kinds:
            return None
        rng = random.Random(f"{self.seed}/{series}{number}")
        if self.kinds is None:
            kind = rng.choices(list(weights), list(weights.values()))[0]
        else:
            kind = self.kinds[f"{series}{number}"]
            rng.random()  # as the choice would have done
        return f"{series}{number}-{kind}", kind, rng

    def record(self, name: str, at_ms: float, kind: str, told: str) -> None:
        """The event has happened, and was more than an attempt."""
        event = Event(name, at_ms, kind, told)
        self.happened.append(event)
        if self.tell is not None:
            self.tell(event)


def split_name(name: str) -> tuple[str, str]:
    """("f7", "crash") of "f7-crash". ValueError: it is no event's name."""
    number, dash, kind = name.partition("-")
    if not dash or number[:1] not in ("f", "c") or not number[1:].isdigit():
        raise ValueError(f"{name} is not the name of an event, such as f7-crash")
    return number, kind
