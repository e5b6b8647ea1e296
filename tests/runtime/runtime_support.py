"""A node's worker on a bench: real core, machine and parts; disk, network and clock are the test's.

Nothing happens by itself and nothing sleeps: the test moves `clock`, hands in messages and calls turn().
Node 1 is the one under test; 2 and 3 are played by the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ledger.ledger import Policy
from raft.clients.batch import Batch
from raft.config import Member
from raft.core.core import RaftCore
from raft.core.effects import HardState
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, encode_configuration
from raft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    RequestVote,
    RequestVoteResponse,
)
from raft.core.state import CoreOptions, Role
from raft.machine.batch import decode_batch, decode_commands
from raft.machine.machine import Machine
from raft.replies import Error, Reply
from raft.runtime.agreement import Agreement
from raft.runtime.applier import Applier
from raft.runtime.desk import Desk
from raft.runtime.feed import Feed
from raft.runtime.install import SnapshotReceiver, SnapshotSender
from raft.runtime.installs import Installs
from raft.runtime.pings import PingBoard
from raft.runtime.restore import restore
from raft.runtime.snapshots import Fork, Snapshots
from raft.runtime.snapshotting import take_snapshot
from raft.runtime.turns import Turns
from raft.runtime.worker import Worker
from raft.storage.node_storage import NodeStorage
from raft.transport.codec import MessageCodec
from raft.transport.handshake import PeerAddress
from raft.transport.node_messages import Forward, PeerMessage, Ping, Pong

Kind = TypeVar("Kind")
TIMEOUT_MIN, TIMEOUT_MAX, HEARTBEAT = 300.0, 600.0, 60.0
START_WALL_MS = 1_700_000_000_000
INTERVAL_MS = 2000


class FakeClock:
    """Both clocks, moved by the test. wall_offset_ms: how far the wall clock is off."""

    def __init__(self) -> None:
        self.now = 10_000.0
        self.wall_offset_ms = 0

    def monotonic_ms(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return START_WALL_MS + int(self.now) + self.wall_offset_ms


class MemoryLog:
    """A log on no disk, as LogStore shows itself to the worker. `events` gets a line per operation."""

    def __init__(self, events: list[str], entries: list[Entry] | None = None) -> None:
        self.stored = list(entries or [])
        self.events = events
        self.on_append: Callable[[], None] = lambda: None  # may raise, as a disk does
        self.on_sync: Callable[[], None] = lambda: None
        self.check_alive: Callable[[], None] = lambda: None

    first_index = 1

    @property
    def last_index(self) -> int:
        return len(self.stored)

    def term(self, index: int) -> int:
        if not 0 <= index <= len(self.stored):
            raise IndexError(index)
        return self.stored[index - 1].term if index else 0

    def entries(self, lo: int, hi: int, max_bytes: int) -> tuple[Entry, ...]:
        chosen: list[Entry] = []
        size = 0
        for entry in self.stored[lo - 1 : hi - 1]:
            size += len(entry.data)
            if chosen and size > max_bytes:
                break
            chosen.append(entry)
        return tuple(chosen)

    def append(self, entries: list[Entry]) -> None:
        self.on_append()
        assert entries[0].index == self.last_index + 1
        self.stored.extend(entries)
        self.events.append(f"append {entries[0].index}-{entries[-1].index}")

    def truncate_suffix(self, from_index: int) -> None:
        del self.stored[from_index - 1 :]
        self.events.append(f"truncate {from_index}")

    def sync(self) -> None:
        self.on_sync()
        self.events.append("sync")


class NoSnapshots:
    """A snapshot store that has none."""

    cluster = "bench"

    def latest(self) -> None:
        return None


class MemoryStorage:
    """NodeStorage without a directory."""

    def __init__(self, events: list[str], entries: list[Entry], hard_state: HardState) -> None:
        self.log = MemoryLog(events, entries)
        self.snapshots = NoSnapshots()
        self.hard_state = hard_state
        self.events = events

    def save_hard_state(self, state: HardState) -> None:
        self.hard_state = state
        self.events.append(f"hard state {state.term} {state.voted_for}")


class FakeNetwork:
    """What PeerNetwork shows to the worker. Frames are really encoded, for their cap is part of the test."""

    def __init__(self, events: list[str]) -> None:
        self.sent: list[tuple[int, PeerMessage]] = []
        self.away: set[int] = set()  # peers there is no connection to
        self.disconnects: list[int] = []
        self.refused: list[int] = []
        self.wakes = 0
        self.cluster_heard = False
        self.members: dict[int, PeerAddress] = {}
        self.cluster_id = ""
        self.events = events
        self._codec = MessageCodec()

    def set_members(self, members: dict[int, PeerAddress], cluster_id: str) -> None:
        self.members, self.cluster_id = members, cluster_id

    def queue(self, peer: int, message: PeerMessage) -> bool:
        if peer in self.away:
            return False
        self._codec.encode(message)
        self.sent.append((peer, message))
        self.events.append(f"{type(message).__name__} to {peer}")
        return True

    def flush(self) -> None:
        pass

    def follow(self, leader_id: int | None, *, open_to_strangers: bool) -> None:
        self.leader_id, self.open_to_strangers = leader_id, open_to_strangers

    def wake(self) -> None:
        self.wakes += 1

    def take_disconnects(self) -> list[int]:
        taken, self.disconnects = self.disconnects, []
        return taken

    def take_refused(self) -> list[int]:
        taken, self.refused = self.refused, []
        return taken

    def take(self, kind: type[Kind], peer: int | None = None) -> list[Kind]:
        """Remove and return the messages of a kind (to a peer) that were sent so far."""
        found = [(to, m) for to, m in self.sent if isinstance(m, kind) and peer in (None, to)]
        self.sent = [each for each in self.sent if each not in found]
        return [m for _, m in found]


class Waiter:
    """A client: sends batches and keeps the answers."""

    def __init__(self, batch_of: Callable[[Callable[[list[bytes]], None]], Batch]) -> None:
        self.answers: list[bytes] | None = None
        self.times = 0
        self.batch = batch_of(self._done)

    def _done(self, answers: list[bytes]) -> None:
        self.answers = list(answers)
        self.times += 1

    @property
    def answer(self) -> bytes | None:
        """The only answer of a batch of one command, None while it is awaited."""
        if self.answers is None:
            return None
        (only,) = self.answers
        return only


WRITES = {b"RAFT", b"ONCE", b"SET", b"DEL", b"INCR", b"APPEND", b"FLUSHALL", b"FOLLOWER"}


class Bench:
    """Node 1 of `voters` nodes with everything its worker owns. It is also the worker's Hooks."""

    def __init__(
        self,
        *,
        voters: int = 3,
        lease_reads: bool = False,
        max_pending: int = 1000,
        log: list[Entry] | None = None,
        term: int = 0,
        heartbeat_ms: float = HEARTBEAT,
        directory: Path | None = None,
        every_entries: int = 10**9,
        fork: Fork = take_snapshot,
        digest_interval_s: float = 0,
        backups: Any = None,
    ) -> None:
        """directory: a real data directory, with its log, term and snapshots, instead of none."""
        self.clock = FakeClock()
        self.events: list[str] = []
        self.published: list[tuple[str, str]] = []
        self.storage: Any = MemoryStorage(self.events, log or [], HardState(term))
        ids = tuple(range(1, voters + 1))
        self.machine, configuration, snapshot_index = Machine("bench"), Configuration(ids), 0
        if directory is not None:
            self.storage = NodeStorage.open(directory, "bench", 1, segment_bytes=4096, prepare_ahead=False)
            self.machine, configuration, snapshot_index = restore(self.storage, "bench", configuration)
        self.network = FakeNetwork(self.events)
        options = CoreOptions(TIMEOUT_MIN, TIMEOUT_MAX, heartbeat_ms, lease_reads=lease_reads)
        self.core = RaftCore(
            1,
            configuration,
            self.storage.log,
            hard_state=self.storage.hard_state,
            options=options,
            rng=random.Random(1),
            now=self.clock.now,
            snapshot_index=snapshot_index,
        )
        self.desk = Desk(
            self.core,
            self.machine,
            snapshots=backups or self.storage.snapshots,
            send=self.network.queue,
            wake=self.network.wake,
            max_pending=max_pending,
            first_request_id=1000,
            origin="1.bench",
            lease_ended=self.lease_ended if lease_reads else None,
        )
        self.pings = PingBoard()
        self.feed = Feed(self.network.wake)
        self.policy = Policy(
            interval_ms=INTERVAL_MS, reward=10, penalty=5, ban_threshold=10, ban_cooldown_s=600, max_spam=10,
            follower_version="1.0", followers_per_interval=0,
        )  # fmt: skip
        members = tuple(Member(i, "127.0.0.1", 7100 + i, 7200 + i, 7300 + i) for i in ids)
        silent_until = self.storage.log.last_index
        self.agreement = Agreement(self.core, self.machine, self.network.queue, interval_s=digest_interval_s)
        self.applier = Applier(
            self.core,
            self.machine,
            self.desk.proposals,
            lambda *news: self.published.append(news),
            silent_until,
            encode_configuration(configuration),
            self.agreement.applied,
        )
        store: Any = self.storage.snapshots
        self.installs = Installs(
            self.core,
            self.machine,
            self.applier,
            SnapshotSender(store, 1, self.network.queue),
            SnapshotReceiver(store, "bench", self.network.queue, self.network.wake),
        )
        self.snapshots = Snapshots(
            self.machine,
            self.storage.snapshots,
            self.storage.log,
            self.desk.load,
            configuration=lambda: self.applier.configuration,
            every_entries=every_entries,
            pinned=self.installs.pinned_index,
            fork=fork,
        )
        turns = Turns(
            self.core,
            self.machine,
            self.desk.proposals,
            self.pings,
            self.policy,
            lambda: members,
            self.ping_all,
        )
        network: Any = self.network
        self.worker = Worker(
            self, self.core, self.storage, network, self.machine, self.desk, self.applier, turns, self.feed,
            self.snapshots, self.pings, self.clock, self.agreement, self.installs,
        )  # fmt: skip
        self.waiters: list[Waiter] = []

    # --- Hooks: what RaftNode does --------------------------------------------------------------------

    def become_leader(self) -> None:
        self.events.append(f"become leader {self.state.term}")
        self.ping_all()

    def reset_election(self) -> None:
        self.events.append("reset election")

    def reset_election_timeout(self) -> None:
        pass

    def send_request_vote_request(self, raft_member: int, request: RequestVote) -> None:
        self.network.queue(raft_member, request)

    def handle_append_entries_message(self, sender: int, request: AppendEntries) -> None:
        self.core.receive(sender, request, self.worker.now)

    def handle_request_vote_message(self, sender: int, request: RequestVote) -> None:
        self.core.receive(sender, request, self.worker.now)

    def publish_status(self) -> float:
        return float("inf")

    def ping_all(self) -> None:
        for peer in self.state.configuration.peers(1):
            self.network.queue(peer, Ping(self.pings.sent(peer, self.worker.now), 0))

    def lease_ended(self) -> bool:
        return self.core.lease_ended(self.clock.now)

    # --- what a test does -----------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        return self.core.state

    @property
    def at_ms(self) -> int:
        return self.clock.wall_ms()

    def turn(self, *received: tuple[int, PeerMessage], after_ms: float = 1.0) -> None:
        """Let time pass, then one turn."""
        self.clock.now += after_ms
        self.worker.turn(list(received))

    def client(self, *commands: list[bytes], protocol: int = 2) -> Waiter:
        """A batch built as a handler thread builds it; not submitted."""
        writes = sum(command[0] in WRITES for command in commands)
        waiter = Waiter(lambda done: Batch.of_commands(list(commands), writes, protocol, done))
        self.waiters.append(waiter)
        return waiter

    def submit(self, *commands: list[bytes]) -> Waiter:
        """A client sends these commands; they wait for the next turn."""
        waiter = self.client(*commands)
        assert self.desk.submit(waiter.batch)
        return waiter

    def ask(self, *commands: list[bytes]) -> Waiter:
        """submit() and one turn."""
        waiter = self.submit(*commands)
        self.turn()
        return waiter

    def ack(self, peer: int = 2, *, pongs: bool = True) -> None:
        """The peer has everything that node 1 has sent so far and says so, in one turn."""
        state = self.state
        answers: list[tuple[int, PeerMessage]] = [
            (peer, AppendEntriesResponse(state.term, True, state.log.last_index, state.round))
        ]
        if pongs:
            answers += [(peer, Pong(ping.nonce, ping.sent_ms)) for ping in self.network.take(Ping, peer)]
        self.turn(*answers)

    def lead(self) -> None:
        """Node 1 wins an election and its ~TERM is applied."""
        self.win()
        self.settle()
        assert self.worker.turns.established

    def win(self, *with_last_vote: tuple[int, PeerMessage]) -> None:
        """Node 1 wins an election; these messages come in the same turn as the deciding vote."""
        self.turn(after_ms=TIMEOUT_MAX + 1)
        if self.state.role is not Role.LEADER:
            assert self.state.role is Role.PRE_CANDIDATE
            self.turn((2, RequestVoteResponse(self.state.term + 1, True, True)))
            assert self.state.role is Role.CANDIDATE
            self.turn((2, RequestVoteResponse(self.state.term, True)), *with_last_vote)
        assert self.state.role is Role.LEADER

    def settle(self) -> None:
        """Node 2 acknowledges until nothing is left to commit, apply or propose."""
        for _ in range(20):
            self.ack()
            if self.machine.applied_index == self.state.log.last_index and not self.desk.proposals.gathering:
                return
        raise AssertionError("it does not come to rest")

    def follow(self, leader: int = 2, term: int | None = None) -> None:
        """An AppendEntries without entries: `leader` leads."""
        self.turn((leader, self.heartbeat(leader, term)))

    def heartbeat(self, leader: int = 2, term: int | None = None, *entries: Entry) -> AppendEntries:
        log = self.state.log
        term = self.state.term + (self.state.leader_id != leader) if term is None else term
        commit = log.last_index + len(entries)
        return AppendEntries(term, leader, log.last_index, log.last_term, entries, commit, 1)

    def replicate(self, *commands: list[bytes], leader: int = 2) -> None:
        """The leader replicates and commits one entry with these commands."""
        log = self.state.log
        entry = Entry(
            log.last_index + 1, self.state.term, EntryKind.COMMANDS, encode(self.at_ms, list(commands))
        )
        self.turn((leader, self.heartbeat(leader, self.state.term, entry)))

    def logged(self, first: int = 1) -> list[list[list[bytes]]]:
        """The commands of every COMMANDS entry on the disk, from an index on."""
        return [
            decode_batch(entry.data).commands
            for entry in self.storage.log.stored[first - 1 :]
            if entry.kind == EntryKind.COMMANDS
        ]

    def written(self, first: int = 1) -> list[list[list[bytes]]]:
        """The same with what nodes pass on taken out of its ~ONCE."""
        return [
            [words for command in commands for words in unwrapped(command)] for commands in self.logged(first)
        ]

    def lease_wait(self, ms: float) -> None:
        """Time passes inside a turn, as in a pause of the process."""
        self.clock.now += ms


def unwrapped(command: list[bytes]) -> list[list[bytes]]:
    return decode_commands(command[3]) if command[0] == b"~ONCE" else [command]


def encode(at_ms: int, commands: list[list[bytes]]) -> bytes:
    from raft.machine.batch import encode_batch

    return encode_batch(at_ms, commands)


def passed_on(request_id: int, *commands: list[bytes], protocol: int = 2, sender: int = 2) -> Forward:
    """Writes as a peer forwards them, each time in a new lane."""
    return Forward(request_id, protocol, list(commands), b"~%d.peer.%d" % (sender, request_id), 1)


def is_error(answer: bytes | None, code: str) -> bool:
    return answer is not None and answer.startswith(b"-" + code.encode() + b" ")


__all__ = ["Bench", "Error", "FakeClock", "FakeNetwork", "Reply", "Waiter", "encode", "is_error", "passed_on"]
