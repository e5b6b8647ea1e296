"""What the leader should propose now: a pure function of the ledger and the leader's clock."""

from __future__ import annotations

from collections.abc import Collection

from ledger.policy import Policy
from ledger.state import LedgerState


def next_system_command(
    state: LedgerState,
    now_ms: int,
    leader_id: int,
    answered_members: Collection[str],
    excused: bool,
    policy: Policy,
) -> list[bytes] | None:
    """~OPEN when no interval is open, ~CLOSE when the open one is due, None while there is nothing to do.

    now_ms: the leader's stamp, ms since the epoch. answered_members: ids of the members that answered pings
    since the interval was opened. excused: the leader had no quorum at some time in it. To be asked only by
    a leader whose ~TERM is applied and that has no earlier answer of this function still in flight.
    """
    interval = state.intervals.open
    if interval is None:
        number, due_at = state.intervals.last + 1, now_ms + policy.interval_ms
        return [b"~OPEN", b"%d" % number, b"%d" % due_at, b"%d" % leader_id, policy.encode()]
    if now_ms < interval.due_at:
        return None
    members = [name for name in state.followers.members if name in answered_members]
    # Who answered in its turn and was removed afterwards has answered all the same.
    removed = set(answered_members).intersection(interval.turns).difference(members)
    names = [name.encode() for name in (*members, *sorted(removed))]
    return [b"~CLOSE", b"%d" % interval.number, b"%d" % leader_id, b"1" if excused else b"0", *names]
