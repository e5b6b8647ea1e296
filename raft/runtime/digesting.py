"""Taking the digest of the machine as it is right now, without stopping the worker.

A small state is hashed on the spot, which takes less than a fork would. Of a large one a forked child has a
copy that nobody changes (raft/runtime/snapshotting.py says why that is safe): the worker is held up while the
kernel copies the page tables, about 10 ms with a million keys; the hash takes the child 0.2 to 0.6 s of CPU.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledger.ledger import InvariantError
from raft.machine.machine import Machine
from raft.runtime.snapshotting import ChildSnapshot, Result, fork_result

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)

TIMEOUT_S = 120.0  # of a child
# Up to here the digest takes about 1 ms, as much as to fork (measured: 0.1 µs a key, 1 µs a ledger row).
INLINE_WEIGHT = 10_000
INLINE_BYTES = 1 << 20
_LEDGER_ROW = 10
_LOOK_EVERY_S = 0.005
_GOOD, _BAD = b"+", b"-"

Fork = Callable[[Callable[[], bytes]], ChildSnapshot]


def fork(compute: Callable[[], bytes]) -> ChildSnapshot:
    """A child for a digest. Raises OSError."""
    return fork_result(compute, timeout_s=TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Taken:
    """digest: of the state right after the entry at index. cost_s: CPU time and pause on this node."""

    index: int
    digest: str
    cost_s: float


class Digesting:
    """At most one digest at a time. Worker only."""

    def __init__(self, machine: Machine, fork: Fork = fork) -> None:
        self._machine = machine
        self._fork = fork
        self._child: ChildSnapshot | None = None
        self._index = 0
        self._look_at_s = 0.0

    @property
    def running(self) -> int | None:
        """The index whose digest a child is taking, None if none is."""
        return None if self._child is None else self._index

    def begin(self) -> Taken | None:
        """The machine's digest if it is small; else a child begins, and poll() will have it. Nothing begins
        while a child still runs or if there can be none. Raises InvariantError."""
        machine = self._machine
        if self._child is not None:
            log.warning(
                "no digest of the state at %d: the one at %d still runs", machine.applied_index, self._index
            )
            return None
        hasher = hashlib.sha256()  # here, not in the child: OpenSSL takes locks to find it
        if _is_small(machine):
            began = time.perf_counter()
            machine.digest_into(hasher)
            return Taken(machine.applied_index, hasher.hexdigest(), time.perf_counter() - began)
        try:
            self._child = self._fork(lambda: _in_the_child(machine, hasher))
        except OSError as error:
            log.warning("no digest of the state at %d: no child process: %s", machine.applied_index, error)
            return None
        self._index = machine.applied_index
        return None

    def poll(self) -> Taken | None:
        """What the child has found, once. Call every turn; cheap. Raises InvariantError if what it has found
        is that the ledger contradicts itself."""
        child = self._child
        if child is None or (now := time.monotonic()) < self._look_at_s:
            return None
        self._look_at_s = now + _LOOK_EVERY_S
        outcome = child.poll()
        if outcome is None:
            return None
        self._child = None
        if outcome.result is not Result.DONE or child.result is None:
            log.warning("no digest of the state at %d: the child %s", self._index, outcome.message)
            return None
        said, cpu_us, text = child.result.split(b" ", 2)
        if said != _GOOD:
            raise InvariantError(text.decode("utf-8", "replace"))
        return Taken(self._index, text.decode(), int(cpu_us) / 1e6 + child.pause_s)

    def close(self) -> None:
        """End a child that still runs."""
        child, self._child = self._child, None
        if child is not None:
            child.cancel()


def _in_the_child(machine: Machine, hasher: _Hash) -> bytes:
    try:
        machine.digest_into(hasher)
    except InvariantError as error:
        return b"%b 0 %b" % (_BAD, str(error).encode()[:1000])
    return b"%b %d %b" % (_GOOD, time.process_time() * 1e6, hasher.hexdigest().encode())


def _is_small(machine: Machine) -> bool:
    values, versions, sessions = machine.kv.values, machine.kv.versions, machine.sessions
    weight = len(values) + len(versions.recent) + len(versions.older) + len(sessions) + sessions.tombstones
    if weight + _LEDGER_ROW * machine.ledger.row_count() > INLINE_WEIGHT:
        return False
    return sessions.taken_bytes + sum(map(len, values.values())) <= INLINE_BYTES
