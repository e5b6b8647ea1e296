"""What a group of cases gets to work with, and what it tells about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.results import OURS, Results

__all__ = ["OURS", "Case", "Context", "Group", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """rounds: of each case that has any; seconds: of one load; the rest: of the case that bears the name."""

    rounds: int = 5
    seconds: float = 2.0
    kills: int = 50
    endurance_s: float = 600.0
    followers: int = 10_000
    interval_s: float = 10.0
    intervals: int = 5
    memory_keys: int = 1_000_000
    most_keys: int = 1_000_000  # the greatest number of keys that the case "keys" goes up to
    check_perf: bool = True  # etcd's own load tool, one minute a load

    def __post_init__(self) -> None:
        for name in ("rounds", "kills", "followers", "intervals", "memory_keys", "most_keys"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} wants 1 or more, got {getattr(self, name)}")
        for name in ("seconds", "endurance_s", "interval_s"):
            if not 0.05 <= getattr(self, name) <= 86_400:
                raise ValueError(f"{name.replace('_', '-')} wants 0.05 or more, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Context:
    """directory: on a real disk, for this group alone. tell(text): what is being done now; step(): one of the
    group's steps is done."""

    options: Options
    directory: Path
    results: Results
    tell: Callable[[str], None]
    step: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Case:
    """name: for --only and in the results."""

    name: str
    title: str


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that share servers. run(context, names of the wanted cases); seconds(options, names): an
    estimate; steps(options, names): how often run() calls step(); needs: programs, without which nothing
    goes."""

    name: str
    cases: tuple[Case, ...]
    run: Callable[[Context, frozenset[str]], None]
    seconds: Callable[[Options, frozenset[str]], float]
    steps: Callable[[Options, frozenset[str]], int]
    needs: tuple[str, ...] = ()
