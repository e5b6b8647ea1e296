"""The watch over a disk that hangs: what it takes for one, what it does not, and who owns the desk then."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from raft.runtime.disk_watch import LOOKS, DiskWait, DiskWatch, HungDiskError, limit_ms
from raft.storage.watched_disk import DiskCall, WatchedDisk

LIMIT = limit_ms(600)
STEP = LIMIT / LOOKS


class Watched:
    """A watch that looks at every step of a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.calls: dict[int, DiskCall] = {}
        self.wait = DiskWait()
        self.watch = DiskWatch(self.calls, self.wait, LIMIT)
        self.watch.look(self.now)

    def begin(self, number: int, thread: int = 1) -> None:
        self.calls[thread] = DiskCall(number, "fdatasync", Path("/data/log"), self.now)

    def look(self, steps: int = 1, step_ms: float = STEP) -> str | None:
        found = None
        for _ in range(steps):
            self.now += step_ms
            found = found or self.watch.look(self.now)
        return found


def test_the_limit_leaves_room_within_two_election_timeouts() -> None:
    for longest in (600, 1000, 5000):
        # Seen one look late, two more for the answers and the end of the process.
        assert limit_ms(longest) * (1 + 3 / LOOKS) <= 2 * longest + 100
    assert limit_ms(100) == 1000, "however short elections are, a second is nothing to a disk"


def test_one_call_that_does_not_return_is_told_in_time_with_its_file() -> None:
    watched = Watched()
    watched.begin(1)
    began = watched.now
    found = None
    while found is None:
        found = watched.look()
    assert "/data/log: fdatasync has not returned for 1." in found
    assert LIMIT <= watched.now - began + 1e-6 <= LIMIT + STEP + 2e-6


def test_many_slow_calls_are_no_hanging_one() -> None:
    watched = Watched()
    for number in range(1, 20):
        watched.begin(number)
        assert watched.look(LOOKS - 2) is None


def test_a_pause_of_the_process_is_not_the_disks_fault() -> None:
    watched = Watched()
    watched.begin(1)
    assert watched.look(1, step_ms=60_000) is None
    assert watched.look(2) is None, "the call may end now"
    assert watched.look(LOOKS) is not None, "it does not"


def test_a_call_that_has_just_returned_is_forgiven() -> None:
    watched = Watched()
    watched.begin(1)
    assert watched.look(LOOKS - 1) is None
    del watched.calls[1]
    assert watched.look(LOOKS) is None


def test_any_thread_counts() -> None:
    """The segment preparer's calls, too: the worker will wait for it."""
    watched = Watched()
    for step in range(2 * LOOKS):
        watched.begin(step + 2, thread=1)
        if step == 0:
            watched.begin(1, thread=2)
        if watched.look() is not None:
            return
    pytest.fail("the second thread's call was not seen")


def test_call_after_call_for_half_a_minute_is_hanging_too() -> None:
    watched = Watched()
    with watched.wait:
        assert watched.look(int(29_000 / STEP)) is None
        assert "call after call" in str(watched.look(int(2_000 / STEP)))
    for _ in range(3):
        with watched.wait:
            assert watched.look(int(29_000 / STEP)) is None


def test_the_desk_changes_hands_only_inside_a_wait_and_for_good() -> None:
    wait = DiskWait()
    assert not wait.take()
    with wait:
        pass
    assert not wait.take()
    with pytest.raises(HungDiskError), wait:
        taken = []
        thread = threading.Thread(target=lambda: taken.append(wait.take()))
        thread.start()
        thread.join()
        assert taken == [True]
    assert wait.take()


def test_the_watched_disk_notes_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = WatchedDisk()
    fd = disk.open(tmp_path / "file", create=True)
    seen: list[str] = []

    def look(*_: object) -> int:
        seen.append(str(disk.calls[threading.get_ident()]))
        return 1

    with monkeypatch.context() as patched:
        for name in ("fdatasync", "fsync", "pwrite", "ftruncate", "pread"):
            patched.setattr(os, name, look)
        disk.fdatasync(fd)
        disk.fsync(fd)
        disk.pwrite(fd, b"x", 0)
        disk.truncate(fd, 0)
    assert seen == [f"{tmp_path}/file: {what}" for what in ("fdatasync", "fsync", "write", "truncate")]
    assert disk.calls == {}
    with pytest.raises(OSError):
        disk.fdatasync(10**6)
    assert disk.calls == {}
    disk.close(fd)
