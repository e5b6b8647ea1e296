"""What long commands share: a progress bar on standard error, and an end that leaves nothing half done."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Stage = Callable[[str, int | None], None]  # what is being done now; how much there is, None: nobody knows
Advance = Callable[[int], None]  # so much more is done


@contextlib.contextmanager
def progress_bar() -> Iterator[tuple[Stage, Advance]]:
    """A bar that is gone at the end: stage() begins it anew, advance() moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def stage(what: str, total: int | None) -> None:
            progress.reset(task, description=what, total=total)

        yield stage, lambda more: progress.advance(task, more)


class Upto:
    """Turns "so much is done of so much" into Advance."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._done = 0

    def __call__(self, done: int, _total: int) -> None:
        self._advance(done - self._done)
        self._done = done


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C (KeyboardInterrupt), so that what is half done is removed. Main thread only."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
