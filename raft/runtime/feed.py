"""What the projector thread sees of the ledger: the worker fills it, the projector waits on it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ledger.ledger import Ledger
from ledger.rows import ProjectionBatch

ROWS_PER_BATCH = 20_000


class Feed:
    """Hands batches of the leader's ledger to the projector thread.

    pull(), written(), applied_index() and projected_index() are the projector's; serve() and idle() are the
    worker's. wake(): makes the worker turn.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._wanted: bool | None = None  # None: nobody waits; else whether a full batch is wanted
        self._batch: ProjectionBatch | None = None
        self._to_acknowledge: int | None = None
        self._acknowledged = 0
        self._applied: int | None = None
        self._projected = 0
        self._closed = False

    # --- the projector --------------------------------------------------------------------------------

    def pull(self, full: bool, timeout_s: float) -> ProjectionBatch | None:
        """The next batch, waiting up to timeout_s. None: nothing to write, not the leader, or stopping."""
        with self._changed:
            if self._closed:
                return None
            self._wanted, self._batch = full, None
            self._wake()
            self._changed.wait_for(lambda: self._batch is not None or self._closed, timeout_s)
            self._wanted = None
            batch, self._batch = self._batch, None
            return batch

    def written(self, upto_index: int) -> None:
        """MongoDB has everything up to here: the worker may propose ~PROJECTED."""
        with self._changed:
            self._to_acknowledge = upto_index
        self._wake()

    def applied_index(self) -> int | None:
        """The last entry applied when the worker last looked; None unless this node leads with a quorum."""
        return self._applied

    def projected_index(self) -> int:
        """What the replicated ledger says MongoDB has."""
        return self._projected

    # --- the worker -----------------------------------------------------------------------------------

    def serve(self, ledger: Ledger, applied_index: int | None) -> int | None:
        """Give the waiting projector a batch if there is one. Call while leading and established.

        applied_index: None while the quorum does not answer. Returns an index for ~PROJECTED if the
        projector reported one. A new batch waits until the former one's ~PROJECTED is applied: else the
        same rows would be written twice for nothing.
        """
        self._applied, self._projected = applied_index, ledger.projected_index
        if self._wanted is None and self._to_acknowledge is None:
            return None
        with self._changed:
            report, self._to_acknowledge = self._to_acknowledge, None
            if report is not None:
                self._acknowledged = report
            if (
                self._wanted is not None
                and self._batch is None
                and (self._wanted or ledger.projected_index >= self._acknowledged)
            ):
                self._batch = ledger.pull(ROWS_PER_BATCH, self._wanted)
                if self._batch is not None:
                    self._changed.notify_all()
            return report

    def reset(self) -> None:
        """Another leadership: what was reported to the former one is void."""
        with self._changed:
            self._to_acknowledge = None
            self._acknowledged = 0
            self._batch = None
            self._applied = None

    def close(self) -> None:
        """Let the projector go. Any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
