"""For the database tests: a small ledger with an outbox (the model that MongoDB must equal)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from database.client import new_client
from database.documents import claim_document, interval_document, reward_document
from database.projection import Projector
from ledger.rows import ClaimRow, IntervalRow, ProjectionBatch, RewardRow


class Model:
    """The replicated ledger, as every node has it. started_ms tells one life of a cluster from another."""

    def __init__(self, started_ms: int | None = None, followers: int = 5) -> None:
        self.started_ms = int(time.time() * 1000) if started_ms is None else started_ms
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.index = 0
        self.projected = 0
        self.interval = 0
        self.names = [f"w{number}" for number in range(followers)]
        self.rewards: dict[str, RewardRow] = {}
        self.intervals: list[IntervalRow] = []
        self.claims: list[ClaimRow] = []
        self.touched: dict[str, int] = {}

    def close_interval(self, term: int = 1, leader: int = 1) -> None:
        """One entry: every follower gets an outcome and a new balance."""
        with self.lock:
            self.index += 1
            self.interval += 1
            at_ms = self.started_ms + self.interval * 2000
            for position, name in enumerate(self.names):
                hit = (position + self.interval) % 3 != 0
                old = self.rewards.get(name)
                row = RewardRow(
                    node=name,
                    kind="worker",
                    address=f"10.0.0.{position}:1",
                    state="active",
                    amount=(old.amount if old else 0) + (10 if hit else -5),
                    earned=(old.earned if old else 0) + (10 if hit else 0),
                    penalties=(old.penalties if old else 0) + (0 if hit else 5),
                    claimed=old.claimed if old else 0,
                    misses_in_row=0 if hit else 1,
                    spam=0,
                    banned_until=None,
                    joined_at=self.started_ms,
                    updated_at=at_ms,
                    applied_index=self.index,
                )
                self._follower(row)
                self.intervals.append(
                    IntervalRow(
                        interval=self.interval,
                        node=name,
                        opened_at=at_ms - 2000,
                        due_at=at_ms,
                        closed_at=at_ms,
                        outcome="hit" if hit else "missed",
                        delta=10 if hit else -5,
                        amount=row.amount,
                        data=b"work" if hit else None,
                        leader=leader,
                        term=term,
                        applied_index=self.index,
                    )
                )
            self.changed.notify_all()

    def claim(self, name: str, amount: int) -> None:
        """One entry: amount is taken off the balance."""
        with self.lock:
            self.index += 1
            old = self.rewards[name]
            new = RewardRow(
                **{
                    **{field: getattr(old, field) for field in old.__struct_fields__},
                    "amount": old.amount - amount,
                    "claimed": old.claimed + amount,
                    "applied_index": self.index,
                }
            )
            self._follower(new)
            claim_id = f"claim-{self.index}"
            self.claims.append(
                ClaimRow(claim_id, name, amount, self.started_ms, True, new.amount, self.index)
            )
            self.changed.notify_all()

    def _follower(self, row: RewardRow) -> None:
        self.rewards[row.node] = row
        self.touched[row.node] = row.applied_index

    def trim(self, index: int) -> None:
        """~PROJECTED."""
        with self.lock:
            if index <= self.projected:
                return
            self.projected = index
            for name in [name for name, changed_at in self.touched.items() if changed_at <= index]:
                del self.touched[name]

    def batch(self, max_entries: int, full: bool) -> ProjectionBatch | None:
        """The oldest unprojected entries' rows."""
        upto = min(self.index, self.projected + max_entries)
        if upto == self.projected and not full:
            return None
        return ProjectionBatch(
            upto_index=upto,
            rewards=tuple(self.rewards[name] for name in (self.rewards if full else self.touched)),
            intervals=tuple(row for row in self.intervals if self.projected < row.applied_index <= upto),
            claims=tuple(row for row in self.claims if self.projected < row.applied_index <= upto),
            full=full,
        )

    def documents(self, intervals_from: int = 0) -> dict[str, dict[str, Any]]:
        """What MongoDB must hold; intervals_from: outcomes up to that index may be lost."""
        return {
            "rewards": {row.node: reward_document(row) for row in self.rewards.values()},
            "intervals": {
                f"{row.interval}/{row.node}": interval_document(row)
                for row in self.intervals
                if row.applied_index > intervals_from
            },
            "claims": {
                row.claim_id: claim_document(row) for row in self.claims if row.applied_index > intervals_from
            },
        }


class NodeSource:
    """One node's view of the model: a ProjectionSource."""

    def __init__(self, model: Model, *, leader: bool = True, max_entries: int = 20) -> None:
        self.model = model
        self.leader = leader
        self.max_entries = max_entries
        self.asked_full = 0
        self.acknowledged: list[int] = []

    def pull(self, full: bool, timeout_s: float) -> ProjectionBatch | None:
        self.asked_full += full
        with self.model.changed:
            if not self.leader:
                self.model.changed.wait(min(timeout_s, 0.05))
                return None
            if not full and self.model.index == self.model.projected:
                self.model.changed.wait(min(timeout_s, 0.05))
            return self.model.batch(self.max_entries, full)

    def written(self, upto_index: int) -> None:
        self.acknowledged.append(upto_index)
        if self.leader:
            self.model.trim(upto_index)

    def applied_index(self) -> int | None:
        return self.model.index if self.leader else None

    def projected_index(self) -> int:
        return self.model.projected


def stored(database: Any) -> dict[str, dict[str, Any]]:
    """What MongoDB holds, in the form of Model.documents()."""
    return {
        "rewards": {d["_id"]: d for d in database["rewards"].find()},
        "intervals": {f"{d['_id']['interval']}/{d['_id']['node']}": d for d in database["intervals"].find()},
        "claims": {d["_id"]: d for d in database["claims"].find()},
    }


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = 20.0) -> None:
    """Wait for a condition; fail with what was awaited."""
    ends_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > ends_s:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.01)


class Address(NamedTuple):
    """The settings' database section, as far as new_client wants it."""

    uri: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Projectors:
    """Makes projectors and stops them at the end; a fatal exception that no test took out fails the test."""

    def __init__(self) -> None:
        self.made: list[Projector] = []
        self.fatal: list[tuple[str, BaseException]] = []

    def __call__(self, source: Any, uri: str, name: str, *, node_id: int = 1, **options: Any) -> Projector:
        listeners, timeout_ms = options.pop("listeners", ()), options.pop("timeout_ms", 1000)
        factory = options.pop(
            "factory", lambda: new_client(Address(uri), timeout_ms=timeout_ms, event_listeners=listeners)
        )
        options = {"uri": uri, "intervals_ttl_days": 30, "foreign_confirm_s": 0.1, **options}
        projector = Projector(
            source, factory, name, "test", node_id, on_fatal=lambda *what: self.fatal.append(what), **options
        )
        self.made.append(projector)
        return projector
