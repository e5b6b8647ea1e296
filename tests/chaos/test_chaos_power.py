"""The disk that loses what is not synced: what is written is read, and a kill takes all that no sync has."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.power import SECTOR, Unsynced
from tests.node.cluster import ROOT


class Lazy(random.Random):
    """Nothing is written early."""

    def random(self) -> float:
        return 0.9


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


def test_what_is_written_is_read_and_only_a_sync_brings_it_to_the_file(tmp_path: Path) -> None:
    disk, fd = Unsynced(Lazy()), opened(tmp_path / "file")
    os.pwrite(fd, b"abcdefgh", 0)
    assert (
        disk.pwrite(fd, b"XY", 2) == 2 and disk.pwrite(fd, b"Z", 3) == 1 and disk.pwrite(fd, b"new", 8) == 3
    )
    assert (tmp_path / "file").read_bytes() == b"abcdefgh\0\0\0"
    other = opened(tmp_path / "file")  # another descriptor of the same file sees the same
    for each in (fd, other):
        assert disk.overlay(each, os.pread(each, 20, 0), 0) == b"abXZefghnew"
    assert disk.overlay(fd, os.pread(fd, 2, 3), 3) == b"Ze"
    disk.flush(other)
    assert (tmp_path / "file").read_bytes() == b"abXZefghnew"
    disk.pwrite(fd, b"12345", 0)
    disk.cut(fd, 3)
    os.ftruncate(fd, 3)
    disk.flush(fd)
    assert (tmp_path / "file").read_bytes() == b"123"
    os.close(fd)
    os.close(other)


def test_a_file_that_goes_takes_its_bytes_with_it(tmp_path: Path) -> None:
    disk, path = Unsynced(Lazy()), tmp_path / "file"
    fd = opened(path)
    disk.pwrite(fd, b"old", 0)
    disk.forget(path)
    assert disk.overlay(fd, b"...", 0) == b"..."
    os.close(fd)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_early_is_whole_sectors_or_all(tmp_path: Path, seed: int) -> None:
    disk, fd = Unsynced(random.Random(seed)), opened(tmp_path / "file")
    os.pwrite(fd, bytes(4 * SECTOR), 0)
    disk.pwrite(fd, b"x" * 1500, 100)
    early = (tmp_path / "file").read_bytes().count(b"x")
    assert early in {0, SECTOR - 100, 2 * SECTOR - 100, 3 * SECTOR - 100, 1500}
    disk.flush(fd)
    assert (tmp_path / "file").read_bytes().count(b"x") == 1500
    os.close(fd)


@pytest.mark.process
@pytest.mark.parametrize("synced", [True, False])
def test_a_killed_process_keeps_what_it_has_synced_and_nothing_else(tmp_path: Path, synced: bool) -> None:
    program = f"""
import os, random, signal
from pathlib import Path
from tests.chaos.power import lose_unsynced_bytes
from tests.chaos.test_chaos_power import Lazy
lose_unsynced_bytes(Lazy())
from raft.storage.log_store import LogStore
from raft.storage.watched_disk import WatchedDisk
disk = WatchedDisk()
fd = disk.open(Path({str(tmp_path / "file")!r}), create=True)
assert disk.pwrite(fd, b"acknowledged", 0) == 12 and disk.pread(fd, 12, 0) == b"acknowledged"
if {synced}:
    disk.fdatasync(fd)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == (b"acknowledged" if synced else bytes(12))
