"""One schedule as a value: a seed, and what is left out of it. It runs, it is told in words, it is a file.

python -m tests.simulation --seed 17                          as the seed draws it
python -m tests.simulation --seed 17 --only f3-crash,c0-change   without any other fault event
python -m tests.simulation --replay FILE                       also with a scenario of its own
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.simulation.checker import SafetyViolation
from tests.simulation.events import Event, Plan
from tests.simulation.faults import Scenario
from tests.simulation.simulation import Simulation, scenario_of

STEPS = 2000


@dataclass(frozen=True, slots=True)
class Schedule:
    """What decides everything that happens. scenario: None for the one that the seed draws; only: the names
    of the fault events that happen, None for all; steps: with faults, before a majority is healed."""

    seed: int
    steps: int = STEPS
    variation: int = 0
    only: tuple[str, ...] | None = None
    scenario: Scenario | None = None

    def drawn(self) -> Scenario:
        """The scenario, whoever decides it."""
        return self.scenario or scenario_of(self.seed)

    def plan(self) -> Plan:
        """Fresh random numbers for one run."""
        return Plan(self.seed, self.variation, None if self.only is None else frozenset(self.only))

    def encode(self) -> bytes:
        """The file's content."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def decode(data: bytes) -> Schedule:
    """The schedule in a file. msgspec.ValidationError: it is none, or from another version of the tests."""
    return msgspec.json.decode(data, type=Schedule)


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, and when. signature: the same for two failures of the same kind."""

    step: int
    at_ms: float
    exception: str
    reason: str
    signature: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.at_ms:.0f} ms: {self.exception}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that is over. figures: what happened in it, by name; they add up over runs."""

    steps: int
    failure: Failure | None
    events: tuple[Event, ...]
    figures: Counter[str] = field(default_factory=Counter)
    trace: str = ""


def execute(
    schedule: Schedule,
    *,
    stop_after: int | None = None,
    simulation_of: Callable[[Schedule], Simulation] | None = None,
) -> Outcome:
    """Run it to its end, its failure, or `stop_after` steps."""
    simulation: Simulation | None = None
    try:
        simulation = (simulation_of or build)(schedule)
        if stop_after is not None and stop_after <= schedule.steps:
            for _ in range(stop_after):
                simulation.step()
        else:
            simulation.run(schedule.steps)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        step, at_ms = (simulation.steps, simulation.now) if simulation else (0, 0.0)
        failure = Failure(step, at_ms, type(error).__name__, str(error), signature_of(error))
        events, figures = _told(simulation)
        return Outcome(step, failure, events, figures, traceback.format_exc())
    events, figures = _told(simulation)
    return Outcome(simulation.steps, None, events, figures)


def build(schedule: Schedule) -> Simulation:
    """The schedule's cluster, before its first step."""
    return Simulation(schedule.seed, schedule.scenario, schedule.plan())


def _told(simulation: Simulation | None) -> tuple[tuple[Event, ...], Counter[str]]:
    if simulation is None:
        return (), Counter()
    return tuple(simulation.plan.happened), figures_of(simulation)


def figures_of(simulation: Simulation) -> Counter[str]:
    """How much of what matters has happened: a run without elections proves nothing."""
    checker, workload = simulation.checker, simulation.workload
    books = simulation.machines.books
    figures = Counter(
        {
            "terms": max(checker.leaders, default=0),
            "leaders": len(checker.leaders),
            "commits": len(checker.committed),
            "writes acknowledged": workload.writes_acknowledged,
            "reads answered": workload.reads_answered,
            "reads refused": workload.reads_refused,
            "restarts": sum(max(node.incarnation - 1, 0) for node in simulation.nodes.values()),
            "snapshots installed": simulation.installs,
            "changes committed": len(checker.configurations),
            "disks lost": simulation.members.wipes,
            "reports acknowledged": len(books.acknowledged),
            "intervals": len(books.opened),
            "turns judged": len(books.outcomes),
            "bans": books.bans,
            "claims": len(books.claims),
            "simulated seconds": round(simulation.now / 1000),
        }
    )
    figures.update(f"fault: {event.kind}" for event in simulation.plan.happened)
    return figures


def signature_of(error: BaseException) -> str:
    """The exception's type and the words of its first line, without whatever differs from run to run. What is
    no violation of a property is told apart by the function that raised it."""
    line = (str(error).splitlines() or [""])[0]
    words = re.split(r"[(\[{;:]", line, maxsplit=1)[0]
    words = re.sub(r"\d+(\.\d+)*|b?'[^']*'|\bNone\b", "#", words).strip()
    where = ""
    if not isinstance(error, SafetyViolation):
        frames = traceback.extract_tb(error.__traceback__)
        where = f" in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}: {words}{where}"


# --- in words -------------------------------------------------------------------------------------------


def command_of(schedule: Schedule, file: Path | None = None) -> str:
    """What replays it exactly. A scenario of its own needs the file."""
    if schedule.scenario is not None:
        return f"python -m tests.simulation --replay {file}"
    parts = [f"python -m tests.simulation --seed {schedule.seed}"]
    if schedule.steps != STEPS:
        parts.append(f"--steps {schedule.steps}")
    if schedule.variation:
        parts.append(f"--variation {schedule.variation}")
    if schedule.only is not None:
        parts.append(f"--only {','.join(schedule.only) or 'none'}")
    return " ".join(parts)


def describe(schedule: Schedule, events: tuple[Event, ...]) -> str:
    """The cluster, what may go wrong in it all the time, and the single faults, one line each."""
    scenario = schedule.drawn()
    lines = [
        f"seed {schedule.seed}, variation {schedule.variation}",
        f"voters {list(scenario.configuration.voters)}, learners {list(scenario.configuration.learners)}, "
        f"spares {list(scenario.spares)}, clients {scenario.clients}",
        "options " + _fields(scenario.options),
        "network, disks, processors " + _fields(scenario.faults, leave_out=EVENT_WEIGHTS),
    ]
    shown = ("configuration", "options", "faults", "spares", "clients")
    for name in (each.name for each in fields(scenario) if each.name not in shown):
        value = getattr(scenario, name)
        if name == "clock_rates":
            value = {node: round(rate, 4) for node, rate in value.items() if rate != 1.0}
        if value and name != "clock_starts":
            lines.append(f"{name} " + (_fields(value) if is_dataclass(value) else f"{value}"))
    lines.append(f"{len(events)} fault event{'s' * (len(events) != 1)}{':' * bool(events)}")
    lines.extend(f"  {event.at_ms:9.1f} ms  {event.name:18} {event.told}" for event in events)
    return "\n".join(lines)


EVENT_WEIGHTS = ("crash", "partition", "heal", "pause", "suspect", "clock_jump", "race", "fault_every_ms")


def _fields(value: Any, leave_out: tuple[str, ...] = ()) -> str:
    """Those that are not zero."""
    told = []
    for each in fields(value):
        found = getattr(value, each.name)
        if each.name not in leave_out and found:
            if each.name == "long_delay_ms" and not value.long_delay:
                continue
            if isinstance(found, float):
                found = round(found, 3)
            told.append(f"{each.name}={found}")
    return ", ".join(told) or "none"
