"""Amounts: what an outcome is worth, and claims on the balance (rules 3, 6, 8). Integers only."""

from __future__ import annotations

from heapq import nsmallest

from ledger.arguments import RefusedError
from ledger.claims import Claim
from ledger.context import Context
from ledger.followers import Follower
from ledger.history import HIT, MISSED
from ledger.policy import Policy
from ledger.state import LedgerState
from raft.replies import Reply


def settle(follower: Follower, outcome: int, policy: Policy) -> int:
    """Book one outcome; returns what it changed the balance by. An excused turn changes nothing."""
    if outcome == HIT:
        follower.misses_in_row = 0
        follower.earned += policy.reward
        follower.balance += policy.reward
        return policy.reward
    if outcome == MISSED:
        follower.misses_in_row += 1
        _penalise(follower, policy.penalty)
        return -policy.penalty
    return 0


def _penalise(follower: Follower, penalty: int) -> None:
    follower.penalties += penalty
    follower.balance -= penalty


def claim(state: LedgerState, context: Context, follower_id: str, amount: int, claim_id: str) -> Reply:
    """REWARD CLAIM: take amount off the balance, once per claim-id; asked again, the first answer again.

    More than the balance: OVERCLAIM and one penalty. A follower that left or is banned keeps what it earned
    and may claim it.
    """
    policy = state.policy_in_force()
    first = state.claims.by_id.get(claim_id)
    if first is not None:
        if (first.node, first.amount) != (follower_id, amount):
            raise RefusedError(f"ERR claim-id '{claim_id}' was used for {first.amount} by {first.node}")
        return first.answer()
    follower = state.known(follower_id)
    accepted = amount <= follower.balance
    penalty = 0 if accepted else policy.penalty
    if accepted:
        follower.claimed += amount
        follower.balance -= amount
    else:
        _penalise(follower, penalty)
    made = Claim(
        id=claim_id,
        node=follower.id,
        amount=amount,
        at=context.at_ms,
        accepted=accepted,
        balance=follower.balance,
        penalty=penalty,
        index=context.index,
    )
    state.claims.add(made)
    state.outbox.add_claim(claim_id, context.index)
    state.changed(follower, context)
    return made.answer()


def top(state: LedgerState, count: int) -> list[Reply]:
    """REWARD TOP: id, balance, id, balance … of the count highest balances; equal ones by id."""
    best = nsmallest(count, state.followers.by_id.values(), key=lambda each: (-each.balance, each.id))
    return [field for each in best for field in (each.id, each.balance)]
