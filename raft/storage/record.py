"""The disk format of the log, version 1, and its codec (pure: bytes in, values out).

The log is a row of segment files in the node's data directory:

    log-0000000000000001.seg      named by the index of its first entry, at least 16 decimal digits
    log-0000000000004711.seg      begins where the one before ends
    prealloc-1.tmp                a segment to come; has no meaning, deleted when the log is opened

A segment file = one header, then records without gaps, then zeros (or nothing) up to the end of the file.
All numbers are unsigned and little endian. Everything is aligned to 8 bytes.

    header, 32 bytes (this layout stays the same in every later version)
     0  magic    8 bytes  "SNRAFTLG"
     8  version  u32      1
    12  crc      u32      CRC32C of the header's other 28 bytes
    16  first    u64      index of the segment's first entry, as in the file's name
    24  synced   u64      index known durable on this node when the segment was made

    record, 40 bytes + data + padding
     0  crc      u32      CRC32C of everything after it, padding included
     4  length   u32      of data, in bytes
     8  index    u64      one more than the record before
    16  term     u64      at least that of the record before
    24  synced   u64      index known durable on this node when the record was written; less than index
    32  kind     u8       raft.core.entry.EntryKind; 7 zero bytes follow
    40  data     length bytes, opaque to the storage, then zeros up to a multiple of 8

How files change. A segment is filled with zeros and gets its header under a temporary name; only when all of
that is fsynced does it get its real name, and the directory is fsynced before the first record goes in. So a
log-*.seg file ALWAYS has a valid header. Records are written behind the last one and become durable with the
next fdatasync. The end of the log only ever moves back by cutting the file there (ftruncate, fsync) after
removing the later files, newest first, with a directory fsync after each: what is cut never comes back, and
no record is ever written over an older one. A file that was cut takes no more records than fit into what is
left of it; the log goes on in the next segment.

How it is read again. At the first bad record, of index b at byte X (checksum, length, zeros where something
still follows, or a next segment that does not begin at b), the tail was either torn by a crash, which is
normal, or damaged after it was safe, which is corruption. `synced` tells which: if any later valid record or
segment header says synced >= b, b had been durable. Then nothing is touched and the open fails, naming file
and byte.
Otherwise nothing from b on was ever promised to anyone: the log is cut at X. (A durable last batch, after
which nothing was ever written, cannot be told from a torn one; only another member has the evidence.)
A record with a valid checksum but a wrong index, a falling term or synced >= index is never a torn write
and always refused. With storage.fsync off nothing is known durable, synced stays 0 and every bad record
counts as torn.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c

from raft.core.entry import Entry, EntryKind

VERSION = 1
MAGIC = b"SNRAFTLG"
HEADER_SIZE = 32
RECORD_OVERHEAD = 40
MAX_DATA = 0xFFFF_FFF0  # length is a u32; the padding must not overflow it

_HEADER = struct.Struct("<8sIIQQ")
_CRC = struct.Struct("<I")
_BODY = struct.Struct("<IQQQQ")  # the record's fixed part without its crc
_RECORD = struct.Struct("<IIQQQQ")
_PADDING = [bytes(n) for n in range(8)]
_CONFIGURATION = EntryKind.CONFIGURATION.value
_PLAUSIBLE_INDEX = 1 << 48  # quick filter when looking for records among garbage; no log gets that long
_crc32c = google_crc32c.value


class FormatError(ValueError):
    """Bytes that are not what they should be. The caller adds the file's name. offset is in bytes."""

    def __init__(self, offset: int, reason: str) -> None:
        self.offset = offset
        self.reason = reason
        super().__init__(f"byte {offset}: {reason}")


class VersionMismatchError(ValueError):
    """A valid header of another format version."""

    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__(f"format version {found}")


def encode_header(first_index: int, synced: int) -> bytes:
    """The header of a segment whose first entry is first_index."""
    checked = MAGIC + VERSION.to_bytes(4, "little") + struct.pack("<QQ", first_index, synced)
    return _HEADER.pack(MAGIC, VERSION, _crc32c(checked), first_index, synced)


def decode_header(blob: bytes) -> tuple[int, int]:
    """(first index, synced) of a segment. Raises FormatError, VersionMismatchError for another version."""
    if len(blob) < HEADER_SIZE:
        raise FormatError(0, f"the segment header is cut short: {len(blob)} of {HEADER_SIZE} bytes")
    magic, version, crc, first, synced = _HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise FormatError(0, "not a log segment: wrong magic")
    if _crc32c(blob[:12] + blob[16:HEADER_SIZE]) != crc:
        raise FormatError(0, "the segment header has a wrong checksum")
    if version != VERSION:
        raise VersionMismatchError(version)
    if first < 1 or synced >= first:
        raise FormatError(0, f"impossible segment header: first index {first}, synced {synced}")
    return first, synced


def record_size(data_length: int) -> int:
    """Bytes that a record with that much data takes on disk."""
    return RECORD_OVERHEAD + ((data_length + 7) & ~7)


def encode_records(entries: Sequence[Entry], synced: int, offset: int) -> tuple[list[bytes], list[int], int]:
    """Encode entries for writing at byte `offset` of a segment.

    Returns the pieces to join, the offset of each record, and the offset behind the last. Raises ValueError
    for data longer than MAX_DATA.
    """
    pieces: list[bytes] = []
    offsets: list[int] = []
    pack_body, pack_crc, crc32c, extend = _BODY.pack, _CRC.pack, _crc32c, google_crc32c.extend
    for entry in entries:
        data = entry.data
        length = len(data)
        if length > MAX_DATA:
            raise ValueError(f"entry {entry.index} has {length} bytes of data, the limit is {MAX_DATA}")
        body = pack_body(length, entry.index, entry.term, synced, entry.kind)
        padding = -length & 7
        offsets.append(offset)
        offset += RECORD_OVERHEAD + length + padding
        if length < 1024:  # copying a little is cheaper than another call
            body += data + _PADDING[padding]
            pieces += (pack_crc(crc32c(body)), body)
        else:
            crc = extend(crc32c(body), data)
            if padding:
                crc = extend(crc, _PADDING[padding])
            pieces += (pack_crc(crc), body, data, _PADDING[padding])
    return pieces, offsets, offset


def decode_records(blob: bytes, start: int, count: int, index: int) -> list[Entry]:
    """Decode `count` records, the first of index `index` at byte `start` of blob.

    Raises FormatError with the offset in blob of the record that is not what it should be.
    """
    entries: list[Entry] = []
    unpack, crc32c, size, offset = _RECORD.unpack_from, _crc32c, len(blob), start
    for expected in range(index, index + count):
        if offset + RECORD_OVERHEAD > size:
            raise FormatError(offset, f"record {expected} is cut short")
        crc, length, found, term, _, kind = unpack(blob, offset)
        body = offset + RECORD_OVERHEAD
        end = body + ((length + 7) & ~7)
        if end > size:
            raise FormatError(offset, f"record {expected} is cut short")
        if crc32c(blob[offset + 4 : end]) != crc:
            raise FormatError(offset, f"record {expected} has a wrong checksum")
        if found != expected:
            raise FormatError(offset, f"record {found} stands where {expected} should be")
        entries.append(Entry(found, term, kind, blob[body : body + length]))
        offset = end
    return entries


@dataclass(slots=True)
class Scan:
    """What one segment holds. offsets: where each record begins; end: behind the last good one."""

    offsets: array[int]
    end: int
    last_term: int
    synced: int  # the highest value in any record
    runs: list[tuple[int, int]]  # (index, term) wherever a record's term differs from the one before
    configurations: list[int]  # the indexes of the records of that kind
    fault: str | None = None  # why the record at `end` is bad; None: the log ends there properly


def scan_segment(blob: bytes, first_index: int, last_term: int) -> Scan:
    """Verify all records of a segment (blob = the whole file) up to the first bad one or the end.

    last_term: of the record before the segment's first. Raises FormatError for a record that no crash can
    have left behind: valid checksum, impossible content.
    """
    offsets = array("Q")
    scan = Scan(offsets, HEADER_SIZE, last_term, 0, [], [])
    unpack, crc32c, add = _RECORD.unpack_from, _crc32c, offsets.append
    offset, size, expected, best = HEADER_SIZE, len(blob), first_index, 0
    while offset + RECORD_OVERHEAD <= size:
        crc, length, index, term, synced, kind = unpack(blob, offset)
        end = offset + RECORD_OVERHEAD + ((length + 7) & ~7)
        if end > size:
            scan.fault = f"record {expected}: its length {length} runs past the end of the file"
            break
        if not index and not crc:
            break  # zeros; whether only zeros follow is checked below
        if crc32c(blob[offset + 4 : end]) != crc:
            scan.fault = f"record {expected} has a wrong checksum"
            break
        if index != expected or synced >= index or kind > 255:
            raise FormatError(offset, f"record {index} (synced {synced}) stands where {expected} should be")
        if term != last_term:
            if term < last_term:
                raise FormatError(offset, f"record {index} has term {term} after term {last_term}")
            scan.runs.append((index, term))
            last_term = term
        if kind == _CONFIGURATION:
            scan.configurations.append(index)
        if synced > best:
            best = synced
        add(offset)
        offset = end
        expected += 1
    scan.end, scan.last_term, scan.synced = offset, last_term, best
    if scan.fault is None and blob[offset:] != bytes(size - offset):
        scan.fault = f"record {expected}: no record, but not zeros either"
    return scan


def find_evidence(blob: bytes, start: int, bad_index: int) -> tuple[int, int] | None:
    """Look among garbage for a record that proves that entry bad_index had been durable on this node.

    Searches blob from byte start at every multiple of 8 for a valid record with synced >= bad_index; returns
    its (offset, index), or None.
    """
    start = (start + 7) & ~7
    used = blob[start:].rstrip(b"\0")
    words = array("Q")
    words.frombytes(used + _PADDING[-len(used) & 7])
    if sys.byteorder == "big":
        words.byteswap()
    for position, synced in enumerate(words):
        if position < 3 or not bad_index <= synced < _PLAUSIBLE_INDEX or words[position - 2] <= synced:
            continue
        offset = start + 8 * (position - 3)
        if offset + RECORD_OVERHEAD > len(blob):
            break
        crc, length, index, _, _, kind = _RECORD.unpack_from(blob, offset)
        end = offset + RECORD_OVERHEAD + ((length + 7) & ~7)
        if kind <= 255 and end <= len(blob) and _crc32c(blob[offset + 4 : end]) == crc:
            return offset, index
    return None
