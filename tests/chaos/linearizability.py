"""Is a history of one key linearizable? Wing and Gong's search with Lowe's memory of what was tried.

The search places one operation after the other: next may come each operation that began before any of those
not yet placed had ended. Where it has been (which operations are placed, in which state) it does not go
again. What keeps it fast, and why it is right:

* Placed operations are told by the first one missing and a mask of the few beyond it.
* An operation that fits now and with this answer changes nothing anywhere (a read of the current value, a
  refused SET NX) is placed at once: what follows it elsewhere follows as well without it in between. A SET of
  the value that is there does not count: later it would change another one.
* Values that no answer and no comparison ever mentions are one value: nobody can tell them apart.
* An operation of unknown outcome may be placed or left out. If it alone wrote a value that was read, it did
  happen, and before the first such read had ended. If its value was never mentioned it is like all others of
  that kind, so that the one that began first stands for them all. Of two ways to the same place the one that
  has used fewer such operations makes the other superfluous.

A budget bounds the search: UNDECIDED is neither yes nor no, and no caller may take it for a yes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.history import FAILED, OK, UNKNOWN, Operation, by_key

LINEARIZABLE, VIOLATION, UNDECIDED = "linearizable", "VIOLATION", "UNDECIDED"
BUDGET = 400_000
_NEVER = 1 << 62
_NOBODY = "(a value that nobody ever saw)"

# state, argument -> (state after, answer). The key does not exist: None.
Model = Callable[[Any, Any], tuple[Any, Any]]
MODELS: dict[str, Model] = {
    "get": lambda state, _: (state, state),
    "set": lambda _, value: (value, True),
    "setnx": lambda state, value: (value, True) if state is None else (state, False),
    "ifeq": lambda state, pair: (pair[1], True) if state == pair[0] else (state, False),
    "del": lambda state, _: (None, state is not None),
    "incr": lambda state, by: ((state or 0) + by, (state or 0) + by),
}


@dataclass
class Verdict:
    """The answer for one key; reason and around (the operations where it got stuck) tell of a violation."""

    key: str
    answer: str
    operations: int
    steps: int
    reason: str = ""
    around: list[Operation] = field(default_factory=list)


@dataclass(slots=True)
class _Step:
    began: int
    ended: int
    what: str
    argument: Any
    result: Any
    certain: bool
    source: Operation


def check(operations: Iterable[Operation], budget: int = BUDGET) -> list[Verdict]:
    """One verdict for each key."""
    return [check_key(key, found, budget) for key, found in sorted(by_key(operations).items())]


def check_key(key: str, operations: Sequence[Operation], budget: int = BUDGET) -> Verdict:
    """The verdict for the operations of one key, which does not exist in the beginning."""
    steps = _steps(operations)
    return _Search(key, len(operations), steps, budget).run()


# --- what is known before the search ----------------------------------------------------------------------


def _written(operation: Operation) -> Any:
    if operation.what in ("set", "setnx"):
        return operation.argument
    return operation.argument[1] if operation.what == "ifeq" else None


def _steps(operations: Sequence[Operation]) -> list[_Step]:
    """The operations that the search has to place: no refused ones, no reads that nobody has an answer to,
    unknown ones that were seen to happen with the end that this gives them."""
    live = [o for o in operations if o.outcome == OK or (o.outcome == UNKNOWN and o.what != "get")]
    assert all(o.outcome in (OK, UNKNOWN, FAILED) for o in operations)
    writers = Counter(_written(o) for o in live)
    seen_at: dict[Any, int] = {}  # a value -> when the first that had read it had ended
    mentioned: set[Any] = set()
    for o in live:
        if o.what == "get" and o.result is not None:
            mentioned.add(o.result)
            seen_at[o.result] = min(seen_at.get(o.result, _NEVER), o.ended)
        elif o.what == "ifeq":
            mentioned.add(o.argument[0])
            if o.outcome == OK and o.result:
                seen_at[o.argument[0]] = min(seen_at.get(o.argument[0], _NEVER), o.ended)
    steps = []
    for o in live:
        value, argument = _written(o), o.argument
        ended, certain, result = o.ended, o.outcome == OK, o.result
        if not certain:
            ended = _NEVER
            if value is not None and writers[value] == 1 and value in seen_at:
                ended, certain, result = max(seen_at[value], o.began), True, True
        if value is not None and value not in mentioned:
            argument = (argument[0], _NOBODY) if o.what == "ifeq" else _NOBODY
        steps.append(_Step(o.began, ended, o.what, argument, result, certain, o))
    return sorted(steps, key=lambda step: step.began)


# --- the search -------------------------------------------------------------------------------------------

_Used = tuple[int, ...]


class _Search:
    def __init__(self, key: str, size: int, steps: list[_Step], budget: int) -> None:
        self.key, self.size, self.budget = key, size, budget
        self.certain = [step for step in steps if step.certain]
        # Those of unknown outcome, in classes of which only the first unused one need be tried.
        classes: dict[Any, list[_Step]] = {}
        for step in steps:
            if not step.certain:
                classes.setdefault((step.what, step.argument), []).append(step)
        self.optional = list(classes.values())
        self.seen: dict[tuple[int, int, Any], list[_Used]] = {}
        self.steps = 0
        self.furthest: tuple[int, int, Any] = (-1, 0, None)

    def run(self) -> Verdict:
        start: tuple[int, int, Any, _Used] = (0, 0, None, (0,) * len(self.optional))
        stack = [start]
        while stack:
            base, mask, state, used = stack.pop()
            if base == len(self.certain):
                return Verdict(self.key, LINEARIZABLE, self.size, self.steps)
            if self._been_here(base, mask, state, used):
                continue
            self.steps += 1
            if self.steps > self.budget:
                return Verdict(self.key, UNDECIDED, self.size, self.steps, "the budget is used up")
            if base > self.furthest[0]:
                self.furthest = (base, mask, state)
            stack.extend(self._next(base, mask, state, used))
        return self._violation()

    def _been_here(self, base: int, mask: int, state: Any, used: _Used) -> bool:
        """Whether this place was reached before with no more of the optional ones used; else note it."""
        ways = self.seen.setdefault((base, mask, state), [])
        if any(all(a <= b for a, b in zip(way, used, strict=True)) for way in ways):
            return True
        ways.append(used)
        return False

    def _candidates(self, base: int, mask: int) -> tuple[list[int], int]:
        """The operations that may come next, and the end of the first to end of those not yet placed."""
        found, limit, place = [], _NEVER, base
        while place < len(self.certain) and (step := self.certain[place]).began <= limit:
            if not mask >> (place - base) & 1:
                found.append(place)
                limit = min(limit, step.ended)
            place += 1
        return found, limit

    def _next(self, base: int, mask: int, state: Any, used: _Used) -> list[tuple[int, int, Any, _Used]]:
        found, limit = self._candidates(base, mask)
        ways: list[tuple[int, int, Any, _Used]] = []
        for place in sorted(found, key=lambda p: -self.certain[p].ended):  # the last is tried first
            step = self.certain[place]
            after, answer = MODELS[step.what](state, step.argument)
            if answer != step.result:
                continue
            way = (*_placed(base, mask, place), after, used)
            if step.what == "get" or step.result is False:
                return [way]
            ways.append(way)
        unlikely: list[tuple[int, int, Any, _Used]] = []
        for number, members in enumerate(self.optional):
            if used[number] == len(members) or (step := members[used[number]]).began > limit:
                continue
            after, _ = MODELS[step.what](state, step.argument)
            if after != state:
                more = (*used[:number], used[number] + 1, *used[number + 1 :])
                unlikely.append((base, mask, after, more))
        return unlikely + ways

    def _violation(self) -> Verdict:
        base, mask, state = self.furthest
        found, limit = self._candidates(max(base, 0), mask)
        around = [self.certain[place].source for place in found]
        around += [s.source for members in self.optional for s in members if s.began <= limit]
        told = f"after {base} operations the value was {state!r}, and none of those then under way fits"
        return Verdict(self.key, VIOLATION, self.size, self.steps, told, around[:20])


def _placed(base: int, mask: int, place: int) -> tuple[int, int]:
    """base and mask with one more operation placed."""
    mask |= 1 << (place - base)
    while mask & 1:
        base, mask = base + 1, mask >> 1
    return base, mask
