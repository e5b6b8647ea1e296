"""Batch: one answer a slot, in the order of the requests, done exactly once."""

from __future__ import annotations

import pytest

from raft.clients.batch import Batch
from raft.replies import OK, Error


def make(done: list[list[bytes]], count: int = 3, protocol: int = 2) -> Batch:
    return Batch.of_commands([[b"GET", b"%d" % n] for n in range(count)], 0, protocol, done.append)


def test_answers_come_in_the_order_of_the_slots() -> None:
    done: list[list[bytes]] = []
    batch = make(done)
    batch.answer(2, b"c")
    batch.answer(0, OK)
    assert done == []
    assert batch.remaining == 1
    batch.answer_encoded(1, b"+raw\r\n")
    assert done == [[b"+OK\r\n", b"+raw\r\n", b"$1\r\nc\r\n"]]
    assert batch.remaining == 0


def test_local_answers_keep_their_place() -> None:
    done: list[list[bytes]] = []
    batch = Batch(2, [(1, [b"GET", b"k"])], 0, [b"+PONG\r\n", None, b"+PONG\r\n"], done.append)
    batch.answer(1, None)
    assert done == [[b"+PONG\r\n", b"$-1\r\n", b"+PONG\r\n"]]


def test_the_protocol_decides_the_encoding() -> None:
    done: list[list[bytes]] = []
    make(done, 1, protocol=3).answer(0, None)
    assert done == [[b"_\r\n"]]


def test_fail_answers_only_what_is_open() -> None:
    done: list[list[bytes]] = []
    batch = make(done)
    batch.answer(1, 5)
    batch.fail(Error("CLUSTERDOWN no leader"))
    assert done == [[b"-CLUSTERDOWN no leader\r\n", b":5\r\n", b"-CLUSTERDOWN no leader\r\n"]]
    batch.fail(Error("ERR again"))
    assert len(done) == 1


@pytest.mark.parametrize("slot", [0, 1])
def test_answering_twice_is_a_bug_and_loud(slot: int) -> None:
    done: list[list[bytes]] = []
    batch = make(done, 2)
    batch.answer(slot, OK)
    with pytest.raises(RuntimeError, match="answered twice"):
        batch.answer(slot, OK)
    assert batch.remaining == 1
    assert done == []


def test_a_local_slot_cannot_be_answered() -> None:
    batch = Batch(2, [(1, [b"GET", b"k"])], 0, [b"+PONG\r\n", None], lambda _: None)
    with pytest.raises(RuntimeError, match="answered twice"):
        batch.answer(0, OK)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="never be done"):
        Batch.of_commands([], 0, 2, lambda _: None)
