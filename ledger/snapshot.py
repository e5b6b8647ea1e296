"""The complete ledger as bytes and back: what a snapshot of the machine holds of it.

A row of msgpack arrays [kind, content], in the order of the kinds. Events are not part of it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import msgspec

from ledger.claims import Claim
from ledger.followers import Follower
from ledger.history import sound
from ledger.intervals import ClosedInterval, OpenInterval
from ledger.outbox import IntervalRecord, Outbox
from ledger.policy import Policy
from ledger.state import InvariantError, LedgerState

VERSION = 1
_HEAD, _FOLLOWERS, _CLOSED, _CLAIMS, _RECORD, _WAITING, _TOUCHED, _END = range(8)
_LARGEST = 2**62  # of any sum, time or count; what is added to it still fits into 64 bits
_FEW, _MANY = 200, 2000  # rows in a piece: of those that are large, and of the others


class LedgerFormatError(ValueError):
    """Bytes that are no ledger, or one of another version: the node must not go on with it."""


class _Head(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    policy: Policy | None
    members: list[str]
    last: int
    cursor: int
    open: OpenInterval | None
    chain: bytes
    max_bytes: int
    projected_index: int
    dropped_rows: int
    overflowing: bool


_Counts = tuple[int, int, int, int, int, int]
_T = TypeVar("_T")
_encode = msgspec.msgpack.Encoder().encode
_split = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_types: dict[int, Any] = {
    _HEAD: _Head,
    _FOLLOWERS: list[Follower],
    _CLOSED: list[ClosedInterval],
    _CLAIMS: list[Claim],
    _RECORD: IntervalRecord,
    _WAITING: list[tuple[int, str]],
    _TOUCHED: list[tuple[str, int]],
    _END: _Counts,
}
_decoders = {kind: msgspec.msgpack.Decoder(of) for kind, of in _types.items()}


def row_count(state: LedgerState) -> int:
    """How much there is to export, in rows, for progress."""
    return sum(_counts(state))


def _counts(state: LedgerState) -> _Counts:
    outbox = state.outbox
    return (
        len(state.followers.by_id),
        len(state.intervals.closed),
        len(state.claims.by_id),
        len(outbox.records),
        len(outbox.claims),
        len(outbox.touched),
    )


def export(state: LedgerState) -> Iterator[tuple[int, bytes]]:
    """(rows, bytes) of each piece. The state must not change meanwhile."""
    followers, intervals, outbox = state.followers, state.intervals, state.outbox
    head = _Head(
        version=VERSION,
        policy=state.policy,
        members=followers.members,
        last=intervals.last,
        cursor=intervals.cursor,
        open=intervals.open,
        chain=state.claims.chain,
        max_bytes=outbox.max_bytes,
        projected_index=outbox.projected_index,
        dropped_rows=outbox.dropped_rows,
        overflowing=outbox.overflowing,
    )
    yield 0, _encode((_HEAD, head))
    yield from _pieces(_FOLLOWERS, followers.by_id.values(), _FEW)
    yield from _pieces(_CLOSED, intervals.closed.values(), _MANY)
    yield from _pieces(_CLAIMS, state.claims.by_id.values(), _MANY)
    for record in outbox.records:
        yield 1, _encode((_RECORD, record))
    yield from _pieces(_WAITING, outbox.claims, _MANY)
    yield from _pieces(_TOUCHED, outbox.touched.items(), _MANY)
    yield 0, _encode((_END, _counts(state)))


def _pieces(kind: int, rows: Iterable[_T], at_once: int) -> Iterator[tuple[int, bytes]]:
    remaining = iter(rows)
    while some := list(islice(remaining, at_once)):
        yield len(some), _encode((kind, some))


def restore(pieces: Iterable[bytes]) -> LedgerState:
    """The state that gave these pieces. Raises LedgerFormatError."""
    try:
        return _restore(pieces)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvariantError) as error:
        raise LedgerFormatError(f"the snapshot's ledger is not valid: {error}") from error


def _restore(pieces: Iterable[bytes]) -> LedgerState:
    state: LedgerState | None = None
    before, ended = _HEAD, False
    for piece in pieces:
        kind, raw = _split.decode(piece)
        if not before <= kind <= _END or ended or (kind == _HEAD) != (state is None):
            raise LedgerFormatError(f"a piece of kind {kind} of the ledger is out of place")
        content = _decoders[kind].decode(raw)
        before, ended = kind, kind == _END
        if state is None:
            state = _begin(content)
        elif kind == _END:
            _check(state, content)
        else:
            wanted = row_count(state) + (1 if kind == _RECORD else len(content))
            _add(state, kind, content)
            if row_count(state) != wanted:
                raise LedgerFormatError("the ledger has a row twice")
    if state is None or not ended:
        raise LedgerFormatError("the snapshot's ledger is cut short")
    return state


def _begin(head: _Head) -> LedgerState:
    if head.version != VERSION:
        raise LedgerFormatError(f"the ledger has format version {head.version}, this program reads {VERSION}")
    state = LedgerState(Outbox(head.max_bytes))
    state.policy = head.policy
    state.followers.members = head.members
    state.intervals.last, state.intervals.cursor, state.intervals.open = head.last, head.cursor, head.open
    state.claims.chain = head.chain
    outbox = state.outbox
    outbox.projected_index, outbox.dropped_rows = head.projected_index, head.dropped_rows
    outbox.overflowing = head.overflowing
    return state


def _add(state: LedgerState, kind: int, content: Any) -> None:
    followers, outbox = state.followers, state.outbox
    if kind == _FOLLOWERS:
        for follower in content:
            if follower.state not in followers.counts:
                raise LedgerFormatError(f"{follower.id} is in the unknown state {follower.state}")
            followers.by_id[follower.id] = follower
            followers.order.append(follower.id)
            followers.counts[follower.state] += 1
    elif kind == _CLOSED:
        state.intervals.closed.update((interval.number, interval) for interval in content)
    elif kind == _CLAIMS:
        state.claims.by_id.update((claim.id, claim) for claim in content)
    elif kind == _RECORD:
        outbox.records.append(content)
        outbox.bytes += len(content.data)
        outbox.outcome_rows += content.count
    elif kind == _WAITING:
        outbox.claims.extend(content)
    else:
        outbox.touched.update(content)


def _check(state: LedgerState, counts: _Counts) -> None:
    """Everything is there, and whoever is named is known. Raises LedgerFormatError, InvariantError."""
    if _counts(state) != counts:
        raise LedgerFormatError(f"the ledger has {_counts(state)} rows of each kind instead of {counts}")
    by_id, interval = state.followers.by_id, state.intervals.open
    turns = () if interval is None else interval.turns
    claimed = {claim_id for _, claim_id in state.outbox.claims}
    known = {*state.followers.members, *state.outbox.touched, *turns} <= by_id.keys()
    if not known or not claimed <= state.claims.by_id.keys():
        raise LedgerFormatError("the ledger names followers or claims that are not in it")
    state.check()
    _check_numbers(state)


def _check_numbers(state: LedgerState) -> None:
    """What the rules will count on from there. Raises LedgerFormatError."""
    intervals = state.intervals
    running = intervals.last if intervals.open is None else intervals.open.number
    newest = running == intervals.last and (intervals.open is not None or running in intervals.closed)
    if intervals.last != 0 and not newest:
        raise LedgerFormatError(f"the ledger does not know its newest interval {intervals.last}")
    numbers = [intervals.last, intervals.cursor + 1, state.outbox.projected_index, state.outbox.dropped_rows]
    if intervals.open is not None:
        numbers += (intervals.open.opened_at, intervals.open.due_at, intervals.open.answered)
    for each in state.followers.by_id.values():
        numbers += (each.earned, each.penalties, each.claimed, each.misses_in_row, each.spam, each.outcomes)
        numbers += (each.joined_at, each.updated_at, each.answered_upto, each.banned_until or 0)
        if not sound(each.history, each.outcomes) or not 0 <= each.answered_mask < 2**64:
            raise LedgerFormatError(f"the history of {each.id} is damaged")
    if min(numbers) < 0 or max(numbers) > _LARGEST:
        raise LedgerFormatError("the ledger has an impossible number")
