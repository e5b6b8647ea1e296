"""Frames: how bytes between two nodes are cut into messages. No socket, no thread, no clock in here.

The wire format (all integers big-endian)
=========================================

    offset  size  field
         0     4  magic     b"SNRF" (super node raft frame)
         4     1  version   WIRE_VERSION of the sender
         5     1  type      a FrameType
         6     2  flags     0; a receiver refuses any flag it does not know
         8     4  length    bytes of the payload, at most MAX_PAYLOAD_BYTES
        12     4  head crc  CRC-32C over bytes 0-11: a broken length shows at once, not 16 MiB later
        16     4  crc       CRC-32C over bytes 0-11 and the payload
        20     -  payload   msgpack; its meaning belongs to the type

A connection carries one HELLO from the dialer, one WELCOME or REFUSED back, and from then on only MESSAGE
frames from the dialer (raft/transport/handshake.py, codec.py). HELLO, WELCOME and REFUSED are at most
MAX_HELLO_BYTES long. A byte stream that breaks these rules cannot be trusted any further: whoever reads it
drops the connection and never looks for a next frame in it. Raft sends again what is lost.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import google_crc32c

MAGIC = b"SNRF"
WIRE_VERSION = 1
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
MAX_HELLO_BYTES = 1024

_HEADER = struct.Struct(">4sBBHIII")
_CHECKED = struct.Struct(">4sBBHI")  # the part of the header that the CRCs cover
_CRCS = struct.Struct(">II")
HEADER_BYTES = _HEADER.size


class FrameType(IntEnum):
    """What a frame is for; the numbers stand on the wire and never change."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    MESSAGE = 4


_FRAME_TYPES = {int(each): each for each in FrameType}


class FrameError(Exception):
    """The peer's bytes are not a frame: drop the connection."""


class BadMagicError(FrameError):
    """The bytes do not begin like a frame: whoever sends them speaks something else."""


class BadVersionError(FrameError):
    """The peer speaks another version of this wire format. theirs and ours are the two versions."""

    def __init__(self, theirs: int, ours: int) -> None:
        super().__init__(f"the peer speaks wire version {theirs}, this node speaks {ours}")
        self.theirs = theirs
        self.ours = ours


class BadHeaderError(FrameError):
    """A frame type or a flag that this version does not know."""


class FrameTooLongError(FrameError):
    """A payload longer than the cap, in bytes; raised before any of it is kept."""

    def __init__(self, length: int, cap: int) -> None:
        super().__init__(f"a payload of {length} bytes, at most {cap} are allowed")
        self.length = length
        self.cap = cap


class BadChecksumError(FrameError):
    """The CRC does not match: the bytes were changed on the way."""


def encode_frame(frame_type: FrameType, payload: bytes, max_payload: int = MAX_PAYLOAD_BYTES) -> bytes:
    """The bytes of one frame.

    Raises FrameTooLongError if payload is longer than max_payload bytes. Any thread may call it.
    """
    if len(payload) > max_payload:
        raise FrameTooLongError(len(payload), max_payload)
    checked = _CHECKED.pack(MAGIC, WIRE_VERSION, frame_type, 0, len(payload))
    head_crc: int = google_crc32c.value(checked)
    return b"".join((checked, _CRCS.pack(head_crc, google_crc32c.extend(head_crc, payload)), payload))


class FrameDecoder:
    """Cuts a stream of bytes into frames, however the network has split it. One thread at a time.

    max_payload (bytes) caps a frame. What is held back between two feeds is less than one frame; every byte
    is copied at most twice. After a FrameError the decoder stays broken and raises the same error again.
    """

    def __init__(self, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_payload = max_payload
        self._pending = bytearray()  # the beginning of a frame whose end has not come yet
        self._need = HEADER_BYTES  # length that _pending must reach before it can be looked at again
        self._error: FrameError | None = None

    @property
    def missing_bytes(self) -> int:
        """How many more bytes belong to the frame under way for certain: who reads no more than these
        reads nothing of the frame behind it."""
        return self._need - len(self._pending)

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[FrameType, bytes]]:
        """Take the next bytes of the stream; returns the (type, payload) of every frame they complete.

        What is needed of data is copied: the caller may use its buffer again. Raises a FrameError at the
        first bad frame; frames in front of it in the same data are dropped with it.
        """
        if self._error is not None:
            raise self._error
        try:
            with memoryview(data) as view:
                return self._feed(view)
        except FrameError as error:
            self._error = error
            self._pending = bytearray()
            raise

    def _feed(self, view: memoryview) -> list[tuple[FrameType, bytes]]:
        frames: list[tuple[FrameType, bytes]] = []
        offset = self._complete_pending(view, frames) if self._pending else 0
        end = len(view)
        while end - offset >= HEADER_BYTES:
            frame_type, length, head_crc, crc = self._check_header(view, offset)
            start = offset + HEADER_BYTES
            if end - start < length:
                self._need = HEADER_BYTES + length
                break
            payload = bytes(view[start : start + length])
            _check_crc(head_crc, payload, crc)
            frames.append((frame_type, payload))
            offset = start + length
        if offset < end:
            _check_magic(bytes(view[offset : offset + len(MAGIC)]))
            self._pending += view[offset:]
        return frames

    def _complete_pending(self, view: memoryview, frames: list[tuple[FrameType, bytes]]) -> int:
        """Go on with the frame that an earlier feed began; returns how many bytes of view that took."""
        pending = self._pending
        offset = 0
        while True:
            taken = min(self._need - len(pending), len(view) - offset)
            pending += view[offset : offset + taken]
            offset += taken
            if len(pending) < self._need:
                _check_magic(bytes(pending[: len(MAGIC)]))
                return offset
            frame_type, length, head_crc, crc = self._check_header(pending, 0)
            if len(pending) == HEADER_BYTES + length:
                break
            self._need = HEADER_BYTES + length
        with memoryview(pending) as whole:
            payload = bytes(whole[HEADER_BYTES:])
        _check_crc(head_crc, payload, crc)
        frames.append((frame_type, payload))
        self._pending = bytearray()
        self._need = HEADER_BYTES
        return offset

    def _check_header(self, data: memoryview | bytearray, offset: int) -> tuple[FrameType, int, int, int]:
        """Type, payload length, head CRC and CRC of the header at offset; raises what is wrong with it.

        Magic and version come first: another version may mean anything by the bytes behind them.
        """
        magic, version, frame_type, flags, length, head_crc, crc = _HEADER.unpack_from(data, offset)
        if magic != MAGIC:
            raise BadMagicError(f"a frame begins with {MAGIC!r}, not with {magic!r}")
        if version != WIRE_VERSION:
            raise BadVersionError(version, WIRE_VERSION)
        if google_crc32c.value(bytes(data[offset : offset + _CHECKED.size])) != head_crc:
            raise BadChecksumError("CRC mismatch in the header of a frame")
        known = _FRAME_TYPES.get(frame_type)
        if known is None:
            raise BadHeaderError(f"unknown frame type {frame_type}")
        if flags:
            raise BadHeaderError(f"unknown frame flags {flags:#06x}")
        if length > self._max_payload:
            raise FrameTooLongError(length, self._max_payload)
        return known, length, head_crc, crc


def _check_magic(start: bytes) -> None:
    """Refuse foreign bytes as soon as the first of them shows, without waiting for a whole header."""
    if not MAGIC.startswith(start):
        raise BadMagicError(f"a frame begins with {MAGIC!r}, not with {start!r}")


def _check_crc(head_crc: int, payload: bytes, crc: int) -> None:
    if google_crc32c.extend(head_crc, payload) != crc:
        raise BadChecksumError(f"CRC mismatch in a frame of {len(payload)} bytes")
