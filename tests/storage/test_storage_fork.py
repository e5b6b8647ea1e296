"""A snapshot written by a forked child: whole, harmless to the parent, and every way of failing is told."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raft.machine.machine import Machine
from raft.runtime.snapshotting import (
    ChildSnapshot,
    Outcome,
    Report,
    Result,
    fork_result,
    fork_snapshot,
    take_snapshot,
)
from raft.storage.disk import Disk
from raft.storage.snapshots import SnapshotStore

ROOT = Path(__file__).resolve().parents[2]
OPEN = Path("/proc/self/fd")
children: list[ChildSnapshot] = []


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.fixture(autouse=True)
def no_child_stays() -> Iterator[None]:
    yield
    for child in children:
        child.cancel()
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
    children.clear()


def start(write: Callable[[Report], None], **options: float) -> ChildSnapshot:
    child = fork_snapshot(write, **options)  # type: ignore[arg-type]
    children.append(child)
    return child


def end_of(child: ChildSnapshot, limit_s: float = 20) -> Outcome:
    deadline = time.monotonic() + limit_s
    while (outcome := child.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return outcome


def filled(keys: int = 20_000) -> Machine:
    machine = Machine("test")
    commands = [[b"SET", b"key %d" % number, b"%d" % number * 10] for number in range(keys)]
    machine.apply_commands(1, 1, 1000, commands)
    return machine


def test_the_snapshot_is_the_state_at_the_fork(tmp_path: Path) -> None:
    machine, store = filled(), SnapshotStore.open(tmp_path, "test")
    digest = machine.digest()
    child = take_snapshot(machine, store, b"configuration")
    children.append(child)
    index = 1
    while child.poll() is None:  # the parent goes on meanwhile
        index += 1
        machine.apply_commands(index, 1, 1000, [[b"SET", b"key %d" % index, b"new"], [b"DEL", b"key 7"]])
    outcome = child.poll()
    assert outcome is not None
    assert (outcome.result, outcome.message) == (Result.DONE, "")
    assert child.progress == (20_000, 20_000)
    info = store.adopt(1)
    assert (info.index, info.term, info.configuration) == (1, 1, b"configuration")
    loaded = Machine.load("test", store.open_chunks(info))
    assert loaded.digest() == digest != machine.digest()
    assert names(tmp_path) == ["snapshot-0000000000000001.snap"]


def test_errors_are_told_with_their_kind(tmp_path: Path) -> None:
    class FullDisk(Disk):
        def __init__(self, error: int) -> None:
            self.error = error

        def pwrite(self, fd: int, data: bytes, offset: int) -> int:
            if offset > 300_000:
                raise OSError(self.error, os.strerror(self.error))
            return os.pwrite(fd, data, offset)

    machine = filled()
    for error, result in ((errno.ENOSPC, Result.DISK_FULL), (errno.EIO, Result.FAILED)):
        store = SnapshotStore.open(tmp_path, "test", disk=FullDisk(error))
        child = take_snapshot(machine, store, b"")
        children.append(child)
        outcome = end_of(child)
        assert outcome.result is result
        assert "snapshot-0000000000000001.taking.tmp" in outcome.message
        assert names(tmp_path) == [], "a failed child cleans up"
    outcome = end_of(take_snapshot(machine, SnapshotStore.open(tmp_path, "test"), b""))
    assert outcome.result is Result.DONE


def raise_it(error: BaseException) -> Callable[[Report], None]:
    def write(_report: Report) -> None:
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("what is it"), "ValueError: what is it"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (SystemExit(0), "SystemExit: 0"),
        (RuntimeError("é" * 5000), "RuntimeError: é"),
    ],
)
def test_any_exception_is_a_failure(error: BaseException, message: str) -> None:
    outcome = end_of(start(raise_it(error)))
    assert outcome.result is Result.FAILED
    assert outcome.message.startswith(message)
    assert len(outcome.message) < 2100


def test_a_child_may_hand_back_a_few_bytes() -> None:
    child = fork_result(lambda: bytes(range(256)) * 7)
    children.append(child)
    assert end_of(child).result is Result.DONE
    assert child.result == bytes(range(256)) * 7
    assert child.progress is None
    empty = fork_result(lambda: b"")
    children.append(empty)
    assert end_of(empty).result is Result.DONE and empty.result == b""


@pytest.mark.parametrize("compute", [lambda: b"x" * 3000, lambda: [][0]])
def test_a_child_without_a_result_has_failed(compute: Callable[[], bytes]) -> None:
    child = fork_result(compute)
    children.append(child)
    outcome = end_of(child)
    assert outcome.result is Result.FAILED and outcome.message != ""
    assert child.result is None


def test_a_killed_child_is_told_and_what_it_left_is_removed(tmp_path: Path) -> None:
    store = SnapshotStore.open(tmp_path, "test")

    def write(report: Report) -> None:
        writer = store.writer(9, 1, b"")
        writer.write(b"half")
        report(1, 2)
        signal.pause()

    child = start(write)
    wait_until(lambda: child.poll() is None and child.progress == (1, 2))
    os.kill(child.pid, signal.SIGKILL)
    outcome = end_of(child)
    assert (outcome.result, outcome.message) == (Result.KILLED, "killed by signal 9")
    assert names(tmp_path) != []
    store.discard_unfinished()
    assert names(tmp_path) == []
    assert child.poll() is outcome


def wait_until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_child_over_its_time_is_killed() -> None:
    outcome = end_of(start(lambda _: time.sleep(60), timeout_s=0.1))
    assert (outcome.result, outcome.message) == (Result.TIMEOUT, "took too long")
    assert outcome.seconds < 10


def test_a_child_can_be_cancelled() -> None:
    child = start(lambda _: time.sleep(60))
    assert child.cancel().result is Result.CANCELLED
    assert child.cancel().result is Result.CANCELLED
    done = start(lambda _: None)
    end_of(done)
    assert done.cancel().result is Result.DONE


def test_the_child_has_none_of_the_parents_descriptors_and_a_low_priority(tmp_path: Path) -> None:
    """A socket that stayed open in the child would never look closed to its other end."""
    left, right = socket.socketpair()
    answer = tmp_path / "answer"

    def write(report: Report) -> None:
        found = names(OPEN)
        answer.write_text(f"{len(found)} {os.nice(0)} {signal.getsignal(signal.SIGTERM).name}")  # type: ignore[union-attr]
        report(1, 1)
        signal.pause()

    child = start(write)
    wait_until(lambda: child.poll() is None and child.progress == (1, 1))
    right.close()
    left.settimeout(5)
    assert left.recv(1) == b"", "the other end sees the close while the child runs"
    left.close()
    fds, nice, handler = answer.read_text().split()
    assert (fds, handler) == ("5", "SIG_DFL")  # 0, 1, 2, the pipe and the listing itself
    assert int(nice) >= 10


def test_a_talkative_child_does_not_wait_for_the_parent() -> None:
    def write(report: Report) -> None:
        for _ in range(100_000):
            report(5, 5)

    child = start(write)
    time.sleep(0.05)
    assert end_of(child).result is Result.DONE
    assert child.progress == (5, 5)


def test_it_works_beside_threads_that_hold_locks(tmp_path: Path) -> None:
    """Forked on a thread that is not the main one, while others are busy with locks and output."""
    stop = threading.Event()
    lock = threading.Lock()

    def busy() -> None:
        while not stop.is_set():
            with lock:
                sys.stderr.write("")
                time.sleep(0.0001)

    threads = [threading.Thread(target=busy) for _ in range(4)]
    machine = filled(2000)
    outcomes: list[Outcome] = []

    def worker() -> None:
        for number in range(10):
            directory = tmp_path / str(number)
            directory.mkdir()
            child = take_snapshot(machine, SnapshotStore.open(directory, "test"), b"")
            children.append(child)
            outcomes.append(end_of(child))

    threads.append(threading.Thread(target=worker))
    for thread in threads:
        thread.start()
    threads[-1].join()
    stop.set()
    for thread in threads:
        thread.join()
    assert [outcome.result for outcome in outcomes] == [Result.DONE] * 10


def test_the_child_dies_with_its_parent() -> None:
    script = (
        "import sys, time, os\n"
        "from raft.runtime.snapshotting import fork_snapshot\n"
        "child = fork_snapshot(lambda _: time.sleep(60))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(0.3)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, timeout=30
    )
    pid = int(done.stdout)
    wait_until(lambda: not alive(pid), 5)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_descriptor_and_no_child_is_left_behind() -> None:
    before = len(names(OPEN))
    for _ in range(5):
        end_of(start(lambda _: None))
        end_of(start(raise_it(ValueError("x"))))
        start(lambda _: time.sleep(60)).cancel()
    assert len(names(OPEN)) == before
