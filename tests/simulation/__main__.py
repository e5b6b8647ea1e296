"""Run many schedules: python -m tests.simulation [--first SEED] [--seeds N] [--steps N] [--seconds S]."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback

from tests.simulation.simulation import Simulation, is_read_race


def main() -> int:
    """Exit 1 if a seed failed; every failing seed is printed with its reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--steps", type=int, default=2000, help="steps with faults per seed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this much time")
    parser.add_argument("--only-races", action="store_true", help="only the schedules made for stale reads")
    parser.add_argument("--trace", action="store_true", help="print the whole traceback of a failure")
    arguments = parser.parse_args()
    logging.disable()  # the storage tells of every torn tail
    began, steps, done, failed = time.monotonic(), 0, 0, 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        if time.monotonic() - began > arguments.seconds:
            break
        if arguments.only_races and not is_read_race(seed):
            continue
        simulation = Simulation(seed)
        try:
            simulation.run(arguments.steps)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            failed += 1
            print(f"seed {seed}, step {simulation.steps}: {type(error).__name__}: {error}", flush=True)
            if arguments.trace:
                traceback.print_exc()
        done, steps = done + 1, steps + simulation.steps
    spent = time.monotonic() - began
    print(f"{done} seeds, {failed} failed, {steps} steps in {spent:.1f} s, {steps / spent:.0f} steps/s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
