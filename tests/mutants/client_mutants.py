"""Bugs of reads, sessions, forwarding and the ledger, put back: the simulation must turn red.

The form is that of tests/mutants/core_mutants.py. 33 (a wall-clock lease) cannot be put back by a patch: the
core is given the monotonic clock alone, and the wall clock's only way into a node is the stamp of an entry.
"""

from __future__ import annotations

from tests.mutants.core_mutants import Mutant

MUTANTS = (
    Mutant(
        30,
        "raft/core/reads.py",
        "        core.reads.append(read)\n",
        "        _answer(core, read)\n",
        "a deposed leader serves reads",
    ),
    Mutant(
        31,
        "raft/core/reads.py",
        "PendingRead(origin, request_id, core.commit_index, core.round + 1)",
        "PendingRead(origin, request_id, core.commit_index, core.round)",
        "a round that was sent before the read confirms it",
    ),
    Mutant(
        32,
        "raft/core/transfer.py",
        '        core.transfer_sent = core.lease_void = True\n        core.lease_from_ms = float("-inf")\n',
        "        core.transfer_sent = True\n",
        "the lease survives a transfer of leadership",
    ),
    Mutant(
        32,
        "raft/runtime/reads.py",
        "            if self._void:\n",
        "            if False:\n",
        "what the lease had confirmed before a transfer is served after it",
    ),
    Mutant(
        34,
        "raft/core/reads.py",
        "core.options.lease_reads and core.now < lease_until_ms(core):",
        "core.options.lease_reads and core.now < lease_until_ms(core) + core.options.heartbeat_interval_ms:",
        "the lease is looked at when a timer fires, not when a read comes",
    ),
    Mutant(
        34,
        "raft/runtime/reads.py",
        "        if self._lease_ended is not None and self._lease_ended():\n",
        "        if False:\n",
        "the lease is not looked at again after the read",
    ),
    Mutant(
        34,
        "raft/runtime/reads.py",
        "        confirmed = [waiting for _, waiting in self._confirmed]\n        self._confirmed.clear()\n",
        "        confirmed: list[Waiting] = []\n",
        "a read that a lease confirmed is served after the leadership",
    ),
    Mutant(
        35,
        "raft/core/reads.py",
        "    if core.commit_index < core.term_first_index:\n        core.early_reads.append(read)\n    elif ",
        "    if ",
        "reads before the term's first commit",
    ),
    Mutant(
        52,
        "raft/machine/snapshot.py",
        "    remaining = iter(machine.sessions.export())\n",
        "    remaining = iter(())\n",
        "a session is forgotten by a snapshot",
    ),
    Mutant(
        52,
        "raft/machine/sessions.py",
        "        kept = session.answers.get(number)\n",
        "        kept = None\n",
        "a retry is carried out again",
    ),
    Mutant(
        53,
        "raft/runtime/lanes.py",
        "        request_id = next(self._ids)\n        message = Forward",
        "        request_id = next(self._ids)\n        lane.number += 1\n        message = Forward",
        "a forwarded command is proposed again under another number",
    ),
    Mutant(
        53,
        "raft/runtime/lanes.py",
        '        if error.startswith("INDETERMINATE"):\n            return\n',
        "",
        "a copy whose fate is unknown counts as refused",
    ),
    Mutant(
        0,
        "raft/runtime/desk.py",
        "        self.proposals.fail_all(UNKNOWN, NOT_LEADER)\n        self.control",
        "        self.proposals.fail_all(NOT_LEADER, NOT_LEADER)\n        self.control",
        "what is in the log is answered with 'not executed'",
    ),
    Mutant(
        0,
        "raft/machine/machine.py",
        "        self.kv.advance(at_ms, index)\n",
        '        self.kv.advance(__import__("time").time_ns() // 1_000_000, index)\n',
        "a machine reads the local clock",
    ),
    Mutant(
        0,
        "ledger/turns.py",
        "    state.intervals.open = None\n",
        "",
        "an interval is closed twice",
    ),
    Mutant(
        0,
        "ledger/turns.py",
        "    unanswered = EXCUSED if excused or context.term != interval.term else MISSED\n",
        "    unanswered = MISSED\n",
        "a penalty for an excused miss",
    ),
    Mutant(
        0,
        "ledger/turns.py",
        "            interval.turns[follower_id] = data\n",
        "",
        "a report is acknowledged and forgotten",
    ),
    Mutant(
        0,
        "ledger/rewards.py",
        "    if first is not None:\n",
        "    if False:\n",
        "a claim is paid twice",
    ),
    Mutant(
        0,
        "ledger/snapshot.py",
        "        open=intervals.open,\n",
        "        open=None,\n",
        "a snapshot forgets the open interval",
    ),
)
