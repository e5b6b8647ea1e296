"""Takes in a leader's snapshot and makes a machine of it (paper section 7, figure 13). See install.py."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from raft.core.membership import Configuration, decode_configuration
from raft.core.messages import InstallSnapshot, InstallSnapshotResponse
from raft.machine.machine import Machine
from raft.machine.snapshot import SnapshotFormatError
from raft.storage.errors import DiskFullError, SnapshotRefusedError
from raft.storage.snapshot_files import SnapshotReceiver as IncomingFile
from raft.storage.snapshots import SnapshotInfo, SnapshotStore
from raft.transport.node_messages import PeerMessage

log = logging.getLogger(__name__)

DISK_FULL_PAUSE_MS = 5000.0
REFUSED_PAUSE_MS = 1000.0  # doubled with each refusal: a leader whose file is damaged would send it for ever
LONGEST_PAUSE_MS = 60_000.0
JOIN_S = 5.0


class Running(Protocol):
    """A thread, as far as the receiver knows it."""

    def join(self, timeout: float | None = None) -> None: ...


Loader = Callable[[str, Iterable[bytes]], Machine]
Starter = Callable[[Callable[[], None]], Running]


def start_thread(run: Callable[[], None]) -> Running:
    """The usual Starter."""
    thread = threading.Thread(target=run, name="snapshot-loader", daemon=True)
    thread.start()
    return thread


class Installed(NamedTuple):
    """A snapshot that is on this node's disk for good, and the machine that it holds.

    leader: who sent it. configuration: what its header carries, decoded."""

    info: SnapshotInfo
    machine: Machine
    leader: int
    configuration: Configuration


class _Source(NamedTuple):
    """Which file bytes are of. Two nodes' snapshots of one entry are equal in content, but not byte by byte:
    only the same leader with the same total goes on where it was, in whichever term."""

    leader: int
    last_index: int
    last_term: int
    total: int


class _DroppedError(Exception):
    """The load is not wanted any more."""


class _Load:
    """A machine being loaded by a thread of its own from the file that is not yet in place.

    The thread writes machine, configuration and error; the worker reads them once `ended` is true."""

    def __init__(
        self,
        source: _Source,
        file: IncomingFile,
        store: SnapshotStore,
        wake: Callable[[], None],
        load: Loader,
        start: Starter,
    ) -> None:
        self.source = source
        self.file = file
        self.machine: Machine | None = None
        self.configuration: Configuration | None = None
        self.error: BaseException | None = None
        self.ended = False
        self.dropped = False
        self._info = file.staged()
        self._store = store
        self._wake = wake
        self._loader = load
        self.thread = start(self._run)

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as error:  # noqa: BLE001 - take_installed() raises it on the worker
            self.error = error
        self.ended = True
        if not self.dropped:
            self._wake()

    def _load(self) -> None:
        info = self._info
        self.configuration = decode_configuration(info.configuration)
        machine = self._loader(self._store.cluster, self._pieces())
        if (machine.applied_index, machine.applied_term) != (info.index, info.term):
            raise SnapshotFormatError(
                f"the snapshot of entry {info.index}, term {info.term} holds a machine at entry "
                f"{machine.applied_index}, term {machine.applied_term}"
            )
        self.machine = machine

    def _pieces(self) -> Iterator[bytes]:
        for data in self._store.open_chunks(self._info):
            if self.dropped:
                raise _DroppedError
            yield data


class SnapshotReceiver:
    """The follower's side: one snapshot at a time. Worker only, but for the thread that loads.

    The machine is loaded BEFORE the file gets its name: a snapshot that is sound as a file but no machine to
    this version stops the node, yet its disk still holds what it held and starts again (bug 44). The file was
    fsynced as it came, so putting it in place costs about 1 ms, whatever its size.

    The leader decides what is sent: the first chunk of another file replaces the unfinished one, even one of
    a later entry, for a leader that restarted may have an older one only and would otherwise wait for ever.
    Other chunks that do not fit are dropped and answered with what is wanted.

    Memory: never the file, only the piece of at most 256 KiB whose checksum is not complete. While a machine
    is loaded there are two of them, the one in use and the new one, and 1 MiB of the file.

    send(peer, message) -> bool may lose an answer. wake() is called by the thread when it has ended. load,
    start: how a machine is loaded (None: Machine.load), and how the thread is started that does it.
    """

    def __init__(
        self,
        store: SnapshotStore,
        cluster_name: str,
        send: Callable[[int, PeerMessage], bool],
        wake: Callable[[], None],
        *,
        load: Loader | None = None,
        start: Starter = start_thread,
    ) -> None:
        if cluster_name != store.cluster:
            raise ValueError(f"the store is of cluster {store.cluster!r}, not {cluster_name!r}")
        self._store = store
        self._send = send
        self._wake = wake
        self._loader = load or Machine.load
        self._start = start
        self._incoming: tuple[_Source, IncomingFile] | None = None
        self._load: _Load | None = None
        self._now = 0.0
        self._paused_until_ms = 0.0
        self._refused_pause_ms = REFUSED_PAUSE_MS
        self._told_full = False

    # --- what the worker tells ------------------------------------------------------------------------

    def on_chunk(self, leader: int, message: InstallSnapshot, now: float) -> None:
        """A chunk from this term's leader, of a snapshot beyond the commit index. Always answered.

        now: monotonic ms. Raises StorageError if the disk fails; a full one, or a snapshot that is not sound,
        is refused for a while and then begun afresh."""
        self._now = now
        wanted = self._take(leader, message)
        self._send(leader, InstallSnapshotResponse(message.term, message.last_index, wanted))

    def take_installed(self) -> Installed | None:
        """What has been loaded, durable now, once; None if there is nothing. Cheap to call in every turn.

        Raises StorageError, and whatever ended the thread (SnapshotFormatError and its kin: a snapshot that
        this version cannot load); all of them are fatal."""
        load = self._load
        if load is None or not load.ended:
            return None
        self._load = None
        load.thread.join()
        if load.error is not None:
            load.file.abort()
            raise load.error
        assert load.machine is not None and load.configuration is not None  # no error, so it has both
        try:
            info = load.file.finish()
        except DiskFullError as error:
            self._on_disk_full(load.source, error)
            return None
        self._told_full = False
        self._refused_pause_ms = REFUSED_PAUSE_MS
        if info.index != load.source.last_index:  # this node has taken a newer one itself
            return None
        self._store.prune()  # who is often behind gets many of them before he takes one himself
        return Installed(info, load.machine, load.source.leader, load.configuration)

    def drop(self) -> None:
        """Give up what is being received or loaded: this node leads, or has the entries from elsewhere."""
        if self._incoming is not None:
            self._incoming[1].abort()
            self._incoming = None
        load, self._load = self._load, None
        if load is not None:
            load.dropped = True  # the thread ends with its next piece; nobody looks at what it made
            load.file.abort()

    def close(self) -> None:
        """drop(), and wait for the thread as far as that does not take long."""
        load = self._load
        self.drop()
        if load is not None:
            load.thread.join(JOIN_S)

    # --- what it tells --------------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """The entry whose snapshot is being received or loaded; 0 if none is."""
        if self._load is not None:
            return self._load.source.last_index
        return 0 if self._incoming is None else self._incoming[0].last_index

    @property
    def loading(self) -> bool:
        """Whether a machine is being loaded: no time to fork for a snapshot of the old one."""
        return self._load is not None

    def progress(self) -> tuple[int, int] | None:
        """Bytes received, bytes in all; None if nothing comes."""
        if self._load is not None:
            return self._load.source.total, self._load.source.total
        return None if self._incoming is None else (self._incoming[1].received, self._incoming[0].total)

    # --- inside ---------------------------------------------------------------------------------------

    def _take(self, leader: int, message: InstallSnapshot) -> int:
        """Returns the offset that is wanted next."""
        source = _Source(leader, message.last_index, message.last_term, message.total)
        if self._load is not None:
            # What is loaded covers an older snapshot too. A newer one has to wait for the thread.
            return message.total if source.last_index <= self._load.source.last_index else 0
        known = self._incoming is not None and self._incoming[0] == source
        if not known and (message.offset != 0 or self._now < self._paused_until_ms):
            return 0
        if message.offset < 0 or message.total < 1:
            return 0
        try:
            return self._write(source, message)
        except SnapshotRefusedError as error:
            self._on_refused(source, error)
        except DiskFullError as error:
            self._on_disk_full(source, error)
        return 0

    def _write(self, source: _Source, message: InstallSnapshot) -> int:
        file = self._file_of(source)
        wanted = file.write(message.offset, message.data)
        if wanted < source.total and not file.complete:
            return wanted
        if wanted != source.total:
            file.abort()
            raise SnapshotRefusedError(f"its end came at byte {wanted} of {source.total}")
        self._load = _Load(  # refuses what has no end
            source, file, self._store, self._wake, self._loader, self._start
        )
        self._incoming = None
        log.info(
            "received the snapshot of entry %d from node %d: loading it", source.last_index, source.leader
        )
        return wanted

    def _file_of(self, source: _Source) -> IncomingFile:
        if self._incoming is not None:
            if self._incoming[0] == source:
                return self._incoming[1]
            log.info("giving up the unfinished snapshot of entry %d", self._incoming[0].last_index)
            self.drop()
        file = self._store.receive(source.last_index, source.last_term)
        self._incoming = source, file
        log.info(
            "receiving the snapshot of entry %d from node %d, %d bytes",
            source.last_index,
            source.leader,
            source.total,
        )
        return file

    def _on_refused(self, source: _Source, error: SnapshotRefusedError) -> None:
        """Nothing of it may be left that a second attempt would meet (bug 58)."""
        self.drop()
        log.error(
            "%s. Node %d sent it; trying again in %.0f s", error, source.leader, self._refused_pause_ms / 1000
        )
        self._paused_until_ms = self._now + self._refused_pause_ms
        self._refused_pause_ms = min(2 * self._refused_pause_ms, LONGEST_PAUSE_MS)

    def _on_disk_full(self, source: _Source, error: DiskFullError) -> None:
        """What was received goes: the log needs the space more."""
        self.drop()
        self._paused_until_ms = self._now + DISK_FULL_PAUSE_MS
        if not self._told_full:
            self._told_full = True
            log.warning(
                "%s; the snapshot of entry %d from node %d needs %d bytes: free some on this disk; "
                "tried again every %.0f s",
                *(error, source.last_index, source.leader, source.total, DISK_FULL_PAUSE_MS / 1000),
            )
