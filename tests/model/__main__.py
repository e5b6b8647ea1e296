"""Exhaustive search: python -m tests.model [SCOPE ...] [--seconds S] [--states N] [--jobs N]; --list."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.model.scopes import SCOPES, Scope
from tests.model.search import Result, Search
from tests.model.transcript import transcript

COLUMNS = (
    f"{'scope':<16} {'states':>10} {'transitions':>12} {'turns':>8} {'depth':>5} {'cpu s':>8}  exhausted"
)


def main() -> int:
    """Exit 1 if a property broke somewhere, or a scope that should be exhausted was not."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("scopes", nargs="*", help="default: all that are known to be exhausted in time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop each after this cpu time")
    parser.add_argument("--states", type=int, default=1 << 62, help="stop each at this many states")
    parser.add_argument("--jobs", type=int, default=1, help="scopes at a time, a process each")
    parser.add_argument("--list", action="store_true", help="only list the scopes")
    arguments = parser.parse_args()
    if unknown := set(arguments.scopes) - set(SCOPES):
        parser.error(f"no such scope: {', '.join(sorted(unknown))}; there are {', '.join(SCOPES)}")
    if arguments.list:
        for scope in SCOPES.values():
            print(f"{scope.name:<16} {scope.describe()}{'' if scope.exhaustible else '; only in part'}")
        return 0
    chosen = [SCOPES[name] for name in arguments.scopes] or [s for s in SCOPES.values() if s.exhaustible]
    print(COLUMNS, flush=True)
    bad = 0
    limits = arguments.states, arguments.seconds
    if arguments.jobs == 1:
        for scope in chosen:
            bad += show(*search(scope, *limits, bar=sys.stderr.isatty()))
        return 1 if bad else 0
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(search, scope, *limits) for scope in chosen]):
            bad += show(*done.result())
    return 1 if bad else 0


def search(scope: Scope, states: int, seconds: float, *, bar: bool = False) -> tuple[Result, str]:
    """Search one scope. Returns what was found, and the way to a violation."""
    began = last = time.monotonic()

    def progress(result: Result, waiting: int) -> None:
        nonlocal last
        if bar and time.monotonic() - last > 0.5:
            last = time.monotonic()
            filled = round(20 * (1 - waiting / result.states))
            rate = result.states / (last - began)
            print(
                f"\r{scope.name:<16} [{'#' * filled:<20}] depth {result.depth}, {result.states:,} states, "
                f"{waiting:,} wait, {rate:,.0f}/s ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    hunt = Search(scope)
    result = hunt.run(states=states, seconds=seconds, progress=progress)
    if bar:
        print("\r" + " " * 110 + "\r", end="", file=sys.stderr)
    text = transcript(hunt, result) if result.violation else ""
    result.path = []  # numbers of this process
    return result, text


def show(result: Result, text: str) -> bool:
    """Print one line, and the way to a violation. Returns whether something is wrong."""
    done = "violated" if result.violation else "yes" if result.exhausted else "no"
    print(
        f"{result.scope.name:<16} {result.states:>10,} {result.transitions:>12,} {result.turns:>8,} "
        f"{result.depth:>5} {result.seconds:>8.1f}  {done}",
        flush=True,
    )
    print(f"{'':<16} {result.scope.describe()}")
    print(f"{'':<16} reached: {', '.join(result.reached)}")
    if result.violation:
        print(f"\n{result.violation}\n\n{text}", flush=True)
    return bool(result.violation)


if __name__ == "__main__":
    sys.exit(main())
