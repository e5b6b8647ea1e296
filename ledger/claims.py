"""Claims: every claim-id ever used, with its first and only answer."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from ledger.rows import ClaimRow
from raft.replies import Error, Reply


class Claim(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One claim and its answer. balance: after it; penalty: what an over-claim cost; index: its entry."""

    id: str
    node: str
    amount: int
    at: int
    accepted: bool
    balance: int
    penalty: int
    index: int

    def answer(self) -> Reply:
        """The reply, the same each time it is asked for: the new balance, or OVERCLAIM."""
        if self.accepted:
            return self.balance
        return Error(
            f"OVERCLAIM {self.node} claimed {self.amount} with a balance of {self.balance + self.penalty}; "
            f"penalty {self.penalty}, balance now {self.balance}"
        )

    def row(self) -> ClaimRow:
        """The claim as its document in `claims`."""
        return ClaimRow(
            claim_id=self.id,
            node=self.node,
            amount=self.amount,
            at=self.at,
            accepted=self.accepted,
            balance=self.balance,
            applied_index=self.index,
        )


class Claims:
    """All claims, for ever: forgetting one would pay it twice. chain: hash over all of them in order."""

    def __init__(self) -> None:
        self.by_id: dict[str, Claim] = {}
        self.chain = bytes(16)

    def add(self, claim: Claim) -> None:
        """Record a claim whose id is new. The chain keeps a digest of a million claims as cheap as of one."""
        self.by_id[claim.id] = claim
        self.chain = blake2b(self.chain + msgspec.msgpack.encode(claim), digest_size=16).digest()
