"""Makes a failing schedule smaller as long as it still fails in the same way.

First whole kinds of fault events go, then parts of the scenario, then single events (delta debugging, Zeller
and Hildebrandt 2002), until nothing more can go or the time is over. Where a part is not needed for the bug
but its absence shifts everything else, another variation of the network and the clients is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace

from msgspec.structs import replace as replace_struct

from tests.simulation.events import Event, split_name
from tests.simulation.faults import Scenario
from tests.simulation.schedule import EVENT_WEIGHTS, Failure, Outcome, Schedule, execute

VARIATIONS = 3  # tries of each change of the scenario
SLACK = 1.5  # a smaller schedule may fail later, by so much


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smallest schedule that was found, and how it fails."""

    schedule: Schedule
    failure: Failure
    events: tuple[Event, ...]
    events_before: int
    tries: int
    finished: bool  # nothing more can be left out; else the time was over


class _OutOfTime(Exception):
    pass


def shrink(
    schedule: Schedule, budget_s: float = 60.0, clock: Callable[[], float] = time.monotonic
) -> Shrunk | None:
    """The schedule made smaller within the time. None: it does not fail at all."""
    first = execute(schedule)
    if first.failure is None:
        return None
    work = _Work(schedule, first, first.failure, clock, clock() + budget_s)
    finished = True
    try:
        work.shrink()
    except (_OutOfTime, KeyboardInterrupt):
        finished = False
    return Shrunk(work.schedule, work.failure, work.outcome.events, len(first.events), work.tries, finished)


class _Work:
    def __init__(
        self, schedule: Schedule, outcome: Outcome, failure: Failure, clock: Callable[[], float], end: float
    ) -> None:
        self.schedule, self.outcome, self.failure = schedule, outcome, failure
        self.clock, self.end = clock, end
        self.tries = 0
        self.tried: set[bytes] = set()

    def shrink(self) -> None:
        """Until a whole round has found nothing."""
        self._try(replace(self.schedule, only=self._names()))
        before: Schedule | None = None
        while before != self.schedule:
            before = self.schedule
            if self.schedule.only is not None:
                self._leave_out_kinds()
            for change in (*whole_changes, *single_changes):
                self._change_scenario(change)
            if self.schedule.only is not None:
                self._leave_out_events()
            self._heal_earlier()

    def _names(self) -> tuple[str, ...]:
        return tuple(event.name for event in self.outcome.events)

    def _try(self, candidate: Schedule) -> bool:
        """Take the candidate if it fails as the first one did. What was tried before is not tried again."""
        key = candidate.encode()
        if key in self.tried:
            return False
        self.tried.add(key)
        if self.clock() > self.end:
            raise _OutOfTime
        self.tries += 1
        limit = int(self.failure.step * SLACK) + 50
        outcome = execute(candidate, stop_after=limit if self.failure.step <= candidate.steps else None)
        if outcome.failure is None or outcome.failure.signature != self.failure.signature:
            return False
        if candidate.only is not None:  # what did not get to happen is not needed
            happened = {event.name for event in outcome.events}
            candidate = replace(candidate, only=tuple(name for name in candidate.only if name in happened))
        self.schedule, self.outcome, self.failure = candidate, outcome, outcome.failure
        return True

    # --- events -----------------------------------------------------------------------------------------

    def _leave_out_kinds(self) -> None:
        if not self.schedule.only or self._try_only(()):
            return
        for kind in sorted({split_name(name)[1] for name in self.schedule.only}):
            left = tuple(name for name in self.schedule.only or () if split_name(name)[1] != kind)
            if len(left) < len(self.schedule.only or ()):
                self._try(replace(self.schedule, only=left))

    def _leave_out_events(self) -> None:
        """ddmin: ever smaller groups of events, until none can be left out alone."""
        groups = 2
        while (names := self.schedule.only) and groups <= 2 * len(names):
            groups = min(groups, len(names))
            size = -(-len(names) // groups)
            for start in range(0, len(names), size):
                if self._try_only(names[:start] + names[start + size :]):
                    groups = max(groups - 1, 2)
                    break
            else:
                if size == 1:
                    return
                groups *= 2

    def _try_only(self, names: tuple[str, ...]) -> bool:
        """Of few events every one is worth some tries."""
        variations = VARIATIONS if len(names) < 8 else 1
        return any(
            self._try(
                replace(self.schedule, only=names, variation=(self.schedule.variation + more) % VARIATIONS)
            )
            for more in range(variations)
        )

    # --- the scenario -----------------------------------------------------------------------------------

    def _change_scenario(self, change: Callable[[Scenario], Iterator[Scenario]]) -> None:
        """Again and again, as long as anything that it proposes still fails."""
        while any(self._try_variations(scenario) for scenario in change(self.schedule.drawn())):
            pass

    def _try_variations(self, scenario: Scenario) -> bool:
        if scenario == self.schedule.drawn():
            return False
        variations = ((self.schedule.variation + more) % VARIATIONS for more in range(VARIATIONS))
        return any(self._try(replace(self.schedule, scenario=scenario, variation=v)) for v in variations)

    def _heal_earlier(self) -> None:
        """Of a failure after the healing: fewer steps before it."""
        while self.failure.step > self.schedule.steps > 50:
            if not self._try(replace(self.schedule, steps=self.schedule.steps // 2)):
                return


def _quiet(scenario: Scenario) -> Scenario:
    """Nothing happens by chance any more; only the fault events are left."""
    calm = replace(
        scenario.faults,
        **dict.fromkeys(_chances(scenario), 0.0),
        delay_ms=(0.1, 1.0),
        fsync_ms=(0.1, 0.2),
    )
    return replace(scenario, faults=calm)


def _chances(scenario: Scenario) -> Sequence[str]:
    """The faults which are probabilities of something that may happen all the time."""
    kept = (*EVENT_WEIGHTS, "long_delay_ms", "down_ms", "power_cut")
    faults = scenario.faults
    return [
        name
        for name in (field.name for field in fields(faults))
        if name not in kept and isinstance(getattr(faults, name), float) and getattr(faults, name)
    ]


def everything(scenario: Scenario) -> Iterator[Scenario]:
    """All that can be left out, at once."""
    defaults = {field.name: field.default for field in fields(scenario) if field.default is not MISSING}
    bare = replace(
        _quiet(scenario), clients=1, clock_rates=dict.fromkeys(scenario.clock_rates, 1.0), **defaults
    )
    yield bare
    bare = replace(bare, changes=scenario.changes, spares=scenario.spares)
    yield bare


def quiet(scenario: Scenario) -> Iterator[Scenario]:
    """No losses, delays and interleavings."""
    yield _quiet(scenario)


def same_clocks(scenario: Scenario) -> Iterator[Scenario]:
    """Every clock runs at the same rate."""
    yield replace(scenario, clock_rates=dict.fromkeys(scenario.clock_rates, 1.0))


def no_parts(scenario: Scenario) -> Iterator[Scenario]:
    """Without something that a scenario can have or not, or that can be as it is by default."""
    for field in fields(scenario):
        kept = field.name == "client_every_ms" or (field.name == "spares" and scenario.changes is not None)
        if field.default is not MISSING and getattr(scenario, field.name) != field.default and not kept:
            yield replace(scenario, **{field.name: field.default})


def less_load(scenario: Scenario) -> Iterator[Scenario]:
    """Fewer clients, or ones that do less."""
    if scenario.clients > 1:
        yield replace(scenario, clients=1)
    if scenario.client_every_ms < 100:
        yield replace(scenario, client_every_ms=scenario.client_every_ms * 3)


def single_chances(scenario: Scenario) -> Iterator[Scenario]:
    """One kind of chance less, or smaller by half."""
    for name in _chances(scenario):
        yield replace(scenario, faults=replace(scenario.faults, **{name: 0.0}))
    for name in _chances(scenario):
        value = getattr(scenario.faults, name)
        if value > 0.1:
            yield replace(scenario, faults=replace(scenario.faults, **{name: round(value / 2, 3)}))
    for name, short in (("delay_ms", (0.1, 1.0)), ("fsync_ms", (0.1, 0.2))):
        yield replace(scenario, faults=replace(scenario.faults, **{name: short}))


def fewer_nodes(scenario: Scenario) -> Iterator[Scenario]:
    """One node less."""
    configuration = scenario.configuration
    for node_id in reversed((*configuration.voters, *configuration.learners, *scenario.spares)):
        voters = tuple(n for n in configuration.voters if n != node_id)
        if not voters:
            continue
        fewer = replace_struct(
            configuration,
            voters=voters,
            learners=tuple(n for n in configuration.learners if n != node_id),
            servers=tuple(server for server in configuration.servers if server.id != node_id),
        )
        spares = tuple(n for n in scenario.spares if n != node_id)
        yield replace(scenario, configuration=fewer, spares=spares)


whole_changes = (everything, quiet, same_clocks)
single_changes = (no_parts, less_load, fewer_nodes, single_chances)
