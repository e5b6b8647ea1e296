"""RAFT ADD, RAFT PROMOTE, RAFT REMOVE: the leader changes the members, one change at a time (thesis ch. 4).

The leader also records each member's identity, the random name of its data directory, when it first hears it:
from then on a server that comes under this id with another directory is known to have lost its promises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from raft.clients.batch import Batch
from raft.config import Member
from raft.core.core import RaftCore
from raft.core.membership import Configuration, Server
from raft.core.reconfiguration import caught_up
from raft.core.state import Role
from raft.machine.arguments import RefusedError
from raft.replies import OK, Error, Reply
from raft.runtime.errors import NOT_LEADER, UNKNOWN
from raft.runtime.load import Load

MAX_MEMBERS = 32
MAX_WAITING = 16
CHANGES = (b"ADD", b"PROMOTE", b"REMOVE")


class Membership:
    """Owned by the worker. heard(): the identity that each peer's last handshake told, by id.

    new_cluster_id: what a founding cluster calls itself if this node leads it first.
    """

    def __init__(
        self, core: RaftCore, load: Load, heard: Callable[[], dict[int, str]], new_cluster_id: str
    ) -> None:
        self._core = core
        self._state = core.state
        self._load = load
        self._heard = heard
        self._new_cluster_id = new_cluster_id
        self._wanted: deque[tuple[float, Batch]] = deque()  # when asked (monotonic ms), the command
        self._complete: Configuration | None = None  # this one has all identities
        self._under_way: tuple[int, Batch] | None = None  # the entry's index, and who waits for it

    def take(self, batch: Batch, now: float) -> None:
        """A change is wanted; call while this node leads. It is answered once it is committed."""
        if len(self._wanted) >= MAX_WAITING:
            self._answer(batch, Error("BUSY too many changes of the members are waiting"))
        else:
            self._wanted.append((now, batch))
            self.advance(now)

    def advance(self, now: float) -> None:
        """Go on with what is wanted. Call once a turn; cheap when nothing is."""
        state = self._state
        if state.role is not Role.LEADER:
            return
        if self._under_way is not None and state.commit_index >= self._under_way[0]:
            self._finish(OK)
        under_way = state.configuration_index > state.commit_index or state.departing
        if under_way or state.commit_index < state.term_first_index:
            self._give_up_old(now)
            return
        if self._record_identities(now):
            return
        while self._wanted and self._under_way is None:
            batch = self._wanted.popleft()[1]
            try:
                index = self._begin(batch.operations[0][1], now)
            except RefusedError as refused:
                self._answer(batch, refused.error)
                continue
            if index is None:
                self._answer(batch, OK)  # it is so already
            else:
                self._under_way = (index, batch)

    def leadership_lost(self) -> None:
        """What is in the log may yet be committed by another leader; the rest was not begun."""
        if self._under_way is not None:
            done = self._state.commit_index >= self._under_way[0]  # this leader has removed itself
            self._finish(OK if done else UNKNOWN)
        self.close(NOT_LEADER)

    def close(self, error: Error) -> None:
        """The node stops, or leads no more."""
        if self._under_way is not None:
            self._finish(UNKNOWN)
        while self._wanted:
            self._answer(self._wanted.popleft()[1], error)

    # --- inside ---------------------------------------------------------------------------------------

    def _give_up_old(self, now: float) -> None:
        patience_ms = 2 * self._state.options.election_timeout_max_ms
        while self._wanted and now - self._wanted[0][0] > patience_ms:
            self._answer(self._wanted.popleft()[1], Error("ERR an earlier change is not committed yet"))

    def _record_identities(self, now: float) -> bool:
        configuration = self._state.configuration
        if configuration is self._complete:
            return False
        unknown = [server.id for server in configuration.servers if not server.identity]
        if not unknown and configuration.cluster_id:
            self._complete = configuration
            return False
        heard = {**self._heard(), self._state.node_id: self._state.identity}
        changed = configuration.with_identities(heard, self._new_cluster_id)
        return changed != configuration and isinstance(self._core.change_configuration(changed, now), int)

    def _begin(self, args: list[bytes], now: float) -> int | None:
        """Append the change. None: there is nothing to change. Raises RefusedError."""
        wanted = self._wanted_configuration(args)
        if wanted is None:
            return None
        outcome = self._core.change_configuration(wanted, now)
        if isinstance(outcome, str):
            raise RefusedError(Error(f"ERR {outcome}"))
        return outcome

    def _wanted_configuration(self, args: list[bytes]) -> Configuration | None:
        name = args[1].upper()
        if name == b"ADD":
            return self._added(args)
        if len(args) != 3:
            raise RefusedError(
                Error(f"ERR wrong number of arguments for 'raft|{name.decode().lower()}' command")
            )
        node_id = _number(args[2], "id")
        configuration = self._state.configuration
        if not configuration.has(node_id):
            raise RefusedError(Error(f"ERR node {node_id} is not a member: see RAFT MEMBERS"))
        return self._promoted(node_id) if name == b"PROMOTE" else self._removed(node_id)

    def _added(self, args: list[bytes]) -> Configuration | None:
        configuration = self._state.configuration
        server, promote = _server(args)
        known = configuration.server(server.id)
        if known is not None:
            if msgspec.structs.replace(known, identity="") == server:
                return None
            raise RefusedError(Error(f"ERR node {server.id} is a member already, at {_address(known)}"))
        for other in configuration.servers:
            if _address(other) == _address(server):
                raise RefusedError(Error(f"ERR {_address(other)} is the address of node {other.id}"))
        if len(configuration.servers) >= MAX_MEMBERS:
            raise RefusedError(Error(f"ERR a cluster has at most {MAX_MEMBERS} members"))
        return configuration.with_learner(server, promote=promote)

    def _promoted(self, node_id: int) -> Configuration | None:
        configuration = self._state.configuration
        if node_id in configuration.voters:
            return None
        if not configuration.identity_of(node_id) or not caught_up(self._core.state, node_id):
            progress = self._state.progress[node_id]
            behind = self._state.log.last_index - progress.match_index
            raise RefusedError(
                Error(f"ERR node {node_id} has not caught up: it lacks {behind} entries. Try again later")
            )
        return configuration.with_voter(node_id)

    def _removed(self, node_id: int) -> Configuration:
        """Refused where it would leave no quorum of voters that answer: nobody could undo that."""
        changed = self._state.configuration.without(node_id)
        if not changed.voters:
            raise RefusedError(Error("ERR the last voter cannot be removed"))
        if node_id in self._state.configuration.voters:
            recent = self._state.now - self._state.options.election_timeout_max_ms
            silent = [
                voter
                for voter in changed.voters
                if voter != self._state.node_id and self._state.progress[voter].last_contact_ms < recent
            ]
            if not changed.has_quorum(voter for voter in changed.voters if voter not in silent):
                who = ", ".join(map(str, silent))
                raise RefusedError(
                    Error(f"ERR without node {node_id} there would be no quorum: node {who} does not answer")
                )
        return changed

    def _finish(self, reply: Reply) -> None:
        if self._under_way is not None:
            batch = self._under_way[1]
            self._under_way = None
            self._answer(batch, reply)

    def _answer(self, batch: Batch, reply: Reply) -> None:
        batch.answer(batch.operations[0][0], reply)
        self._load.give_back(1)


def _address(server: Server) -> str:
    return f"{server.host}:{server.raft_port}"


def _number(word: bytes, what: str) -> int:
    if not word.isdigit() or len(word) > 10:
        raise RefusedError(Error(f"ERR {what} is not a number"))
    return int(word)


def _server(args: list[bytes]) -> tuple[Server, bool]:
    """RAFT ADD id host raft_port client_port http_port [AUTO]. Raises RefusedError."""
    promote = len(args) == 8 and args[7].upper() == b"AUTO"
    if len(args) != 7 and not promote:
        raise RefusedError(Error("ERR RAFT ADD id host raft_port client_port http_port [AUTO]"))
    numbers = {
        name: _number(word, name)
        for name, word in zip(
            ("id", "raft_port", "client_port", "http_port"), (args[2], *args[4:7]), strict=True
        )
    }
    try:
        member = msgspec.convert({**numbers, "host": args[3].decode("utf-8", "replace")}, Member)
    except msgspec.ValidationError as error:
        raise RefusedError(Error(f"ERR {error}")) from error
    server = Server(member.id, member.host, member.raft_port, member.client_port, member.http_port)
    return server, promote
