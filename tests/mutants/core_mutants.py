"""Bugs that were found elsewhere (docs, BUGS.md) or here, put back into raft/core: each must turn a test red.

python -m tests.mutants.run                 all of them, tests/core first, then the simulation
python -m tests.mutants.run 36 13           those with these numbers
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace `old`, which stands once in the file, with `new`. bug: its number in BUGS.md; 0: our own."""

    bug: int
    file: str
    old: str
    new: str
    why: str


MUTANTS = (
    Mutant(
        4,
        "raft/core/snapshots.py",
        '        require(term <= core.term, f"a snapshot of term {term} in term {core.term}")\n',
        "        core.term = term\n",
        "loading a snapshot lowers the term",
    ),
    Mutant(
        11,
        "raft/core/state.py",
        "        self.configurations = [(index, configuration), *later]\n",
        "        self.configurations = [*self.configurations[:1], *later]\n",
        "campaigning after a snapshot with the configuration from before it",
    ),
    Mutant(
        12,
        "raft/core/core.py",
        "state.role is not Role.LEADER or state.transfer_target is not None or not payloads",
        "state.role is not Role.LEADER or not payloads",
        "writes during a leadership transfer",
    ),
    Mutant(
        12,
        "raft/core/reconfiguration.py",
        "    if core.transfer_target is not None:\n",
        "    if False:\n",
        "changes of members during a leadership transfer",
    ),
    Mutant(
        13,
        "raft/core/election.py",
        "        and not keeps_its_leader(core, sender)\n",
        "",
        "a removed live server gets pre-votes, and then a new term",
    ),
    Mutant(
        13,
        "raft/core/election.py",
        "    if loyal and not request.transfer:\n",
        "    if False:\n",
        "a vote request disturbs a living leader",
    ),
    Mutant(
        13,
        "raft/core/reconfiguration.py",
        "        send_append_entries(core, peer, heartbeat=True)\n",
        "",
        "who was removed is never told that this is committed",
    ),
    Mutant(
        23,
        "raft/core/replication.py",
        "        if entry.index < log.first_index or log.matches(entry.index, entry.term):\n",
        "        if log.matches(entry.index, entry.term):\n",
        "entries that are compacted away count as missing",
    ),
    Mutant(
        24,
        "raft/core/log.py",
        '            raise IndexError(f"entry {index} is not in the log, '
        '{self.run_firsts[0]} to {self.last_index}")\n',
        "            return 0\n",
        "a compacted term is read as 0",
    ),
    Mutant(
        24,
        "raft/core/log.py",
        "        self.run_firsts, self.run_terms = [index], [term]\n",
        "        self.run_firsts, self.run_terms = [index], [0]\n",
        "the term of a snapshot's last entry is forgotten",
    ),
    Mutant(
        36,
        "raft/core/reconfiguration.py",
        "    if core.commit_index < core.term_first_index:\n",
        "    if False:\n",
        "a change before the term's first commit",
    ),
    Mutant(
        36,
        "raft/core/reconfiguration.py",
        "    if core.configuration_index > core.commit_index or core.departing:\n",
        "    if core.departing:\n",
        "a second change before the first is committed",
    ),
    Mutant(
        36,
        "raft/core/reconfiguration.py",
        "    if len(set(configuration.voters) ^ set(core.configuration.voters)) > 1:\n",
        "    if False:\n",
        "two voters at once",
    ),
    Mutant(
        37,
        "raft/core/state.py",
        "            later = [each for each in self.configurations if each[0] > index]\n",
        "            later = self.configurations\n",
        "an installed snapshot leaves a stale configuration in force",
    ),
    Mutant(
        38,
        "raft/core/state.py",
        "            if entry.index > snapshot_index:\n",
        "            if False:\n",
        "a restart forgets the appended configuration",
    ),
    Mutant(
        39,
        "raft/core/state.py",
        "            self.configurations = [each for each in self.configurations if each[0] < from_index]\n",
        "            pass\n",
        "a truncated configuration stays in force",
    ),
    Mutant(
        39,
        "raft/core/state.py",
        "            self.durable_index, later = index, []\n",
        "            self.durable_index = index\n"
        "            later = [each for each in self.configurations if each[0] > index]\n",
        "a configuration survives the reset of its log",
    ),
    Mutant(
        40,
        "raft/core/state.py",
        "        while len(self.configurations) > 1 and self.configurations[1][0] <= index:\n",
        "        while self.configurations and self.configurations[0][0] <= index and index > 3:\n",
        "the committed configuration is dropped with the prefix of the log",
    ),
    Mutant(
        41,
        "raft/core/state.py",
        "        return self.configurations[-1][1]\n",
        "        return self.configurations[0][1]\n",
        "a configuration is in force only once it is committed, the next one appended all the same",
    ),
    Mutant(
        42,
        "raft/core/election.py",
        "    if not may_campaign(core):\n",
        "    if False:\n",
        "a learner campaigns",
    ),
    Mutant(
        42,
        "raft/core/transfer.py",
        "    if core.node_id not in core.configuration.voters or core.recovering is not None:\n",
        "    if core.recovering is not None:\n",
        "a learner that is told to campaigns",
    ),
    Mutant(
        42,
        "raft/core/membership.py",
        "        return len(set(nodes) & set(self.voters)) >= self.quorum()\n",
        "        return len(set(nodes)) >= self.quorum()\n",
        "the votes of learners count",
    ),
    Mutant(
        43,
        "raft/core/snapshots.py",
        "    if request.last_index <= core.commit_index:\n",
        "    if False:\n",
        "a late snapshot is received again",
    ),
    Mutant(
        43,
        "raft/core/snapshots.py",
        "    if index <= core.commit_index:\n        counts = False\n",
        "    if False:\n        counts = False\n",
        "a late snapshot sets the log back",
    ),
    Mutant(
        0,
        "raft/core/state.py",
        "        if self.log.matches(index, term):\n",
        "        if False:\n",
        "figure 13, step 6: the suffix after a snapshot is thrown away, acknowledged as it was",
    ),
    Mutant(
        0,
        "raft/core/election.py",
        "    for _, configuration in reversed(core.configurations[-2:]):\n",
        "    for _, configuration in reversed(core.configurations[-1:]):\n",
        "who removes itself from two and dies leaves a cluster that never elects (thesis 4.2.2)",
    ),
    Mutant(
        0,
        "raft/core/election.py",
        "        and core.voted_for in (None, sender)\n        and keeps_its_promises(core, request)\n",
        "        and core.voted_for in (None, sender)\n",
        "a server without its disk votes",
    ),
    Mutant(
        0,
        "raft/core/election.py",
        "    return unknown and request.founding and core.node_id in core.configuration.voters\n",
        "    return unknown and core.node_id in core.configuration.voters\n",
        "a server without its disk votes once it has got the beginning of the log again",
    ),
    Mutant(
        0,
        "raft/core/election.py",
        "    return unknown and request.founding and core.node_id in core.configuration.voters\n",
        "    return unknown and request.last_log_index == 0\n",
        "a founding leader that dies before it has recorded anyone leaves a cluster that never elects",
    ),
    Mutant(
        0,
        "raft/core/election.py",
        "    if core.identity in (recorded, request.voter_identity):\n",
        "    if core.identity == recorded:\n",
        "a member that was away since the founding never votes, though its disk is recorded",
    ),
    Mutant(
        0,
        "raft/core/election.py",
        "    return unknown and request.founding and core.node_id in core.configuration.voters\n",
        "    return unknown and request.founding\n",
        "who is to join a cluster helps to found another",
    ),
    Mutant(
        0,
        "raft/core/reconfiguration.py",
        "    if core.identity and (refusal := refuse_disks(core.configuration, configuration)):\n",
        "    if False:\n",
        "a learner becomes a voter whose vote nobody can trust: two such and nobody is elected",
    ),
    Mutant(
        0,
        "raft/core/reconfiguration.py",
        "        and progress.catch_up_began_ms > recent\n",
        "",
        "a learner that is stuck in its round is promoted",
    ),
    Mutant(
        0,
        "raft/core/reconfiguration.py",
        "    if core.node_id in core.configuration.voters:\n        return\n",
        "    return\n",
        "a leader that has removed itself stays in office",
    ),
    Mutant(
        0,
        "raft/core/replication.py",
        "        if heartbeat:\n            _send(core, peer, core.log.first_index - 1, ())\n",
        "",
        "a follower that is sent a snapshot hears nothing of its leader",
    ),
    Mutant(
        0,
        "raft/core/replication.py",
        "    if heartbeat:  # only then: a peer that gets no entries now must not go without word"
        " under steady load\n",
        "    if True:\n",
        "under steady load a follower whose probe was lost never hears of its leader again",
    ),
    Mutant(
        0,
        "raft/core/state.py",
        "            for _, configuration in self.configurations\n"
        "            for peer in configuration.peers(self.node_id)\n",
        "            for peer in self.configuration.peers(self.node_id)\n",
        "a new leader does not tell who leaves",
    ),
)
