"""BUGS 1 to 29 put back into raft/core: elections, the log, commitment. See tests/mutants/run.py."""

from __future__ import annotations

from tests.mutants.core_mutants import Mutant

ELECTION = "raft/core/election.py"
STATE = "raft/core/state.py"
REPLICATION = "raft/core/replication.py"

MUTANTS = (
    Mutant(
        1,
        STATE,
        "        self.effects.hard_state = HardState(self.term, self.voted_for)\n",
        "        pass\n",
        "term and vote are not written",
    ),
    Mutant(
        1,
        STATE,
        "        self.effects.hard_state = HardState(self.term, self.voted_for)\n",
        "        self.effects.hard_state = HardState(self.term)\n",
        "the vote is not written, the term is",
    ),
    Mutant(
        2,
        STATE,
        "        if new_term:\n            self.term = term\n            self.voted_for = None\n",
        "        self.voted_for = None\n        if new_term:\n            self.term = term\n",
        "a step-down erases the vote within its term",
    ),
    Mutant(
        5,
        ELECTION,
        "        and core.voted_for in (None, sender)\n        and keeps_its_promises(core, request)\n",
        "        and keeps_its_promises(core, request)\n",
        "two votes in a term: two leaders",
    ),
    Mutant(
        5,
        ELECTION,
        "    if core.role is not campaigning or (response.vote_granted and response.term != asked_term):\n",
        "    if core.role is not campaigning:\n",
        "a vote given in another term counts",
    ),
    Mutant(
        0,
        ELECTION,
        "        and keeps_its_promises(core, request)\n"
        "        and core.log.is_up_to_date(request.last_log_index, request.last_log_term)\n"
        "    )\n    if granted",
        "        and keeps_its_promises(core, request)\n    )\n    if granted",
        "a vote for a candidate whose log lacks what is committed (5.4.1)",
    ),
    Mutant(
        0,
        "raft/core/log.py",
        "        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)\n",
        "        return (last_log_index, last_log_term) >= (self.last_index, self.last_term)\n",
        "the longer log counts for the newer one (5.4.1)",
    ),
    Mutant(
        8,
        ELECTION,
        "    _ask_for_votes(core, core.term + 1, pre_vote=True)\n",
        "    start_election(core)\n",
        "no PreVote: who was cut off comes back with a new term",
    ),
    Mutant(
        8,
        ELECTION,
        "        and not keeps_its_leader(core, sender)\n",
        "",
        "a pre-vote against a living leader",
    ),
    Mutant(
        9,
        ELECTION,
        "    if silent_ms >= core.options.election_timeout_max_ms:\n",
        "    if False:\n",
        "no CheckQuorum: a leader that is heard but hears nobody stays in office",
    ),
    Mutant(
        10,
        ELECTION,
        "    return candidate != core.leader_id and core.leader_is_alive()\n",
        "    return core.leader_is_alive()\n",
        "a leader that lost its office and asks for pre-votes is refused in its own name",
    ),
    Mutant(
        14,
        REPLICATION,
        "    if index > core.commit_index and core.log.term(index) == core.term:\n",
        "    if index > core.commit_index:\n",
        "entries of earlier terms are committed by counting (5.4.2, figure 8)",
    ),
    Mutant(
        15,
        ELECTION,
        '    core.append([Entry(core.log.last_index + 1, core.term, EntryKind.NOOP, b"")])\n',
        "",
        "no no-op: what earlier terms left is never committed",
    ),
    Mutant(
        16,
        REPLICATION,
        "    if commit > core.commit_index:\n        core.commit(commit)\n",
        "    core.commit_index = core.effects.committed = commit\n",
        "a late AppendEntries sets the commit index back",
    ),
    Mutant(
        17,
        REPLICATION,
        "    commit = min(request.leader_commit, last_new)\n",
        "    commit = min(request.leader_commit, log.last_index)\n",
        "the commit index is not capped at the last entry sent",
    ),
    Mutant(
        18,
        "raft/core/membership.py",
        "        return len(self.voters) // 2 + 1\n",
        "        return (len(self.voters) + 1) // 2\n",
        "half of an even cluster counts for a majority",
    ),
    Mutant(
        19,
        REPLICATION,
        "        if entry.index < log.first_index or log.matches(entry.index, entry.term):\n",
        "        if entry.index < log.first_index or entry.index <= core.commit_index:\n",
        "entries that match are truncated and written again",
    ),
    Mutant(
        20,
        REPLICATION,
        "    for position, entry in enumerate(entries):\n"
        "        if entry.index < log.first_index or log.matches(entry.index, entry.term):\n",
        "    if last_new < log.last_index and last_new >= core.commit_index:\n"
        "        core.truncate(last_new + 1)\n"
        "    for position, entry in enumerate(entries):\n"
        "        if entry.index < log.first_index or log.matches(entry.index, entry.term):\n",
        "a late AppendEntries erases what follows it",
    ),
    Mutant(
        21,
        REPLICATION,
        "    if match_index > progress.match_index:\n",
        "    if match_index != progress.match_index:\n",
        "a late answer sets matchIndex back",
    ),
    Mutant(
        22,
        STATE,
        "            peer: Progress(next_index=self.log.last_index + 1, last_contact_ms=self.now)\n"
        "            for _, configuration",
        "            peer: Progress(self.log.last_index + 1, self.log.last_index, last_contact_ms=self.now)\n"
        "            for _, configuration",
        "a new leader takes it that its peers' logs match",
    ),
    Mutant(
        25,
        REPLICATION,
        "        where, term = log.last_index + 1, 0\n",
        "        where, term = log.last_index + 2, 0\n",
        "a refusal names the wrong index",
    ),
    Mutant(
        25,
        REPLICATION,
        "False, 0, request.round, prev, where, term, core.room.low)\n",
        "False, 0, request.round, log.last_index, where, term, core.room.low)\n",
        "a refusal echoes its own end of the log instead of what was asked",
    ),
    Mutant(
        26,
        REPLICATION,
        "        if entry.index != index or not term <= entry.term <= request.term:\n",
        "        if not term <= entry.term <= request.term:\n",
        "entries of one message need not follow each other",
    ),
    Mutant(
        27,
        "raft/core/core.py",
        "        if index > state.durable_index and state.log.matches(index, term):\n",
        "        if index > state.durable_index:\n",
        "the fsync of an entry that was truncated meanwhile counts for its successor",
    ),
    Mutant(
        28,
        REPLICATION,
        "        progress.next_index = entries[-1].index + 1\n",
        "        progress.next_index = core.log.last_index + 1\n",
        "what does not fit into a message is never sent",
    ),
    Mutant(
        29,
        REPLICATION,
        "            core.durable_index if voter == me else progress[voter].match_index\n",
        "            core.log.last_index if voter == me else progress[voter].match_index\n",
        "a leader counts its own entries before they are on its disk",
    ),
    Mutant(
        0,
        REPLICATION,
        "    if prev >= core.commit_index and not log.matches(prev, request.prev_log_term):\n",
        "    if prev > log.last_index:\n",
        "no consistency check (5.3)",
    ),
    Mutant(
        55,
        STATE,
        "            len(self.inflight) < options.max_inflight_messages\n"
        "            and self.inflight_bytes < options.max_inflight_bytes\n",
        "            len(self.inflight) < options.max_inflight_messages\n",
        "a peer's window has no bound in bytes",
    ),
    Mutant(
        56,
        STATE,
        "            self.inflight_bytes -= self.inflight.popleft()[1]\n",
        "            self.inflight.popleft()\n",
        "the window's bytes are never given back: soon nothing is sent",
    ),
)
