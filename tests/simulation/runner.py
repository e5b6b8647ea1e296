"""Runs many schedules on all cores: processes that ask for small batches of seeds, one report at the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.simulation.schedule import Failure, Schedule, execute

BATCH = 4  # seeds: what is left when the last process works alone is short
SILENCE_S = 120.0  # a schedule that takes longer hangs

# Seed, steps, processor seconds, figures, failure.
Done = tuple[int, int, float, Counter[str], Failure | None]


@dataclass
class Report:
    """What came of all seeds so far. cpu_s: processor time of all workers together."""

    wanted: int
    jobs: int
    done: int = 0
    steps: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    figures: Counter[str] = field(default_factory=Counter)
    failures: dict[int, Failure] = field(default_factory=dict)
    interrupted: bool = False

    def add(self, done: Done) -> None:
        """One more schedule is over."""
        seed, steps, cpu_s, figures, failure = done
        self.done, self.steps, self.cpu_s = self.done + 1, self.steps + steps, self.cpu_s + cpu_s
        self.figures.update(figures)
        if failure is not None:
            self.failures[seed] = failure

    def kinds(self) -> Counter[str]:
        """How many failures of each kind."""
        return Counter(failure.signature for failure in self.failures.values())

    def rate(self) -> str:
        """Steps per second, of all and of one core that is busy with nothing else."""
        overall, each = self.steps / max(self.wall_s, 1e-9), self.steps / max(self.cpu_s, 1e-9)
        return f"{overall:,.0f} steps/s, {each:,.0f} per core"

    def line(self) -> str:
        """The state of affairs."""
        left = self.wall_s / self.done * (self.wanted - self.done) if self.done else 0.0
        return (
            f"{self.done:,}/{self.wanted:,} schedules, {len(self.failures)} failed, {self.rate()}, "
            f"{left:.0f} s left"
        )

    def summary(self) -> str:
        """All there is to say, several lines."""
        lines = [
            f"{self.done:,} of {self.wanted:,} schedules{' (interrupted)' * self.interrupted}, "
            f"{len(self.failures)} failed",
            f"{self.steps:,} steps in {self.wall_s:.1f} s on {self.jobs} processes: {self.rate()}",
        ]
        width = max((len(name) for name in self.figures), default=0)
        lines += [f"  {name:{width}} {count:12,}" for name, count in sorted(self.figures.items())]
        lines += [f"  FAILED {count}× {kind}" for kind, count in self.kinds().most_common()]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "schedules": self.done,
            "wanted": self.wanted,
            "interrupted": self.interrupted,
            "steps": self.steps,
            "seconds": round(self.wall_s, 3),
            "processor_seconds": round(self.cpu_s, 3),
            "steps_per_second": round(self.steps / max(self.wall_s, 1e-9)),
            "processes": self.jobs,
            "figures": dict(sorted(self.figures.items())),
            "failure_kinds": dict(self.kinds()),
            "failures": {
                str(seed): {"step": f.step, "exception": f.exception, "reason": f.reason}
                for seed, f in sorted(self.failures.items())
            },
        }

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(self.json(), indent=1) + "\n")


# --- the workers ----------------------------------------------------------------------------------------


def _work(pipe: Connection, others: Sequence[Connection], steps: int) -> None:
    """A worker: seeds come in, outcomes go out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    for other in others:  # inherited: as long as they are open here, nobody sees that the parent is gone
        other.close()
    try:
        while True:
            for seed in pipe.recv():
                began = time.process_time()
                outcome = execute(Schedule(seed, steps))
                spent = time.process_time() - began
                pipe.send((seed, outcome.steps, spent, outcome.figures, outcome.failure))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    heard_s: float
    waiting: list[int] = field(default_factory=list)  # seeds handed out, in their order


class Pool:
    """The processes and what they are busy with. The processes are forked: what a test has patched in this
    one holds in them too."""

    def __init__(self, jobs: int, steps: int, silence_s: float = SILENCE_S) -> None:
        self._silence_s = silence_s
        self._context = multiprocessing.get_context("fork")
        self._steps = steps
        self._workers: list[_Worker] = []
        for _ in range(jobs):
            self._start()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        others = [ours, *(worker.pipe for worker in self._workers)]
        process = self._context.Process(target=_work, args=(theirs, others, self._steps), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours, time.monotonic()))

    def run(self, seeds: Iterator[int]) -> Iterator[list[Done]]:
        """What is done, as it comes; an empty list about every second that nothing does."""
        for worker in self._workers:
            self._hand_out(worker, seeds)
        while busy := [worker for worker in self._workers if worker.waiting]:
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            done: list[Done] = []
            for worker in busy:
                if worker.pipe in ready:
                    done += self._take(worker)
                elif time.monotonic() - worker.heard_s > self._silence_s:
                    done += self._lose(worker, f"no end within {self._silence_s:.0f} s")
                if not worker.waiting:
                    self._hand_out(worker, seeds)
            yield done

    def _hand_out(self, worker: _Worker, seeds: Iterator[int]) -> None:
        batch = [seed for _, seed in zip(range(BATCH), seeds, strict=False)]
        if batch and worker in self._workers:
            worker.waiting += batch
            worker.heard_s = time.monotonic()
            worker.pipe.send(batch)
        elif batch:  # it was lost: its successor goes on
            self._workers[-1].waiting += batch
            self._workers[-1].pipe.send(batch)

    def _take(self, worker: _Worker) -> list[Done]:
        try:
            done = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._lose(worker, "the process died")
        worker.heard_s = time.monotonic()
        worker.waiting.remove(done[0])
        return [done]

    def _lose(self, worker: _Worker, why: str) -> list[Done]:
        """The first seed that it has not reported is to blame; another process gets the rest."""
        self._end(worker)
        self._workers.remove(worker)
        self._start()
        seed, *rest = worker.waiting
        worker.waiting = []
        if rest:
            self._workers[-1].waiting += rest
            self._workers[-1].pipe.send(rest)
        failure = Failure(0, 0.0, "Lost", why, f"Lost: {why}")
        return [(seed, 0, 0.0, Counter(), failure)]

    @staticmethod
    def _end(worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()

    def close(self) -> None:
        """End all processes, whatever they do."""
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()


def run_seeds(
    seeds: Sequence[int],
    steps: int,
    jobs: int,
    *,
    most_failures: int = 5,
    seconds: float = float("inf"),
    progress: Callable[[Report], None] = lambda report: None,
    silence_s: float = SILENCE_S,
) -> Report:
    """Run them all, or until so many have failed, so much time has passed, or Ctrl-C."""
    jobs = max(1, min(jobs, -(-len(seeds) // BATCH)))
    report, began = Report(len(seeds), jobs), time.monotonic()
    pool = Pool(jobs, steps, silence_s)
    try:
        for done in pool.run(iter(seeds)):
            for each in done:
                report.add(each)
            report.wall_s = time.monotonic() - began
            progress(report)
            if len(report.failures) >= most_failures or report.wall_s > seconds:
                break
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        pool.close()
    report.wall_s = time.monotonic() - began
    return report


# --- progress -------------------------------------------------------------------------------------------


class PlainProgress:
    """A line now and then, where nobody watches a terminal; and one at once for each failure."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._next_s = time.monotonic() + every_s
        self._told: set[int] = set()

    def __call__(self, report: Report) -> None:
        """Perhaps it is time for a line."""
        for seed in report.failures.keys() - self._told:
            self._told.add(seed)
            print(f"FAILED seed {seed}, {report.failures[seed]}", file=sys.stderr, flush=True)
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self._every_s
            print(report.line(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class BarProgress:
    """A bar that rich draws. Made only after the workers: it has a thread, and they are forked."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, report: Report) -> None:
        """Draw it anew."""
        if self._bar is None:
            self._bar = _make_bar()
            self._task = self._bar.add_task("", total=report.wanted)
            self._bar.start()
        told = f"[red]{len(report.failures)} failed[/]" if report.failures else "0 failed"
        self._bar.update(self._task, completed=report.done, description=f"{told}  {report.rate()}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), auto_refresh=True)


def make_progress() -> PlainProgress | BarProgress:
    """What suits standard error."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()
