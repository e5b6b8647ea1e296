"""PeerNetwork: messages between this node and the other members over TCP.

Two connections per pair of nodes, one for each direction: a node sends only on those it dialed itself and
reads only those the peers dialed. So there is never a question which of two connections is the right one, and
a break in either direction shows.

Who owns what: the acceptor, its handshake helpers and the dialers (one thread per peer) own a socket until
the handshake is done, then put it into the Handover; from there on it belongs to the worker, the one thread
that calls poll, send, queue, flush and the take_ methods. wake, set_members, heard_identities, connected and
statistics may be called by any thread. Who is a member is the Membership's. Nothing is repeated and nothing
is kept for an absent peer: Raft sends again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import threading
import time
import uuid
from collections.abc import Callable, Mapping

import msgspec

from raft.syscalls import Buffer, poll_now, signal_eventfd
from raft.transport.acceptor import Acceptor, listen
from raft.transport.admission import Credentials
from raft.transport.codec import MessageCodec, MessageError
from raft.transport.frames import MAX_HELLO_BYTES, FrameError
from raft.transport.handover import Handover, Incoming, Outgoing
from raft.transport.handshake import PeerAddress
from raft.transport.links import IncomingLink, LinkClosedError, OutgoingLink, PeerStatistics
from raft.transport.membership import Membership
from raft.transport.node_messages import PeerMessage
from raft.transport.quiet_log import QuietLog

OUTBOX_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024  # per socket and turn, so that no peer starves the others
_JOIN_S = 3.0
_ID = "0" * 32  # the length of identities and cluster ids
_READABLE = select.EPOLLIN | select.EPOLLRDHUP

_logger = logging.getLogger(__name__)


class PeerNetwork:
    """This node's connections to the other members of its cluster, and to its guests (membership.py).

    node_id, cluster_name: who this node is. members, cluster_id: see set_members. host, port: where to listen
    (port 0: any, see address). on_fatal(thread name, exception): called once a background thread dies of a
    fault in this program; the node has to stop. outbox_bytes: bound of what waits for one peer. run_id names
    this process to its peers (default: a new random one), identity this node's data directory.
    Raises ValueError if the cluster name is too long for a hello.
    """

    def __init__(
        self,
        node_id: int,
        cluster_name: str,
        members: Mapping[int, PeerAddress],
        host: str,
        port: int,
        on_fatal: Callable[[str, BaseException], None],
        *,
        outbox_bytes: int = OUTBOX_BYTES,
        run_id: str | None = None,
        identity: str = "",
        cluster_id: str = "",
    ) -> None:
        self.node_id = node_id
        self.run_id = run_id if run_id is not None else uuid.uuid4().hex
        self.address: tuple[str, int] = (host, port)  # the actual one after start()
        self.open_to_strangers = False
        self._leader_id: int | None = None
        own = Credentials(node_id, cluster_name, self.run_id, identity, cluster_id, host, port)
        longest = own._replace(cluster_id=_ID, raft_port=65535).hello(2**31, to_identity=_ID)
        if len(msgspec.msgpack.encode(longest)) > MAX_HELLO_BYTES:
            raise ValueError(f"the cluster name is too long for a hello of {MAX_HELLO_BYTES} bytes")
        self._on_fatal = on_fatal
        self._outbox_bytes = outbox_bytes
        self._quiet_log = QuietLog(_logger)
        self._codec = MessageCodec()
        self._buffer = Buffer(READ_BYTES)
        # worker only
        self._incoming: dict[int, IncomingLink] = {}
        self._outgoing: dict[int, OutgoingLink] = {}
        self._by_fd: dict[int, IncomingLink | OutgoingLink] = {}
        self._unflushed: set[OutgoingLink] = set()
        self._disconnected: set[int] = set()
        self._refused: set[int] = set()
        # wake-up: see wake()
        self._epoll = select.epoll()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._eventfd, select.EPOLLIN)
        self._wake_lock = threading.Lock()
        self._woken = False
        self._asleep = False
        self._handover = Handover(self.wake)
        self._membership = Membership(
            *(own, members, lambda: self.open_to_strangers, self._handover, self._quiet_log, on_fatal),
            trusted=lambda peer_id: self.open_to_strangers or peer_id == self._leader_id,
        )
        self._acceptor: Acceptor | None = None
        self._closed = False

    # ---- any thread ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen and begin to dial. Raises OSError if the address cannot be listened on. Call it once."""
        listener = listen(*self.address)
        self.address = listener.getsockname()[:2]
        self._acceptor = Acceptor(
            listener,
            self._membership.admit,
            on_peer=self._hurry,
            handover=self._handover,
            quiet_log=self._quiet_log,
            on_fatal=self._on_fatal,
        )
        self._membership.start(self.address[1])
        self._acceptor.start()

    def set_members(self, members: Mapping[int, PeerAddress], cluster_id: str) -> None:
        """From now on these are the members (this node's own entry is ignored): start dialing new ones, drop
        the connections of those that have gone or whose recorded identity is another one, redial those that
        have moved. What was flushed to one that goes still arrives. Returns before the worker has closed what
        has to be closed.

        cluster_id: the cluster's name for itself, "" while it has none. Take it from a committed
        configuration alone: nodes with different ones never talk again, so a name that is rolled back later
        would cut this node off for good.
        """
        self._membership.set_members(members, cluster_id)

    @property
    def cluster_heard(self) -> bool:
        """Whether a peer has shown that a cluster of this name has been founded already."""
        return self._membership.cluster_heard

    def heard_identities(self) -> dict[int, str]:
        """The name of its data directory by member or guest, as its last handshake said; who has said none is
        left out."""
        return self._membership.heard_identities()

    def follow(self, leader_id: int | None, *, open_to_strangers: bool) -> None:
        """Whom this node follows, and whether nodes that are no members may become guests: while it knows no
        living leader. Then, and of the leader, no recorded identity is held against a peer, for this node may
        be the one that is behind. When that ends, all connections are looked at again. Worker."""
        if (leader_id, open_to_strangers) != (self._leader_id, self.open_to_strangers):
            self._leader_id, self.open_to_strangers = leader_id, open_to_strangers
            self._handover.review()

    def wake(self) -> None:
        """Make a poll under way, or else the next one, return at once. Costs no system call unless the worker
        is asleep, and then only for the first of several calls."""
        # poll sets _asleep, then tests _woken; here it is the other way round, so one of the two sees it
        self._woken = True
        if self._asleep:
            self._asleep = False
            with self._wake_lock:  # only against close(): the number must not come to name another file
                if not self._closed:
                    signal_eventfd(self._eventfd)

    def connected(self, peer_id: int) -> bool:
        """Is there a connection to send on?"""
        return peer_id in self._outgoing

    def statistics(self) -> dict[int, PeerStatistics]:
        """A copy of the counters per peer; taken while the worker counts on, so they may be a message
        apart."""
        return {peer_id: dataclasses.replace(each) for peer_id, each in self._membership.statistics().items()}

    # ---- worker only ---------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[tuple[int, PeerMessage]]:
        """Wait up to timeout_s seconds for messages; returns (sender's id, message) in order per sender.

        Sends what is queued first. Returns early, perhaps with nothing, when woken or when a connection comes
        or goes. A peer that sends rubbish loses its connection, no more.
        """
        if self._unflushed:
            self.flush()
        self._asleep = True
        wait_s = max(0.0, timeout_s)  # below 0 is for ever
        events = poll_now(self._epoll) if self._woken else self._epoll.poll(wait_s)
        self._asleep = False
        self._woken = False
        messages: list[tuple[int, PeerMessage]] = []
        for fd, mask in events:
            link = self._by_fd.get(fd)  # None: dropped earlier in this turn
            if isinstance(link, IncomingLink):
                self._read(link, messages)
            elif isinstance(link, OutgoingLink):
                self._serve(link, mask)
            elif fd == self._eventfd:
                os.eventfd_read(self._eventfd)
        self._take_handover()
        self._membership.expire_guests(self._incoming, self._outgoing)
        return messages

    def send(self, peer_id: int, message: PeerMessage) -> bool:
        """Send message to a peer now, as far as its socket takes it; the rest goes out during poll.

        False: not connected, or the outbox is full, or the connection just broke; nobody has it then. True is
        no promise that it arrives. Raises FrameTooLongError for a message above the frame cap (16 MiB).
        """
        if not self.queue(peer_id, message):
            return False
        self._flush(self._outgoing[peer_id])
        return peer_id in self._outgoing

    def queue(self, peer_id: int, message: PeerMessage) -> bool:
        """Like send, but leaves it to the next flush (or poll, or send to this peer): several messages of one
        turn then leave with one system call."""
        link = self._outgoing.get(peer_id)
        if link is None:
            statistics = self._membership.statistics_of(peer_id)
            if statistics is not None:
                statistics.refused_sends += 1
            return False
        if not link.put(self._codec.encode(message)):
            return False
        self._unflushed.add(link)
        return True

    def flush(self) -> None:
        """Send what is queued."""
        for link in list(self._unflushed):
            self._flush(link)

    def take_disconnects(self) -> list[int]:
        """Peers one of whose connections has broken (end of stream, reset, timeout) since the last call:
        their process may have died. Connections that this node dropped itself do not count."""
        return _take(self._disconnected)

    def take_refused(self) -> list[int]:
        """Peers at whose address nobody listened (ECONNREFUSED) since the last call: their process is
        dead."""
        return _take(self._refused)

    def close(self) -> None:
        """Stop the threads, close the sockets. Idempotent. To be called by the worker, or when it has
        ended."""
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
        dialers = self._membership.close()
        if self._acceptor is not None and not self._acceptor.stop(_JOIN_S):
            _logger.error("the raft port's threads have not ended within %.0f s", _JOIN_S)
        for dialer in dialers:
            if not dialer.join(_JOIN_S):
                _logger.error("the dialer of node %d has not ended within %.0f s", dialer.peer_id, _JOIN_S)
        self._handover.close()
        for link in list(self._by_fd.values()):
            self._close_link(link)
        self._epoll.close()
        os.close(self._eventfd)

    # ---- inside --------------------------------------------------------------------------------------------

    def _hurry(self, peer_id: int) -> None:
        """The peer has dialed in, so it is up: if its dialer is pausing, it need not (handshake threads)."""
        dialer = self._membership.dialer(peer_id)
        if dialer is not None and peer_id not in self._outgoing:
            dialer.hurry()

    def _read(self, link: IncomingLink, messages: list[tuple[int, PeerMessage]]) -> None:
        try:
            messages.extend((link.peer_id, message) for message in link.read(self._buffer, self._codec))
        except LinkClosedError as error:
            self._lost(link, f"connection from it lost: {error}")
        except (FrameError, MessageError) as error:
            self._close_link(link)
            self._quiet_log.warning(type(error).__name__, f"node {link.peer_id}", f"dropped: {error}")

    def _serve(self, link: OutgoingLink, mask: int) -> None:
        try:
            if mask & ~select.EPOLLOUT:
                link.check()
        except LinkClosedError as error:
            self._lost(link, f"connection to it lost: {error}")
            return
        except MessageError as error:
            self._close_link(link)
            self._quiet_log.warning("MessageError", f"node {link.peer_id}", f"dropped: {error}")
            return
        if mask & select.EPOLLOUT:
            self._flush(link)

    def _flush(self, link: OutgoingLink) -> None:
        self._unflushed.discard(link)
        try:
            done = link.flush()
        except LinkClosedError as error:
            self._lost(link, f"connection to it lost: {error}")
            return
        if link.waits_for_room == done:
            link.waits_for_room = not done
            self._epoll.modify(link.sock, _READABLE if done else _READABLE | select.EPOLLOUT)

    def _lost(self, link: IncomingLink | OutgoingLink, text: str) -> None:
        """The peer, or the network, has ended a connection."""
        _logger.info("node %d: %s", link.peer_id, text)
        self._disconnected.add(link.peer_id)
        self._close_link(link)

    def _close_link(self, link: IncomingLink | OutgoingLink) -> None:
        self._by_fd.pop(link.sock.fileno(), None)
        link.sock.close()  # leaves the epoll set with it
        if isinstance(link, OutgoingLink):
            self._unflushed.discard(link)
            if self._outgoing.get(link.peer_id) is link:
                del self._outgoing[link.peer_id]
            link.dialer.broken(time.monotonic() - link.opened_s)
        elif self._incoming.get(link.peer_id) is link:
            del self._incoming[link.peer_id]

    def _take_handover(self) -> None:
        news = self._handover.take()
        if news is None:
            return
        self._refused |= news.refused
        if news.review:
            self._review()
        for incoming in news.incoming:
            self._adopt_incoming(incoming)
        for outgoing in news.outgoing:
            self._adopt_outgoing(outgoing)

    def _review(self) -> None:
        """The members have changed: close the connections of who is none any more, has moved, or is somebody
        else. What waits for it leaves first if the socket takes it: it may say that it was removed."""
        for link in list(self._by_fd.values()):
            if isinstance(link, OutgoingLink):
                if self._may_stay(link) and self._membership.dialer(link.peer_id) is link.dialer:
                    continue
                with contextlib.suppress(LinkClosedError):
                    link.flush()
            elif self._may_stay(link):
                continue
            _logger.info("node %d: connection closed: the members have changed", link.peer_id)
            self._close_link(link)

    def _may_stay(self, link: Incoming | IncomingLink | OutgoingLink) -> bool:
        return self._membership.keeps(link.peer_id, link.identity, link.cluster_id)

    def _adopt_incoming(self, new: Incoming) -> None:
        """Read new from now on; the peer's older connection, which it has given up, goes."""
        if not self._may_stay(new):
            new.sock.close()
            return
        old = self._incoming.get(new.peer_id)
        if old is not None:
            if old.run_id != new.run_id:  # another process: the one we knew has died
                self._disconnected.add(new.peer_id)
            self._close_link(old)
        outgoing = self._outgoing.get(new.peer_id)
        if outgoing is not None and outgoing.run_id != new.run_id:  # leads to the dead process: dial again
            self._lost(outgoing, "it runs anew")
        statistics = self._membership.note_connection(new.peer_id, new.identity)
        statistics.connects_in += 1
        link = IncomingLink(new, statistics)
        self._incoming[new.peer_id] = link
        self._register(link)

    def _adopt_outgoing(self, new: Outgoing) -> None:
        """Send on new from now on."""
        peer_id = new.dialer.peer_id
        if self._membership.dialer(peer_id) is not new.dialer:  # no longer a member, or it has moved
            new.sock.close()
            return
        if not self._membership.keeps(peer_id, new.identity, new.cluster_id):
            new.sock.close()
            new.dialer.broken(0.0)
            return
        old = self._outgoing.get(peer_id)
        if old is not None:  # of a dialer that has been replaced meanwhile
            self._close_link(old)
        statistics = self._membership.note_connection(peer_id, new.identity)
        statistics.connects_out += 1
        link = OutgoingLink(new, self._outbox_bytes, time.monotonic(), statistics)
        self._outgoing[peer_id] = link
        self._register(link)

    def _register(self, link: IncomingLink | OutgoingLink) -> None:
        self._by_fd[link.sock.fileno()] = link
        self._epoll.register(link.sock, _READABLE)


def _take(peers: set[int]) -> list[int]:
    taken = sorted(peers)
    peers.clear()
    return taken
