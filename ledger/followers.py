"""Who there is: every follower ever admitted, in join order, with its state and its sums."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ledger.rows import RewardRow

MEMBER, WORKER = "member", "worker"
ACTIVE, BANNED, LEFT = "active", "banned", "left"
MAX_FOLLOWERS = 1_000_000
_REMEMBERED_ANSWERS = 64


class Follower(msgspec.Struct, array_like=True, gc=False):
    """One follower. Changed only by the rules in this package; times are ms since the epoch.

    ordinal: its place in join order, for ever. departed: it said LEAVE while banned, so that the end of the
    ban leaves it left. answered_upto, answered_mask: the newest interval that it answered and, as bits, which
    of the 64 up to there. history, outcomes: ledger/history.py.
    """

    id: str
    ordinal: int
    kind: str
    address: str
    state: str
    joined_at: int  # its latest admission
    updated_at: int
    applied_index: int
    balance: int = 0
    earned: int = 0
    penalties: int = 0
    claimed: int = 0
    misses_in_row: int = 0
    spam: int = 0
    banned_until: int | None = None
    pardon_reason: str | None = None
    departed: bool = False
    answered_upto: int = 0
    answered_mask: int = 0
    outcomes: int = 0
    history: bytearray = msgspec.field(default_factory=bytearray)

    def has_answered(self, interval: int) -> bool:
        """True if an answer for interval is remembered: a retry, not an answer out of turn."""
        age = self.answered_upto - interval
        return age >= 0 and bool(self.answered_mask >> age & 1)

    def remember_answer(self, interval: int) -> None:
        """Note the answer for interval, which is newer than all noted before."""
        age = interval - self.answered_upto
        older = self.answered_mask << age if age < _REMEMBERED_ANSWERS else 0
        self.answered_mask = older & (2**_REMEMBERED_ANSWERS - 1) | 1
        self.answered_upto = interval

    def seconds_left(self, at_ms: int) -> int:
        """What is left of the ban at at_ms, in seconds rounded up; 0: over."""
        if self.banned_until is None:
            return 0
        return max(0, -((at_ms - self.banned_until) // 1000))

    def clean(self) -> None:
        """Forget misses in a row, spam and the ban: how a ban ends."""
        self.misses_in_row = 0
        self.spam = 0
        self.banned_until = None
        self.departed = False

    def row(self) -> RewardRow:
        """The follower as its document in `rewards`."""
        return RewardRow(
            node=self.id,
            kind=self.kind,
            address=self.address,
            state=self.state,
            amount=self.balance,
            earned=self.earned,
            penalties=self.penalties,
            claimed=self.claimed,
            misses_in_row=self.misses_in_row,
            spam=self.spam,
            banned_until=self.banned_until,
            joined_at=self.joined_at,
            updated_at=self.updated_at,
            applied_index=self.applied_index,
            pardon_reason=self.pardon_reason,
        )


class Followers:
    """The register. Nobody is ever removed: balances outlive a LEAVE, and cursors stay valid."""

    def __init__(self) -> None:
        self.by_id: dict[str, Follower] = {}  # in join order
        self.order: list[str] = []  # ordinal -> id
        self.counts: dict[str, int] = {ACTIVE: 0, BANNED: 0, LEFT: 0}
        self.members: list[str] = []  # the cluster's members now

    def add(self, follower_id: str, kind: str, address: str, at_ms: int, index: int) -> Follower:
        """Admit a new, active follower. The caller has checked that id is free and there is room."""
        follower = Follower(follower_id, len(self.order), kind, address, ACTIVE, at_ms, at_ms, index)
        self.by_id[follower_id] = follower
        self.order.append(follower_id)
        self.counts[ACTIVE] += 1
        return follower

    def set_state(self, follower: Follower, state: str) -> None:
        """Move follower to state, keeping the counts."""
        self.counts[follower.state] -= 1
        self.counts[state] += 1
        follower.state = state

    def active(self) -> Iterable[Follower]:
        """The active followers in join order."""
        return (follower for follower in self.by_id.values() if follower.state == ACTIVE)
