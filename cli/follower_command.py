"""`super_node.py follower`: one reference follower as a program."""

from __future__ import annotations

import argparse

from cli.crew import Crew
from cli.follower import Follower, State
from cli.logs import configure_logging
from cli.processes import StopSignal, end_with_any_thread


def run_follower(options: argparse.Namespace) -> int:
    """Runs the follower until SIGTERM, SIGINT or the cluster's refusal; 0, or 1 when it was not admitted."""
    configure_logging("INFO", options.log_format, options.follower_id)
    signals = StopSignal()
    end_with_any_thread()
    follower = Follower(options.follower_id, options.version, options.address)
    crew = Crew([follower], options.connect, leave=options.leave)
    crew.start()
    while not crew.done and not signals.wait(0.2):
        pass
    crew.stop()
    return 1 if follower.state is State.REFUSED else 0
