"""One of three PySyncObj processes. The one that leads calls its replicated method for a while, so many calls
under way, and writes the figures to a file; the others wait until their standard input ends.

    python bench/pysyncobj_node.py OWN OTHER,OTHER SECONDS IN_FLIGHT SIZE FILE
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pysyncobj import SyncObj, SyncObjConf, replicated

from cli.histogram import Histogram


class Store(SyncObj):  # type: ignore[misc]
    """A dict on all nodes: everything in memory, no journal, nothing synced. Without batches, which it would
    send every 100 ms: with 50 calls under way these are 480 a second."""

    def __init__(self, own: str, others: list[str]) -> None:
        super().__init__(own, others, SyncObjConf(autoTick=True, appendEntriesUseBatch=False))
        self.values: dict[str, str] = {}

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: str) -> None:
        """Applied everywhere."""
        self.values[key] = value


class Load:
    """Calls; each one that is done makes the next one. The callbacks run on PySyncObj's own thread."""

    def __init__(self, store: Store, in_flight: int, seconds: float, size: int) -> None:
        self.histogram = Histogram()
        self.errors = 0
        self._store, self._value = store, "x" * size
        self._began = time.perf_counter()
        self._over_at = self._began + seconds
        self._under_way = in_flight
        self._number = 0
        self.done = threading.Event()
        for _ in range(in_flight):
            self._call()

    def _call(self) -> None:
        self._number += 1
        sent_at = time.perf_counter()

        def answered(_result: Any, error: Any) -> None:
            now = time.perf_counter()
            if error:
                self.errors += 1
            else:
                self.histogram.add(int(1e6 * (now - sent_at)))
            if now < self._over_at:
                self._call()
                return
            self._under_way -= 1
            if not self._under_way:
                self.seconds = now - self._began
                self.done.set()

        self._store.put(f"key:{self._number * 7919 % 100_000:012d}", self._value, callback=answered)

    def figures(self, patience_s: float) -> dict[str, float]:
        """Waits for the end."""
        if not self.done.wait(patience_s):
            raise SystemExit("PySyncObj did not answer every call")
        times = {f"{name}_ms": self.histogram.percentile_ms(p) for name, p in (("p50", 50), ("p99", 99))}
        return {"rate": self.histogram.count / self.seconds, "errors": self.errors, **times}


def main() -> None:
    """See above."""
    own, others, seconds, in_flight, size, file = sys.argv[1:]
    store = Store(own, others.split(","))
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.is_set():
        if store.isReady() and store._isLeader():
            for warm in (min(1.0, float(seconds)), float(seconds)):
                figures = Load(store, int(in_flight), warm, int(size)).figures(warm + 30)
            partial = Path(file + ".partial")
            partial.write_text(json.dumps(figures))
            partial.rename(file)
            over.wait()
            break
        over.wait(0.05)
    store.destroy()


if __name__ == "__main__":
    main()
