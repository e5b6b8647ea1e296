"""super_node.py with holes for the harness: a wall clock that can be set, other places to dial, a disk that
loses what is not synced.

CHAOS_CLOCK: a file with milliseconds that are added to the wall clock (the monotonic one stays as it is).
CHAOS_ROUTES: a file {raft port: port to dial instead}; used only where there are no network namespaces.
CHAOS_POWER: kill -9 takes what was not synced (tests/chaos/power.py).
CHAOS_BUG: a bug of tests/chaos/planted.py that is put into the node, to see that a run finds it.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

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


if __name__ == "__main__":
    if os.environ.get("CHAOS_POWER"):
        from tests.chaos.power import lose_unsynced_bytes

        lose_unsynced_bytes(random.Random())
    if bug := os.environ.get("CHAOS_BUG"):
        from tests.chaos.planted import BUGS

        BUGS[bug]()
    if clock := os.environ.get("CHAOS_CLOCK"):
        bend_clock(Path(clock))
    if routes := os.environ.get("CHAOS_ROUTES"):
        bend_routes(Path(routes))
    sys.argv[0] = "super_node.py"
    runpy.run_path(str(ROOT / "super_node.py"), run_name="__main__")
