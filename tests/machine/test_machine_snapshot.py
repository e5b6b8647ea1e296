"""dump() and load(): the same machine, which goes on in the same way; anything else is a typed error."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_support import START_MS, Driver
from test_machine_differential import COMMANDS

from raft.machine.machine import Machine
from raft.machine.snapshot import (
    CHUNK,
    SnapshotClusterError,
    SnapshotFormatError,
    SnapshotVersionError,
)

POLICY = json.dumps(
    {
        "interval_ms": 2000,
        "reward": 10,
        "penalty": 5,
        "ban_threshold": 3,
        "ban_cooldown_s": 600,
        "max_spam": 4,
        "follower_version": "1.0",
    }
)
MEMBERS = json.dumps([{"id": "node-1", "address": "h:1"}])


def copy_of(run: Driver) -> Driver:
    twin = Driver()
    twin.now_ms = run.now_ms
    twin.machine = Machine.load("test", list(run.machine.dump()))
    return twin


def pages(machine: Machine, count: int = 7) -> Iterator[object]:
    cursor: object = b"0"
    while True:
        reply = machine.read([b"SCAN", cursor, b"COUNT", b"%d" % count], START_MS)  # type: ignore[list-item]
        assert isinstance(reply, list)
        yield reply
        cursor = reply[0]
        if cursor == b"0":
            return


def assert_same(left: Machine, right: Machine) -> None:
    assert left.digest() == right.digest()
    assert (left.applied_index, left.applied_term, left.at_ms) == (
        right.applied_index,
        right.applied_term,
        right.at_ms,
    )
    assert list(left.kv.values.items()) == list(right.kv.values.items())
    assert left.next_expiry_ms() == right.next_expiry_ms()
    assert list(pages(left)) == list(pages(right))


def busy(keys: int = 300) -> Driver:
    run = Driver()
    run("~TERM", 1, POLICY, MEMBERS)
    for number in range(keys):
        run("SET", f"key {number}", f"value {number}" * (number % 9), "PX", 1000 + number * 10)
    for number in range(0, keys, 3):
        run("PERSIST", f"key {number}")
    for number in range(0, keys, 7):
        run("DEL", f"key {number}")
    run("FOLLOWER", "JOIN", "a", "1.0")
    run("~OPEN", 1, START_MS + 2000, 1, POLICY)
    run("FOLLOWER", "REPORT", "a", 1, "done")
    run("ONCE", "session", 1, "INCR", "counter")
    run("ONCE", "session", 2, "SCAN", "0")
    run("ONCE", "other", 1, "MGET", "key 1", "nothing")
    return run


STEPS = st.one_of(
    COMMANDS,
    st.integers(0, 3_000_000),  # time goes on
    st.tuples(st.just("ONCE"), st.sampled_from("st"), st.sampled_from("123"), COMMANDS).map(
        lambda parts: [*parts[:3], *parts[3]]
    ),
    st.sampled_from(
        [
            ["~TERM", "1", POLICY, MEMBERS],
            ["FOLLOWER", "JOIN", "a", "1.0"],
            ["~OPEN", "1", str(START_MS + 2000), "1", POLICY],
            ["FOLLOWER", "REPORT", "a", "1", "x"],
            ["~CLOSE", "1", "1", "0", "node-1"],
            ["REWARD", "CLAIM", "a", "3", "c"],
            ["~EXPIRE"],
        ]
    ),
)


def do(run: Driver, step: int | list[str]) -> object:
    if isinstance(step, int):
        run.now_ms += step
        return None
    if step[0] == "ONCE" and len(step) < 4:
        return None
    return run(*step)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=60), st.lists(STEPS, max_size=40))
def test_loaded_it_is_the_same_and_goes_on_in_the_same_way(
    before: list[int | list[str]], after: list[int | list[str]]
) -> None:
    run = Driver()
    for step in before:
        do(run, step)
    twin = copy_of(run)
    assert twin.machine.take_events() == []
    run.machine.take_events()
    assert_same(run.machine, twin.machine)
    for step in after:
        assert do(run, step) == do(twin, step)
        assert run.machine.next_expiry_ms() == twin.machine.next_expiry_ms()
        assert run.machine.take_events() == twin.machine.take_events()
    assert_same(run.machine, twin.machine)
    assert list(run.machine.dump()) == list(twin.machine.dump())


def test_an_empty_machine() -> None:
    machine = Machine("test")
    assert_same(machine, Machine.load("test", machine.dump()))


def test_scan_goes_on_from_a_cursor_of_the_one_dumped() -> None:
    """Also after keys went, so that the number of buckets depends on the past."""
    run = Driver()
    for number in range(3000):
        run("SET", f"key {number}", "x")
    for number in range(2500):
        run("DEL", f"key {number}")
    twin = copy_of(run)
    assert list(pages(run.machine)) == list(pages(twin.machine))
    first = run("SCAN", 0, "COUNT", 50)
    assert first == twin("SCAN", 0, "COUNT", 50)
    for number in range(4000, 4600):
        assert run("SET", f"key {number}", "x") == twin("SET", f"key {number}", "x")
    assert list(pages(run.machine)) == list(pages(twin.machine))
    assert_same(run.machine, twin.machine)


def test_keys_expire_alike_though_the_queue_was_made_anew() -> None:
    run = Driver()
    rng = random.Random(3)
    for _ in range(2000):
        run("SET", f"key {rng.randrange(300)}", "x", "PX", rng.randrange(1, 5000))
        if rng.random() < 0.3:
            run("PERSIST", f"key {rng.randrange(300)}")
    twin = copy_of(run)
    while (due := run.machine.next_expiry_ms()) is not None:
        assert twin.machine.next_expiry_ms() == due
        run.now_ms = twin.now_ms = due + rng.randrange(200)
        assert run("DBSIZE") == twin("DBSIZE")
        assert_same(run.machine, twin.machine)


def test_once_is_remembered() -> None:
    run = busy()
    twin = copy_of(run)
    for words in (("session", 1, "INCR", "counter"), ("session", 2, "SCAN", "0"), ("other", 1, "GET", "x")):
        assert run("ONCE", *words) == twin("ONCE", *words)
    assert twin("GET", "counter") == b"1"


def test_chunks_are_small_even_of_large_values() -> None:
    run = Driver()
    run("SET", "large", b"x" * 3_000_000)
    for number in range(20):
        run("SET", f"key {number}", b"y" * 400_000)
    chunks = list(run.machine.dump())
    assert max(map(len, chunks)) <= CHUNK
    assert min(map(len, chunks)) >= 1
    assert_same(run.machine, Machine.load("test", chunks))


@pytest.mark.parametrize("size", [1, 2, 5, 1000, 10**9])
def test_the_cut_of_the_chunks_does_not_matter(size: int) -> None:
    run = busy()
    stream = b"".join(run.machine.dump())
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert_same(run.machine, Machine.load("test", pieces))


def test_progress_goes_from_nothing_to_everything() -> None:
    run = busy(5000)
    dumped: list[tuple[int, int]] = []
    loaded: list[tuple[int, int]] = []
    chunks = list(run.machine.dump(lambda *done: dumped.append(done)))
    Machine.load("test", chunks, lambda *done: loaded.append(done))
    for told in (dumped, loaded):
        assert len(told) > 4
        assert sorted(told) == told
        assert told[-1][0] == told[-1][1] > 5000


def test_become_takes_over_everything_in_place() -> None:
    run, other = busy(), Driver()
    other("SET", "only here", "x", "PX", 5)
    twin = copy_of(run)
    other.now_ms = run.now_ms
    kv = other.machine.kv
    other.machine.become(twin.machine)
    assert other.machine.kv is kv, "whoever knows it sees the new state"
    assert_same(run.machine, other.machine)
    for words in (("SET", "k", "v"), ("GET", "only here"), ("SCAN", "0"), ("FOLLOWER", "INFO", "a")):
        assert run(*words) == other(*words)
    run.now_ms = other.now_ms = START_MS + 2_000_000
    run("~EXPIRE"), other("~EXPIRE")
    assert_same(run.machine, other.machine)


# --- what is refused


def test_another_cluster_is_refused_naming_both() -> None:
    with pytest.raises(SnapshotClusterError, match=r"'test'.*'other'"):
        Machine.load("other", busy().machine.dump())


def with_head(stream: bytes, at: int, value: object) -> bytes:
    length = struct.unpack_from("<I", stream)[0]
    fields = msgspec.msgpack.decode(stream[5 : 5 + length])
    fields[at] = value
    head = msgspec.msgpack.encode(fields)
    return struct.pack("<IB", len(head), 1) + head + stream[5 + length :]


def test_another_version_is_refused_naming_both() -> None:
    stream = with_head(b"".join(busy().machine.dump()), 1, 2)
    with pytest.raises(SnapshotVersionError, match="version 2, this program reads 1"):
        Machine.load("test", [stream])


@pytest.mark.parametrize(
    ("at", "value"), [(0, "x"), (3, -1), (4, -1), (5, -5), (6, 1), (7, 1), (8, 0), (8, 10**9), (8, -1)]
)
def test_an_impossible_head_is_refused(at: int, value: object) -> None:
    stream = b"".join(busy().machine.dump())
    with pytest.raises(SnapshotFormatError):
        Machine.load("test", [with_head(stream, at, value)])


def test_a_stream_cut_at_every_byte_is_refused() -> None:
    stream = b"".join(busy(30).machine.dump())
    for end in range(len(stream)):
        with pytest.raises(SnapshotFormatError):
            Machine.load("test", [stream[:end]])
    with pytest.raises(SnapshotFormatError):
        Machine.load("test", [stream, b"x"])
    Machine.load("test", [stream])


def frames_of(stream: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(stream):
        end = at + 5 + struct.unpack_from("<I", stream, at)[0]
        found.append(stream[at:end])
        at = end
    return found


def test_frames_missing_doubled_or_swapped_are_refused() -> None:
    frames = frames_of(b"".join(busy(2500).machine.dump()))
    assert len(frames) > 8
    wrong = [frames[:n] + frames[n + 1 :] for n in range(len(frames))]
    wrong += [[*frames[:n], frames[n], *frames[n:]] for n in range(len(frames))]
    for some in wrong:
        with pytest.raises(SnapshotFormatError):
            Machine.load("test", some)
    for n in range(len(frames) - 1):
        if frames[n][4] != frames[n + 1][4]:  # other sections
            swapped = [*frames[:n], frames[n + 1], frames[n], *frames[n + 2 :]]
            with pytest.raises(SnapshotFormatError):
                Machine.load("test", swapped)


def test_every_flipped_byte_is_a_typed_error_or_a_machine() -> None:
    """The file's checksums find every one of them; here nothing but a typed error may come out."""
    stream = b"".join(busy(20).machine.dump())
    refused = 0
    for at in range(len(stream)):
        flipped = bytearray(stream)
        flipped[at] ^= 1 << at % 8
        try:
            Machine.load("test", [bytes(flipped)])
        except SnapshotFormatError:
            refused += 1
    assert refused > len(stream) // 4


@pytest.mark.parametrize(
    "garbage", [b"", b"\0" * 100, b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", bytes(300_000)]
)
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(SnapshotFormatError):
        Machine.load("test", [garbage])


def test_what_the_chunks_raise_comes_through() -> None:
    def broken() -> Iterator[bytes]:
        yield next(busy().machine.dump())[:100]
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        Machine.load("test", broken())
