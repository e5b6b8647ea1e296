"""Between the core and the streams of snapshots: who is sent one, what becomes of one that has arrived."""

from __future__ import annotations

from collections.abc import Collection

from raft.core.core import RaftCore
from raft.core.effects import Effects
from raft.core.messages import InstallSnapshotResponse
from raft.core.state import Role
from raft.machine.machine import Machine
from raft.runtime.applier import Applier
from raft.runtime.install import SnapshotReceiver, SnapshotSender

_NEVER = float("inf")


class Installs:
    """Owned by the worker."""

    def __init__(
        self,
        core: RaftCore,
        machine: Machine,
        applier: Applier,
        sender: SnapshotSender,
        receiver: SnapshotReceiver,
    ) -> None:
        self._core = core
        self._state = core.state
        self._machine = machine
        self._applier = applier
        self._sender = sender
        self._receiver = receiver

    @property
    def loading(self) -> bool:
        """Whether a received snapshot is being loaded: no moment to fork."""
        return self._receiver.loading

    def on_response(self, peer: int, message: InstallSnapshotResponse, now: float) -> None:
        """A peer says how far it is; the core has seen the message. Raises ProtocolViolation."""
        if self._state.role is Role.LEADER and message.term == self._state.term:
            self._sender.on_response(peer, message, now)

    def carry_out(self, effects: Effects, now: float) -> None:
        """Stream to those who need a snapshot, write down what arrives. Raises StorageError.

        The effects may have been decided earlier in the turn than the loss of leadership: a chunk sent now
        would bear the new term and make its receivers take this node for the leader of it."""
        for peer in effects.snapshots_wanted:
            if self._state.role is Role.LEADER and peer in self._state.progress:
                self._sender.want(peer, self._state.term, now)
        for leader, chunk in effects.snapshot_chunks:
            self._receiver.on_chunk(leader, chunk, now)

    def advance(self, now: float) -> None:
        """Once a turn, before the core's effects are taken. Raises StorageError and what a load may raise."""
        if self._state.role is Role.LEADER:
            for peer in self._sender.progress():
                progress = self._state.progress.get(peer)
                if progress is not None and progress.next_index >= self._state.log.first_index:
                    self._sender.done(peer)  # the log reaches back to what it needs
            self._sender.tick(self._state.term, now)
        if self._receiver.index:
            self._take_installed(now)

    def _take_installed(self, now: float) -> None:
        """Paper figure 13, steps 5 to 8: the snapshot is durable, the core and the machine follow."""
        if self._receiver.index <= self._state.commit_index:
            self._receiver.drop()  # the log was faster
            return
        installed = self._receiver.take_installed()
        if installed is None:
            return
        info = installed.info
        if self._core.snapshot_installed(info.index, info.term, installed.configuration, now):
            self._machine.become(installed.machine)
            self._applier.configuration = info.configuration

    def disconnected(self, peer: int) -> None:
        """The connection to the peer broke."""
        self._sender.disconnected(peer)

    def role_changed(self) -> None:
        """Who leads streams, who follows receives."""
        if self._state.role is Role.LEADER:
            self._receiver.drop()
        else:
            self._sender.stop()

    def members_changed(self, peers: Collection[int]) -> None:
        """Only these get the log."""
        if self._state.role is Role.LEADER:
            self._sender.retain(peers)

    def pinned_index(self) -> int | None:
        """The log behind this entry must stay: it follows a snapshot under way. None: there is none."""
        return self._sender.pinned_index()

    def next_deadline(self) -> float:
        """Monotonic ms of when advance() has something to do; infinity if nothing is under way."""
        return self._sender.next_deadline() if self._state.role is Role.LEADER else _NEVER

    def close(self) -> None:
        """The node stops. Waits for a load under way, a few seconds at most."""
        self._sender.stop()
        self._receiver.close()
