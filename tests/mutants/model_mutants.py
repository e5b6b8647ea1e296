"""Bugs for the exhaustive search (tests/model): each is put back and must be found in the scope beside it.

python -m tests.model.hunt              all of them: the number of states until each is found
"""

from __future__ import annotations

from typing import NamedTuple

from tests.mutants.core_mutants import MUTANTS, Mutant


class Hunt(NamedTuple):
    """Bugs that are one bug together, and the name of the scope (tests/model/scopes.py) in which it shows."""

    scope: str
    mutants: tuple[Mutant, ...]


def _hunt(scope: str, bug: int, file: str, old: str, new: str, why: str) -> Hunt:
    return Hunt(scope, (Mutant(bug, f"raft/core/{file}.py", old, new, why),))


def _known(scope: str, why: str) -> Hunt:
    """One of core_mutants.py."""
    return Hunt(scope, (next(mutant for mutant in MUTANTS if mutant.why == why),))


_SAVE_VOTE = "            core.voted_for = sender\n            core.save_hard_state()\n"

HUNTS = (
    _hunt(
        "elections", 1, "election", _SAVE_VOTE, "            core.voted_for = sender\n", "vote not persisted"
    ),
    _hunt(
        *("elections", 1, "state"),
        "        self.votes = {self.node_id: True}\n        self.save_hard_state()\n",
        "        self.votes = {self.node_id: True}\n",
        "a candidate's term and own vote not persisted",
    ),
    _hunt(
        *("elections", 2, "state"),
        "        if new_term:\n            self.term = term\n",
        "        if was is Role.LEADER or new_term:\n            self.term = term\n",
        "vote forgotten on a step-down within the term",
    ),
    _hunt(
        *("elections", 5, "election"),
        " or (response.vote_granted and response.term != asked_term):",
        ":",
        "votes not bound to their term",
    ),
    _hunt(
        *("elections", 5, "election"),
        "        and core.voted_for in (None, sender)\n",
        "",
        "more than one vote per term",
    ),
    _hunt(
        *("elections", 0, "election"),
        "        and keeps_its_promises(core, request)\n"
        "        and core.log.is_up_to_date(request.last_log_index, request.last_log_term)\n"
        "    )\n    if granted:",
        "        and keeps_its_promises(core, request)\n    )\n    if granted:",
        "votes for candidates whose log is behind",
    ),
    _hunt(
        *("replication", 14, "replication"),
        "    if index > core.commit_index and core.log.term(index) == core.term:\n",
        "    if index > core.commit_index:\n",
        "old-term entries committed by counting",
    ),
    Hunt(
        "replication",
        (
            Mutant(
                16,
                "raft/core/replication.py",
                "    if commit > core.commit_index:\n",
                "    if commit != core.commit_index:\n",
                "commit index regresses",
            ),
            Mutant(
                16,
                "raft/core/state.py",
                '        require(index > self.commit_index, f"commit index {index}',
                '        require(True, f"commit index {index}',
                "and nobody notices",
            ),
        ),
    ),
    _hunt(
        *("conflicts", 17, "replication"),
        "    commit = min(request.leader_commit, last_new)\n",
        "    commit = min(request.leader_commit, log.last_index)\n",
        "commit not capped at the last entry sent",
    ),
    _hunt(
        *("two-nodes", 18, "membership"),
        "        return len(self.voters) // 2 + 1\n",
        "        return (len(self.voters) + 1) // 2\n",
        "even-cluster quorum off by one",
    ),
    _hunt(
        *("crashes", 19, "replication"),
        "        if entry.index < log.first_index or log.matches(entry.index, entry.term):\n",
        "        if entry.index <= core.commit_index:\n",
        "matching entries truncated then rewritten; a crash between loses them",
    ),
    _hunt(
        *("replication", 20, "replication"),
        "    commit = min(request.leader_commit, last_new)\n",
        "    if core.commit_index <= last_new < log.last_index:\n        core.truncate(last_new + 1)\n"
        "    commit = min(request.leader_commit, last_new)\n",
        "reordered AppendEntries erases matched entries",
    ),
    _hunt(
        *("replication", 21, "replication"),
        "    if match_index > progress.match_index:\n",
        "    if match_index != progress.match_index:\n",
        "matchIndex regresses",
    ),
    _hunt(
        *("replication", 26, "replication"),
        "        entries = shared[first] = core.log.entries(first, end, max_bytes)\n",
        "        entries = shared[first] = core.log.entries(first, end, max_bytes)[-1:]\n",
        "non-contiguous entries in one RPC",
    ),
    _hunt(
        *("alone", 29, "replication"),
        "core.durable_index if voter == me else",
        "core.log.last_index if voter == me else",
        "a single node acknowledges before its disk",
    ),
    _hunt(
        *("replication", 0, "replication"),
        "    core.effects.messages.append((sender, response))\n    if core.recovering",
        "    core.effects.early_messages.append((sender, response))\n    if core.recovering",
        "a follower acknowledges before its disk",
    ),
    _hunt(
        *("elections-3", 0, "replication"),
        "    if prev >= core.commit_index and not log.matches(prev, request.prev_log_term):\n",
        "    if prev > log.last_index:\n",
        "log matching check skipped",
    ),
    _hunt(
        *("reads", 30, "reads"),
        "    else:\n        core.reads.append(read)\n",
        "    else:\n        _answer(core, read)\n",
        "deposed leader serves reads",
    ),
    _hunt(
        *("reads", 31, "reads"),
        "core.commit_index, core.round + 1)\n    if",
        "core.commit_index, core.round)\n    if",
        "a read counts answers to an earlier round",
    ),
    _hunt(
        *("reads", 35, "reads"),
        "    if core.commit_index < core.term_first_index:\n",
        "    if False:\n",
        "reads before the term's first commit",
    ),
    _known("members", "a second change before the first is committed"),
    _known("members", "two voters at once"),
    _known("members-4", "a change before the term's first commit"),
)
