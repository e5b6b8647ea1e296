"""Taking a snapshot without stopping the worker: a forked child writes the state as it was at the fork.

Why fork: the child has the machine as it is at one index, whole, without a copy being made and without the
worker waiting. The kernel shares the pages and copies one only when either side writes to it. CPython writes
to every object that it looks at (the reference count), so a dump makes the child copy most pages that hold
keys and values: for its few seconds a snapshot may take up to as much memory again as they do. The parent is
paused only while the kernel copies the page tables; docs/operations.md has the numbers.

What makes it safe beside other threads: the child has only the thread that forked, so whatever lock another
thread held at that moment stays locked in the child for ever. The child therefore runs nothing but the dump
(or the digest: raft/runtime/digesting.py), the storage's system calls and C code without locks: no logging,
no import, no print, no exit handlers. It closes every descriptor but its pipe first (a client's or peer's
socket that stays open here would never look closed), dies with its parent and is killed after a time limit.

What keeps clients from noticing: the lowest priority, a rest after each chunk, and a file that is fsynced in
small pieces (raft/storage/snapshot_files.py), so that the log's fsyncs never wait behind all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from raft.machine.machine import Machine
from raft.storage.errors import DiskFullError
from raft.storage.snapshots import SnapshotStore

TIMEOUT_S = 1800.0
NICE = 19
# The child rests after each chunk (256 KiB) for as long as the chunk took, which is long when others want the
# CPU or the disk, and a bit: so it never takes more than half a core, nor more than 40 MB/s of the disk.
REST_S = 0.006
LONGEST_REST_S = 0.025
_PROGRESS_EVERY_S = 0.1

_PR_SET_PDEATHSIG = 1
_MESSAGE_BYTES = 2000
_PROGRESS, _ERROR, _RESULT = 0, 1, 2
_RECORD = struct.Struct("<BQQ")  # kind; rows done and in all, or the length of the text behind it and 0
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded now: the child must not import or load anything

Report = Callable[[int, int], None]  # rows done, rows in all


class Result(Enum):
    """How a child ended. The value is its exit code where it has one."""

    DONE = 0
    FAILED = 1  # an error that the node must not outlive: the disk failed, or a bug
    DISK_FULL = 2  # the error to outlive: try again later
    KILLED = -1  # by a signal from elsewhere, for example the kernel's when memory ran out
    TIMEOUT = -2
    CANCELLED = -3


@dataclass(frozen=True, slots=True)
class Outcome:
    """message: what went wrong, for the log; empty when nothing did. seconds: how long it took."""

    result: Result
    message: str
    seconds: float


class ChildSnapshot:
    """A running child. Owned by the thread that forked it."""

    def __init__(self, pid: int, pipe: int, timeout_s: float, pause_s: float) -> None:
        self.pid = pid
        self.pause_s = pause_s  # how long fork() held this process up
        self.progress: tuple[int, int] | None = None  # rows done, rows in all, as last heard
        self.result: bytes | None = None  # what fork_result's compute() has returned, once it is DONE
        self._pipe = pipe
        self._started = time.monotonic()
        self._deadline = self._started + timeout_s
        self._heard = bytearray()
        self._error = ""
        self._outcome: Outcome | None = None

    def poll(self) -> Outcome | None:
        """How the child ended; None while it runs. Never waits; kills a child that is over its time."""
        if self._outcome is not None:
            return self._outcome
        self._listen()
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return self._end(Result.FAILED, "somebody else has collected its exit code")
        if pid:
            self._listen()  # what it said at its very end
            return self._end(*_result_of(status))
        if time.monotonic() >= self._deadline:
            return self._kill(Result.TIMEOUT, "took too long")
        return None

    def cancel(self) -> Outcome:
        """Kill it if it still runs, and wait for its end (milliseconds). What it wrote is a leftover."""
        return self.poll() or self._kill(Result.CANCELLED, "cancelled")

    def _kill(self, result: Result, message: str) -> Outcome:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        return self._end(result, message)

    def _end(self, result: Result, message: str) -> Outcome:
        os.close(self._pipe)
        seconds = time.monotonic() - self._started
        self._outcome = Outcome(result, self._error or message, seconds)
        return self._outcome

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, 65536):
                self._heard += data
        while len(self._heard) >= _RECORD.size:
            kind, first, second = _RECORD.unpack_from(self._heard)
            if kind == _PROGRESS:
                self.progress = (first, second)
                del self._heard[: _RECORD.size]
                continue
            if len(self._heard) < _RECORD.size + first:
                break
            text = bytes(self._heard[_RECORD.size : _RECORD.size + first])
            if kind == _RESULT:
                self.result = text
            else:
                self._error = text.decode("utf-8", "replace")
            del self._heard[: _RECORD.size + first]


def fork_snapshot(
    write: Callable[[Report], None], *, timeout_s: float = TIMEOUT_S, nice: int = NICE
) -> ChildSnapshot:
    """Fork a child that calls write(report) and ends: exit 0, 1 for an error, 2 for DiskFullError.

    Returns in the parent at once. write must keep to what this module's docstring allows; report(rows done,
    rows in all) may be called often. Raises OSError if there can be no child (memory, process limit).
    """
    return _fork(lambda pipe: write(_reporter(pipe)), timeout_s, nice)


def fork_result(
    compute: Callable[[], bytes], *, timeout_s: float = TIMEOUT_S, nice: int = NICE
) -> ChildSnapshot:
    """The same for a child that hands back a few bytes (at most 2,000): `result`, once it is DONE."""

    def work(pipe: int) -> None:
        blob = compute()
        if len(blob) > _MESSAGE_BYTES:
            raise ValueError(f"a result of {len(blob)} bytes, at most {_MESSAGE_BYTES}")
        os.write(pipe, _RECORD.pack(_RESULT, len(blob), 0) + blob)  # less than a pipe takes at once

    return _fork(work, timeout_s, nice)


def _fork(work: Callable[[int], None], timeout_s: float, nice: int) -> ChildSnapshot:
    """A child that calls work(the pipe to its parent)."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    parent = os.getpid()
    started = time.monotonic()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        _be_the_child(work, writer, parent, nice)
    pause_s = time.monotonic() - started
    os.close(writer)
    return ChildSnapshot(pid, reader, timeout_s, pause_s)


def take_snapshot(
    machine: Machine, store: SnapshotStore, configuration: bytes, *, timeout_s: float = TIMEOUT_S
) -> ChildSnapshot:
    """Fork a child that writes the machine, as it is now, to the store. Once it is DONE call
    store.adopt(index), otherwise store.discard_unfinished(). configuration: the one in force at the machine's
    applied_index. Raises OSError."""
    index, term = machine.applied_index, machine.applied_term

    def write(report: Report) -> None:
        writer = store.writer(index, term, configuration)
        try:
            began = time.monotonic()
            for chunk in machine.dump(report):
                writer.write(chunk)
                time.sleep(min(REST_S + time.monotonic() - began, LONGEST_REST_S))
                began = time.monotonic()
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    return fork_snapshot(write, timeout_s=timeout_s)


# --- in the child


def _be_the_child(work: Callable[[int], None], pipe: int, parent: int, nice: int) -> None:
    """Never returns, and never runs what the parent has registered for its own end."""
    code = Result.FAILED.value
    try:
        gc.disable()
        _detach(pipe, parent, nice)
        work(pipe)
        code = Result.DONE.value
    except DiskFullError as error:
        code = Result.DISK_FULL.value
        _tell_error(pipe, str(error))
    except BaseException as error:  # noqa: BLE001 - the parent hears of it, and this process ends
        _tell_error(pipe, f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _detach(pipe: int, parent: int, nice: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(Result.FAILED.value)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    with contextlib.suppress(OSError):
        os.nice(nice)


def _reporter(pipe: int) -> Report:
    told = 0.0

    def report(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _PROGRESS_EVERY_S or done == total:
            told = now
            with contextlib.suppress(BlockingIOError):  # the parent does not listen: never mind
                os.write(pipe, _RECORD.pack(_PROGRESS, done, total))

    return report


def _tell_error(pipe: int, text: str) -> None:
    blob = text.encode("utf-8", "replace")[:_MESSAGE_BYTES]
    with contextlib.suppress(OSError):
        os.write(pipe, _RECORD.pack(_ERROR, len(blob), 0) + blob)


# --- in the parent


def _result_of(status: int) -> tuple[Result, str]:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return Result.KILLED, f"killed by signal {-code}"
    try:
        result = Result(code)
    except ValueError:
        return Result.FAILED, f"exit code {code}"
    return result, "" if result is Result.DONE else f"exit code {code}"
