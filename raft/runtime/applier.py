"""Committed entries go to the state machine in order, a bounded piece per turn (paper figure 2, lastApplied).

Bounded, because a restarted node may have a million entries to apply and must still answer heartbeats.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.core.core import RaftCore
from raft.core.entry import EntryKind
from raft.machine.machine import Machine
from raft.runtime.proposals import Proposals

COMMANDS_PER_TURN = 4096
BYTES_PER_COMMAND = 16  # stored entries are counted by their size: about a short command's
BYTES_PER_READ = COMMANDS_PER_TURN * BYTES_PER_COMMAND
LIVE_ENTRIES = 1000  # who is further behind the commit index is catching up

Publish = Callable[[str, str], None]


class Applier:
    """Owned by the worker. publish(channel, payload): events of entries newer than silent_until go there.

    configuration: the applied one, encoded, for the next snapshot: never one that may still be taken back.
    Whoever replaces the machine's state (an installed snapshot) replaces it, too.

    compare(live): called right after each entry that holds ~DIGEST, before the next one is applied. live: the
    entry is newer than silent_until, and this node is not catching up.
    """

    def __init__(
        self,
        core: RaftCore,
        machine: Machine,
        proposals: Proposals,
        publish: Publish,
        silent_until: int,
        configuration: bytes,
        compare: Callable[[bool], None] = lambda _live: None,
    ) -> None:
        self.configuration = configuration
        self._state = core.state
        self._machine = machine
        self._proposals = proposals
        self._publish = publish
        self._silent_until = silent_until
        self._compare = compare

    @property
    def behind(self) -> bool:
        """Whether committed entries wait to be applied."""
        return self._machine.applied_index < self._state.commit_index

    def advance(self) -> None:
        """Apply committed entries, up to the turn's bound."""
        machine, commands = self._machine, 0
        while self.behind and commands < COMMANDS_PER_TURN:
            done = self._proposals.next_if(machine.applied_index + 1)
            if done is not None:
                replies = machine.apply_commands(done.index, self._state.term, done.at_ms, done.commands)
                self._applied()
                self._proposals.answer(done, replies)
                commands += len(replies)
            else:
                commands += self._apply_stored()

    def _apply_stored(self) -> int:
        first, end = self._machine.applied_index + 1, self._state.commit_index + 1
        own = self._proposals.first_index
        if own is not None:
            # Someone may wait for the entries from there on: those are applied one by one, with answers.
            end = min(end, own)
        entries = self._state.log.entries(first, end, BYTES_PER_READ)
        commands = 0
        for entry in entries:
            self._machine.apply(entry, want_replies=False)
            if entry.kind == EntryKind.CONFIGURATION:
                self.configuration = entry.data
            self._applied()
            commands += 1 + len(entry.data) // BYTES_PER_COMMAND
            if commands >= COMMANDS_PER_TURN:
                break
        return commands

    def _applied(self) -> None:
        """An entry is applied, all of it."""
        machine = self._machine
        new = machine.applied_index > self._silent_until
        for channel, payload in machine.take_events():
            if new:
                self._publish(channel, payload)
        if machine.take_digest_due():
            self._compare(new and self._state.commit_index - machine.applied_index <= LIVE_ENTRIES)
