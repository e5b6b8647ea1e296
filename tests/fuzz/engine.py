"""Runs one target many times, guided by coverage (atheris, which is libFuzzer) where that is installed.

What fails is kept under tests/fuzz/crashes-TARGET/, once per place in the code, and the run goes on. Without
atheris (it has no wheel for this Python, say) the same inputs are mutated without guidance.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.mutation import mutate_bytes, mutate_packed

if TYPE_CHECKING:
    from tests.fuzz.target import Target

HERE = Path(__file__).resolve().parent
_MEASURED_EVERY = 2000  # inputs whose memory is measured


class Session:
    """One target's run: counts, keeps failures, says now and then how far it is."""

    def __init__(self, target: Target, runs: int, report: Callable[[dict[str, Any]], None]) -> None:
        self.target = target
        self.runs = runs
        self.count = self.taken = 0
        self.failures: dict[str, str] = {}
        self._report = report
        self._began = time.monotonic()
        self._next_s = 0.0
        self.finished = False

    def one(self, data: bytes) -> None:
        """One input."""
        self.count += 1
        measured = self.count % _MEASURED_EVERY == 0
        try:
            run = self.target.execute_measured if measured else self.target.execute
            self.taken += run(data)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            self._keep(data, error)
        if self.count >= self.runs:
            self.finish()
        elif self.count % 64 == 0 and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + 1.0
            self._report(self.state())

    def finish(self) -> None:
        """Says the final state, once."""
        if not self.finished:
            self.finished = True
            self._report({**self.state(), "finished": True})

    def state(self) -> dict[str, Any]:
        """For the parent process."""
        return {
            "target": self.target.name,
            "count": self.count,
            "taken": self.taken,
            "failures": list(self.failures),
            "seconds": round(time.monotonic() - self._began, 1),
        }

    def _keep(self, data: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        where = next((f for f in reversed(frames) if "/tests/fuzz/target" not in f.filename), frames[-1])
        place = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
        if place in self.failures:
            return
        directory = HERE / f"crashes-{self.target.name}"
        directory.mkdir(exist_ok=True)
        name = hashlib.sha256(data).hexdigest()[:16]
        (directory / f"{name}.bin").write_bytes(data)
        (directory / f"{name}.txt").write_text("".join(traceback.format_exception(error)), errors="replace")
        self.failures[place] = name


def run_target(name: str, runs: int, seed: int, *, guided: bool) -> None:
    """The body of a child process: JSON lines on stdout."""
    guided = guided and importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["raft", "ledger"]):
            from tests.fuzz.registry import TARGETS
    else:
        from tests.fuzz.registry import TARGETS

    session = Session(TARGETS[name], runs, lambda state: print(json.dumps(state), flush=True))
    if guided:
        _guided(session, seed)
    else:
        _unguided(session, seed)


def _mutator(session: Session) -> Callable[[bytes, int, random.Random], bytes]:
    target = session.target

    def mutate(data: bytes, longest: int, rng: random.Random) -> bytes:
        head = target.packed_from
        if target.packed and rng.random() < 0.7:
            return data[:head] + mutate_packed(data[head:], rng, longest - head)
        return mutate_bytes(data, rng, longest)

    return mutate


def _guided(session: Session, seed: int) -> None:
    import atheris

    mutate = _mutator(session)

    def custom(data: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return bytes(mutate(bytes(data), longest, rng))[:longest]
        return bytes(atheris.Mutate(data, longest))

    kept = HERE / f"crashes-{session.target.name}"  # what ends the process itself: a crash in C, a hang
    kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for each in session.target.seeds():
            (Path(corpus) / hashlib.sha256(each).hexdigest()[:16]).write_bytes(each)
        options = [
            *(
                f"-runs={session.runs}",
                f"-seed={seed}",
                f"-max_len={session.target.max_bytes}",
                "-timeout=60",
            ),
            *("-rss_limit_mb=1500", "-verbosity=0", f"-artifact_prefix={kept}/", corpus),
        ]
        atheris.Setup([sys.argv[0], *options], lambda data: session.one(bytes(data)), custom_mutator=custom)
        atheris.Fuzz()


def _unguided(session: Session, seed: int) -> None:
    rng, mutate = random.Random(seed), _mutator(session)
    seeds = list(session.target.seeds())
    for each in seeds[: session.runs]:
        session.one(each)
    while not session.finished:
        session.one(mutate(rng.choice(seeds), session.target.max_bytes, rng))
