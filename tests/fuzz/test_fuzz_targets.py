"""Every target, shortly and always the same: its valid inputs, what was found before, and mutations.

The long runs are `make fuzz`; hypothesis shrinks here what fails, and mutates by structure: one value of a
valid message, record or command at a time, or bytes.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutate_bytes, mutate_packed
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Feed, FuzzFailure, Target, check

HERE = Path(__file__).resolve().parent
EVERY = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
FAST = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@EVERY
def test_valid_inputs_and_their_memory(target: Target) -> None:
    """Each seed, measured. At least one of them must be taken: else the target tests nothing."""
    taken = [target.execute_measured(each) for each in target.seeds()]
    assert any(taken)


@EVERY
def test_what_was_found_before(target: Target) -> None:
    for path in sorted((HERE / f"crashes-{target.name}").glob("*")):
        if path.suffix != ".txt":
            target.execute(path.read_bytes())


@EVERY
def test_nothing_and_noise(target: Target) -> None:
    rng = random.Random(4)
    for size in (0, 1, 2, 3, 8, 40, 1000, target.max_bytes):
        for _ in range(4):
            target.execute(rng.randbytes(size))
            target.execute(bytes(size))
            target.execute(b"\xff" * size)


@EVERY
def test_mutations(target: Target) -> None:
    seeds = list(target.seeds())

    @FAST
    @given(st.integers(0, len(seeds) - 1), st.integers(0, 2**32), st.booleans(), st.booleans())
    def mutated(number: int, choice: int, by_value: bool, measured: bool) -> None:
        rng, data, head = random.Random(choice), seeds[number], target.packed_from
        for _ in range(1 + choice % 3):
            if target.packed and by_value:
                data = data[:head] + mutate_packed(data[head:], rng, target.max_bytes)
            else:
                data = mutate_bytes(data, rng, target.max_bytes)
        (target.execute_measured if measured and choice % 8 == 0 else target.execute)(data)

    mutated()


@EVERY
def test_many_mutations(target: Target) -> None:
    """A few hundred more without hypothesis, which costs more than most targets."""
    rng, seeds = random.Random(target.name), list(target.seeds())
    for _ in range(target.suite_inputs):
        data, head = rng.choice(seeds), target.packed_from
        if target.packed and rng.random() < 0.7:
            data = data[:head] + mutate_packed(data[head:], rng, target.max_bytes)
        else:
            data = mutate_bytes(data, rng, target.max_bytes)
        target.execute(data)


def test_a_target_tells_what_is_wrong() -> None:
    """The harness itself: other exceptions, failed checks, memory and time are bugs; typed errors are not."""

    def run(data: bytes) -> None:
        if data == b"typed":
            raise KeyError
        if data == b"other":
            raise IndexError
        if data == b"memory":
            bytearray(64 << 20)
        check(data != b"wrong", "wrong")

    target = Target("t", run, (KeyError,), list)
    assert target.execute(b"fine") and not target.execute(b"typed")
    with pytest.raises(IndexError):
        target.execute(b"other")
    for data in (b"wrong", b"memory"):
        with pytest.raises(FuzzFailure):
            target.execute_measured(data)
    feed = Feed(b"\x01\x00\x02abc")
    assert (feed.byte(), feed.piece(), feed.rest(), feed.byte(), feed.more) == (1, b"ab", b"c", 0, False)
