"""Short system calls that keep the interpreter's lock. Any thread.

socket.send() gives the lock away before the call and must get it back behind it, which takes longer than the
call itself as soon as a second thread has something to do: measured with one that does the same, a send and a
recv of 5 bytes took 30 µs with the lock given away and 5.5 µs with it kept. So what cannot block and copies
little keeps it; what may take long (fdatasync, a poll that waits, a large piece) gives it away as ever.

The calls go to the C library: of compiled nodes through raft/_syscalls.c, which spares 1 to 2 µs a call, else
through ctypes. Where it is not to be had either way, and for sockets that are no plain ones (TLS), these are
the methods of the socket.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

SHORT_BYTES = 64 * 1024  # the kernel copies this in about 10 µs
_ONE = (1).to_bytes(8, sys.byteorder)
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK)


def _library() -> ctypes.PyDLL | None:
    """The C library, called with the lock held; None: do without."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.PyDLL(None, use_errno=True)
        for function in (library.send, library.recv):
            function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
            function.restype = ctypes.c_ssize_t
        library.send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
        library.write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
        library.write.restype = ctypes.c_ssize_t
    except (OSError, AttributeError):
        return None
    return library


_C = _library()
_Plain = socket.socket if _C is not None else None  # the type of a socket that these functions call for
if _C is not None:
    _c_send, _c_recv, _c_write = _C.send, _C.recv, _C.write
    _SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    _RECV_FLAGS = int(socket.MSG_DONTWAIT)


class Buffer:
    """Memory to receive into, for one thread at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self._memory = (ctypes.c_char * size).from_buffer(self.data)
        self.address = ctypes.addressof(self._memory)


def send(sock: socket.socket, data: bytes) -> int:
    """As sock.send(data) of a non-blocking socket: how many bytes it took. Raises OSError, BlockingIOError
    when it takes none."""
    size = len(data)
    if type(sock) is not _Plain or size > SHORT_BYTES:
        return sock.send(data)
    while True:
        sent: int = _c_send(sock.fileno(), data, size, _SEND_FLAGS)
        if sent >= 0:
            return sent
        _raise_unless_interrupted()


def receive(sock: socket.socket, buffer: Buffer, most: int = 0) -> int:
    """As sock.recv_into(buffer, most) of a non-blocking socket: how many bytes came, 0 at the end of the
    stream. most: 0, or more than the buffer has, is all of it. Raises OSError, BlockingIOError when there is
    nothing."""
    if not 0 < most < buffer.size:
        most = buffer.size
    if type(sock) is not _Plain:
        return sock.recv_into(buffer.view, most)
    while True:
        size: int = _c_recv(sock.fileno(), buffer.address, most, _RECV_FLAGS)
        if size >= 0:
            return size
        _raise_unless_interrupted()


class WakeUp:
    """An eventfd to be polled with other descriptors. signal() may be called by any thread at any time: the
    descriptor lives as long as anyone can name it, so that its number is nobody else's meanwhile."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def signal(self) -> None:
        """Make it readable. Raises OSError."""
        signal_eventfd(self.fd)

    def clear(self) -> None:
        """It is readable no more. The thread that polls; BlockingIOError if it was not."""
        os.eventfd_read(self.fd)

    def __del__(self) -> None:
        os.close(self.fd)


def receive_bytes(sock: socket.socket, buffer: Buffer) -> bytes:
    """What receive() gets into the buffer, b"" at the end of the stream. Raises as receive()."""
    return bytes(buffer.view[: receive(sock, buffer)])


def poll_now(epoll: select.epoll) -> list[tuple[int, int]]:
    """As epoll.poll(0). Raises OSError."""
    return epoll.poll(0)


def signal_eventfd(fd: int) -> None:
    """As os.eventfd_write(fd, 1). Raises OSError; a full counter counts as signalled."""
    if _C is None:
        os.eventfd_write(fd, 1)
        return
    while _c_write(fd, _ONE, 8) != 8:
        if ctypes.get_errno() in _AGAIN:
            return
        _raise_unless_interrupted()


def _raise_unless_interrupted() -> None:
    code = ctypes.get_errno()
    if code != errno.EINTR:
        raise OSError(code, os.strerror(code))


if not TYPE_CHECKING:
    with suppress(ImportError):  # else this node runs interpreted
        from raft._syscalls import poll_now, receive, receive_bytes, send, signal_eventfd  # noqa: F401
