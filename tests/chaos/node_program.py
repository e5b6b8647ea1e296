"""super_node.py with two holes for the harness: a wall clock that can be set, and other places to dial.

CHAOS_CLOCK: a file with milliseconds that are added to the wall clock (the monotonic one stays as it is).
CHAOS_ROUTES: a file {raft port: port to dial instead}; used only where there are no network namespaces.
CHAOS_BUG: a bug that is put into the node, to see that a run finds it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from raft.core import reads  # noqa: E402
from raft.core.membership import Configuration  # noqa: E402
from raft.machine.sessions import SessionTable  # noqa: E402
from raft.runtime.clock import SystemClock  # noqa: E402
from raft.transport.dialer import Dialer  # noqa: E402


def bend_clock(file: Path) -> None:
    """The system's wall clock plus what the file says now."""
    straight = SystemClock.wall_ms

    def wall_ms(self: SystemClock) -> int:
        return straight(self) + int(file.read_text() or 0)

    SystemClock.wall_ms = wall_ms  # type: ignore[method-assign]


def bend_routes(file: Path) -> None:
    """Dial where the file says."""
    straight = Dialer._connect

    def connect(self: Dialer, sock: Any, address: Any) -> Any:
        port = json.loads(file.read_text()).get(str(address[1]), address[1])
        return straight(self, sock, (address[0], port, *address[2:]))

    Dialer._connect = connect  # type: ignore[method-assign]


def stale_reads() -> None:
    """Every node answers reads with what it has (BUGS 30)."""

    def request_read(core: Any, request_id: int) -> None:
        core.effects.reads_ready.append((request_id, core.commit_index))

    reads.request_read = request_read


def forgotten_sessions() -> None:
    """No node remembers what it did for a session (BUGS 52)."""
    SessionTable.recall = lambda *_: None  # type: ignore[method-assign]


def lonely_quorum() -> None:
    """What one voter has is taken for what a majority has."""

    def quorum_value(self: Configuration, values: Any) -> Any:
        return max(values)

    Configuration.quorum_value = quorum_value  # type: ignore[method-assign]


BUGS = {
    "stale-reads": stale_reads,
    "forgotten-sessions": forgotten_sessions,
    "lonely-quorum": lonely_quorum,
}

if __name__ == "__main__":
    if bug := os.environ.get("CHAOS_BUG"):
        BUGS[bug]()
    if clock := os.environ.get("CHAOS_CLOCK"):
        bend_clock(Path(clock))
    if routes := os.environ.get("CHAOS_ROUTES"):
        bend_routes(Path(routes))
    sys.argv[0] = "super_node.py"
    runpy.run_path(str(ROOT / "super_node.py"), run_name="__main__")
