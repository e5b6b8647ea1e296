"""What fuzzing has found in commands: an answer without a bound, a word that is no option."""

from __future__ import annotations

import tracemalloc

import pytest

from raft.clients.batch import MAX_ANSWERS_BYTES, Batch
from raft.clients.requests import FastReader
from raft.machine.batch import encode_commands
from raft.machine.keyvalue import LONGEST_VALUE
from raft.machine.machine import Machine
from raft.machine.transactions import encode_transaction
from raft.replies import Error
from tests.fuzz import samples
from tests.fuzz.client_targets import NeverFast, parse


class Large:
    """A machine with one value of the largest size."""

    def __init__(self) -> None:
        self.machine = Machine("test")
        self.machine.kv.set([b"SET", b"a", bytes(LONGEST_VALUE)])

    def __call__(self, *words: bytes) -> object:
        index = self.machine.applied_index + 1
        return self.machine.apply_commands(index, 1, samples.START_MS, [list(words)])[0]


@pytest.fixture(scope="module")
def large() -> Large:
    return Large()


def test_no_entry_makes_an_answer_of_any_size(large: Large) -> None:
    """ONCE s 1 MGET a a a ... with a value of 64 MiB made every node pack gigabytes, at each start again."""
    answer = large(b"ONCE", b"s", b"1", b"MGET", *[b"a"] * 1000)
    assert isinstance(answer, Error) and "more than" in answer
    assert large(b"ONCE", b"s", b"1", b"MGET", *[b"a"] * 1000) == answer
    assert large(b"MGET", b"a", b"b") == [bytes(LONGEST_VALUE), None]


def test_no_transaction_makes_an_answer_of_any_size(large: Large) -> None:
    gets = [[b"GET", b"a"]] * 3
    for words in (
        [b"~EXEC", encode_transaction([], [*gets, [b"STRLEN", b"a"]])],
        [b"~ONCE", b"~2.run.1", b"1", encode_commands([*gets, [b"STRLEN", b"a"]])],
    ):
        first, *rest, length = large(*words)  # type: ignore[misc]
        assert first == bytes(LONGEST_VALUE) and length == LONGEST_VALUE
        assert all(isinstance(each, Error) and "carried out" in each for each in rest)


@pytest.mark.parametrize("mark", [b"*", b">", b"%", b"~", b"|"])
def test_no_count_makes_a_reader_allocate(mark: bytes) -> None:
    """When hiredis read requests, a count behind a bulk string that does not end in CRLF had slipped past the
    check: gigabytes."""
    stream = b"*2\r\n$1\r\naXX" + mark + b"100000000\r\n"
    tracemalloc.start()
    try:
        assert parse(stream, [], FastReader(), 10) == parse(stream, [], NeverFast(), 10)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert FastReader().read(stream, 10, 1 << 20) == ([], 0)


@pytest.mark.parametrize("odd", [b"+OK\r\n", b"(12\r\n", b"=5\r\ntxt:x\r\n"])
def test_a_status_is_no_word(odd: bytes) -> None:
    """The same place: hiredis had taken +OK for the second word, the other parser for an error."""
    stream = b"*2\r\n$3\r\nGETXX" + odd
    commands, error = parse(stream, [], FastReader(), 10)
    assert commands == [] and error is not None and "expected '$'" in error
    assert parse(b"*2\r\n$3\r\nGET\r\n$3\r\na+b\r\n", [], FastReader(), 9) == ([[b"GET", b"a+b"]], None)


def test_a_batch_holds_no_answers_of_any_size() -> None:
    """1024 pipelined GETs of a value of 64 MiB were 64 GiB that waited for the last of them."""
    answers: list[bytes] = []
    batch = Batch.of_commands([[b"GET", b"a"]] * 9, 0, 2, answers.extend)
    value = bytes(MAX_ANSWERS_BYTES // 4)
    for slot in range(8):
        batch.answer(slot, value)
    batch.answer(8, b"small")
    assert sum(map(len, answers)) < MAX_ANSWERS_BYTES + 4096
    assert [each[:4] for each in answers] == [b"$335"] * 3 + [b"-ERR"] * 5 + [b"$5\r\n"]
