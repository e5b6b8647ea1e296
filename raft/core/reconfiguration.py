"""Changes of the cluster's members, one server at a time (thesis chapter 4)."""

from __future__ import annotations

from raft.core.entry import Entry, EntryKind
from raft.core.membership import (
    Configuration,
    ConfigurationFormatError,
    decode_configuration,
    encode_configuration,
)
from raft.core.messages import TimeoutNow
from raft.core.replication import maybe_commit, send_append_entries
from raft.core.state import CoreState, Role


def change_configuration(core: CoreState, configuration: Configuration) -> int | str:
    """Leader: append a configuration; it is in force at once (thesis 4.1). Returns its index, or why not.

    Two configurations that differ by one voter have no disjoint quorums, but only if the older one is
    committed, and only if an entry of this term is (Ongaro's correction of 2015): else a deposed leader's
    configuration could still come back from the other side.
    """
    if core.role is not Role.LEADER:
        return "this node is not the leader"
    if core.transfer_target is not None:
        return f"leadership is being handed over to node {core.transfer_target}"
    if core.commit_index < core.term_first_index:
        return f"nothing of term {core.term} is committed yet"
    if core.configuration_index > core.commit_index or core.departing:
        return f"the change of entry {core.configuration_index} is not committed yet"
    if len(set(configuration.voters) ^ set(core.configuration.voters)) > 1:
        return "only one voter can come or go at a time"
    if not configuration.voters:
        return "a cluster needs a voter"
    if core.identity and (refusal := refuse_disks(core.configuration, configuration)):
        return refusal
    data = encode_configuration(configuration)
    try:
        decode_configuration(data)
    except ConfigurationFormatError as error:
        return str(error)
    index = core.log.last_index + 1
    core.append([Entry(index, core.term, EntryKind.CONFIGURATION, data)])
    maybe_commit(core)
    return index


def refuse_disks(before: Configuration, after: Configuration) -> str | None:
    """Why the configuration would leave too few who may vote: once any voter's data directory is recorded,
    those that are not give no votes (election.keeps_its_promises)."""
    recorded = [voter for voter in after.voters if after.identity_of(voter)]
    for newcomer in set(after.voters) - set(before.voters) - set(recorded):
        return f"the data directory of node {newcomer} is not recorded yet"
    if recorded and not after.has_quorum(recorded):
        return f"of the voters' data directories only those of {recorded} are recorded: no quorum could vote"
    return None


def caught_up(core: CoreState, learner: int) -> bool:
    """Leader: whether the learner keeps pace, so that its vote would not hold up commits (thesis 4.2.1): it
    did in the last round, answers, and has not been at the present round for longer than a round may take."""
    progress = core.progress.get(learner)
    recent = core.now - core.options.election_timeout_min_ms
    return (
        progress is not None
        and progress.caught_up
        and progress.last_contact_ms > recent
        and progress.catch_up_began_ms > recent
    )


def may_vote(core: CoreState, learner: int) -> bool:
    """Leader: whether the learner would give votes. It gives none before its data directory's identity is
    recorded (election.keeps_its_promises): as a voter it would only make quorums larger."""
    return bool(core.configuration.identity_of(learner)) or not core.identity


def advance_configuration(core: CoreState) -> None:
    """Leader, after each event: promote who has caught up, part from who has left."""
    if core.configuration.promote and core.configuration_index <= core.commit_index:
        for learner in core.configuration.promote:
            if caught_up(core, learner) and may_vote(core, learner):
                change_configuration(core, core.configuration.with_voter(learner))
                break
    if core.departing and core.configuration_index <= core.commit_index:
        _part(core)


def _part(core: CoreState) -> None:
    """The configuration is committed: who is not in it hears so once more, and gets nothing from now on. A
    leader that is not in it leads no more (thesis 4.2.2), and has the best of the others campaign at once."""
    core.departing = False
    for peer in [peer for peer in core.progress if not core.configuration.has(peer)]:
        send_append_entries(core, peer, heartbeat=True)
        del core.progress[peer]
    if core.node_id in core.configuration.voters:
        return
    successor = max(core.configuration.voters, key=lambda voter: core.progress[voter].match_index)
    core.effects.messages.append((successor, TimeoutNow(core.term)))
    why = f"removed from the cluster by entry {core.configuration_index}: node {successor} is to take over"
    core.become_follower(core.term, None, why)
