"""Faults on a real cluster: python -m tests.chaos --minutes 5 [--nodes 3|5] [--seed S] [--faults disk,…].

All mixes, one after the other: python -m tests.chaos --mixes all --minutes 30 [--out DIR] [--seed S].
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.chaos.mixes import MIXES, names_of, run_mixes
from tests.chaos.nemesis import GROUPS, KINDS, NEEDS, kinds_of
from tests.chaos.run import Options, Run
from tests.chaos.summary import told


def main() -> int:
    """Exit 0 if nothing was wrong, 1 if something was, 2 for wrong arguments. SIGTERM ends it as Ctrl-C does:
    nodes, disks and namespaces are taken away."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given, parser = _arguments()
    try:
        if given.mixes:
            seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
            return run_mixes(names_of(given.mixes), given.minutes, seed, given.out.resolve())
        options = _options(given)
    except ValueError as error:
        parser.error(str(error))
    began = time.monotonic()

    def progress(text: str) -> None:
        spent, whole = time.monotonic() - began, options.seconds
        if sys.stderr.isatty():
            share = min(1.0, spent / whole)
            bar = ("#" * int(share * 20)).ljust(20, ".")
            print(
                f"\r\x1b[K[{bar}] {spent:4.0f}/{whole:.0f} s  {text}"[:170],
                end="",
                file=sys.stderr,
                flush=True,
            )

    report = Run(options, progress).run()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(told(asdict(report)))
    (options.directory / "report.json").write_text(json.dumps(asdict(report), indent=1))
    if report.violations or given.keep is not None:
        print(f"everything is in {options.directory} (look at timeline.html first)")
    else:
        shutil.rmtree(options.directory, ignore_errors=True)
    return 1 if report.violations else 0


def _arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--mixes", default="", help=f"all, or comma between {', '.join(MIXES)}")
    parser.add_argument("--out", type=Path, default=Path("chaos-mixes"), metavar="DIR", help="of --mixes")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--nodes", type=int, choices=(3, 5), default=3)
    parser.add_argument("--seed", type=int, default=None, help="decides the schedule; default: drawn anew")
    parser.add_argument(
        "--faults",
        default="all",
        help=f"comma between them; groups {', '.join(GROUPS)}; kinds {', '.join(KINDS)}",
    )
    parser.add_argument("--round", type=float, default=20.0, metavar="S", help="seconds of faults in a round")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--no-mongo", action="store_true", help="without MongoDB")
    parser.add_argument("--loopback", action="store_true", help="proxies instead of network namespaces")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="keep everything there")
    parser.add_argument("--lease-reads", action="store_true", help="raft.lease_reads: true")
    parser.add_argument("--power", action="store_true", help="a kill loses what was not synced, too")
    parser.add_argument("--mix", default="", help="a name for the tables")
    return parser.parse_args(), parser


def _options(given: argparse.Namespace) -> Options:
    kinds = kinds_of(given.faults.split(","))
    for kind in [kind for kind in kinds if kind in NEEDS and shutil.which(NEEDS[kind]) is None]:
        print(f"without {kind}: {NEEDS[kind]} is not installed", file=sys.stderr)
        kinds.remove(kind)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    directory = given.keep or Path(tempfile.mkdtemp(prefix=f"super-node-chaos-{seed}-"))
    options = Options(
        directory=directory.resolve(), seconds=given.minutes * 60, seed=seed, nodes=given.nodes,
        kinds=tuple(kinds), clients=given.clients, round_s=given.round, mongo=not given.no_mongo,
        loopback=given.loopback, lease_reads=given.lease_reads, power=given.power, mix=given.mix,
    )  # fmt: skip
    print(f"seed {seed}, {given.nodes} nodes, {given.minutes:g} minutes: {', '.join(kinds)}", flush=True)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
