"""SCAN: complete, stable while keys come and go, continued on another node, bounded."""

from __future__ import annotations

import random
from zlib import crc32

import pytest
from machine_support import Driver

from raft.machine.scan import KeyIndex
from raft.replies import Reply


def all_pages(index: KeyIndex, count: int = 10) -> list[bytes]:
    keys, cursor = list[bytes](), 0
    while True:
        cursor, page = index.page(cursor, count)
        keys += page
        if not cursor:
            return keys


@pytest.mark.parametrize("size", [0, 1, 16, 17, 33, 1000, 5000])
def test_every_key_exactly_once_when_nothing_changes(size: int) -> None:
    keys = {b"key:%d" % number for number in range(size)}
    assert sorted(all_pages(KeyIndex(keys))) == sorted(keys)


@pytest.mark.parametrize("seed", range(20))
def test_keys_present_all_the_time_are_returned_however_the_others_change(seed: int) -> None:
    chance = random.Random(seed)
    lasting = {b"lasting:%d" % number for number in range(chance.choice([3, 60, 900]))}
    index = KeyIndex(lasting)
    fleeting: list[bytes] = []
    seen: set[bytes] = set()
    cursor, made, growing = 0, 0, True
    while True:
        cursor, page = index.page(cursor, chance.choice([1, 10, 50]))
        seen.update(page)
        if not cursor:
            break
        growing = chance.random() < 0.5 if chance.random() < 0.1 else growing
        for _ in range(chance.randrange(200)):
            if growing or not fleeting:
                made += 1
                fleeting.append(b"fleeting:%d" % made)
                index.add(fleeting[-1])
            else:
                index.remove(fleeting.pop(chance.randrange(len(fleeting))))
    assert lasting <= seen


def test_a_cursor_continues_on_a_node_whose_table_has_another_size() -> None:
    keys = [b"key:%d" % number for number in range(3000)]
    small = KeyIndex(keys)
    large = KeyIndex(keys)
    extra = [b"extra:%d" % number for number in range(9000)]
    for key in extra:
        large.add(key)
    for key in extra:
        large.remove(key)
    assert len(large._buckets) != len(small._buckets)
    for first, second in ((small, large), (large, small)):
        cursor, seen = 0, set[bytes]()
        while True:
            cursor, page = first.page(cursor, 10)
            seen.update(page)
            first, second = second, first
            if not cursor:
                break
        assert seen == set(keys)


def test_the_table_grows_and_shrinks_with_its_keys() -> None:
    keys = [b"key:%d" % number for number in range(20_000)]
    index = KeyIndex(keys)
    assert 20_000 / 17 <= len(index._buckets) <= 20_000 / 15
    assert max(map(len, index._buckets)) < 100
    for key in keys[10:]:
        index.remove(key)
    assert len(index._buckets) <= 3
    assert sorted(all_pages(index)) == sorted(keys[:10])
    for key in keys[:10]:
        index.remove(key)
    assert len(index) == 0
    assert all_pages(index) == []


def test_a_page_is_no_longer_than_it_need_be() -> None:
    index = KeyIndex(b"key:%d" % number for number in range(20_000))
    cursor, page = index.page(0, 10)
    assert cursor
    assert 10 <= len(page) < 110


def colliding_keys(count: int) -> list[bytes]:
    """Keys with the same CRC-32: any key, followed by the four bytes that bring the hash to one value."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        table.append(value)
    by_top = {value >> 24: (byte, value) for byte, value in enumerate(table)}
    keys = []
    for number in range(count):
        prefix = b"%06d" % number
        state, wanted, places = crc32(prefix) ^ 0xFFFFFFFF, 0x12345678 ^ 0xFFFFFFFF, []
        for _ in range(4):  # backwards: which table rows lead to the wanted state
            byte, value = by_top[wanted >> 24]
            places.append(byte)
            wanted = (wanted ^ value) << 8 & 0xFFFFFFFF
        suffix = bytearray()
        for place in reversed(places):
            suffix.append((state ^ place) & 0xFF)
            state = state >> 8 ^ table[place]
        keys.append(prefix + bytes(suffix))
    return keys


def test_keys_made_to_collide_do_not_make_removal_slow() -> None:
    keys = colliding_keys(30_000)
    assert len({crc32(key) for key in keys}) == 1
    index = KeyIndex(keys)
    assert sorted(all_pages(index)) == sorted(keys)
    (crowded,) = (bucket for bucket in index._buckets if bucket)
    assert isinstance(crowded, dict)  # a list would be searched for each removal
    for key in reversed(keys):
        index.remove(key)
    assert len(index) == 0


def scan(run: Driver, *options: str | int) -> list[Reply]:
    keys: list[Reply] = []
    cursor: Reply = b"0"
    while True:
        assert isinstance(cursor, bytes)
        reply = run("SCAN", cursor, *options)
        assert isinstance(reply, list)
        cursor, page = reply
        assert isinstance(page, list)
        keys += page
        if cursor == b"0":
            return keys


def test_the_command_has_its_options(run: Driver) -> None:
    for number in range(300):
        run("SET", f"key:{number}", "v")
    everything = {b"key:%d" % number for number in range(300)}
    assert set(scan(run)) == everything
    assert set(scan(run, "COUNT", 1000)) == everything
    assert set(scan(run, "match", "key:1?", "COUNT", 7)) == {b"key:%d" % number for number in range(10, 20)}
    assert set(scan(run, "TYPE", "String")) == everything
    assert scan(run, "TYPE", "hash") == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["abc"], "ERR invalid cursor"),
        (["-1"], "ERR invalid cursor"),
        ([""], "ERR invalid cursor"),
        (["18446744073709551616"], "ERR invalid cursor"),
        (["1" * 5000], "ERR invalid cursor"),
        (["0", "COUNT", "0"], "ERR syntax error"),
        (["0", "COUNT", "x"], "ERR value is not an integer or out of range"),
        (["0", "COUNT"], "ERR syntax error"),
        (["0", "FOO", "1"], "ERR syntax error"),
        (["0", "MATCH", "?" * 5000], "ERR pattern is longer than 4096 bytes"),
    ],
)
def test_bad_arguments_are_refused(run: Driver, options: list[str], error: str) -> None:
    assert run("SCAN", *options) == error


@pytest.mark.parametrize("cursor", ["18446744073709551615", "4294967296"])
def test_a_cursor_beyond_the_last_ends_the_scan(run: Driver, cursor: str) -> None:
    run("SET", "k", "v")
    assert run("SCAN", cursor) == [b"0", []]
