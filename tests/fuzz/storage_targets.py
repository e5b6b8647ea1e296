"""Targets: what stands on a node's disk, damaged in every way."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from raft.core.effects import HardState, LostEntries
from raft.core.entry import Entry
from raft.core.membership import ConfigurationFormatError, decode_configuration, encode_configuration
from raft.storage.errors import (
    CorruptLogError,
    CorruptSnapshotError,
    FormatVersionError,
    IdentityError,
    StorageError,
)
from raft.storage.hard_state import decode_hard_state, encode_hard_state
from raft.storage.identity import check_identity, decode_identity
from raft.storage.log_store import LogStore
from raft.storage.lost_entries import decode_lost_entries, encode_lost_entries
from raft.storage.node_storage import NodeStorage
from raft.storage.record import HEADER_SIZE, RECORD_OVERHEAD, FormatError, VersionMismatchError
from raft.storage.snapshot_format import (
    CHUNK_OVERHEAD,
    FOOTER_SIZE,
    MAX_CHUNK,
    SnapshotDecoder,
    SnapshotEncoder,
    SnapshotHeader,
    header_size,
)
from raft.storage.snapshot_reading import SnapshotFile
from tests.fuzz import samples
from tests.fuzz.target import Feed, FuzzFailure, Target, check
from tests.storage.faulty_disk import FaultyDisk

DIRECTORY = Path("/data")
_crc = google_crc32c.value
_recovery_log = logging.getLogger("raft.storage.recovery")


# --- the log --------------------------------------------------------------------------------------------


def _disk() -> FaultyDisk:
    disk = FaultyDisk()
    disk.directories.add(DIRECTORY)
    return disk


def _open(disk: FaultyDisk) -> LogStore:
    level = _recovery_log.level
    _recovery_log.setLevel(logging.CRITICAL)  # a line for each torn tail would be most of the time
    try:
        return LogStore.open(DIRECTORY, disk=disk, segment_bytes=512, prepare_ahead=False)
    finally:
        _recovery_log.setLevel(level)


def _written() -> tuple[dict[str, bytes], list[Entry]]:
    """The segments of a log of 12 entries, and the entries."""
    disk, entries = _disk(), []
    store = _open(disk)
    for n in range(1, 13):
        entry = Entry(n, 1 + n // 5, 2 if n == 3 else 1, _data(n))
        store.append([entry])
        if n % 2:
            store.sync()
        entries.append(entry)
    store.sync()
    store.close()
    return {path.name: disk.file(path) for path in sorted(disk.names)}, entries


def _data(n: int) -> bytes:
    return encode_configuration(samples.CONFIGURATION) if n == 3 else bytes([n]) * (n * 7 % 60)


FILES, ENTRIES = _written()


def seal_log(blob: bytes) -> bytes:
    """The same with the checksums of header and records put right, as far as the lengths lead through it."""
    out = bytearray(blob)
    if len(out) >= HEADER_SIZE:
        out[12:16] = _crc(bytes(out[:12] + out[16:HEADER_SIZE])).to_bytes(4, "little")
    at = HEADER_SIZE
    while at + RECORD_OVERHEAD <= len(out):
        end = at + RECORD_OVERHEAD + ((int.from_bytes(out[at + 4 : at + 8], "little") + 7) & ~7)
        if end > len(out) or not any(out[at + 8 : at + 16]):
            break
        out[at : at + 4] = _crc(bytes(out[at + 4 : end])).to_bytes(4, "little")
        at = end
    return bytes(out)


def log(data: bytes) -> None:
    """One segment's bytes are others: recovery refuses, or gives a prefix of what was written. With the
    checksums put right the entries may be others, but they are a log, and it goes on."""
    feed = Feed(data)
    flags = feed.byte()
    sealed = bool(flags & 0x80)
    names = sorted(FILES)
    name = names[flags % len(names)]
    disk = _disk()
    for each, content in FILES.items():
        disk.put(DIRECTORY / each, content)
    content = feed.rest()
    disk.put(DIRECTORY / name, seal_log(content) if sealed else content)
    store = _open(disk)
    try:
        found = list(store.entries(store.first_index, store.last_index + 1, 1 << 30))
        check([each.index for each in found] == list(range(1, len(found) + 1)), "indexes are not in a row")
        check(all(a.term <= b.term for a, b in itertools.pairwise(found)), "a term falls")
        check(sealed or found == ENTRIES[: len(found)], f"a wrong entry: {found}")
        _goes_on(store, found)
    finally:
        store.close()
    check(disk.open_files == [], f"files stay open: {disk.open_files}")


def _goes_on(store: LogStore, found: list[Entry]) -> None:
    last = len(found)
    term = min(found[-1].term + 1 if found else 1, 2**64 - 1)
    store.append([Entry(last + 1, term, 0, b"more")])
    store.sync()
    check(store.last_index == last + 1, "the recovered log does not go on")


def _log_seeds() -> Iterator[bytes]:
    for number, name in enumerate(sorted(FILES)):
        for flags in (0, 0x80 - 0x80 % len(FILES)):
            yield bytes([flags + number]) + FILES[name]
            yield bytes([flags + number]) + FILES[name].rstrip(b"\0")


# --- its repair -----------------------------------------------------------------------------------------


def repaired(data: bytes) -> None:
    """A node's directory, one segment's bytes are others, and the node may repair it: refused with nothing of
    the log changed, or a beginning of the log; opened again it is the same. What was given up is marked, and
    the damaged bytes are kept."""
    feed = Feed(data)
    flags = feed.byte()
    sealed, content = bool(flags & 0x80), feed.rest()
    names = sorted(FILES)
    name = names[flags % len(names)]
    disk = _directory({**FILES, name: seal_log(content) if sealed else content})
    before = {each: disk.file(DIRECTORY / each) for each in names}
    try:
        found, lost = _opened(disk)
    except (CorruptLogError, FormatVersionError):
        check({each: disk.file(DIRECTORY / each) for each in names} == before, "refused, but changed")
        check(disk.open_files == [], f"files stay open: {disk.open_files}")
        raise
    except StorageError as error:  # a term above the one on disk is told behind the log
        check(sealed, f"says {error}")
        raise
    check(sealed or found == ENTRIES[: len(found)], f"a wrong entry: {found}")
    check(lost is None or lost.from_index == len(found) + 1, f"{lost} is marked, {len(found)} are there")
    if lost is not None:
        # A file that ends early at the end of a record is none that is damaged: it stays, without its zeros.
        kept = [
            disk.file(path) for path in disk.names if path.name.startswith("damaged-") or path.name == name
        ]
        check(
            before[name].rstrip(b"\0") in [each.rstrip(b"\0") for each in kept], "damaged bytes are not kept"
        )
    check(_opened(disk) == (found, lost), "another log when it is opened again")
    check(disk.open_files == [], f"files stay open: {disk.open_files}")


def _directory(files: dict[str, bytes]) -> FaultyDisk:
    """Node 1 of 3, in term 5, with these segments."""
    disk = _disk()
    check_identity(DIRECTORY, "test", 1, founding=samples.SERVERS, disk=disk, now="2026-01-01T00:00:00+00:00")
    disk.put(DIRECTORY / "hard-state", encode_hard_state(HardState(5, 2)))
    for name, content in files.items():
        disk.put(DIRECTORY / name, content)
    return disk


def _opened(disk: FaultyDisk) -> tuple[list[Entry], LostEntries | None]:
    storage_log = logging.getLogger("raft.storage")
    level = storage_log.level
    storage_log.setLevel(logging.CRITICAL + 1)
    try:
        node = NodeStorage.open(
            DIRECTORY, "test", 1, disk=disk, segment_bytes=512, prepare_ahead=False, repair=True
        )
    finally:
        storage_log.setLevel(level)
    try:
        return list(node.log.entries(1, node.log.last_index + 1, 1 << 30)), node.lost_entries
    finally:
        node.close()


def _sealed(data: bytes) -> bytes:
    """The small file that stands behind the first byte, whose top bit has its checksum put right."""
    file = bytearray(data[1:])
    if data[:1] > b"\x7f" and len(file) >= 16:
        file[12:16] = _crc(bytes(file[:12] + file[16:])).to_bytes(4, "little")
    return bytes(file)


def lost_entries(data: bytes) -> None:
    """The marker of what was lost: what is accepted is what encodes to the same bytes."""
    sealed = _sealed(data)
    lost = decode_lost_entries(sealed, Path("lost-entries"))
    check(encode_lost_entries(lost) == sealed, f"{lost} encodes to other bytes")


def _lost_seeds() -> Iterator[bytes]:
    for lost in (LostEntries(1, 1), LostEntries(2**63, 2**40)):
        yield b"\x00" + encode_lost_entries(lost)
        yield b"\x80" + encode_lost_entries(lost)


# --- small files ----------------------------------------------------------------------------------------


def hard_state(data: bytes) -> None:
    """The hard state: what is accepted is what encodes to the same bytes."""
    sealed = _sealed(data)
    state = decode_hard_state(sealed, Path("hard-state"))
    check(encode_hard_state(state) == sealed, f"{state} encodes to other bytes")


def _hard_state_seeds() -> Iterator[bytes]:
    for state in (HardState(0, None), HardState(7, 3), HardState(2**63, 1)):
        yield b"\x00" + encode_hard_state(state)
        yield b"\x80" + encode_hard_state(state)


def identity(data: bytes) -> None:
    """identity.json: what is accepted is this node's, or is refused in words."""
    decoded = decode_identity(data, Path("identity.json"))
    decoded.founding_servers()
    disk = _disk()
    disk.put(DIRECTORY / "identity.json", data)
    check(
        check_identity(DIRECTORY, decoded.cluster, decoded.node_id, disk=disk) == decoded, "another identity"
    )


def _identity_seeds() -> Iterator[bytes]:
    disk = _disk()
    check_identity(DIRECTORY, "test", 1, founding=samples.SERVERS, disk=disk, now="2026-01-01T00:00:00+00:00")
    yield disk.file(DIRECTORY / "identity.json")
    yield b'{"format_version": 3, "x": [[[[[[[[]]]]]]]]}'


# --- snapshots ------------------------------------------------------------------------------------------


def snapshot_bytes(chunks: list[bytes]) -> bytes:
    """A snapshot file."""
    header = SnapshotHeader(9, 3, "test", encode_configuration(samples.CONFIGURATION))
    encoder = SnapshotEncoder(header)
    return b"".join([encoder.header(), *map(encoder.chunk, chunks), encoder.footer()])


def seal_snapshot(data: bytes) -> bytes:
    """The same with its checksums put right, as far as the lengths lead through it."""
    out = bytearray(data)
    try:
        at = header_size(bytes(out[:40]))
    except FormatError:
        at = None
    if at is None or at > len(out):
        return data
    out[12:16] = _crc(bytes(out[:12] + out[16:at])).to_bytes(4, "little")
    chunks = size = 0
    while at + CHUNK_OVERHEAD <= len(out):
        length = int.from_bytes(out[at + 4 : at + 8], "little")
        end = at + CHUNK_OVERHEAD + length
        if length == 0 or end > len(out):
            break
        out[at : at + 4] = _crc(bytes(out[at + 4 : end])).to_bytes(4, "little")
        chunks, size, at = chunks + 1, size + length, end
    if at + FOOTER_SIZE <= len(out):
        out[at + 8 : at + 28] = (
            chunks.to_bytes(8, "little")
            + size.to_bytes(8, "little")
            + _crc(bytes(out[:at])).to_bytes(4, "little")
        )
        out[at : at + 4] = _crc(bytes(out[at + 4 : at + FOOTER_SIZE])).to_bytes(4, "little")
    return bytes(out)


def snapshot(data: bytes) -> None:
    """A snapshot file, whole and in pieces of every size: refused, or exactly what was written."""
    feed = Feed(data)
    flags = feed.byte()
    content = seal_snapshot(feed.rest()) if flags & 0x80 else feed.rest()
    outcomes = [_decoded(content, step) for step in (len(content) or 1, 1 + (flags & 0x7F))]
    check(outcomes[0] == outcomes[1], f"other outcomes in pieces: {outcomes}")
    header, chunks, error = outcomes[0]
    disk = _disk()
    disk.put(DIRECTORY / "x.snap", content)
    try:
        file = SnapshotFile(disk, DIRECTORY / "x.snap")
        check(
            list(file.chunks()) == chunks and file.header == header and error is None, "read as another file"
        )
        decode_configuration(file.header.configuration)
    finally:
        check(disk.open_files == [], f"files stay open: {disk.open_files}")
    encoder = SnapshotEncoder(file.header)
    again = b"".join([encoder.header(), *map(encoder.chunk, chunks), encoder.footer()])
    check(again == content, "encodes to other bytes")


def _decoded(content: bytes, step: int) -> tuple[SnapshotHeader | None, list[bytes], str | None]:
    decoder, chunks = SnapshotDecoder(), []
    try:
        for at in range(0, len(content), step):
            chunks += decoder.feed(content[at : at + step])
            check(len(decoder._waiting) < MAX_CHUNK + 2 * step + 2048, "more is held back than a chunk")
        decoder.end()
    except (FormatError, VersionMismatchError) as error:
        return None, [], f"{type(error).__name__}"
    return decoder.header, chunks, None


def _snapshot_seeds() -> Iterator[bytes]:
    for flags in (0x00, 0x06, 0x8D):
        yield bytes([flags]) + snapshot_bytes([])
        yield bytes([flags]) + snapshot_bytes([b"one", b"two" * 30])


TARGETS = (
    Target("log", log, (CorruptLogError, FormatVersionError), _log_seeds, max_bytes=1024, bytes_per_byte=500),
    Target(
        *("repair", repaired, (StorageError,), _log_seeds),
        max_bytes=1024,
        bytes_per_byte=1000,
        suite_inputs=100,
    ),
    Target("lost-entries", lost_entries, (StorageError,), _lost_seeds, max_bytes=128),
    Target("hard-state", hard_state, (StorageError,), _hard_state_seeds, max_bytes=128),
    Target("identity", identity, (IdentityError, FormatVersionError), _identity_seeds),
    Target(
        "snapshot",
        snapshot,
        (CorruptSnapshotError, FormatVersionError, ConfigurationFormatError),
        _snapshot_seeds,
        max_bytes=1024,
        bytes_per_byte=500,
    ),
)
__all__ = ["TARGETS", "FuzzFailure"]
