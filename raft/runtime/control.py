"""Commands to the leader itself, not to the machine: RAFT TRANSFER, RAFT ADD, RAFT PROMOTE, RAFT REMOVE."""

from __future__ import annotations

from raft.clients.batch import Batch
from raft.core.core import RaftCore
from raft.core.state import Role
from raft.machine.arguments import RefusedError
from raft.replies import OK, Error, Reply
from raft.runtime.load import Load
from raft.runtime.membership import CHANGES, Membership


def is_control(batch: Batch) -> bool:
    """Whether this batch is one command for Control: handlers never mix them with others."""
    return len(batch.operations) == 1 and is_control_command(batch.operations[0][1])


def is_control_command(args: list[bytes]) -> bool:
    """Whether this command is for Control: RAFT TRANSFER, or a change of the members."""
    return len(args) > 1 and args[0].upper() == b"RAFT" and args[1].upper() in (b"TRANSFER", *CHANGES)


def is_transfer(batch: Batch) -> bool:
    """Whether this batch is one RAFT TRANSFER."""
    return is_control(batch) and batch.operations[0][1][1].upper() == b"TRANSFER"


class Control:
    """Owned by the worker. What it takes is answered when its outcome shows."""

    def __init__(self, core: RaftCore, load: Load, membership: Membership) -> None:
        self._core = core
        self._load = load
        self._membership = membership
        self._transfer: Batch | None = None  # waits for the transfer under way

    def take(self, batch: Batch, now: float) -> None:
        """Carry the command out; call while this node leads."""
        args = batch.operations[0][1]
        if args[1].upper() in CHANGES:
            self._membership.take(batch, now)
            return
        try:
            refusal = self._core.transfer(_node_id(args), now)
        except RefusedError as refused:
            self._answer(batch, refused.error)
            return
        if refusal is not None:
            self._answer(batch, Error(f"ERR {refusal}"))
        else:
            self._transfer = batch

    def advance(self, now: float) -> None:
        """Answer a transfer that was given up, go on with changes of the members. Call once a turn."""
        self._membership.advance(now)
        state = self._core.state
        if self._transfer is not None and state.role is Role.LEADER and state.transfer_target is None:
            self._finish(Error("ERR the other node did not take over in time; the leader has not changed"))

    def leadership_lost(self) -> None:
        """The transfer has succeeded (or another election came first, which is as good)."""
        self._finish(OK)
        self._membership.leadership_lost()

    def close(self, error: Error) -> None:
        """The node stops."""
        self._finish(error)
        self._membership.close(error)

    def _finish(self, reply: Reply) -> None:
        batch, self._transfer = self._transfer, None
        if batch is not None:
            self._answer(batch, reply)

    def _answer(self, batch: Batch, reply: Reply) -> None:
        batch.answer(batch.operations[0][0], reply)
        self._load.give_back(1)


def _node_id(args: list[bytes]) -> int | None:
    """RAFT TRANSFER [id]. Raises RefusedError."""
    if len(args) == 2:
        return None
    if len(args) > 3:
        raise RefusedError(Error("ERR wrong number of arguments for 'raft|transfer' command"))
    if not args[2].isdigit() or len(args[2]) > 10:
        raise RefusedError(Error("ERR the node id is not a number"))
    return int(args[2])
