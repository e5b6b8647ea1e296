"""Cutting a damaged log where the cluster can give the node again what it loses.

When it is allowed (otherwise nothing is changed, and the error says what an operator can do):
 - the damage is one that a disk does: a record's or a header's checksum is wrong, or a file is missing behind
   an intact beginning of the log. What has a valid checksum and yet cannot be is a program's fault, and is
   refused;
 - the hard state is there, and not behind any record that can be read: a node that forgot its vote never goes
   on. (Identity, snapshots and the hard state's own damage are refused before the log is opened.)
 - as far as snapshot and intact log tell, there are other voters: nobody else could give anything again;
 - no damaged snapshot relies on the part that is lost;
 - fewer than MAX_ASIDE repairs have left their files here: such a disk should not be trusted any more.

In which order, each step durable before the next, so that a crash at any point is gone on from or done again:
 1. the marker (lost_entries.py): from now on the node neither votes nor campaigns;
 2. the later files get the name damaged-N-log-….seg, the newest first: what remains is a log with the same
    damage, or one that ends before it;
 3. a copy of the damaged file under such a name, then the file is cut before the bad record; or, if it has no
    good record before it, it is renamed, too.

N counts the repairs whose files are still there. Nobody but the operator removes them.

Where the damage lies in files that the snapshot covers as a whole, nothing is lost: they are renamed, and
that is all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from raft.core.effects import HardState, LostEntries
from raft.core.membership import Configuration
from raft.storage import segments
from raft.storage.disk import Disk, write_all
from raft.storage.errors import CorruptLogError, StorageError
from raft.storage.lost_entries import LostEntriesFile

logger = logging.getLogger(__name__)

MAX_ASIDE = 8
_ASIDE = re.compile(r"damaged-(\d+)-.+")
_COPY_BYTES = 1 << 20


class Repair:
    """The right to cut a damaged log. Made by NodeStorage.open, used by Recovery; on its thread.

    configuration(): in force before the log's first entry. check_snapshots(index): raises if a damaged
    snapshot needs the log to reach further than index.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        node_id: int,
        hard_state: HardState,
        marker: LostEntriesFile,
        configuration: Callable[[], Configuration],
        check_snapshots: Callable[[int], None],
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._node_id = node_id
        self._hard_state = hard_state
        self._marker = marker
        self._configuration = configuration
        self._check_snapshots = check_snapshots

    def goes_on(self, bad_index: int, path: Path) -> bool:
        """Whether a log that breaks off at bad_index, in the file path, is what a crash in the middle of a
        repair has left: what proved the damage may be set aside already."""
        if self._marker.value is None:
            return False
        return self._marker.value.from_index == bad_index or self._is_interrupted(path)

    def _is_interrupted(self, path: Path) -> bool:
        """Whether the newest repair has set files behind this one aside, but not yet this one, the last.
        (Where a file was missing there is no such one; a torn tail in its place counts as damage, too.)"""
        found = self._numbers()
        return self._marker.value is not None and bool(found) and _are_behind(found[max(found)], path.name)

    def begin(
        self,
        error: CorruptLogError,
        lost_from: int,
        newest_term: int,
        newest_configuration: Configuration | None,
    ) -> None:
        """Entries from lost_from on are to be given up. Puts the marker on disk, or raises why not.

        newest_term: of all records that can be read. newest_configuration: in the intact part of the log.
        """
        if self._hard_state.term < max(newest_term, 1):
            raise error
        configuration = newest_configuration or self._configuration()
        if not any(voter != self._node_id for voter in configuration.voters):
            raise error
        self._check_snapshots(lost_from - 1)
        if not self._is_interrupted(error.file):
            self._refuse_too_many(error)
        self._marker.add(LostEntries(lost_from, self._hard_state.term))
        logger.error(
            "%s: damaged at byte %d: %s. Entries from %d on are given up, and asked of the other members; "
            "until they are there again this node gives no vote. Check the disk",
            *(error.file, error.offset, error.reason, lost_from),
        )

    def begin_covered(self, error: CorruptLogError, snapshot_index: int) -> None:
        """The damaged files hold nothing that the snapshot of snapshot_index does not stand for."""
        self._refuse_too_many(error)
        logger.error(
            "%s: damaged at byte %d: %s. The snapshot of entry %d stands for all of it: nothing is lost. "
            "Check the disk",
            *(error.file, error.offset, error.reason, snapshot_index),
        )

    def set_aside(self, paths: Sequence[Path], copied: Path | None) -> None:
        """Rename these files, in this order, and copy the last one; each durable before the next. Raises
        OSError, StorageError."""
        names = [path.name for path in (*paths, *([copied] if copied else []))]
        number = self._number(names)
        for path in paths:
            self._disk.rename(path, self._aside(number, path))
            self._disk.fsync_dir(self._directory)
        if copied is not None:
            self._copy(copied, self._aside(number, copied))
        logger.warning("%s: set aside as damaged-%d-…: %s", self._directory, number, ", ".join(names))

    def _copy(self, source: Path, target: Path) -> None:
        disk, temporary = self._disk, self._directory / "prealloc-aside.tmp"
        if disk.exists(temporary):
            disk.unlink(temporary)
        from_fd = disk.open(source)
        try:
            to_fd = disk.open(temporary, create=True)
            try:
                for offset in range(0, disk.size(from_fd), _COPY_BYTES):
                    write_all(disk, to_fd, disk.pread(from_fd, _COPY_BYTES, offset), offset)
                disk.fsync(to_fd)
            finally:
                disk.close(to_fd)
        except OSError as error:
            raise StorageError(f"{source}: cannot keep a copy of the damaged file: {error}") from error
        finally:
            disk.close(from_fd)
        disk.rename(temporary, target)
        disk.fsync_dir(self._directory)

    def _aside(self, number: int, path: Path) -> Path:
        return self._directory / f"damaged-{number}-{path.name}"

    def _numbers(self) -> dict[int, set[str]]:
        """The names that were set aside, by number."""
        found: dict[int, set[str]] = {}
        for name in self._disk.listdir(self._directory):
            match = _ASIDE.fullmatch(name)
            if match:
                found.setdefault(int(match[1]), set()).add(name.split("-", 2)[2])
        return found

    def _number(self, names: Sequence[str]) -> int:
        """That of an earlier repair only while it goes on after a crash: nothing is ever written over."""
        found = self._numbers()
        newest = max(found, default=0)
        if newest and self._marker.value is not None and _are_behind(found[newest], max(names)):
            return newest
        return newest + 1

    def _refuse_too_many(self, error: CorruptLogError) -> None:
        numbers = self._numbers()
        if len(numbers) >= MAX_ASIDE:
            raise CorruptLogError(
                error.file,
                error.offset,
                f"{error.reason}; and this is not the first time: damaged-{min(numbers)}-… to "
                f"damaged-{max(numbers)}-… stand here already (move them away to have it repaired once more)",
            )


def _are_behind(names: Iterable[str], name: str) -> bool:
    """Whether all these segments come behind the one of this name."""
    first = segments.first_index_of(name) or 0
    return all((segments.first_index_of(each) or 0) > first for each in names)
