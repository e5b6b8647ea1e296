"""Leader election (paper 5.2, 5.4.1), PreVote (thesis 9.6), CheckQuorum (thesis 6.2)."""

from __future__ import annotations

from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration
from raft.core.messages import RequestVote, RequestVoteResponse
from raft.core.recovery import complain
from raft.core.replication import maybe_commit
from raft.core.state import CoreState, Role


def on_election_timeout(core: CoreState) -> None:
    """The election timeout passed without word from a leader (paper 5.2)."""
    complain(core)
    if not may_campaign(core):
        if core.leader_id is not None or core.role is not Role.FOLLOWER:
            core.become_follower(core.term, None, f"leader {core.leader_id} is silent in term {core.term}")
        core.reset_election_timeout()
        return
    start_pre_vote(core)


def may_campaign(core: CoreState) -> bool:
    """Voters may; a learner never may. A voter that the newest configuration removes still may, while that is
    not known to be committed: perhaps nobody else has its entry, and then nobody can win against it (thesis
    4.2.2). It does not count its own vote. All but the last two configurations are committed history. Who has
    lost what it had acknowledged may not (raft/core/recovery.py)."""
    if core.recovering is not None:
        return False
    for _, configuration in reversed(core.configurations[-2:]):
        if core.node_id in configuration.voters:
            return may_vote_for_itself(core, configuration)
    return False


def may_vote_for_itself(core: CoreState, configuration: Configuration) -> bool:
    """The rule of keeps_its_promises for one's own vote. A server that has lost its disk and gets the log
    anew meets old configurations on the way, perhaps one in which it was the only voter: it must not elect
    itself there. And one that knows of a cluster belongs to it, or will: it founds no second one."""
    recorded = configuration.identity_of(core.node_id)
    if recorded or not core.identity:
        return recorded == core.identity
    return not core.founded and not any(configuration.identity_of(voter) for voter in configuration.voters)


def start_pre_vote(core: CoreState) -> None:
    """Ask every voter whether it would vote for this node in the next term (thesis 9.6)."""
    reason = "suspected" if core.leader_suspected else "silent"
    if core.role is Role.FOLLOWER:
        leader = f"leader {core.leader_id} is {reason}" if core.leader_id is not None else "no leader known"
        core.effects.news.append(f"{leader} in term {core.term}: asking for pre-votes")
    core.become_pre_candidate()
    if core.configuration.has_quorum((core.node_id,)):
        start_election(core)
        return
    _ask_for_votes(core, core.term + 1, pre_vote=True)


def start_election(core: CoreState, *, transfer: bool = False) -> None:
    """Become a candidate and ask for votes (paper 5.2). The requests leave after the vote is on disk.

    transfer: the leader asked for it (thesis 3.10).
    """
    core.become_candidate()
    core.effects.news.append(f"candidate in term {core.term}: asking for votes")
    if core.configuration.has_quorum((core.node_id,)):
        win_election(core)
        return
    _ask_for_votes(core, core.term, pre_vote=False, transfer=transfer)


def _ask_for_votes(core: CoreState, term: int, *, pre_vote: bool, transfer: bool = False) -> None:
    last_index, last_term = core.log.last_index, core.log.last_term
    founding = not any(core.configuration.identity_of(voter) for voter in core.configuration.voters)
    for voter in core.configuration.voters:
        if voter != core.node_id:
            recorded = core.configuration.identity_of(voter)
            request = RequestVote(
                term, core.node_id, last_index, last_term, pre_vote, transfer, recorded, founding
            )
            core.effects.messages.append((voter, request))


def handle_request_vote(core: CoreState, sender: int, request: RequestVote) -> None:
    """RequestVote RPC, receiver (paper figure 2; 5.4.1 for the log check; thesis 4.2.3 and 9.6)."""
    if request.pre_vote:
        answer_pre_vote(core, sender, request)
        return
    loyal = core.owes_silence() or (request.term > core.term and keeps_its_leader(core, sender))
    if loyal and not request.transfer:
        return  # thesis 4.2.3: a server that hears its leader lets nobody disturb it
    if request.term > core.term:
        core.become_follower(request.term, None, f"term {request.term} begins: {sender} is a candidate")
    granted = (
        request.term == core.term
        and core.voted_for in (None, sender)
        and keeps_its_promises(core, request)
        and core.log.is_up_to_date(request.last_log_index, request.last_log_term)
    )
    if granted:
        if core.voted_for is None:
            core.voted_for = sender
            core.save_hard_state()
            core.effects.news.append(f"vote for {sender} in term {core.term}")
        core.reset_election_timeout()
    core.effects.messages.append((sender, RequestVoteResponse(core.term, granted)))


def keeps_its_leader(core: CoreState, candidate: int) -> bool:
    """Whether a vote for the candidate would disturb a living leader. A leader that asks for votes itself
    leads no longer: against its own request there is nothing to protect."""
    return candidate != core.leader_id and core.leader_is_alive()


def keeps_its_promises(core: CoreState, request: RequestVote) -> bool:
    """Whether this server may vote, as far as it can know: one that has lost its disk would break the
    promises that it gave before (paper 5.2 and 5.4.1 rest on stable storage).

    It may if its own or the candidate's configuration has recorded the identity of its data directory; the
    candidate's, since who was away for long does not know its own record. It may not if they have recorded
    another. If neither has any, it votes only at a founding: as a founding voter, for a candidate that knows
    of no voter's recorded disk at all. (A log proves nothing: its leader may have died before it recorded
    anybody, and if nobody voted then there would never be another.)

    It may not while it lacks entries that it had acknowledged (raft/core/recovery.py).
    """
    if core.recovering is not None:
        return False
    recorded = core.configuration.identity_of(core.node_id)
    if core.identity in (recorded, request.voter_identity):
        return True
    unknown = not recorded and not request.voter_identity and not core.founded
    return unknown and request.founding and core.node_id in core.configuration.voters


def answer_pre_vote(core: CoreState, sender: int, request: RequestVote) -> None:
    """Would this node vote so? Nothing changes by being asked (thesis 9.6)."""
    granted = (
        request.term > core.term
        and keeps_its_promises(core, request)
        and not core.owes_silence()
        and not keeps_its_leader(core, sender)
        and core.log.is_up_to_date(request.last_log_index, request.last_log_term)
    )
    term = request.term if granted else core.term
    core.effects.messages.append((sender, RequestVoteResponse(term, granted, True)))


def handle_request_vote_response(core: CoreState, sender: int, response: RequestVoteResponse) -> None:
    """Count a vote or a pre-vote (paper 5.2). Answers to an earlier campaign are ignored."""
    if not response.vote_granted and response.term > core.term:
        core.become_follower(response.term, None, f"term {response.term} seen at {sender}")
        return
    campaigning = Role.PRE_CANDIDATE if response.pre_vote else Role.CANDIDATE
    asked_term = core.term + 1 if response.pre_vote else core.term
    if core.role is not campaigning or (response.vote_granted and response.term != asked_term):
        return
    core.votes[sender] = response.vote_granted or core.votes.get(sender, False)
    if not core.configuration.has_quorum(voter for voter, granted in core.votes.items() if granted):
        return
    if response.pre_vote:
        start_election(core)
    else:
        win_election(core)


def win_election(core: CoreState) -> None:
    """Take office: a no-op commits what earlier terms left (paper 5.4.2, section 8)."""
    core.become_leader()
    core.append([Entry(core.log.last_index + 1, core.term, EntryKind.NOOP, b"")])
    maybe_commit(core)


def suspect_leader(core: CoreState, peer: int) -> None:
    """The node has a sign that its leader's process died: bring the election forward through PreVote.

    A wrong suspicion disturbs nobody: the others still hear the leader and give no pre-vote. With lease reads
    a server must keep its promise not to vote for a while after each heartbeat, so it waits that long.
    """
    if core.role is not Role.FOLLOWER or core.leader_id != peer:
        return
    earliest = core.now
    if core.options.lease_reads:
        earliest = max(earliest, core.last_leader_contact_ms + core.options.election_timeout_min_ms)
    elif not core.leader_suspected:
        core.leader_suspected = True
        core.effects.news.append(f"leader {peer} of term {core.term} is suspected dead")
    soon = earliest + core.options.heartbeat_interval_ms * core.rng.random()
    core.election_deadline_ms = min(core.election_deadline_ms, soon)


def check_quorum(core: CoreState) -> None:
    """A leader that a majority has not answered for an election timeout steps down (thesis 6.2)."""
    if core.quorum_is_near():
        return
    silent_ms = core.now - core.quorum_contact_ms()
    if silent_ms >= core.options.election_timeout_max_ms:
        why = f"stepped down in term {core.term}: no quorum for {silent_ms:.0f} ms"
        core.become_follower(core.term, None, why)
