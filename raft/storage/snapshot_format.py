"""The disk format of a snapshot, version 1, and its codec (pure: bytes in, values out).

    snapshot-0000000000004711.snap        named by the index of the last entry that it covers
    snapshot-0000000000004711.taking.tmp  being written here; has no meaning, deleted at the next start
    snapshot-0000000000004711.incoming.tmp  being received from a leader; the same

A file = one header, then chunks, then the footer, and nothing behind it. The same bytes travel from a leader
to a follower. All numbers are unsigned and little endian.

    header, 40 bytes + cluster + configuration (this layout stays the same in every later version)
     0  magic    8 bytes  "SNSNAPSH"
     8  version  u32      1
    12  crc      u32      CRC32C of the rest of the header, cluster and configuration included
    16  index    u64      of the last entry that the snapshot covers, as in the file's name
    24  term     u64      of that entry
    32  cluster  u32      length of the cluster's name, in bytes of UTF-8
    36  configuration u32 length of the configuration, in bytes
    40  the cluster's name, then the configuration in force at index, opaque to the storage

    chunk, 8 bytes + data
     0  crc      u32      CRC32C of length and data
     4  length   u32      of data, in bytes: 1 to 262144
     8  data              a piece of the machine's state: raft/machine/snapshot.py

    footer, 32 bytes
     0  crc      u32      CRC32C of the footer's other 28 bytes
     4  zero     u32      where a chunk has its length: no chunk has length 0
     8  chunks   u64      how many there are
    16  bytes    u64      of data in all chunks
    24  total    u32      CRC32C of everything before the footer: no chunk is missing, doubled or moved
    28  magic    4 bytes  "SNE1"

How files change. A file is written under its temporary name and fsynced whole; then it is renamed and the
directory is fsynced. So a *.snap file is ALWAYS complete, and one that does not read back was damaged later.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import google_crc32c

from raft.storage.record import FormatError, VersionMismatchError

VERSION = 1
MAGIC = b"SNSNAPSH"
END_MAGIC = b"SNE1"
MAX_CHUNK = 256 << 10
MAX_CLUSTER = 1024
MAX_CONFIGURATION = 1 << 20

_HEADER = struct.Struct("<8sIIQQII")
_CHUNK = struct.Struct("<II")
_FOOTER = struct.Struct("<IIQQI4s")
HEADER_SIZE, CHUNK_OVERHEAD, FOOTER_SIZE = _HEADER.size, _CHUNK.size, _FOOTER.size

_NAME = re.compile(r"snapshot-(\d{16,20})\.snap")
_TEMPORARY = re.compile(r"snapshot-\d+\.(?:taking|incoming)\.tmp")
_crc32c, _extend = google_crc32c.value, google_crc32c.extend


def snapshot_name(index: int) -> str:
    """The file name of the snapshot that covers everything up to index."""
    return f"snapshot-{index:016d}.snap"


def index_of(name: str) -> int | None:
    """The inverse of snapshot_name; None for any other file name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def temporary_name(index: int, *, incoming: bool) -> str:
    """Where a snapshot is written until it is complete."""
    return f"snapshot-{index:016d}.{'incoming' if incoming else 'taking'}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file is the leftover of an unfinished snapshot."""
    return _TEMPORARY.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot says of itself. configuration: the cluster's, as bytes that the storage only keeps."""

    index: int
    term: int
    cluster: str
    configuration: bytes


class SnapshotEncoder:
    """Makes a file's bytes in order: header() once, chunk() any number of times, footer() once."""

    def __init__(self, header: SnapshotHeader) -> None:
        """Raises ValueError if a part of the header is larger than the format allows."""
        self._header = header
        self._crc = 0
        self._chunks = 0
        self._bytes = 0
        if len(header.configuration) > MAX_CONFIGURATION or len(header.cluster.encode()) > MAX_CLUSTER:
            raise ValueError("the configuration or the cluster's name is too long for a snapshot")

    def header(self) -> bytes:
        """The file's first bytes."""
        header = self._header
        cluster = header.cluster.encode()
        fields = (header.index, header.term, len(cluster), len(header.configuration))
        rest = _HEADER.pack(MAGIC, VERSION, 0, *fields)[16:] + cluster + header.configuration
        blob = _HEADER.pack(MAGIC, VERSION, _header_crc(rest), *fields) + rest[24:]
        self._crc = _crc32c(blob)
        return blob

    def chunk(self, data: bytes) -> bytes:
        """data as a chunk. Raises ValueError unless it has 1 to MAX_CHUNK bytes."""
        if not 1 <= len(data) <= MAX_CHUNK:
            raise ValueError(f"a chunk of {len(data)} bytes, it must have 1 to {MAX_CHUNK}")
        length = len(data).to_bytes(4, "little")
        crc: int = _extend(_crc32c(length), data)
        blob = crc.to_bytes(4, "little") + length + data
        self._crc = _extend(self._crc, blob)
        self._chunks += 1
        self._bytes += len(data)
        return blob

    def footer(self) -> bytes:
        """The file's last bytes."""
        fields = (0, self._chunks, self._bytes, self._crc, END_MAGIC)
        return _FOOTER.pack(_crc32c(_FOOTER.pack(0, *fields)[4:]), *fields)


class SnapshotDecoder:
    """Verifies a file's bytes as they come, in pieces of any size.

    header: None until it is complete; finished: the footer came and everything agreed.
    """

    def __init__(self) -> None:
        self.header: SnapshotHeader | None = None
        self.finished = False
        self._waiting = bytearray()  # bytes not yet understood
        self._at = 0  # offset in the file of the first of them
        self._crc = 0
        self._chunks = 0
        self._bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the chunks that are complete now.

        Raises FormatError with the byte at which something is wrong, VersionMismatchError.
        """
        self._waiting += data
        if self.header is None and not self._take_header():
            return []
        found: list[bytes] = []
        while not self.finished and len(self._waiting) >= CHUNK_OVERHEAD:
            crc, length = _CHUNK.unpack_from(self._waiting)
            if length > MAX_CHUNK:
                raise FormatError(self._at, f"a chunk of {length} bytes, the limit is {MAX_CHUNK}")
            if length == 0:
                if len(self._waiting) < FOOTER_SIZE:
                    break
                self._take_footer()
                continue
            if len(self._waiting) < CHUNK_OVERHEAD + length:
                break
            blob = bytes(self._waiting[: CHUNK_OVERHEAD + length])
            if _crc32c(blob[4:]) != crc:
                raise FormatError(self._at, f"chunk {self._chunks + 1} has a wrong checksum")
            self._chunks += 1
            self._bytes += length
            self._pass(blob)
            found.append(blob[CHUNK_OVERHEAD:])
        if self.finished and self._waiting:
            raise FormatError(self._at, "there is something behind the end")
        return found

    def end(self) -> None:
        """Nothing more comes. Raises FormatError if the file is not complete."""
        if not self.finished:
            raise FormatError(self._at + len(self._waiting), "the snapshot is cut short")

    def _pass(self, blob: bytes) -> None:
        self._crc = _extend(self._crc, blob)
        self._at += len(blob)
        del self._waiting[: len(blob)]

    def _take_header(self) -> bool:
        size = header_size(bytes(self._waiting[:HEADER_SIZE]))
        if size is None or len(self._waiting) < size:
            return False
        blob = bytes(self._waiting[:size])
        self.header = decode_header(blob)
        self._pass(blob)
        return True

    def _take_footer(self) -> None:
        found = decode_footer(bytes(self._waiting[:FOOTER_SIZE]), self._at)
        if found != (self._chunks, self._bytes, self._crc):
            raise FormatError(self._at, "the footer does not fit the chunks: some are missing or moved")
        self._at += FOOTER_SIZE
        del self._waiting[:FOOTER_SIZE]
        self.finished = True


def _header_crc(rest: bytes) -> int:
    return int(_crc32c(MAGIC + VERSION.to_bytes(4, "little") + rest))


def header_size(blob: bytes) -> int | None:
    """How long the header is that begins with these bytes; None if that takes more than are there.

    Raises FormatError, so that nonsense is not waited for.
    """
    magic = blob[: len(MAGIC)]
    if magic != MAGIC[: len(magic)]:
        raise FormatError(0, "not a snapshot: wrong magic")
    if len(blob) < HEADER_SIZE:
        return None
    *_, cluster, configuration = _HEADER.unpack_from(blob)
    if cluster > MAX_CLUSTER or configuration > MAX_CONFIGURATION:
        raise FormatError(32, "impossible lengths in the snapshot's header")
    return int(HEADER_SIZE + cluster + configuration)


def decode_header(blob: bytes) -> SnapshotHeader:
    """A whole header, header_size bytes. Raises FormatError; VersionMismatchError for another version."""
    _, version, crc, index, term, cluster, _ = _HEADER.unpack_from(blob)
    if _crc32c(blob[:12] + blob[16:]) != crc:
        raise FormatError(0, "the snapshot's header has a wrong checksum")
    if version != VERSION:
        raise VersionMismatchError(version)
    if index < 1 or term < 1:
        raise FormatError(16, f"impossible snapshot: index {index}, term {term}")
    try:
        name = blob[HEADER_SIZE : HEADER_SIZE + cluster].decode()
    except UnicodeDecodeError:
        raise FormatError(HEADER_SIZE, "the cluster's name is not UTF-8") from None
    return SnapshotHeader(index, term, name, blob[HEADER_SIZE + cluster :])


def decode_footer(blob: bytes, at: int) -> tuple[int, int, int]:
    """(chunks, bytes, total crc) of a footer at byte `at`. Raises FormatError."""
    crc, zero, chunks, size, total, magic = _FOOTER.unpack(blob)
    if zero != 0 or magic != END_MAGIC or _crc32c(blob[4:]) != crc:
        raise FormatError(at, "the snapshot's footer has a wrong checksum")
    return chunks, size, total
