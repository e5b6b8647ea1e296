"""Log replication (paper 5.3), the commit rule (5.4.2, figure 8), pipelining (thesis 10.2.1)."""

from __future__ import annotations

from raft.core.entry import Entry, EntryKind
from raft.core.invariants import ProtocolViolation
from raft.core.membership import ConfigurationFormatError, decode_configuration
from raft.core.messages import AppendEntries, AppendEntriesResponse
from raft.core.recovery import on_match
from raft.core.state import CoreState, Progress, Role

_KINDS = frozenset(map(int, EntryKind))

# --- leader ---------------------------------------------------------------------------------------------


def begin_round(core: CoreState) -> None:
    """Number a broadcast: answers that echo the number prove leadership after this moment (thesis 6.4)."""
    core.round += 1
    core.rounds_sent.append((core.round, core.now))


def broadcast_append_entries(core: CoreState, *, heartbeat: bool) -> None:
    """Send every peer what it lacks; with heartbeat, an empty AppendEntries where there is nothing."""
    begin_round(core)
    if heartbeat:  # only then: a peer that gets no entries now must not go without word under steady load
        core.heartbeat_due_ms = core.now + core.options.heartbeat_interval_ms
    core.broadcast_index = core.log.last_index
    shared: dict[int, tuple[Entry, ...]] = {}
    for peer in core.progress:
        send_append_entries(core, peer, heartbeat=heartbeat, shared=shared)


def send_append_entries(
    core: CoreState, peer: int, *, heartbeat: bool = False, shared: dict[int, tuple[Entry, ...]] | None = None
) -> None:
    """Send a peer the entries from its next_index on, as far as its window reaches (paper 5.3).

    shared: entries already read for another peer, by first index: equal tuples are encoded once.
    """
    progress = core.progress[peer]
    shared = {} if shared is None else shared
    if progress.next_index < core.log.first_index:
        # What comes next is compacted away: the node streams a snapshot. Word of this leader goes on.
        core.effects.snapshots_wanted.append(peer)
        if heartbeat:
            _send(core, peer, core.log.first_index - 1, ())
        return
    if progress.probing:
        if not progress.probe_sent or heartbeat:
            # Entries go with the first probe only: a repetition to a dead peer must stay cheap.
            size = core.options.max_probe_bytes
            entries = () if progress.probe_sent else _read(core, progress.next_index, size, {})
            progress.probe_sent = True
            _send(core, peer, progress.next_index - 1, entries)
        return
    sent = False
    while progress.next_index <= core.log.last_index and progress.has_room(core.options):
        entries = _read(core, progress.next_index, core.options.max_append_bytes, shared)
        _send(core, peer, progress.next_index - 1, entries)
        size = sum([len(entry.data) for entry in entries])
        progress.next_index = entries[-1].index + 1
        progress.inflight.append((entries[-1].index, size))
        progress.inflight_bytes += size
        sent = True
    if heartbeat and not sent:
        _send(core, peer, progress.next_index - 1, ())


def _read(
    core: CoreState, first: int, max_bytes: int, shared: dict[int, tuple[Entry, ...]]
) -> tuple[Entry, ...]:
    entries = shared.get(first)
    if entries is None:
        end = min(core.log.last_index + 1, first + core.options.max_append_entries)
        entries = shared[first] = core.log.entries(first, end, max_bytes)
    return entries


def _send(core: CoreState, peer: int, prev: int, entries: tuple[Entry, ...]) -> None:
    message = AppendEntries(
        core.term, core.node_id, prev, core.log.term(prev), entries, core.commit_index, core.round
    )
    core.effects.early_messages.append((peer, message))


def handle_append_entries_response(core: CoreState, sender: int, response: AppendEntriesResponse) -> None:
    """Learn a follower's match, or where its log differs (paper 5.3). Stale answers change nothing."""
    if response.term > core.term:
        core.become_follower(response.term, None, f"term {response.term} seen at {sender}")
        return
    progress = core.progress.get(sender)
    if core.role is not Role.LEADER or response.term < core.term or progress is None:
        return
    if response.match_index > core.log.last_index or response.round > core.round:
        raise ProtocolViolation(f"node {sender} acknowledges what was never sent: {response}")
    progress.last_contact_ms = core.now
    progress.acked_round = max(progress.acked_round, response.round)
    progress.full = response.full
    if response.success:
        _on_match(core, sender, progress, response.match_index)
    else:
        _on_conflict(core, sender, progress, response)


def _on_match(core: CoreState, peer: int, progress: Progress, match_index: int) -> None:
    if match_index > progress.match_index:
        progress.match_index, progress.match_round = match_index, core.round
        maybe_commit(core)
    if progress.full:
        # What is in flight may have found no room. Heartbeats go on, and one will be answered otherwise.
        progress.become_probing(progress.match_index + 1)
        progress.probe_sent = True
        return
    progress.free_inflight(match_index)
    if progress.probing and match_index >= progress.next_index - 1:
        progress.probing = False
        progress.next_index = progress.match_index + 1
    progress.next_index = max(progress.next_index, progress.match_index + 1)
    if match_index >= progress.catch_up_to and peer in core.configuration.learners:
        _end_catch_up_round(core, progress)
    if progress.next_index <= core.log.last_index:
        send_append_entries(core, peer)


def _end_catch_up_round(core: CoreState, progress: Progress) -> None:
    """A learner has what the log had when the round began: is it fast enough to vote (thesis 4.2.1)?"""
    took_ms = core.now - progress.catch_up_began_ms
    # The very first round is none: it has no beginning.
    progress.caught_up = progress.catch_up_to > 0 and took_ms < core.options.election_timeout_min_ms
    progress.catch_up_to, progress.catch_up_began_ms = core.log.last_index, core.now


def _on_conflict(core: CoreState, peer: int, progress: Progress, response: AppendEntriesResponse) -> None:
    """Move next_index back past a whole conflicting term at once (paper 5.3, end)."""
    refused = response.prev_log_index
    if progress.match_index and refused <= progress.match_index and response.round > progress.match_round:
        _on_lost_entries(core, peer, progress, response)
    if refused <= progress.match_index or refused >= progress.next_index:
        return  # an answer from before: that position is known to match, or was given up since
    if progress.probing and refused != progress.next_index - 1:
        return
    retry = response.conflict_index
    if response.conflict_term:
        last = core.log.last_index_of_term(response.conflict_term)
        if last is not None:
            retry = last + 1
    retry = max(progress.match_index + 1, min(retry, refused))
    if retry < core.log.first_index <= refused:
        retry = (
            core.log.first_index
        )  # the oldest that can be sent: only if that fails is it a snapshot's turn
    progress.become_probing(retry)
    send_append_entries(core, peer)


def _on_lost_entries(core: CoreState, peer: int, progress: Progress, response: AppendEntriesResponse) -> None:
    """It was asked after it had acknowledged this entry, and has it no more: its disk lost what was promised.

    Nothing that Raft proves holds for such a server; but left alone it would lack the log for as long as this
    leader leads, without a word. So: say it, count it anew, and send from where its log ends.
    """
    core.effects.news.append(
        f"node {peer} has lost entries that it had acknowledged, from {response.conflict_index} of "
        f"{progress.match_index} on: its disk or its settings (storage.fsync) cannot be trusted"
    )
    progress.match_index, progress.caught_up = 0, False
    progress.become_probing(response.prev_log_index + 1)


def maybe_commit(core: CoreState) -> None:
    """Commit what a majority has on disk, but only through an entry of this term (paper 5.4.2)."""
    if core.role is not Role.LEADER:
        return
    me, progress = core.node_id, core.progress
    index = core.configuration.quorum_value(
        [
            core.durable_index if voter == me else progress[voter].match_index
            for voter in core.configuration.voters
        ]
    )
    if index > core.commit_index and core.log.term(index) == core.term:
        core.commit(index)


def on_message_lost(core: CoreState, peer: int) -> None:
    """What follows would be refused: go back to what was acknowledged, and wait for the next heartbeat."""
    progress = core.progress.get(peer)
    if progress is not None and not progress.probing:
        progress.become_probing(progress.match_index + 1)
        progress.probe_sent = True


def on_peer_disconnected(core: CoreState, peer: int) -> None:
    """What was in flight to this peer may be lost: find its log again from what it acknowledged; if that is
    not known yet, from where it was being looked for: from 1 on would be the whole log, or a snapshot."""
    progress = core.progress.get(peer)
    if progress is not None:
        progress.become_probing(progress.next_index if progress.probing else progress.match_index + 1)


# --- follower -------------------------------------------------------------------------------------------


def handle_append_entries(core: CoreState, sender: int, request: AppendEntries) -> None:
    """AppendEntries RPC, receiver (paper figure 2). The answer leaves after the entries are on disk."""
    if request.term < core.term:
        refusal = AppendEntriesResponse(core.term, False, 0, 0, request.prev_log_index)
        core.effects.messages.append((sender, refusal))
        return
    check_contiguous(request)
    check_committed(core, request)
    hear_leader(core, sender, request.term)
    response = append_to_log(core, request)
    core.effects.messages.append((sender, response))
    if core.recovering is not None:
        on_match(core, sender, response.match_index)


def hear_leader(core: CoreState, sender: int, term: int) -> None:
    """The leader of the current, or of a newer, term has spoken (paper 5.2).

    Raises ProtocolViolation if this node leads the term: a quorum has voted for it, so that the other cannot
    have been elected. Its word alone must not stop the elected one."""
    if core.role is Role.LEADER and term == core.term:
        raise ProtocolViolation(f"two leaders in term {term}: {core.node_id} and {sender}")
    if term > core.term or core.role is not Role.FOLLOWER or core.leader_id != sender:
        core.become_follower(term, sender, f"following leader {sender} in term {term}")
    core.last_leader_contact_ms = core.now
    core.leader_suspected = False
    core.reset_election_timeout()


def check_contiguous(request: AppendEntries) -> None:
    """Raise ProtocolViolation unless the entries follow prev_log_index one by one with sane terms, kinds that
    this version knows (others could neither be applied nor, perhaps, read back) and sane configurations."""
    index, term = request.prev_log_index, request.prev_log_term
    if index < 0 or term < 0:
        raise ProtocolViolation(f"entries after entry {index} of term {term}")
    for entry in request.entries:
        index += 1
        if entry.index != index or not term <= entry.term <= request.term:
            raise ProtocolViolation(f"entry {entry.index} of term {entry.term} where {index} should be")
        term = entry.term
        if entry.kind not in _KINDS:
            raise ProtocolViolation(f"entry {entry.index} is of the unknown kind {entry.kind}")
        if entry.kind == EntryKind.CONFIGURATION:
            try:
                decode_configuration(entry.data)
            except ConfigurationFormatError as error:
                raise ProtocolViolation(f"entry {entry.index}: {error}") from error


def check_committed(core: CoreState, request: AppendEntries) -> None:
    """Raise ProtocolViolation if the leader contradicts what is committed here: every leader of this or a
    later term has that in its log (paper 5.4.3), so this is none."""
    if request.prev_log_index >= core.commit_index:
        return
    log = core.log
    prev = (request.prev_log_index, request.prev_log_term)
    for index, term in (prev, *((entry.index, entry.term) for entry in request.entries)):
        if index > core.commit_index:
            return
        if index >= log.first_index - 1 and log.term(index) != term:
            raise ProtocolViolation(
                f"entry {index} has term {term}, but that of term {log.term(index)} is committed"
            )


def append_to_log(core: CoreState, request: AppendEntries) -> AppendEntriesResponse:
    """AppendEntries, receiver, steps 2 to 5 (paper figure 2): check, truncate on conflict, append, commit.

    On a full disk entries that find no room are not taken: it is as if the message had ended before them.
    """
    log = core.log
    prev, entries = request.prev_log_index, request.entries
    if prev >= core.commit_index and not log.matches(prev, request.prev_log_term):
        return _refusal(core, request)
    last_new, full = prev + len(entries), core.room.low
    for position, entry in enumerate(entries):
        if entry.index < log.first_index or log.matches(entry.index, entry.term):
            continue  # already here: never truncated, never written twice (paper 5.3)
        if not log.fits(core.room, entries[position:]):
            last_new, full = entry.index - 1, True
            break
        if entry.index <= log.last_index:
            core.truncate(entry.index)
        core.append(entries[position:])
        break
    commit = min(request.leader_commit, last_new)
    if commit > core.commit_index:
        core.commit(commit)
    match = max(last_new, core.commit_index)
    return AppendEntriesResponse(core.term, True, match, request.round, full=full)


def _refusal(core: CoreState, request: AppendEntries) -> AppendEntriesResponse:
    """Say where the logs may agree (paper 5.3): our end, or the start of the term that conflicts."""
    log, prev = core.log, request.prev_log_index
    if prev > log.last_index:
        where, term = log.last_index + 1, 0
    else:
        term = log.term(prev)
        where = max(log.first_index_of_term_at(prev), core.commit_index + 1)
    return AppendEntriesResponse(core.term, False, 0, request.round, prev, where, term, core.room.low)
