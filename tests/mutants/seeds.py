"""Run the simulation's seeds until one fails: python -m tests.mutants.seeds --most 400 --seconds 120.

Prints `red SEED COUNT REASON`, or `green COUNT`. Run in a copy of the tree that has a bug in it.
"""

from __future__ import annotations

import argparse
import itertools
import time

from tests.simulation.simulation import Simulation, is_read_race


def main() -> int:
    """Exit 0 whatever came out: the line says it."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.seeds", description=__doc__)
    parser.add_argument("--most", type=int, default=400)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--only-races", action="store_true", help="only schedules made for stale reads")
    options = parser.parse_args()
    began, count = time.monotonic(), 0
    seeds = (seed for seed in itertools.count() if is_read_race(seed) or not options.only_races)
    while count < options.most and time.monotonic() - began < options.seconds:
        seed = next(seeds)
        count += 1
        try:
            Simulation(seed).run(options.steps)
        except Exception as error:  # noqa: BLE001 - whatever it is, the bug was noticed
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"red {seed} {count} {reason[:200]}")
            return 0
    print(f"green {count}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
