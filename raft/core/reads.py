"""Linearizable reads without writing the log: ReadIndex and leases (thesis 6.4, 6.4.1)."""

from __future__ import annotations

from raft.core.messages import ReadIndexRequest, ReadIndexResponse
from raft.core.recovery import handle_log_end
from raft.core.replication import broadcast_append_entries
from raft.core.state import CoreState, PendingRead, Role


def request_read(core: CoreState, request_id: int) -> None:
    """A local read wants a read index: the answer is in reads_ready or reads_failed.

    request_id must never have been used before, not even by an earlier run of this node: an answer that
    was delayed by a pause must find nobody waiting.
    """
    if core.role is Role.LEADER:
        add_read(core, None, request_id)
    elif core.leader_id is not None:
        core.follower_reads[request_id] = core.now
        core.effects.messages.append((core.leader_id, ReadIndexRequest(core.term, request_id)))
    else:
        core.effects.reads_failed.append(request_id)


def handle_read_index_request(core: CoreState, sender: int, request: ReadIndexRequest) -> None:
    """A follower asks on behalf of its clients (thesis 6.4), or where the log ends."""
    if core.role is Role.LEADER and request.log_end:
        end = core.log.last_index
        answer = ReadIndexResponse(core.term, request.request_id, core.commit_index, True, end)
        core.effects.messages.append((sender, answer))
    elif core.role is Role.LEADER:
        add_read(core, sender, request.request_id)
    else:
        core.effects.messages.append((sender, ReadIndexResponse(core.term, request.request_id, 0, False)))


def handle_read_index_response(core: CoreState, response: ReadIndexResponse) -> None:
    """The leader answered: whatever term it came from, it led after the read began."""
    if handle_log_end(core, response) or core.follower_reads.pop(response.request_id, None) is None:
        return
    if response.ok:
        core.effects.reads_ready.append((response.request_id, response.read_index))
    else:
        core.effects.reads_failed.append(response.request_id)


def give_up_old_reads(core: CoreState) -> None:
    """A question or its answer may have been lost while the leader lives: no read waits for ever."""
    core.fail_follower_reads(core.now - core.options.election_timeout_max_ms)


def follower_read_deadline_ms(core: CoreState) -> float:
    """When the oldest question to the leader is given up."""
    oldest = next(iter(core.follower_reads.values()), float("inf"))
    return oldest + core.options.election_timeout_max_ms


def add_read(core: CoreState, origin: int | None, request_id: int) -> None:
    """Leader: a read may use today's commit index, once leadership is proved after this moment.

    Before this term's first commit the leader does not know what is committed: the read waits (6.4, step 1).
    """
    read = PendingRead(origin, request_id, core.commit_index, core.round + 1)
    if core.commit_index < core.term_first_index:
        core.early_reads.append(read)
    elif core.options.lease_reads and core.now < lease_until_ms(core):
        _answer(core, read)
    else:
        core.reads.append(read)


def lease_until_ms(core: CoreState) -> float:
    """Until when nobody else can have been elected: a quorum acknowledged a round sent at lease_from, and
    gives no vote for an election timeout from then (thesis 6.4.1). Monotonic time, less clock drift."""
    return core.lease_from_ms + core.options.election_timeout_min_ms * (1 - core.options.lease_drift)


def advance_reads(core: CoreState) -> None:
    """Leader, after each event: start a round if reads wait for one, answer those that a quorum confirmed."""
    if core.early_reads and core.commit_index >= core.term_first_index:
        for read in core.early_reads:
            read.read_index, read.needed_round = core.commit_index, core.round + 1
        core.reads.extend(core.early_reads)
        core.early_reads.clear()
    _confirm_rounds(core)
    idle = core.quorum_round >= core.round
    if core.reads and core.reads[-1].needed_round > core.round and idle:
        # One round at a time: reads that arrive meanwhile share the next one.
        broadcast_append_entries(core, heartbeat=True)
        _confirm_rounds(core)  # a single voter is its own quorum


def _confirm_rounds(core: CoreState) -> None:
    confirmed = core.quorum_round
    if confirmed < core.round:  # else there is nothing to confirm
        me, progress = core.node_id, core.progress
        confirmed = core.configuration.quorum_value(
            [
                core.round if voter == me else progress[voter].acked_round
                for voter in core.configuration.voters
            ]
        )
    if confirmed > core.quorum_round:
        core.quorum_round = confirmed
        while core.rounds_sent and core.rounds_sent[0][0] <= confirmed:
            sent_ms = core.rounds_sent.popleft()[1]
            if not core.lease_void:
                core.lease_from_ms = sent_ms
    while core.reads and core.reads[0].needed_round <= core.quorum_round:
        _answer(core, core.reads.popleft())


def _answer(core: CoreState, read: PendingRead) -> None:
    if read.origin is None:
        core.effects.reads_ready.append((read.request_id, read.read_index))
    else:
        response = ReadIndexResponse(core.term, read.request_id, read.read_index, True)
        core.effects.messages.append((read.origin, response))
