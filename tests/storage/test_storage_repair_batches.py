"""A crash in the middle of a repair where one fsync made many records durable, so that only the next file's
header proves the damage; and where the marker does not name the bad record: it is older, or a snapshot's."""

from __future__ import annotations

import pytest
from faulty_disk import FaultyDisk, PowerLoss
from storage_helpers import DIRECTORY, make_chunks, make_disk
from test_storage_repair import LAST, MARKER, TERM, aside, entries, flip_record, open_node

from raft.core.effects import HardState, LostEntries
from raft.core.membership import Configuration, encode_configuration
from raft.storage.lost_entries import encode_lost_entries
from raft.storage.repair import MAX_ASIDE


def written_in_batches(snapshot: int, marker: int) -> FaultyDisk:
    """Ten records per fsync. snapshot: of that entry. marker: entries from there on were lost before."""
    disk = make_disk()
    storage = open_node(disk)
    storage.save_hard_state(HardState(TERM, 2))
    for first in range(0, LAST, 10):
        storage.log.append(entries()[first : first + 10])
        storage.log.sync()
    if snapshot:
        writer = storage.snapshots.writer(snapshot, 1, encode_configuration(Configuration((1, 2, 3))))
        for chunk in make_chunks(snapshot):
            writer.write(chunk)
        writer.commit()
    storage.close()
    if marker:
        disk.put(MARKER, encode_lost_entries(LostEntries(marker, TERM)))
    return disk


@pytest.mark.parametrize(
    ("bad", "snapshot", "marker", "earlier"), [(12, 0, 0, 0), (12, 14, 0, 0), (13, 0, 3, MAX_ASIDE - 1)]
)
def test_after_a_crash_the_rest_is_kept_as_well(bad: int, snapshot: int, marker: int, earlier: int) -> None:
    """earlier: repairs whose files are still there. The last one that is allowed is carried out whole."""
    pristine = written_in_batches(snapshot, marker)
    flip_record(pristine, bad)
    for number in range(1, earlier + 1):
        pristine.put(DIRECTORY / f"damaged-{number}-log-0000000000000001.seg", b"")
    whole = pristine.copy()
    storage = open_node(whole)
    lost = storage.lost_entries
    storage.close()
    kept = {content for name, content in aside(whole).items() if content}
    assert len(kept) >= 3
    for step in range(1000):
        disk = pristine.copy()
        disk.power_fails_at = step
        try:
            open_node(disk).close()
            break
        except PowerLoss:
            pass
        for after in disk.power_loss_choices(step, limit=3):
            storage = open_node(after)
            assert storage.lost_entries == lost
            storage.close()
            assert kept <= set(aside(after).values()), step
    assert step > 10
