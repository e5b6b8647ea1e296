"""super_node.py with holes for the harness: a wall clock that can be set, other places to dial, a disk that
loses what is not synced.

CHAOS_CLOCK: a file with two numbers: milliseconds that are added to the wall clock; by what share the
monotonic one runs fast. With 0 it comes back to the machine's, never faster than DRIFT.
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
import threading
from pathlib import Path
from typing import Any

DRIFT = 0.045  # two clocks that far off differ by 9.4 %; leases allow for 10
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from raft.runtime.clock import SystemClock  # noqa: E402
from raft.transport.dialer import Dialer  # noqa: E402


class BentClock:
    """What the file says, looked at every 20 ms. Any thread."""

    def __init__(self, file: Path, straight_ms: float) -> None:
        self._file, self._lock = file, threading.Lock()
        self._seen_ms, self._skew_ms, self._looked_ms = straight_ms, 0.0, 0.0
        self.offset_ms, self._share = 0, 0.0

    def look(self, straight_ms: float) -> float:
        """The monotonic clock, given what it would be."""
        with self._lock:
            passed, self._seen_ms = max(0.0, straight_ms - self._seen_ms), max(straight_ms, self._seen_ms)
            if self._share:
                self._skew_ms += passed * self._share
            else:
                most = passed * DRIFT
                self._skew_ms -= max(-most, min(most, self._skew_ms))
            if self._seen_ms - self._looked_ms > 20:
                self._looked_ms = self._seen_ms
                offset, _, share = (self._file.read_text() or "0 0").partition(" ")
                self.offset_ms, self._share = int(offset), float(share or 0)
            return self._seen_ms + self._skew_ms


def bend_clock(file: Path) -> None:
    """Both of the system's clocks, as the file says."""
    monotonic, wall = SystemClock.monotonic_ms, SystemClock.wall_ms
    bent = BentClock(file, monotonic(SystemClock()))

    def monotonic_ms(self: SystemClock) -> float:
        return bent.look(monotonic(self))

    def wall_ms(self: SystemClock) -> int:
        bent.look(monotonic(self))
        return wall(self) + bent.offset_ms

    SystemClock.monotonic_ms = monotonic_ms  # type: ignore[method-assign]
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
