"""What clients did and what they were told: one record an operation, kept in memory and as JSON lines.

Times are nanoseconds of the monotonic clock of this process; all clients are its threads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"


@dataclass(slots=True)
class Operation:
    """One operation on one key. what: get, set, setnx, ifeq, incr; argument: what was written, for ifeq
    (expected, written). result: what was answered. FAILED was certainly not carried out; UNKNOWN may take
    effect at any time after `began`, or never (`ended` is then only when the client gave up)."""

    key: str
    what: str
    argument: Any
    began: int
    ended: int = 0
    outcome: str = UNKNOWN
    result: Any = None
    client: str = ""
    node: int = 0
    error: str = ""


class History:
    """Records from many threads. Thread-safe."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._operations: list[Operation] = []
        self._file = path.open("w") if path is not None else None
        self.counts = {OK: 0, FAILED: 0, UNKNOWN: 0}

    def add(self, operation: Operation) -> None:
        """Keep a finished operation."""
        line = json.dumps(asdict(operation)) + "\n" if self._file is not None else ""
        with self._lock:
            self._operations.append(operation)
            self.counts[operation.outcome] += 1
            if self._file is not None:
                self._file.write(line)

    def take(self) -> list[Operation]:
        """Everything since the last take(), which is then forgotten here (the file keeps it)."""
        with self._lock:
            taken, self._operations = self._operations, []
            if self._file is not None:
                self._file.flush()
        return taken

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_history(path: Path) -> Iterator[Operation]:
    """The operations of a file that History wrote."""
    with path.open() as file:
        for line in file:
            fields = json.loads(line)
            if isinstance(fields["argument"], list):
                fields["argument"] = tuple(fields["argument"])
            yield Operation(**fields)


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The same, apart by key."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return keys
