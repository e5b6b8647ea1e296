"""export() and restore(): the same ledger, which goes on in the same way; anything else is refused."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_driver import Driver
from test_ledger_properties import Run, few, steps

from ledger.ledger import Ledger
from ledger.snapshot import LedgerFormatError


def pieces_of(book: Driver) -> list[bytes]:
    return [piece for _, piece in book.ledger.export()]


def restored(book: Driver) -> Driver:
    """Another driver at the same place, over a restored ledger."""
    twin = Driver()
    twin.__dict__.update(book.__dict__)
    twin.ledger = Ledger.restore(pieces_of(book))
    return twin


def busy() -> Driver:
    book = Driver()
    book.take_office("node-1", "node-2")
    book.join("a", "b", "c")
    for _ in range(40):
        book.round("a", "node-1")
    book.do("REWARD CLAIM", "a", 5, "claim 1")
    book.do("REWARD CLAIM", "b", 500, "claim 2")
    book.do("FOLLOWER LEAVE", "c")
    book.open()
    book.report("a")
    return book


@few
@given(st.lists(steps, max_size=60), st.lists(steps, max_size=40), st.sampled_from([60, 500, 2**20]))
def test_restored_it_is_the_same_and_goes_on_in_the_same_way(
    before: list[tuple[Any, ...]], after: list[tuple[Any, ...]], outbox_bytes: int
) -> None:
    left = Run(outbox_bytes)
    for step in before:
        left.step(step)
    right = Run(outbox_bytes)
    right.book, right.newest = restored(left.book), left.newest
    assert right.book.events() == [], "events are not state"
    left.book.events()
    for step in [("wait", 0), *after]:
        left.step(step)
        right.step(step)
        assert left.book.digest() == right.book.digest()
        assert left.book.events() == right.book.events()
        assert left.book.ledger.pull(7) == right.book.ledger.pull(7)
    assert left.book.ledger.pull(10**6, full=True) == right.book.ledger.pull(10**6, full=True)
    assert left.book.ledger.counts() == right.book.ledger.counts()
    assert pieces_of(left.book) == pieces_of(right.book)
    assert left.book.ledger.dropped_rows == right.book.ledger.dropped_rows


def test_reads_give_the_same() -> None:
    book = busy()
    twin = restored(book)
    for words in (
        ("FOLLOWER INFO", "a"),
        ("FOLLOWER LIST", 0, "COUNT", 2),
        ("REWARD HISTORY", "a", "COUNT", 32),
        ("REWARD TOP", 10),
        ("INTERVAL CURRENT",),
        ("INTERVAL SHOW", 40),
    ):
        assert book.read(*words) == twin.read(*words)
    assert twin.do("REWARD CLAIM", "a", 5, "claim 1") == book.do("REWARD CLAIM", "a", 5, "claim 1")


def test_an_overflowing_outbox_stays_one() -> None:
    """The news is told once: a restored node must not tell it again."""
    book = Driver(outbox_bytes=60)
    book.take_office("node-1")
    book.join("a", "b")
    for _ in range(6):
        book.round("a")
    assert any("outbox full" in news for news in book.events("cluster"))
    twin = restored(book)
    assert twin.ledger.dropped_rows == book.ledger.dropped_rows > 0
    for each in (book, twin):
        each.round("a")
        assert not any("outbox full" in news for news in each.events("cluster"))
    assert book.digest() == twin.digest()


def test_rows_are_counted_for_progress() -> None:
    book = busy()
    rows = sum(count for count, _ in book.ledger.export())
    assert rows == book.ledger.row_count() > 40


def test_pieces_missing_doubled_swapped_or_cut_are_refused() -> None:
    pieces = pieces_of(busy())
    assert len(pieces) > 6
    wrong = [pieces[:n] for n in range(len(pieces))]
    wrong += [pieces[:n] + pieces[n + 1 :] for n in range(len(pieces))]
    wrong += [[*pieces[:n], pieces[n], *pieces[n:]] for n in range(len(pieces))]
    wrong += [[*pieces[:n], pieces[n][:-1], *pieces[n + 1 :]] for n in range(len(pieces))]
    wrong += [[*pieces[:n], b"", *pieces[n + 1 :]] for n in range(len(pieces))]
    for some in wrong:
        with pytest.raises(LedgerFormatError):
            Ledger.restore(some)
    Ledger.restore(pieces)


def test_garbage_is_a_typed_error_or_a_ledger_that_is_sound() -> None:
    pieces = pieces_of(busy())
    rng = random.Random(8)
    refused = 0
    for _ in range(2000):
        number = rng.randrange(len(pieces))
        piece = bytearray(pieces[number])
        for _ in range(rng.choice([1, 1, 5])):
            piece[rng.randrange(len(piece))] = rng.randrange(256)
        try:
            Ledger.restore([*pieces[:number], bytes(piece), *pieces[number + 1 :]]).check()
        except LedgerFormatError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("piece", [b"", b"\xc1", b"\x90", b"\x92\x63\xc0", msgspec.msgpack.encode([0, [9]])])
def test_a_foreign_head_is_refused(piece: bytes) -> None:
    with pytest.raises(LedgerFormatError):
        Ledger.restore([piece])


def test_another_version_is_refused_naming_both() -> None:
    pieces = pieces_of(busy())
    kind, head = msgspec.msgpack.decode(pieces[0])
    head[0] = 2
    with pytest.raises(LedgerFormatError, match="version 2, this program reads 1"):
        Ledger.restore([msgspec.msgpack.encode([kind, head]), *pieces[1:]])
