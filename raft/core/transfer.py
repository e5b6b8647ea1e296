"""Leadership transfer (thesis 3.10): the leader brings a follower up to date and has it campaign at once."""

from __future__ import annotations

from raft.core.election import start_election
from raft.core.messages import TimeoutNow
from raft.core.replication import send_append_entries
from raft.core.state import CoreState, Role


def begin_transfer(core: CoreState, target: int | None) -> str | None:
    """Hand leadership to target, or to the voter with the longest log. Returns why not, None if it began.

    While it is under way nothing is proposed: a stream of writes would keep the target behind for ever
    (hashicorp/raft 581). It is given up after an election timeout.
    """
    if core.role is not Role.LEADER:
        return "this node is not the leader"
    if core.transfer_target is not None:
        return f"a transfer to node {core.transfer_target} is under way"
    candidates = [voter for voter in core.configuration.voters if voter != core.node_id]
    if target is None:
        recent = core.now - core.options.election_timeout_min_ms
        peers = ((voter, core.progress[voter]) for voter in candidates)
        alive = [voter for voter, peer in peers if peer.last_contact_ms >= recent and not peer.full]
        target = max(alive, key=lambda voter: core.progress[voter].match_index, default=None)
        if target is None:
            return "no other voter answers, and has space on its disk"
    if target == core.node_id:
        return "this node leads already"
    if target not in candidates:
        return f"node {target} is not a voter"
    core.transfer_target, core.transfer_sent = target, False
    core.transfer_deadline_ms = core.now + core.options.election_timeout_max_ms
    core.effects.news.append(f"handing leadership of term {core.term} over to node {target}")
    advance_transfer(core)
    return None


def advance_transfer(core: CoreState) -> None:
    """Leader, after each event: send TimeoutNow once the target has the whole log, give up in time."""
    target = core.transfer_target
    if target is None:
        return
    if core.now >= core.transfer_deadline_ms:
        core.transfer_target = None
        core.effects.news.append(f"node {target} did not take over in time: still leader of term {core.term}")
        return
    progress = core.progress[target]
    if progress.match_index < core.log.last_index:
        send_append_entries(core, target)
    elif not core.transfer_sent:
        # From here on an election may come at any time, even after this transfer is given up: a lease
        # would no longer be a promise (openraft 1749).
        core.transfer_sent = core.lease_void = True
        core.lease_from_ms = float("-inf")
        core.effects.messages.append((target, TimeoutNow(core.term)))


def handle_timeout_now(core: CoreState, sender: int, message: TimeoutNow) -> None:
    """The leader of this term wants this node to take over (thesis 3.10). One that lacks entries which it had
    acknowledged may not (raft/core/recovery.py)."""
    if message.term != core.term or sender != core.leader_id or core.role is not Role.FOLLOWER:
        return
    if core.node_id not in core.configuration.voters or core.recovering is not None:
        return
    core.effects.news.append(f"leader {sender} hands over: campaigning at once")
    core.become_pre_candidate()
    start_election(core, transfer=True)
