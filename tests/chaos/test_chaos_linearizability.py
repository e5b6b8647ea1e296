"""The checker is checked: planted faults are found, honest histories pass, and it agrees with brute force."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.history import FAILED, OK, UNKNOWN, Operation
from tests.chaos.linearizability import LINEARIZABLE, MODELS, UNDECIDED, VIOLATION, check, check_key


def op(what: str, argument: Any, began: int, ended: int, result: Any = True, outcome: str = OK) -> Operation:
    return Operation("k", what, argument, began, ended, outcome, result if outcome == OK else None)


def put(value: int, began: int, ended: int, outcome: str = OK) -> Operation:
    return op("set", value, began, ended, True, outcome)


def get(value: int | None, began: int, ended: int) -> Operation:
    return op("get", None, began, ended, value)


def answer(*operations: Operation) -> str:
    return check_key("k", operations).answer


# --- by hand ----------------------------------------------------------------------------------------------

HONEST: dict[str, Sequence[Operation]] = {
    "nothing": [],
    "one after the other": [put(1, 0, 1), get(1, 2, 3), put(2, 4, 5), get(2, 6, 7)],
    "a read beside a write sees it": [put(1, 0, 9), get(1, 2, 3)],
    "a read beside a write does not see it": [put(1, 0, 9), get(None, 2, 3)],
    "two writes beside each other, in the other order": [put(1, 0, 9), put(2, 1, 8), get(1, 10, 11)],
    "an unknown write that happened": [put(1, 0, 1, UNKNOWN), get(1, 5, 6)],
    "an unknown write that did not": [put(1, 0, 1, UNKNOWN), get(None, 5, 6)],
    "an unknown write that came late": [put(1, 0, 1, UNKNOWN), put(2, 2, 3), get(2, 4, 5), get(1, 6, 7)],
    "an unknown write refused to SET NX": [put(1, 0, 1, UNKNOWN), op("setnx", 2, 5, 6, False)],
    "a refused write": [put(1, 0, 1), put(2, 2, 3, FAILED), get(1, 4, 5)],
    "SET NX": [op("setnx", 1, 0, 1), op("setnx", 2, 2, 3, False), get(1, 4, 5)],
    "IFEQ": [put(1, 0, 1), op("ifeq", (1, 2), 2, 3), op("ifeq", (1, 3), 4, 5, False), get(2, 6, 7)],
    "a write of the value that is there, which counts later": [
        put(3, 2, 3), put(3, 4, 6), put(1, 5, 6), get(3, 7, 8)],
    "the same with values that nobody ever saw": [
        put(7, 0, 1), put(8, 2, 9), put(1, 3, 4), op("ifeq", (1, 5), 10, 11, False)],
    "IFEQ that writes what is there, which counts later": [
        put(1, 0, 1), op("ifeq", (1, 1), 2, 9), put(2, 3, 4), op("ifeq", (2, 1), 5, 6), get(1, 10, 11)],
    "a counter": [op("incr", 1, 0, 5, 2), op("incr", 1, 1, 4, 1), get(2, 6, 7)],
    "a counter with an unknown one": [op("incr", 1, 0, 1, 0, UNKNOWN), op("incr", 1, 2, 3, 2)],
}  # fmt: skip

FAULTY: dict[str, Sequence[Operation]] = {
    "stale read": [put(1, 0, 1), put(2, 2, 3), get(1, 4, 5)],
    "stale read of nothing": [put(1, 0, 1), get(None, 2, 3)],
    "lost write": [put(1, 0, 1), put(2, 2, 3), get(2, 4, 5), get(1, 6, 7)],
    "reads in another order": [put(1, 0, 20), put(2, 0, 20), get(1, 1, 2), get(2, 3, 4), get(1, 5, 6)],
    "a value from nowhere": [put(1, 0, 1), get(7, 2, 3)],
    "read before it was written": [get(1, 0, 1), put(1, 2, 3)],
    "unknown, read before it was written": [get(1, 0, 1), put(1, 2, 3, UNKNOWN)],
    "an unknown write that happened and was lost": [
        put(1, 0, 1, UNKNOWN), get(1, 2, 3), get(None, 4, 5)],
    "an unknown write that happened twice": [
        put(1, 0, 1, UNKNOWN), get(1, 2, 3), put(2, 4, 5), get(2, 6, 7), get(1, 8, 9)],
    "a refused write that happened": [put(1, 0, 1), put(2, 2, 3, FAILED), get(2, 4, 5)],
    "SET NX twice": [op("setnx", 1, 0, 1), op("setnx", 2, 2, 3)],
    "SET NX refused by nothing": [op("setnx", 1, 0, 1, False)],
    "IFEQ won by two": [put(1, 0, 1), op("ifeq", (1, 2), 2, 8), op("ifeq", (1, 3), 2, 8)],
    "IFEQ of a value that has gone": [put(1, 0, 1), put(2, 2, 3), op("ifeq", (1, 3), 4, 5)],
    "a double increment": [op("incr", 1, 0, 1, 1), op("incr", 1, 2, 3, 3)],
    "the same answer to two increments": [op("incr", 1, 0, 5, 1), op("incr", 1, 0, 5, 1)],
    "an unknown increment done twice": [op("incr", 1, 0, 1, 0, UNKNOWN), get(2, 2, 3)],
    "a lost increment": [op("incr", 1, 0, 1, 1), op("incr", 1, 2, 3, 1)],
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_history_passes(name: str) -> None:
    assert answer(*HONEST[name]) == LINEARIZABLE


@pytest.mark.parametrize("name", FAULTY)
def test_a_planted_fault_is_found(name: str) -> None:
    verdict = check_key("k", FAULTY[name])
    assert verdict.answer == VIOLATION
    assert verdict.around or "nowhere" in name, "nothing to look at"
    assert verdict.reason


def test_keys_are_judged_apart() -> None:
    other = [put(1, 0, 1), get(None, 2, 3)]
    for operation in other:
        operation.key = "other"
    answers = {verdict.key: verdict.answer for verdict in check([*HONEST["IFEQ"], *other])}
    assert answers == {"k": LINEARIZABLE, "other": VIOLATION}


def test_a_used_up_budget_is_no_pass() -> None:
    assert check_key("k", HONEST["one after the other"], budget=2).answer == UNDECIDED


# --- against brute force ----------------------------------------------------------------------------------


def brute_force(operations: Sequence[Operation]) -> bool:
    """Every choice of the unknown ones that happened, in every order that time allows."""
    certain = [o for o in operations if o.outcome == OK]
    unknown = [o for o in operations if o.outcome == UNKNOWN]
    for count in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, count):
            if any(_fits(order) for order in itertools.permutations([*certain, *happened])):
                return True
    return False


def _fits(order: Sequence[Operation]) -> bool:
    state: Any = None
    for place, o in enumerate(order):
        if any(later.outcome == OK and later.ended < o.began for later in order[place + 1 :]):
            return False
        state, result = MODELS[o.what](state, o.argument)
        if o.outcome == OK and result != o.result:
            return False
    return True


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    """Few operations, few values, any answers: about half of them are not linearizable."""
    values = st.integers(1, 3)
    counter = draw(st.booleans())
    found = []
    for _ in range(draw(st.integers(1, 6))):
        began = draw(st.integers(0, 12))
        ended = began + draw(st.integers(1, 6))
        outcome = draw(st.sampled_from([OK, OK, OK, UNKNOWN, FAILED]))
        what = draw(st.sampled_from(["get", "incr"] if counter else ["get", "set", "setnx", "ifeq", "set"]))
        result: Any = True
        argument: Any = None
        if what == "get":
            result = draw(st.one_of(st.none(), values))
        elif what == "incr":
            argument, result = 1, draw(values)
        elif what == "ifeq":
            argument, result = (draw(values), draw(values)), draw(st.booleans())
        else:
            argument = draw(values)
            result = True if what == "set" else draw(st.booleans())
        found.append(op(what, argument, began, ended, result, outcome))
    return found


@settings(max_examples=1500, deadline=None)
@given(small_histories())
def test_it_says_what_brute_force_says(operations: list[Operation]) -> None:
    assert answer(*operations) == (LINEARIZABLE if brute_force(operations) else VIOLATION)


# --- simulated registers ----------------------------------------------------------------------------------


def simulated(
    rng: random.Random, size: int, *, clients: int = 8, counter: bool = False, lost: float = 0.04
) -> list[Operation]:
    """What clients of a true atomic register see: each operation takes effect at one moment between its
    beginning and its end; some answers are lost, and some of those took effect even later, or never."""
    plans: list[tuple[int, Operation]] = []
    free = [0] * clients
    for number in range(size):
        client = rng.randrange(clients)
        began = free[client] + rng.randint(1, 20)
        ended = began + rng.randint(2, 100)
        free[client] = ended
        moment = rng.randint(began, ended)
        what = rng.choice(["get", "incr"] if counter else ["get", "get", "set", "setnx", "ifeq"])
        operation = Operation("k", what, None, began, ended, OK, None, str(client))
        if rng.random() < lost:
            operation.outcome = UNKNOWN
            moment = rng.choice([moment, moment + rng.randint(1, 2000), 1 << 60])
        elif rng.random() < 0.03:
            operation.outcome, moment = FAILED, 1 << 60
        operation.argument = {"get": None, "incr": 1, "ifeq": (None, number)}.get(what, number)
        plans.append((moment, operation))
    state: Any = None
    for moment, operation in sorted(plans, key=lambda plan: plan[0]):
        if moment == 1 << 60:
            continue
        if operation.what == "ifeq":
            expected = state if rng.random() < 0.5 else rng.randrange(size)
            operation.argument = (expected, operation.argument[1])
        state, result = MODELS[operation.what](state, operation.argument)
        operation.result = result if operation.outcome == OK else None
    return [operation for _, operation in plans]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 300), st.booleans())
def test_it_never_cries_wolf(seed: int, size: int, counter: bool) -> None:
    history = simulated(random.Random(seed), size, counter=counter)
    verdict = check_key("k", history)
    assert verdict.answer == LINEARIZABLE, verdict


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(["stale", "lost", "double", "swapped"]))
def test_it_misses_no_planted_fault(seed: int, fault: str) -> None:
    """A fault in the middle of a long honest history, at a place where nothing else can explain it."""
    rng = random.Random(seed)
    counter = fault == "double"
    before = simulated(rng, 120, counter=counter, lost=0 if counter else 0.04)
    assert answer(*before) == LINEARIZABLE
    start = max(o.ended for o in before) + 5000  # after everything, but for writes that came late
    times = itertools.count(start, 10)

    def then(what: str, argument: Any, result: Any) -> Operation:
        return op(what, argument, next(times), next(times), result)

    if counter:
        highest = sum(1 for o in before if o.what == "incr" and o.outcome == OK)
        planted = [then("incr", 1, highest + 1), then("incr", 1, highest + 3)]
    else:
        planted = [then("set", 10_001, True), then("get", None, 10_001), then("set", 10_002, True)]
        planted += {
            "stale": [then("get", None, 10_001)],
            "lost": [then("get", None, 10_002), then("get", None, 10_001)],
            "swapped": [then("get", None, 10_002), then("set", 10_003, True), then("get", None, 10_002)],
        }[fault]
    assert answer(*before, *planted) == VIOLATION


def test_twenty_thousand_operations_take_seconds() -> None:
    rng = random.Random(1)
    history = []
    for key in range(25):
        for operation in simulated(rng, 800, clients=12, counter=key % 3 == 0):
            operation.key = f"k{key}"
            history.append(operation)
    began = time.process_time()
    verdicts = check(history)
    assert {verdict.answer for verdict in verdicts} == {LINEARIZABLE}, [v for v in verdicts if v.around][:1]
    assert time.process_time() - began < 20
