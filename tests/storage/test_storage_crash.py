"""Power loss at every single disk operation, with any part of what was not synced lost (S3 of docs).

What must hold after each: the log opens; it is a prefix of what was written; nothing that sync() or
truncate_suffix() had promised is missing; nothing that was truncated is back behind something new; and the
log can be continued.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from faulty_disk import FaultyDisk, PowerLoss
from storage_helpers import make_disk, make_entries, open_store, read_log, reopen

from raft.core.entry import Entry
from raft.storage.errors import DiskFullError
from raft.storage.log_store import LogStore


@dataclass
class Model:
    """written: the log if everything in flight survives; promised: how many of its entries must survive."""

    written: list[Entry] = field(default_factory=list)
    promised: int = 0

    def check(self, found: list[Entry]) -> None:
        assert found == self.written[: len(found)]
        assert len(found) >= self.promised


class Driver:
    """Does the same to a store and to the model; the model is told before the disk can fail."""

    def __init__(self, store: LogStore, model: Model) -> None:
        self.store = store
        self.model = model
        self.term = 1

    def append(self, count: int, size: int | None = None) -> None:
        first = self.store.last_index + 1
        entries = make_entries(first, first + count - 1, self.term, size)
        self.model.written = self.model.written[: first - 1] + entries
        self.store.append(entries)

    def sync(self) -> None:
        self.store.sync()
        self.model.promised = self.store.last_index

    def truncate(self, from_index: int) -> None:
        self.model.promised = min(self.model.promised, from_index - 1)
        self.store.truncate_suffix(from_index)
        self.model.written = self.model.written[: from_index - 1]
        self.model.promised = from_index - 1
        self.term += 1


def one_by_one(driver: Driver) -> None:
    for _ in range(9):
        driver.append(1)
        driver.sync()


def batches(driver: Driver) -> None:
    driver.append(4, size=40)
    driver.append(9)
    driver.sync()
    driver.append(3, size=400)
    driver.append(2)


def truncate_in_a_segment(driver: Driver) -> None:
    driver.append(5)
    driver.sync()
    driver.truncate(3)
    driver.append(4)
    driver.sync()


def truncate_over_segments(driver: Driver) -> None:
    driver.append(14)
    driver.sync()
    driver.append(6)
    driver.truncate(4)
    driver.append(3)
    driver.sync()
    driver.truncate(1)
    driver.append(2)
    driver.sync()


def truncate_unsynced_then_the_same_sizes_again(driver: Driver) -> None:
    driver.append(2, size=24)
    driver.sync()
    driver.append(4, size=24)
    driver.truncate(3)
    driver.append(1, size=24)
    driver.append(1, size=24)
    driver.truncate(4)
    driver.append(1, size=24)
    driver.sync()


SCENARIOS: list[Callable[[Driver], None]] = [
    one_by_one,
    batches,
    truncate_in_a_segment,
    truncate_over_segments,
    truncate_unsynced_then_the_same_sizes_again,
]


def run_until(disk: FaultyDisk, scenario: Callable[[Driver], None]) -> tuple[Model, bool]:
    """Run a scenario; returns the model and whether it got to its end before the power went."""
    model = Model()
    try:
        scenario(Driver(open_store(disk, segment_bytes=256), model))
    except PowerLoss:
        return model, False
    return model, True


def what_matters(disk: FaultyDisk, model: Model) -> tuple[object, ...]:
    """To check each distinct outcome once: most differ only in a temporary file."""
    files = tuple((path.name, disk.file(path)) for path in sorted(disk.names) if path.suffix == ".seg")
    return files, model.promised, tuple(model.written)


def check_and_go_on(disk: FaultyDisk, model: Model, rng: random.Random) -> None:
    """Open after a power loss, once more after another one in the middle of that, and then write on."""
    again = disk.copy()
    again.power_fails_at = rng.randrange(6)
    try:
        open_store(again, segment_bytes=256)
    except PowerLoss:
        again = again.after_power_loss(lambda _: rng.random() < 0.5)
        model.check(reopen(again))
    store = open_store(disk, segment_bytes=256)
    found = read_log(store)
    model.check(found)
    new = make_entries(len(found) + 1, len(found) + 3, term=99)
    store.append(new)
    store.sync()
    for after in disk.power_loss_choices(seed=1, limit=4):
        assert reopen(after) == found + new


@pytest.mark.parametrize("sector", [16, 4096])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_power_loss_at_every_operation(scenario: Callable[[Driver], None], sector: int) -> None:
    rng = random.Random(sector)
    seen: set[tuple[object, ...]] = set()
    point = 0
    finished = False
    while not finished:
        disk = make_disk(sector)
        disk.power_fails_at = point
        model, finished = run_until(disk, scenario)
        for after in disk.power_loss_choices(seed=point, limit=16):
            state = what_matters(after, model)
            if state not in seen:
                seen.add(state)
                check_and_go_on(after, model, rng)
        point += 1
    assert point > 20


def test_a_full_disk_and_a_power_loss_at_every_operation() -> None:
    def scenario(driver: Driver) -> None:
        driver.append(3)
        driver.sync()
        kept = list(driver.model.written)
        fault = disk.fail("pwrite", 28, name="log-", written=100, times=1)
        with pytest.raises(DiskFullError):
            driver.append(6, size=24)
        driver.model.written = kept
        disk.faults.remove(fault)
        driver.append(6, size=24)
        driver.sync()

    rng = random.Random(5)
    for point in range(200):
        disk = make_disk()
        disk.power_fails_at = point
        model, finished = run_until(disk, scenario)
        for after in disk.power_loss_choices(seed=point, limit=16):
            check_and_go_on(after, model, rng)
        if finished:
            return
    pytest.fail("the scenario never came to its end")
