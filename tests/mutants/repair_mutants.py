"""The rules of a damaged log's repair, each taken away: raft/core/recovery.py and raft/storage/repair.py.

They are run with the others (tests/mutants/run.py), those of raft/storage over tests/storage.
"""

from __future__ import annotations

from tests.mutants.core_mutants import Mutant

MUTANTS = (
    Mutant(
        0,
        "raft/core/election.py",
        "    It may not while it lacks entries that it had acknowledged (raft/core/recovery.py).\n"
        '    """\n'
        "    if core.recovering is not None:\n",
        '    """\n    if False:\n',
        "a node votes while it lacks what it had acknowledged",
    ),
    Mutant(
        0,
        "raft/core/election.py",
        '    lost what it had acknowledged may not (raft/core/recovery.py)."""\n'
        "    if core.recovering is not None:\n",
        '    """\n    if False:\n',
        "a node campaigns while it lacks what it had acknowledged",
    ),
    Mutant(
        0,
        "raft/core/transfer.py",
        " or core.recovering is not None:\n",
        ":\n",
        "a node that lacks what it had acknowledged campaigns when it is told to",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "    if core.log.term(core.durable_index) > recovering.lost.term:\n",
        "    if core.log.last_term > recovering.lost.term:\n",
        "rule A counts what is not on disk",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "    if core.log.term(core.durable_index) > recovering.lost.term:\n",
        "    if core.term > recovering.lost.term:\n",
        "rule A is content with a later leader, without its entries",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "    if core.log.term(core.durable_index) > recovering.lost.term:\n",
        "    if core.log.term(core.durable_index) >= recovering.lost.term:\n",
        "rule A takes an entry of the term of the loss for one of a later",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "        core.term == recovering.lost.term\n        and recovering.target is not None\n",
        "        recovering.target is not None\n",
        "rule B goes on in a later term, whose leader may have cut the log",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "        and min(agrees, core.durable_index) >= recovering.target\n",
        "        and agrees >= recovering.target\n",
        "rule B counts what is not on disk",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "        and min(agrees, core.durable_index) >= recovering.target\n",
        "",
        "rule B is content to know where the leader's log ends",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "    if recovering is None or response.request_id != recovering.ask_id:\n",
        "    if recovering is None:\n",
        "any answer is taken for the one to this run's question",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "    if response.ok and response.last_index and response.term == recovering.lost.term:\n",
        "    if response.ok and response.term == recovering.lost.term:\n",
        "a leader that knows no such question is thought to have an empty log",
    ),
    Mutant(
        0,
        "raft/core/recovery.py",
        "    if response.ok and response.last_index and response.term == recovering.lost.term:\n",
        "    if response.ok and response.last_index:\n",
        "where another term's leader's log ends is believed",
    ),
    Mutant(
        0,
        "raft/core/reads.py",
        "        end = core.log.last_index\n",
        "        end = core.commit_index\n",
        "the leader tells its commit index: more may have been acknowledged",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "        self._marker.add(LostEntries(lost_from, self._hard_state.term))\n",
        "",
        "the log is cut and nobody knows",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "        if self._hard_state.term < max(newest_term, 1):\n            raise error\n",
        "",
        "a node that has forgotten its vote repairs its log",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "        if not any(voter != self._node_id for voter in configuration.voters):\n",
        "        if False:\n",
        "a single voter gives up what nobody else has",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "        self._check_snapshots(lost_from - 1)\n",
        "",
        "the log that stands in for a damaged snapshot is given up",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "            self._copy(copied, self._aside(number, copied))\n",
        "            pass\n",
        "the damaged file is cut without a copy",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "        if newest and self._marker.value is not None and _are_behind(found[newest], max(names)):\n",
        "        if newest:\n",
        "what an earlier repair has kept is written over",
    ),
    Mutant(
        0,
        "raft/storage/recovery.py",
        "        if self._repair is not None and self._repair.goes_on(fault.bad_index, path):\n",
        "        if False:\n",
        "a repair that was interrupted goes on as if the tail were torn",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "        return self._marker.value.from_index == bad_index or self._is_interrupted(path)\n",
        "        return self._marker.value.from_index == bad_index\n",
        "an interrupted repair of what the marker does not name throws the rest away",
    ),
    Mutant(
        0,
        "raft/storage/repair.py",
        "        if not self._is_interrupted(error.file):\n            self._refuse_too_many(error)\n",
        "        self._refuse_too_many(error)\n",
        "the last repair that is allowed is not gone on with",
    ),
    Mutant(
        0,
        "raft/storage/lost_entries.py",
        "            lost = LostEntries(min(lost.from_index, old.from_index), max(lost.term, old.term))\n",
        "            lost = old\n",
        "a second loss is forgotten over the first",
    ),
)
