"""RaftNode: one super node, its threads and its sockets.

Who runs, and who owns what (rule 3: one owner per piece of state):

    thread            body                   owns
    raft-worker       raft_node_worker       core, log, hard state, machine, peer sockets, batches
    election          watch_elections        nothing: sleeps until the published deadline, then start_election
                                             (and the desk, once the worker hangs in a call to its disk)
    heartbeat         beat                   nothing: posts send_heartbeat at each interval while leading
    ping              ping_nodes             nothing: asks the worker to ping, suspects a silent leader
    client-accept,    ClientServer           the listening socket; clients' sockets and parsers
    client-N
    raft-accept,      PeerNetwork            handshakes; a socket goes to the worker once it is proved
    raft-dial-N
    projector         Projector.run          the MongoDB client
    http              HttpServer             the HTTP port's sockets; answers from the published status
    segment preparer  LogStore               the next, not yet used log file

Threads hand over immutable values: batches (submit), posted events (post), a NodeStatus (status) and
projection batches (Feed). Nothing but the worker changes term, vote, role, log or machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable

from raft.clients.batch import Batch
from raft.config import Member, Settings, load_settings
from raft.core.entry import Entry
from raft.core.invariants import ProtocolViolation
from raft.core.messages import AppendEntries, RequestVote
from raft.core.state import Role
from raft.runtime.assembly import Parts, open_parts
from raft.runtime.clock import Clock, SystemClock
from raft.runtime.disk_watch import DiskWatch, HungDiskError, limit_ms
from raft.runtime.status_board import StatusBoard
from raft.status import NodeStatus
from raft.storage.watched_disk import WatchedDisk
from raft.transport.node_messages import Ping

log = logging.getLogger(__name__)

_NEVER = float("inf")
JOIN_S = 5.0
CLIENTS_S = 2.0  # how long a stopping node goes on answering what it has taken
HURRY_S = 0.2  # the same when its disk hangs


class RaftNode:
    """One node. Construct, start(), wait(), stop(); the other methods say which thread may call them.

    node_id: who of cluster.nodes this is. settings: default config.yaml in the working directory. clock and
    rng: for tests. start() opens files and sockets, nothing before it does.
    """

    def __init__(
        self,
        node_id: int,
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings if settings is not None else load_settings("config.yaml")
        self.member: Member = self.settings.member(node_id)
        self.node_id = node_id
        self.exit_code = 0
        self.run_id = os.urandom(20).hex()
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random(hashlib.sha256(os.urandom(32) + b"%d" % node_id).digest())
        self._done = threading.Event()
        self._stopping = threading.Event()
        self._fatal_lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._parts: Parts | None = None
        self._election_moved = threading.Event()
        self._election_deadline_ms = self._heartbeat_due_ms = self._election_wakes_ms = _NEVER
        self._worker_ident: int | None = None
        self._board: StatusBoard | None = None
        self._last_vote_request: RequestVote | None = None
        self._disk = WatchedDisk()
        self._abandoned = False  # the disk hangs: nothing may wait for it

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open storage and sockets and start the threads. Raises StorageError, IdentityError, OSError (a port
        is taken). Call once, from any thread."""
        settings = self.settings
        parts = self._parts = open_parts(
            self, settings, self.node_id, self.run_id, self._clock, self._rng, self._disk
        )
        self._core, self._worker, self._network = parts.core, parts.worker, parts.network
        self._server, self._pings, self._board = parts.server, parts.pings, parts.board
        try:
            self.publish_status()
            self._network.start()
            self._server.start()
            parts.web.start()
        except BaseException:
            self._parts = None  # closed here: nothing is left to stop
            parts.close()
            raise
        log.info(
            "node %d of %r is up: clients on %s:%d, peers on port %d, HTTP on port %d, term %d, "
            "log up to %d, data in %s",
            self.node_id,
            settings.cluster.name,
            self.member.host,
            self.member.client_port,
            self.member.raft_port,
            self.member.http_port,
            self._core.state.term,
            self._core.state.log.last_index,
            settings.storage.node_dir(self.node_id),
        )
        self._run("raft-worker", lambda: raft_node_worker(self))
        self._run("election", self.watch_elections)
        self._run("heartbeat", self.beat)
        self._run("ping", self.ping_nodes)
        parts.projector.start()

    def stop(self) -> None:
        """Hand leadership over, stop everything, wait for it. Idempotent; any thread but the node's own."""
        if self._parts is not None and self.exit_code == 0:
            self._hand_over()
        self._stopping.set()
        self._election_moved.set()
        parts, self._parts = self._parts, None
        if parts is not None and self._abandoned:
            parts.abandon(HURRY_S)
        elif parts is not None:
            # Clients first, while the worker can still answer what they have sent.
            parts.server.stop(CLIENTS_S if self.exit_code == 0 else 0.5)
            parts.worker.stop()
            for thread in self._threads:
                thread.join(JOIN_S)
                if thread.is_alive():
                    log.error("thread %s has not ended within %.0f s", thread.name, JOIN_S)
            parts.close()
        self._done.set()

    def _hand_over(self) -> None:
        """Clients need not wait for an election when a leader is stopped on purpose (thesis 3.10)."""
        if not self.is_raft_leader(self.node_id) or not self._peers():
            return
        self._worker.post(self._transfer)
        deadline = time.monotonic() + self.settings.raft.election_timeout_ms[1] / 1000
        while self.is_raft_leader(self.node_id) and time.monotonic() < deadline:
            if self._stopping.wait(0.005):
                return

    def _transfer(self, now: float) -> None:
        refusal = self._core.transfer(None, now)
        if refusal is not None:
            log.warning("leadership is not handed over: %s", refusal)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the node has stopped or met a fatal fault; False if timeout seconds passed first."""
        return self._done.wait(timeout)

    def on_fatal(self, thread: str, error: BaseException) -> None:
        """A thread met a fault it must not outlive (rule 5): the node ends with exit code 1. Any thread."""
        with self._fatal_lock:
            if self._stopping.is_set():
                return
            self.exit_code = 1
            self._stopping.set()
        log.critical("fatal in thread %s, stopping: %s", thread, error, exc_info=error)
        self._election_moved.set()
        self._done.set()

    def _run(self, name: str, body: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001 - whatever it is, it ends the node, loudly
                self.on_fatal(name, error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # --- the threads' bodies --------------------------------------------------------------------------

    def watch_elections(self) -> None:
        """Election thread: sleeps until the published deadline has really passed, then start_election(); and
        watches over the disk (raft/runtime/disk_watch.py)."""
        longest_ms = self.settings.raft.election_timeout_ms[1]
        watch = DiskWatch(self._disk.calls, self._worker.disk_wait, limit_ms(longest_ms))
        while not self._stopping.is_set():
            now = self._clock.monotonic_ms()
            self._election_wakes_ms = (
                now + watch.interval_ms
            )  # before the deadline is read: a nearer one wakes
            remaining_ms = self._election_deadline_ms - now
            if remaining_ms <= 0:
                self.start_election()
                remaining_ms = float(self.settings.raft.heartbeat_interval_ms)  # the worker sets a new one
            self._election_moved.wait(min(remaining_ms, watch.interval_ms) / 1000)
            self._election_moved.clear()
            hangs = watch.look(self._clock.monotonic_ms())
            if hangs is not None:
                self._abandon(hangs)

    def _abandon(self, hangs: str) -> None:
        """The disk hangs, and so does the worker, perhaps for ever: end without it. Always raises."""
        self._abandoned = True
        if self._worker.disk_wait.take():
            self._worker.answer_all()
        raise HungDiskError(hangs)

    def beat(self) -> None:
        """Heartbeat thread: has the worker send heartbeats when they are due while this node leads."""
        interval_ms = float(self.settings.raft.heartbeat_interval_ms)
        while not self._stopping.is_set():
            remaining_ms = self._heartbeat_due_ms - self._clock.monotonic_ms()
            if remaining_ms <= 0:
                self.send_heartbeat()
                remaining_ms = interval_ms / 4  # until then the worker has sent them and set a new time
            self._stopping.wait(min(max(remaining_ms, 1.0), interval_ms) / 1000)

    def ping_nodes(self) -> None:
        """Ping thread: asks every other member for an answer at each interval. A leader that stops answering
        is suspected, which brings the election forward through PreVote: a wrong suspicion disturbs nobody."""
        while not self._stopping.wait(self.settings.raft.ping_interval_ms / 1000):
            for member in self._peers():
                if self.is_raft_leader(member) and self._pings.silent(member):
                    self._worker.post(lambda now, peer=member: self._core.suspect(peer, now))  # type: ignore[misc]
                self.send_ping_request(member)

    def handle_client(self, client_socket: socket.socket, addr: tuple[str, int]) -> None:
        """Serve a connected client: a handler thread takes the socket over, for as long as it lives. Any
        thread; returns at once (one thread serves many sockets)."""
        self._server.serve(client_socket, addr)

    # --- events for the owner (any thread) ------------------------------------------------------------

    def start_election(self) -> None:
        """The election timeout may have passed: the core looks at its own deadline and asks for pre-votes
        (paper 5.2, thesis 9.6)."""
        self._worker.post(self._core.tick)

    def send_heartbeat(self) -> None:
        """Heartbeats are due: the core sends AppendEntries to every peer (paper 5.2)."""
        self._worker.post(self._core.tick)

    def send_ping_request(self, raft_member: int) -> None:
        """Ping a member over the peer connection; its worker answers, so an answer means that it works."""
        self._worker.post(lambda _now: self._send_ping(raft_member))

    def handle_append_entries(
        self,
        leader_id: int,
        entries: tuple[Entry, ...],
        leader_commit: int,
        *,
        term: int,
        prev_log_index: int,
        prev_log_term: int,
        round: int = 0,
        message: AppendEntries | None = None,
    ) -> None:
        """AppendEntries RPC, receiver (paper figure 2). The answer goes to leader_id over the network.
        message: these same words, as they came from there."""
        request = message or AppendEntries(
            term, leader_id, prev_log_index, prev_log_term, entries, leader_commit, round
        )
        self._on_owner(lambda now: self._core.receive(leader_id, request, now))

    def handle_request_vote(
        self,
        term: int,
        candidate_id: int,
        *,
        last_log_index: int,
        last_log_term: int,
        pre_vote: bool = False,
        transfer: bool = False,
        voter_identity: str = "",
        founding: bool = False,
    ) -> None:
        """RequestVote RPC, receiver (paper figure 2). The answer goes to candidate_id over the network."""
        request = RequestVote(
            *(term, candidate_id, last_log_index, last_log_term),
            *(pre_vote, transfer, voter_identity, founding),
        )
        self._on_owner(lambda now: self._core.receive(candidate_id, request, now))

    def submit(self, batch: Batch) -> bool:
        """Take a client's batch. False: too many requests are pending, answer BUSY."""
        return self._worker.desk.submit(batch)

    def _on_owner(self, event: Callable[[float], None]) -> None:
        if threading.get_ident() == self._worker_ident:
            event(self._worker.now)
            return

        def guarded(now: float) -> None:
            try:
                event(now)
            except ProtocolViolation as violation:
                log.error("dropped a request that no correct node sends: %s", violation)

        self._worker.post(guarded)

    # --- reactions to the core's decisions (worker only) ----------------------------------------------

    def become_leader(self) -> None:
        """This node leads: its ~TERM is proposed, everyone is told, and the members' pings begin anew."""
        state = self._core.state
        self.publish("cluster", f"leader {self.node_id} term {state.term}")
        self.ping_all()
        self.publish_status()

    def reset_election(self) -> None:
        """The campaign or the leadership is over, or another leader was found."""
        state = self._core.state
        self._last_vote_request = None
        if state.leader_id is not None:
            self._pings.forgive(state.leader_id)
            self.publish("cluster", f"leader {state.leader_id} term {state.term}")
        self.publish_status()

    def reset_election_timeout(self) -> None:
        """Publish the core's deadlines to the election thread, woken only if it would sleep too long, and to
        the heartbeat thread."""
        state = self._core.state
        if state.role is Role.LEADER:
            self._election_deadline_ms, self._heartbeat_due_ms = _NEVER, state.heartbeat_due_ms
            return
        self._heartbeat_due_ms = _NEVER
        # Each message of the leader sets a new time, often an earlier one: to wake the thread whenever it is
        # took a follower 5 % of its time. First the deadline, then the look: see watch_elections.
        self._election_deadline_ms = deadline = state.election_deadline_ms
        if deadline < self._election_wakes_ms and not self._election_moved.is_set():
            self._election_moved.set()

    def send_request_vote_request(self, raft_member: int, request: RequestVote | None = None) -> None:
        """Ask a member for its vote or pre-vote. request: the core's; None: the campaign's last one again."""
        request = request or self._last_vote_request
        if request is not None:
            self._last_vote_request = request
            self._network.queue(raft_member, request)

    def handle_append_entries_message(self, sender: int, request: AppendEntries) -> None:
        """From the network, as it is: not built again. The connection proves who sent it: leader_id must say
        the same."""
        if request.leader_id != sender:
            raise ProtocolViolation(f"AppendEntries in the name of {request.leader_id}")
        self.handle_append_entries(
            sender, request.entries, request.leader_commit, term=request.term, round=request.round,
            prev_log_index=request.prev_log_index, prev_log_term=request.prev_log_term, message=request,
        )  # fmt: skip

    def handle_request_vote_message(self, sender: int, request: RequestVote) -> None:
        """From the network. The connection proves who sent it: candidate_id must say the same."""
        if request.candidate_id != sender:
            raise ProtocolViolation(f"RequestVote in the name of {request.candidate_id}")
        self.handle_request_vote(
            request.term, request.candidate_id, last_log_index=request.last_log_index,
            last_log_term=request.last_log_term, pre_vote=request.pre_vote, transfer=request.transfer,
            voter_identity=request.voter_identity, founding=request.founding,
        )  # fmt: skip

    def _send_ping(self, peer: int) -> None:
        self._network.queue(peer, Ping(self._pings.sent(peer, self._worker.now), int(self._worker.now)))

    def ping_all(self) -> None:
        """Ping every peer now. Worker only."""
        for peer in self._peers():
            self._send_ping(peer)

    def lease_ended(self) -> bool:
        """With lease reads: whether a read that this leader has just made may be stale. Worker only."""
        return self._core.lease_ended(self._clock.monotonic_ms())

    def publish(self, channel: str, payload: str) -> None:
        """Tell this node's subscribers. Any thread."""
        self._server.publish(channel, payload)

    # --- the published snapshot (any thread reads it) -------------------------------------------------

    def status(self) -> NodeStatus:
        """This node as its worker last saw it."""
        assert self._board is not None and self._board.current is not None, "start() publishes the first"
        return self._board.current

    def has_responded(self, raft_member: int) -> bool:
        """Whether the member answered one of the latest pings."""
        return raft_member == self.node_id or self._pings.responded(raft_member)

    def is_raft_leader(self, raft_member: int) -> bool:
        """Whether this node takes that member for the leader."""
        status = self._board.current if self._board is not None else None
        return status is not None and status.leader_id == raft_member

    def _peers(self) -> tuple[int, ...]:
        """The other members as last published."""
        status = self.status()
        return tuple(n for n in (*status.voters, *status.learners) if n != self.node_id)

    def publish_status(self) -> float:
        """Replace the snapshot if anything in it changed; see StatusBoard.publish. Worker only, once start()
        has returned."""
        assert self._board is not None, "start() makes it"
        return self._board.publish(self._worker.now)


def raft_node_worker(raft_node: RaftNode) -> None:
    """The raft worker thread's body: owns consensus, log, machine and peer sockets until the node stops."""
    raft_node._worker_ident = threading.get_ident()
    raft_node._worker.run()
