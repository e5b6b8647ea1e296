"""What a disk must hold, told by somebody who does not look at it: the independent witness of a storage.

A Witness is told of every write before it begins and after it has ended. When a process starts again on what
is left, it compares: all that was synced is there; what else is there is a prefix of what was being written;
term and vote, and the newest snapshot, are the last that were promised or one that was under way.
"""

from __future__ import annotations

from dataclasses import dataclass

from raft.core.effects import AppendLog, HardState, LogOperation, TruncateLog
from raft.core.entry import Entry
from tests.simulation.checker import violated
from tests.simulation.disk import NO_SNAPSHOT, Disk, Image, Record, Snapshot

KEPT = 4  # snapshots to remember: the storage keeps two


@dataclass(frozen=True, slots=True)
class Found:
    """What a storage says that it holds when it was opened. base: of the entry before the log's first."""

    hard_state: HardState
    snapshot: Snapshot
    base_index: int
    base_term: int
    entries: list[Entry]

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)


class Witness(Disk):
    """Disk, whose `log`, `synced` and `unsynced` are what must or may be there, and what is under way.

    lost_from: the log was damaged, so that it may end before this entry (0: it may not). has_lost: it did end
    there once, without a word.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attempt: list[Record] = []
        self.attempted_hard_state: HardState | None = None
        self.candidates: dict[int, Snapshot] = {}  # being written, or written and not yet known of
        self.kept: list[Snapshot] = [NO_SNAPSHOT]
        self.compactable = 0  # entries up to here may be gone
        self.sync_points: list[int] = []  # where the log ended at each sync
        self.power_was_cut = False
        self.lost_from = 0
        self.has_lost = False
        self.snapshot_damaged = False
        self.unused: Entry | None = None  # on the disk before the log's first: the term before it is unknown

    # --- told by the storage's user -----------------------------------------------------------------------

    def begin(self, operation: LogOperation) -> None:
        """The operation is about to be carried out."""
        self.attempt = list(operation.entries) if isinstance(operation, AppendLog) else [operation]

    def ended(self, operation: LogOperation) -> None:
        """It is carried out, and durable with the next sync."""
        self.attempt.clear()
        Disk.write(self, operation)

    def synced_now(self) -> None:
        """All that was carried out is durable."""
        if self.unsynced:
            points, changed = self.sync_points, self._lowest_change()
            while points and points[-1] >= changed:
                points.pop()
            Disk.sync(self)
            points.append(self.synced.last_index)

    def _lowest_change(self) -> int:
        """The first entry that the unsynced records write or remove."""
        return min(each.from_index if isinstance(each, TruncateLog) else each.index for each in self.unsynced)

    def snapshot_is_newest(self, index: int) -> None:
        """The storage says that its newest snapshot is now that of entry index."""
        if index <= self.snapshot.index:
            if index < self.snapshot.index:
                violated(f"the snapshot of {self.snapshot.index} became that of {index}")
            return
        if index not in self.candidates:
            violated(f"there is a snapshot of {index}, which nobody took")
        self._keep(self.candidates.pop(index))

    def _keep(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        older = [each for each in self.kept if each.index < snapshot.index]
        self.kept = [*older[-KEPT:], snapshot]

    def compacted(self, first_index: int) -> None:
        """The log begins there now."""
        gone = first_index - 1
        if gone > self.log.base_index:
            if gone > self.compactable:
                violated(f"entries up to {gone} are gone, compaction was up to {self.compactable}")
            self.log.compact(gone)
            self.synced.compact(gone)
            self.unused = None

    def crash_under_way(self, *, power_cut: bool) -> None:
        """The process is gone; what is left shows with the next start."""
        self.power_was_cut = self.power_was_cut or power_cut

    # --- the comparison -----------------------------------------------------------------------------------

    def compare(self, found: Found) -> None:
        """Raise SafetyViolation unless what was found is what must be; go on from there."""
        if found.hard_state not in (self.hard_state, self.attempted_hard_state):
            violated(f"the disk has {found.hard_state}, written was {self.hard_state}")
        self._compare_snapshot(found.snapshot)
        if not self._is_explained(found):
            begin = self.synced.base_index + 1
            violated(
                f"the disk has entries {found.base_index + 1} to {found.last_index} behind the snapshot of "
                f"{found.snapshot.index}; synced were {begin} to {self.synced.last_index}, "
                f"then {self.unsynced}, then perhaps {self.attempt}"
            )
        self._go_on(found)

    def _compare_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot == self.snapshot:
            return
        newer = self.candidates.get(snapshot.index) == snapshot and snapshot.index > self.snapshot.index
        older = self.snapshot_damaged and snapshot in self.kept
        if not newer and not older:
            violated(
                f"the disk has the snapshot of {snapshot.index}, term {snapshot.term}; the last one taken is "
                f"of {self.snapshot.index}"
            )

    def _is_explained(self, found: Found) -> bool:
        """Whether some number of the records, at least those that must have survived, makes this log."""
        image = copied(self.synced)
        records = [*self.unsynced, *self.attempt]
        needed = 0 if self.power_was_cut else len(self.unsynced)
        for number in range(len(records) + 1):
            record = records[number] if number < len(records) else None
            shortest = image.last_index
            if isinstance(record, TruncateLog):  # whole files go first, the newest at their head
                shortest = record.from_index - 1
            if self.lost_from:
                shortest = min(shortest, self.lost_from - 1)
            if number >= needed and self._fits(found, image, shortest):
                return True
            if record is not None:
                image.change(record)
        return False

    def _fits(self, found: Found, image: Image, shortest: int) -> bool:
        """Whether the log found is the image, perhaps cut, but not before `shortest`, as far as the snapshot
        lets it be one (paper figure 13, steps 6 and 7)."""
        covered, last = found.snapshot.index, found.last_index
        if covered > image.base_index and (
            covered > shortest or covered > image.last_index or image.term(covered) != found.snapshot.term
        ):
            emptied = (covered, found.snapshot.term, 0)
            if (found.base_index, found.base_term, len(found.entries)) == emptied:
                return True
            if covered > image.last_index or image.term(covered) != found.snapshot.term:
                return False
        if not shortest <= last <= image.last_index:
            return False
        base = image.base_index
        if self.unused is not None and covered == found.base_index == base - 1:
            # The older snapshot, which a damaged one has brought back, knows that term.
            used = [self.unused, *image[: last - base]]
            return found.base_term == found.snapshot.term and used == found.entries
        # The term before the first entry may be known no more: then that entry is not used.
        if not base <= found.base_index <= max(base, self.compactable) + 1:
            return False
        if found.base_index > base and found.base_index > covered:
            return False
        if found.base_term != image.term(found.base_index):
            return False
        return image[found.base_index - base : last - base] == found.entries

    def _go_on(self, found: Found) -> None:
        self.has_lost = self.has_lost or found.last_index < self.synced.last_index
        known = {entry.index: entry for entry in self.log}
        if found.base_index != self.synced.base_index:
            self.unused = known.get(found.base_index)
        entries = [known[e.index] if known.get(e.index) == e else e for e in found.entries]
        self.log, self.synced = Image(entries), Image(entries)
        for image in (self.log, self.synced):
            image.base_index, image.base_term = found.base_index, found.base_term
        self.unsynced.clear()
        self.attempt.clear()
        self.hard_state, self.attempted_hard_state = found.hard_state, None
        self.candidates.clear()
        self._keep(found.snapshot)
        self.sync_points = [self.synced.last_index]
        self.power_was_cut, self.lost_from, self.snapshot_damaged = False, 0, False

    def may_lose_from(self) -> int:
        """The first entry that a flipped bit may cost without anybody noticing: nothing that was written
        behind it was written later than the sync that made it durable."""
        return max((each for each in self.sync_points if each < self.synced.last_index), default=0) + 1


def copied(image: Image) -> Image:
    """Another image with the same entries."""
    other = Image(())
    other.extend(image)
    other.configurations = list(image.configurations)
    other.base_index, other.base_term = image.base_index, image.base_term
    return other
