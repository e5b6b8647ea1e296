"""`super_node.py --id N`: one node, from reading its settings to its exit code."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Protocol

from cli.compiled import compiled_from
from cli.logs import configure_logging
from cli.processes import StopSignal, die_with_parent, end_with_any_thread, exit_when_stuck
from raft.config import Settings, load_settings

# A full collection looks at every object of the state: with 10,000 followers it took 60 to 80 ms of the raft
# worker while an interval closed. The state has no cycles; those that come up are young, and found
# by the smaller ones.
COLLECTOR = (10_000, 5, 5_000)
STOP_LIMIT_S = 20.0  # a node that has not stopped by then is ended: never a zombie
log = logging.getLogger("super_node")


class Node(Protocol):
    """What running a node needs of RaftNode."""

    @property
    def exit_code(self) -> int: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def wait(self, timeout: float) -> bool: ...


def run_node(node_id: int, config: Path, parent_pid: int | None) -> int:
    """Runs node `node_id` until SIGTERM, SIGINT or a fatal fault; the exit code: 0, or 1 after a fault.

    Raises ConfigError for settings that cannot be used and an id that is not among the nodes.
    Main thread only.
    """
    settings = load_settings(config)
    settings.member(node_id, str(config))
    configure_logging(settings.logging.level, settings.logging.format, f"node-{node_id}")
    gc.set_threshold(*COLLECTOR)
    signals = StopSignal()
    if parent_pid is not None:
        die_with_parent(parent_pid)
    place = compiled_from()
    if place is not None:
        log.info("compiled modules from %s are in use", place)
    else:
        log.debug("interpreted: no compiled modules")
    return supervise(_new_node(node_id, settings), signals)


def _new_node(node_id: int, settings: Settings) -> Node:
    from raft.node import RaftNode  # here, so that the other commands start without loading a whole node

    return RaftNode(node_id, settings=settings)


def supervise(node: Node, signals: StopSignal) -> int:
    """Starts the node, waits for its end or a signal, stops it; the exit code."""
    end_with_any_thread()
    try:
        node.start()
    except Exception as error:
        log.critical("cannot start: %s", error or type(error).__name__, exc_info=_unexpected(error))
        _stop(node)
        return 1
    while not signals.requested and not node.wait(0.2):
        pass
    if not signals.requested:
        log.critical("stopped by a fatal fault")
        _stop(node)
        return node.exit_code or 1
    log.info("stopping")
    if not _stop(node):
        return 1
    log.info("stopped")
    return node.exit_code


def _stop(node: Node) -> bool:
    """Stops the node within STOP_LIMIT_S; False when stop() itself failed."""
    in_time = exit_when_stuck(STOP_LIMIT_S)
    try:
        node.stop()
    except Exception:
        log.critical("stopping failed", exc_info=True)
        return False
    finally:
        in_time()
    return True


def _unexpected(error: Exception) -> bool:
    """Whether a failed start deserves a traceback: an OSError (port taken, no right) or an error of ours says
    all there is to say in its text."""
    return not isinstance(error, OSError) and not type(error).__module__.startswith("raft.")
