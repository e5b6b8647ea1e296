"""Who may take part: JOIN, LEAVE, bans and PARDON, and the cluster's own members (rules 4 and 5)."""

from __future__ import annotations

import msgspec

from ledger import arguments
from ledger.arguments import RefusedError
from ledger.context import Context
from ledger.followers import ACTIVE, BANNED, LEFT, MAX_FOLLOWERS, MEMBER, WORKER, Follower
from ledger.state import LedgerState
from raft.replies import OK, Reply


class Member(msgspec.Struct, frozen=True, gc=False):
    """One member of the cluster in the members_json of ~TERM and ~MEMBERS."""

    id: str
    address: str


_members_decoder: msgspec.json.Decoder[list[Member]] = msgspec.json.Decoder(list[Member])


def decode_members(data: bytes) -> list[Member]:
    """members_json, checked. Raises RefusedError."""
    try:
        members = _members_decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"ERR invalid members: {arguments.shown(str(error).encode())}") from None
    checked = [_checked(member) for member in members]
    if len({member.id for member in checked}) != len(checked):
        raise RefusedError("ERR invalid members: the same id twice")
    return checked


def _checked(member: Member) -> Member:
    name = arguments.follower_id(member.id.encode("utf-8", "replace"))
    if not name.startswith(arguments.MEMBER_PREFIX):
        raise RefusedError(f"ERR invalid members: '{name}' does not begin with node-")
    raw_address = member.address.encode("utf-8", "replace")
    return Member(name, arguments.line(raw_address, "address", arguments.MAX_ADDRESS_BYTES))


def join(
    state: LedgerState, context: Context, follower_id: str, version: bytes, address: str | None
) -> Reply:
    """FOLLOWER JOIN: admit, admit again, or refuse with BANNED or VERSION. A retry is OK again.

    LEAVE and JOIN keep the misses in a row: otherwise they would be a way around the ban.
    """
    policy = state.policy_in_force()
    follower = state.followers.by_id.get(follower_id)
    if follower is not None and follower.state == BANNED:
        refuse_banned(follower, context, only_if_time_left=True)
    if version != policy.follower_version.encode():
        raise RefusedError(
            f"VERSION {follower_id} has version '{arguments.shown(version)}' but "
            f"'{policy.follower_version}' is wanted"
        )
    if follower is None:
        if len(state.followers.by_id) >= MAX_FOLLOWERS:
            raise RefusedError(f"ERR the ledger is full: it holds {MAX_FOLLOWERS} followers")
        _admit_new(state, context, follower_id, WORKER, address or "")
        return OK
    new_address = follower.address if address is None else address
    if follower.state == ACTIVE:
        if new_address != follower.address:
            follower.address = new_address
            state.changed(follower, context)
        return OK
    if follower.state == BANNED:
        follower.clean()
    follower.address = new_address
    _admit_again(state, context, follower)
    return OK


def leave(state: LedgerState, context: Context, follower_id: str) -> Reply:
    """FOLLOWER LEAVE: no more turns. A ban stands until its end, and then leaves the follower left."""
    follower = state.known(follower_id)
    if follower.state == BANNED and follower.seconds_left(context.at_ms):
        follower.departed = True
    elif follower.state != LEFT:
        if follower.state == BANNED:
            follower.clean()
        _depart(state, context, follower)
    return OK


def pardon(state: LedgerState, context: Context, follower_id: str, reason: str) -> Reply:
    """FOLLOWER PARDON: end a ban early, with a clean streak; the reason is kept."""
    follower = state.known(follower_id)
    if follower.state != BANNED:
        raise RefusedError(f"ERR follower {follower_id} is not banned")
    state.followers.set_state(follower, LEFT if follower.departed else ACTIVE)
    follower.clean()
    follower.pardon_reason = reason
    state.changed(follower, context)
    state.events.cluster(f"pardoned {follower_id} {reason}")
    return OK


def ban(state: LedgerState, context: Context, follower: Follower, cause: str, cooldown_s: int) -> None:
    """Ban follower from now for cooldown_s. cause: misses or spam. The caller notes the change of the row."""
    follower.departed = follower.state == LEFT
    follower.banned_until = context.at_ms + cooldown_s * 1000
    state.followers.set_state(follower, BANNED)
    state.events.cluster(f"banned {follower.id} until {follower.banned_until} {cause}")


def refuse_banned(follower: Follower, context: Context, *, only_if_time_left: bool = False) -> None:
    """Raise RefusedError (BANNED) with the time left of a banned follower's ban."""
    seconds = follower.seconds_left(context.at_ms)
    if seconds:
        raise RefusedError(f"BANNED {seconds} seconds left of the ban of {follower.id}, then JOIN again")
    if not only_if_time_left:
        raise RefusedError(f"BANNED 0 seconds left of the ban of {follower.id}, JOIN again")


def set_members(state: LedgerState, context: Context, members: list[Member]) -> None:
    """The cluster's members are now these: admit the new ones, let go of those no longer in it."""
    followers = state.followers
    listed = {member.id: member.address for member in members}
    for member_id in followers.members:
        if member_id not in listed:
            _depart(state, context, followers.by_id[member_id])
    followers.members = list(listed)
    for member_id, address in listed.items():
        follower = followers.by_id.get(member_id)
        if follower is None:
            _admit_new(state, context, member_id, MEMBER, address)
            continue
        if follower.address != address:
            follower.address = address
            state.changed(follower, context)
        if follower.state == LEFT:
            _member_returns(state, context, follower)


def _member_returns(state: LedgerState, context: Context, follower: Follower) -> None:
    """A removed member is back; what is left of its ban goes on."""
    if follower.seconds_left(context.at_ms):
        state.followers.set_state(follower, BANNED)
        state.changed(follower, context)
        return
    if follower.banned_until is not None:
        follower.clean()
    _admit_again(state, context, follower)


def readmit_members(state: LedgerState, context: Context) -> None:
    """Members cannot JOIN: a ban that is over ends by itself, at the next ~OPEN."""
    for member_id in state.followers.members:
        follower = state.followers.by_id[member_id]
        if follower.state == BANNED and not follower.seconds_left(context.at_ms):
            follower.clean()
            _admit_again(state, context, follower)


def _admit_new(state: LedgerState, context: Context, follower_id: str, kind: str, address: str) -> None:
    follower = state.followers.add(follower_id, kind, address, context.at_ms, context.index)
    state.changed(follower, context)
    state.events.cluster(f"joined {follower_id}")


def _admit_again(state: LedgerState, context: Context, follower: Follower) -> None:
    state.followers.set_state(follower, ACTIVE)
    follower.joined_at = context.at_ms
    state.changed(follower, context)
    state.events.cluster(f"joined {follower.id}")


def _depart(state: LedgerState, context: Context, follower: Follower) -> None:
    state.followers.set_state(follower, LEFT)
    state.changed(follower, context)
    state.events.cluster(f"left {follower.id}")
