"""Runs one target many times: first guided by coverage (atheris, which is libFuzzer), then without, several
times faster, from the inputs that guidance found.

What fails is kept under tests/fuzz/crashes-TARGET/, once per place in the code, and the run goes on. Without
atheris (it has no wheel for this Python, say) the same inputs are mutated without guidance.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import mmap
import random
import resource
import signal
import sys
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
_HANGS_S = 60
_MOST_MEMORY = 3 << 30
_KEPT_SEEDS = 4000  # of the inputs that guidance found


class BlackBox:
    """A file that holds the input that runs, so that it is left when it ends the process itself: a crash in
    C, a hang, a killed process."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        with path.open("w+b") as file:
            file.truncate(4 + max_bytes)
            self._map = mmap.mmap(file.fileno(), 4 + max_bytes)

    def hold(self, data: bytes) -> None:
        """Before it runs."""
        self._map[: 4 + len(data)] = len(data).to_bytes(4, "big") + data

    @staticmethod
    def read(path: Path) -> bytes:
        """What the process held when it ended."""
        content = path.read_bytes()
        return content[4 : 4 + int.from_bytes(content[:4], "big")]


class Session:
    """One target's run: counts, keeps failures, says now and then how far it is."""

    def __init__(
        self,
        target: Target,
        runs: int,
        report: Callable[[dict[str, Any]], None],
        hold: Callable[[bytes], None] = lambda data: None,
    ) -> None:
        self.target = target
        self.runs = runs
        self.count = self.taken = 0
        self.failures: dict[str, str] = {}
        self._report = report
        self._hold = hold
        self._began = time.monotonic()
        self._next_s = 0.0
        self.finished = False

    def one(self, data: bytes) -> None:
        """One input."""
        data = data[: self.target.max_bytes]
        self._hold(data)
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
        if place not in self.failures:
            self.failures[place] = keep(self.target.name, data, "".join(traceback.format_exception(error)))


def keep(name: str, data: bytes, why: str) -> str:
    """Files an input that failed, with the reason beside it; gives its name."""
    directory = HERE / f"crashes-{name}"
    directory.mkdir(exist_ok=True)
    stem = hashlib.sha256(data).hexdigest()[:16]
    (directory / f"{stem}.bin").write_bytes(data)
    (directory / f"{stem}.txt").write_text(why, errors="replace")
    return stem


def run_target(name: str, runs: int, seed: int, *, guided: bool, directory: Path) -> None:
    """The body of a child process: JSON lines on stdout. directory: for the corpus, which a guided run fills
    and another begins with, and the black box."""
    guided = guided and importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["raft", "ledger", "cli", "database", "web"]):
            from tests.fuzz.registry import TARGETS
    else:
        from tests.fuzz.registry import TARGETS

    target = TARGETS[name]
    box = BlackBox(directory / "running", target.max_bytes)
    session = Session(target, runs, lambda state: print(json.dumps(state), flush=True), box.hold)
    gc.collect()
    gc.freeze()  # the modules and samples; to look through them again and again would be half of the time
    gc.set_threshold(20_000, 20, 50)
    corpus = directory / "corpus"
    corpus.mkdir(exist_ok=True)
    (_guided if guided else _unguided)(session, seed, corpus)


def _mutator(session: Session) -> Callable[[bytes, int, random.Random], bytes]:
    target = session.target

    def mutate(data: bytes, longest: int, rng: random.Random) -> bytes:
        head = target.packed_from
        if target.packed and rng.random() < 0.7:
            return data[:head] + mutate_packed(data[head:], rng, longest - head)
        return mutate_bytes(data, rng, longest)

    return mutate


def _guided(session: Session, seed: int, corpus: Path) -> None:
    import atheris

    mutate = _mutator(session)

    def custom(data: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return bytes(mutate(bytes(data), longest, rng))[:longest]
        return bytes(atheris.Mutate(data, longest))

    for each in session.target.seeds():
        (corpus / hashlib.sha256(each).hexdigest()[:16]).write_bytes(each)
    options = [
        *(f"-runs={session.runs}", f"-seed={seed}", f"-max_len={session.target.max_bytes}"),
        *(f"-timeout={_HANGS_S}", "-rss_limit_mb=1500", "-verbosity=0"),
        *(f"-artifact_prefix={corpus.parent}/", str(corpus)),
    ]
    atheris.Setup([sys.argv[0], *options], lambda data: session.one(bytes(data)), custom_mutator=custom)
    atheris.Fuzz()


def _unguided(session: Session, seed: int, corpus: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    rng, mutate = random.Random(seed), _mutator(session)
    seeds = list(session.target.seeds())
    for each in seeds[: session.runs]:
        session.one(each)
    longest = max(map(len, seeds), default=0)  # guidance finds longer ones, too: slow, and nothing new
    found = [path.read_bytes() for path in sorted(corpus.iterdir()) if path.stat().st_size <= longest]
    rng.shuffle(found)
    sources = (seeds, found[:_KEPT_SEEDS] or seeds)
    while not session.finished:
        signal.alarm(_HANGS_S)  # ends the process, and its parent keeps the input
        session.one(mutate(rng.choice(sources[rng.random() < 0.5]), session.target.max_bytes, rng))
