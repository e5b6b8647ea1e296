"""Projector: the thread that brings the ledger's outcomes to MongoDB, whatever fails on the way.

It pulls a batch from the node (which gives one only while it leads), writes outcomes, then followers, then
the checkpoint, and only then tells the node that the batch is written, so that the replicated outbox may be
trimmed. Whatever fails in between, the same rows are written again; LedgerWriter makes that harmless.

At the start of every leadership and after every outage the checkpoint in MongoDB is compared with the ledger:
behind it, MongoDB was wiped or restored and every follower is written anew; ahead of it, the database belongs
to another life of a cluster with this name, and nothing is written there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError, WriteConcernError

from database.client import redact
from database.documents import Document
from database.writer import (
    TRANSIENT_CODES,
    Checkpoint,
    ForeignDataError,
    InterruptedWriteError,
    LedgerWriter,
    RefusedDocumentError,
)
from ledger.rows import ProjectionBatch

logger = logging.getLogger(__name__)

THREAD_NAME = "projector"
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
REMINDER_S = 60.0  # a refusal is repeated in the log, so that it is not lost in yesterday's
IDLE_PAUSE_S = 0.02  # a source that answers None at once must not make the thread spin


class ProjectionSource(Protocol):
    """The node, as the projector sees it. Every method is called by the projector thread only."""

    def pull(self, full: bool, timeout_s: float) -> ProjectionBatch | None:
        """The oldest rows that are not yet written; blocks up to timeout_s for some.

        None: not the leader, nothing to write, or stopping. The same rows come again until `written` has
        taken effect. full: the batch must hold a RewardRow of every follower and have full=True, even when
        nothing else is pending.
        """

    def written(self, upto_index: int) -> None:
        """Everything up to that log index is in MongoDB: propose ~PROJECTED. Ignored when not the leader."""

    def applied_index(self) -> int | None:
        """The last applied log index, or None unless this node is the leader, has applied an entry of its own
        term (so it has everything that any earlier leader could have projected) and its quorum answers."""

    def projected_index(self) -> int:
        """Up to where MongoDB has everything, says the ledger (the last applied ~PROJECTED; 0: nothing)."""


class ProjectorStats(msgspec.Struct, frozen=True):
    """What the projector did, for status and metrics.

    state: ok (also: not the writer) | away | refused (MongoDB takes no document of ours) | foreign
    documents: new or changed documents; batches: completed; times are ms since the epoch.
    """

    state: str = "ok"
    documents: int = 0
    batches: int = 0
    outages: int = 0
    checkpoint: int = 0
    last_error: str | None = None
    last_written_at_ms: int | None = None


class Projector:
    """One per node, started once. `start`, `stop`, `stats`, `state` may be called by any thread."""

    def __init__(
        self,
        source: ProjectionSource,
        client_factory: Callable[[], MongoClient[Document]],
        database_name: str,
        cluster_name: str,
        node_id: int,
        *,
        uri: str,
        intervals_ttl_days: int,
        on_fatal: Callable[[str, BaseException], None],
        bulk: bool = True,
        chunk_rows: int = 1000,
        poll_s: float = 1.0,
        foreign_confirm_s: float = 3.0,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """client_factory is called once, in the thread. uri is for messages only and is redacted here.

        on_fatal(thread name, exception): a bug; the thread has ended. bulk=False: single writes (mongomock).
        foreign_confirm_s: a checkpoint ahead of the ledger must still be so after this long, because a leader
        that is being deposed without knowing it may see its successor's.
        """
        self._source = source
        self._client_factory = client_factory
        self._database_name = database_name
        self._cluster_name = cluster_name
        self._node_id = node_id
        self._address = redact(uri)
        self._ttl_days = intervals_ttl_days
        self._on_fatal = on_fatal
        self._bulk = bulk
        self._chunk_rows = chunk_rows
        self._poll_s = poll_s
        self._foreign_confirm_s = foreign_confirm_s
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s

        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._stats = ProjectorStats()  # replaced whole, so that any thread may read it

        # Only the projector thread touches what follows.
        self._writer: LedgerWriter | None = None
        self._in_contact = False
        self._checkpoint: Checkpoint | None = None  # as last seen or written in this leadership
        self._need_full = False
        self._trouble_since_s: float | None = None
        self._reminded_s = 0.0
        self._retry_s = FIRST_RETRY_S
        self._suspected_since_s: float | None = None

    @property
    def state(self) -> str:
        """ok | away | refused | foreign."""
        return self._stats.state

    def stats(self) -> ProjectorStats:
        """The figures of this moment."""
        return self._stats

    def start(self) -> None:
        """Start the thread. Raises RuntimeError when it was started before."""
        if self._thread is not None:
            raise RuntimeError("the projector was started before")
        self._thread = threading.Thread(target=self.run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Ask the thread to end and wait for it. False: it is still in a call to MongoDB (it is a daemon)."""
        self._stopping.set()
        if self._thread is None or self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def run(self) -> None:
        """The thread's body. It survives every error of MongoDB; anything else is a bug: on_fatal."""
        client: MongoClient[Document] | None = None
        try:
            client = self._client_factory()
            self._writer = LedgerWriter(
                client,
                self._database_name,
                self._cluster_name,
                self._node_id,
                bulk=self._bulk,
                chunk_rows=self._chunk_rows,
                keep_going=lambda: not self._stopping.is_set(),
            )
            while not self._stopping.is_set():
                pause_s = self._round(self._writer)
                if pause_s:
                    self._stopping.wait(pause_s)
        except Exception as bug:  # noqa: BLE001  handed on, never swallowed
            self._on_fatal(THREAD_NAME, bug)
        finally:
            if client is not None:
                client.close()

    # --- one round ---

    def _round(self, writer: LedgerWriter) -> float:
        """Do the next piece of work; returns how long to pause, in seconds."""
        try:
            if self._source.applied_index() is None:
                self._lay_down()
                self._source.pull(False, self._poll_s)
                return IDLE_PAUSE_S
            if not self._in_contact and not self._make_contact(writer):
                return IDLE_PAUSE_S
            batch = self._source.pull(self._need_full, self._poll_s)
            if batch is not None and not self._write(writer, batch):
                return IDLE_PAUSE_S
        except InterruptedWriteError:
            return 0.0
        except ForeignDataError as problem:
            return self._foreign(problem)
        except (PyMongoError, RefusedDocumentError) as problem:
            return self._trouble(problem)
        self._well()
        return IDLE_PAUSE_S if batch is None else 0.0

    def _make_contact(self, writer: LedgerWriter) -> bool:
        """Compare MongoDB with the ledger. False: leadership was lost meanwhile."""
        projected = self._source.projected_index()  # before the checkpoint, which only moves forward
        checkpoint = writer.read_checkpoint()
        applied = self._source.applied_index()
        if applied is None:
            return False
        if checkpoint is not None and checkpoint.applied_index > applied:
            raise ForeignDataError(
                f"its checkpoint is at log index {checkpoint.applied_index}, written by node "
                f"{checkpoint.written_by} at {checkpoint.at}, but this cluster's log has only {applied}"
            )
        if writer.has_reward_beyond(applied):
            raise ForeignDataError(f"it has followers changed after this cluster's last log index {applied}")
        writer.ensure_indexes(self._ttl_days)
        stored = 0 if checkpoint is None else checkpoint.applied_index
        wanted = max(projected, 0 if self._checkpoint is None else self._checkpoint.applied_index)
        if stored < wanted and not self._need_full:
            logger.warning(
                "MongoDB database %s at %s was wiped or restored from a backup: it has log indexes up to %d, "
                "the ledger had written up to %d. Every follower is written anew; outcomes in `intervals` "
                "and `claims` of log indexes %d to %d may be missing there for good",
                self._database_name,
                self._address,
                stored,
                wanted,
                stored + 1,
                wanted,
            )
            self._need_full = True
        self._checkpoint = checkpoint
        self._in_contact = True
        return True

    def _write(self, writer: LedgerWriter, batch: ProjectionBatch) -> bool:
        """Write a batch in the order that a crash forgives. False: the checkpoint was not as expected."""
        if self._need_full and not batch.full:
            raise RuntimeError("the source gave a partial batch where a full one was asked for")
        documents = writer.insert_outcomes(batch.intervals, batch.claims)
        documents += writer.write_rewards(batch.rewards)
        # After a full rewrite MongoDB is as complete as it can be: what was projected before is not kept.
        upto = max(batch.upto_index, self._source.projected_index()) if batch.full else batch.upto_index
        at_ms = self._wall_ms()
        if not writer.write_checkpoint(upto, at_ms, expected=self._checkpoint):
            # Wiped meanwhile, or another leader is at work: look again before anything else.
            self._in_contact = False
            return False
        if self._checkpoint is None or self._checkpoint.applied_index < upto:
            self._checkpoint = Checkpoint(upto, self._node_id, None)
        self._need_full = False
        self._change_stats(
            documents=self._stats.documents + documents,
            batches=self._stats.batches + 1,
            checkpoint=upto,
            last_written_at_ms=at_ms,
        )
        self._source.written(batch.upto_index)
        return True

    # --- how it goes ---

    def _lay_down(self) -> None:
        """Not the writer (any more): what was learnt about MongoDB is another leader's business now."""
        self._in_contact = False
        self._checkpoint = None
        self._need_full = False
        self._calm()

    def _calm(self) -> None:
        self._trouble_since_s = None
        self._suspected_since_s = None
        self._retry_s = FIRST_RETRY_S
        if self._stats.state != "ok":
            self._change_stats(state="ok")

    def _well(self) -> None:
        """A round went through: end an outage, with one line."""
        if self._trouble_since_s is not None:
            logger.info(
                "MongoDB at %s takes writes again after %.1f s; what waited in the ledger follows",
                self._address,
                self._monotonic_s() - self._trouble_since_s,
            )
        self._calm()

    def _trouble(self, problem: Exception) -> float:
        reason = _brief(problem)
        if _is_refusal(problem):
            advice = "check the user's rights in database.uri and what validates or indexes the collections"
            self._tell("refused", reason, f"MongoDB at {self._address} refuses: {reason} – {advice}")
        else:
            advice = "start it or correct database.uri; outcomes wait in the replicated ledger, none is lost"
            self._tell("away", reason, f"MongoDB at {self._address} is away: {reason} – {advice}")
        return self._back_off()

    def _foreign(self, problem: ForeignDataError) -> float:
        now_s = self._monotonic_s()
        self._in_contact = False
        if self._suspected_since_s is None:
            self._suspected_since_s = now_s
        remaining_s = self._suspected_since_s + self._foreign_confirm_s - now_s
        if remaining_s > 0:
            return min(remaining_s, LAST_RETRY_S)
        self._tell(
            "foreign",
            str(problem),
            f"MongoDB at {self._address}: database {self._database_name} holds the ledger of another or an "
            f"earlier cluster named {self._cluster_name}: {problem} – the projection stands still; set "
            "database.name to a new name on every node, or give the old data up (mongosh: "
            f"db.getSiblingDB({self._database_name!r}).dropDatabase())",
        )
        return self._back_off()

    def _tell(self, state: str, reason: str, line: str) -> None:
        """One line when a trouble begins or changes its kind, and a reminder where a human must act."""
        now_s = self._monotonic_s()
        begins = self._stats.state != state
        if begins or (state != "away" and now_s - self._reminded_s >= REMINDER_S):
            logger.log(logging.WARNING if state == "away" else logging.ERROR, "%s", line)
            self._reminded_s = now_s
        if self._trouble_since_s is None:
            self._trouble_since_s = now_s
        self._change_stats(state=state, last_error=reason, outages=self._stats.outages + int(begins))

    def _back_off(self) -> float:
        self._in_contact = False
        pause_s, self._retry_s = self._retry_s, min(self._retry_s * 2, LAST_RETRY_S)
        return pause_s

    def _change_stats(self, **changes: object) -> None:
        self._stats = msgspec.structs.replace(self._stats, **changes)


def _is_refusal(problem: Exception) -> bool:
    """Whether a human must act on MongoDB itself, as opposed to waiting for it."""
    if isinstance(problem, RefusedDocumentError):
        return True
    if not isinstance(problem, OperationFailure) or isinstance(problem, WriteConcernError):
        return False
    return problem.code not in TRANSIENT_CODES


def _brief(problem: Exception) -> str:
    """pymongo's words without its descriptions of the topology and of raw server answers."""
    text = " ".join(str(problem).split())
    for tail in (" (configured timeouts", ", Timeout: ", ", full error: "):
        text = text.partition(tail)[0]
    return text[:300] or type(problem).__name__
