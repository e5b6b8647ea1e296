"""The demo's followers: many of them in one process, each with its own character. Started by `demo` only."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from cli.crew import Crew
from cli.follower import Behaviour, Follower
from cli.link import Address
from cli.logs import configure_logging
from cli.processes import StopSignal, die_with_parent, end_with_any_thread

CREWS = 16  # threads at the most, however many followers
log = logging.getLogger(__name__)


class Recruit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One follower of a fleet."""

    name: str
    version: str
    behaviour: Behaviour = Behaviour()


class FleetPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who they are, and the client ports that they go to."""

    addresses: tuple[Address, ...]
    recruits: tuple[Recruit, ...]


def crews(plan: FleetPlan) -> list[Crew]:
    """The plan's followers in at most CREWS crews, which begin at different nodes."""
    followers = [Follower(recruit.name, recruit.version, "", recruit.behaviour) for recruit in plan.recruits]
    made = []
    for number in range(min(CREWS, len(followers))):
        first = number % len(plan.addresses)
        made.append(Crew(followers[number::CREWS], plan.addresses[first:] + plan.addresses[:first]))
    return made


def run_fleet(plan_file: Path, parent_pid: int | None) -> int:
    """Runs the followers in plan_file (JSON, a FleetPlan) until SIGTERM or SIGINT."""
    configure_logging("INFO", "text", "fleet")
    signals = StopSignal()
    end_with_any_thread()
    if parent_pid is not None:
        die_with_parent(parent_pid)
    plan = msgspec.json.decode(plan_file.read_bytes(), type=FleetPlan)
    running = crews(plan)
    log.info("%d followers in %d crews", len(plan.recruits), len(running))
    for crew in running:
        crew.start()
    while not signals.wait(60.0):
        pass
    for crew in running:
        crew.request_stop()
    for crew in running:
        crew.stop()
    return 0
