"""The value commands by table: what is sent, one word after the other, and what is answered."""

from __future__ import annotations

import pytest
from machine_support import Driver, as_bytes

from raft.machine import keyvalue
from raft.replies import Reply, Simple

SYNTAX = "ERR syntax error"
INTEGER = "ERR value is not an integer or out of range"
OVERFLOW = "ERR increment or decrement would overflow"
SET_TIME = "ERR invalid expire time in 'set' command"
EXPIRE_TIME = "ERR invalid expire time in 'expire' command"
NX_AND_OTHERS = "ERR NX and XX, GT or LT options at the same time are not compatible"
START_S = 1_700_000_000
LARGEST = 2**63 - 1

STORIES: dict[str, list[tuple[str, object]]] = {
    "get and set": [("GET k", None), ("SET k v", "OK"), ("get k", b"v"), ("Set k w", "OK"), ("GeT k", b"w")],
    "nx": [("SET k v NX", "OK"), ("SET k w nx", None), ("GET k", b"v"), ("SET k w NX NX GET", b"v")],
    "xx": [("SET k v XX", None), ("EXISTS k", 0), ("SET k v", "OK"), ("SET k w xx", "OK"), ("GET k", b"w")],
    "set get": [("SET k v GET", None), ("SET k w GET", b"v"), ("SET k x XX GET", b"w"), ("GET k", b"x")],
    "set nx get": [("SET k v NX GET", None), ("GET k", b"v"), ("SET k w NX GET", b"v"), ("GET k", b"v")],
    "ifeq": [
        ("SET k new IFEQ old", None),
        ("EXISTS k", 0),
        ("SET k old", "OK"),
        ("SET k new ifeq wrong", None),
        ("SET k new IFEQ old", "OK"),
        ("GET k", b"new"),
        ("SET k x IFEQ wrong GET", b"new"),
        ("SET k x IFEQ new GET EX 10", b"new"),
        ("TTL k", 10),
        ("SET k y IFEQ", SYNTAX),
        ("SET k y IFEQ x NX", SYNTAX),
        ("SET k y XX IFEQ x", SYNTAX),
        ("GET k", b"x"),
    ],
    "set with a time": [
        ("SET k v EX 10", "OK"),
        ("PTTL k", 10_000),
        ("SET k v px 1500", "OK"),
        ("PTTL k", 1500),
        (f"SET k v EXAT {START_S + 7}", "OK"),
        ("TTL k", 7),
        (f"SET k v PXAT {START_S * 1000 + 77}", "OK"),
        ("PTTL k", 77),
        ("SET k w KEEPTTL", "OK"),
        ("PTTL k", 77),
        ("SET k w", "OK"),
        ("PTTL k", -1),
        ("SET k w KEEPTTL", "OK"),
        ("PTTL k", -1),
        ("SET k w EX 10 EX 20", "OK"),
        ("TTL k", 20),
    ],
    "set with a time that has passed": [
        ("SET k old", "OK"),
        ("SET k v EXAT 1", "OK"),
        ("GET k", None),
        ("DBSIZE", 0),
        (f"SET k v PXAT {START_S * 1000}", "OK"),
        ("EXISTS k", 0),
        ("SET k v EXAT 1 GET", None),
        ("SCAN 0", [b"0", []]),
    ],
    "set with wrong options": [
        ("SET k v EX", SYNTAX),
        ("SET k v EX 10 PX 10", SYNTAX),
        ("SET k v EX 10 EXAT 10", SYNTAX),
        ("SET k v EX 10 KEEPTTL", SYNTAX),
        ("SET k v KEEPTTL EX 10", SYNTAX),
        ("SET k v NX XX", SYNTAX),
        ("SET k v XX NX", SYNTAX),
        ("SET k v FOO", SYNTAX),
        ("SET k v PERSIST", SYNTAX),
        ("SET k v EX x", INTEGER),
        ("SET k v EX 1.5", INTEGER),
        ("SET k v EX +5", INTEGER),
        ("SET k v EX 05", INTEGER),
        ("SET k v EX 0", SET_TIME),
        ("SET k v PX -5", SET_TIME),
        ("SET k v EXAT 0", SET_TIME),
        (f"SET k v EX {LARGEST}", SET_TIME),
        (f"SET k v EX {LARGEST // 1000}", SET_TIME),
        (f"SET k v PX {LARGEST}", SET_TIME),
        (f"SET k v EX {LARGEST + 1}", INTEGER),
        ("EXISTS k", 0),
        (f"SET k v PXAT {LARGEST}", "OK"),
        ("GET k", b"v"),
    ],
    "getdel": [("SET k v EX 9", "OK"), ("GETDEL k", b"v"), ("GETDEL k", None), ("TTL k", -2)],
    "getex": [
        ("GETEX k EX abc", None),
        ("GETEX k FOO", SYNTAX),
        ("SET k v", "OK"),
        ("GETEX k", b"v"),
        ("TTL k", -1),
        ("GETEX k EX 10", b"v"),
        ("GETEX k", b"v"),
        ("TTL k", 10),
        ("GETEX k EX 0", "ERR invalid expire time in 'getex' command"),
        ("GETEX k EX abc", INTEGER),
        ("GETEX k PERSIST EX 1", SYNTAX),
        ("GETEX k EX 1 PERSIST", SYNTAX),
        ("GETEX k KEEPTTL", SYNTAX),
        ("GETEX k persist", b"v"),
        ("TTL k", -1),
        ("GETEX k PXAT 1", b"v"),
        ("EXISTS k", 0),
    ],
    "del and exists": [
        ("MSET a 1 b 2 c 3", "OK"),
        ("EXISTS a b x a", 3),
        ("DEL a a x b", 2),
        ("DEL a", 0),
        ("KEYS *", [b"c"]),
        ("DBSIZE", 1),
    ],
    "many at once": [
        ("MSET a 1 b 2 a 3", "OK"),
        ("MGET a x b", [b"3", None, b"2"]),
        ("MSETNX x 1 a 9", 0),
        ("MSETNX x 1 y 2 x 3", 1),
        ("MGET x y", [b"3", b"2"]),
        ("MSET a 1 b", "ERR wrong number of arguments for 'mset' command"),
        ("MSETNX a 1 b", "ERR wrong number of arguments for 'msetnx' command"),
        ("EXPIRE a 10", 1),
        ("MSET a 5", "OK"),
        ("TTL a", -1),
    ],
    "numbers": [
        ("INCR n", 1),
        ("INCRBY n 41", 42),
        ("DECRBY n 50", -8),
        ("DECR n", -9),
        ("GET n", b"-9"),
        ("EXPIRE n 10", 1),
        ("INCR n", -8),
        ("TTL n", 10),
        ("INCRBY n -2", -10),
        ("INCRBY n x", INTEGER),
        ("INCRBY n +1", INTEGER),
        ("INCRBY n 9223372036854775808", INTEGER),
        ("INCRBY n 99999999999999999999999", INTEGER),
        ("DECRBY n -9223372036854775808", "ERR decrement would overflow"),
        ("INCRBY n -9223372036854775808", OVERFLOW),
        ("GET n", b"-10"),
        (f"SET n {LARGEST}", "OK"),
        ("INCR n", OVERFLOW),
        ("INCRBY n 0", LARGEST),
        (f"SET n {-LARGEST - 1}", "OK"),
        ("DECR n", OVERFLOW),
        ("INCR n", -LARGEST),
        ("DECR fresh", -1),
        ("DECRBY other -5", 5),
    ],
    "no numbers": [
        (f"SET k {word}\nINCR k", INTEGER)
        for word in ("x", "1.5", "01", "+1", "-0", "00", "1_000", "0x1", "9223372036854775808", "\u00b2", "-")
    ],
    "append and strlen": [
        ("STRLEN k", 0),
        ("APPEND k ab", 2),
        ("EXPIRE k 10", 1),
        ("APPEND k c", 3),
        ("GET k", b"abc"),
        ("STRLEN k", 3),
        ("TTL k", 10),
    ],
    "type": [("TYPE k", Simple("none")), ("SET k v", "OK"), ("TYPE k", Simple("string"))],
    "expire": [
        ("EXPIRE k 10", 0),
        ("TTL k", -2),
        ("PTTL k", -2),
        ("SET k v", "OK"),
        ("TTL k", -1),
        ("PTTL k", -1),
        ("EXPIRE k 10", 1),
        ("TTL k", 10),
        ("PEXPIRE k 1499", 1),
        ("TTL k", 1),
        ("PEXPIRE k 1500", 1),
        ("TTL k", 2),
        ("PERSIST k", 1),
        ("PERSIST k", 0),
        ("PERSIST none", 0),
        ("EXPIRE k x", INTEGER),
        (f"EXPIRE k {LARGEST}", EXPIRE_TIME),
        (f"EXPIRE k {-LARGEST}", EXPIRE_TIME),
        (f"PEXPIRE k {LARGEST}", "ERR invalid expire time in 'pexpire' command"),
        ("EXPIRE k 10 FOO", "ERR Unsupported option FOO"),
        ("EXPIRE none x FOO", "ERR Unsupported option FOO"),
        ("EXPIRE none x", INTEGER),
        ("EXPIRE k 0", 1),
        ("EXISTS k", 0),
        ("SET k v", "OK"),
        ("PEXPIRE k -1", 1),
        ("EXISTS k", 0),
    ],
    "expire on conditions": [
        ("SET k v", "OK"),
        ("EXPIRE k 10 XX", 0),
        ("EXPIRE k 10 GT", 0),
        ("EXPIRE k 10 nx", 1),
        ("EXPIRE k 20 NX", 0),
        ("EXPIRE k 10 GT", 0),
        ("EXPIRE k 11 GT", 1),
        ("EXPIRE k 11 LT", 0),
        ("EXPIRE k 10 LT XX", 1),
        ("EXPIRE k 12 GT XX", 1),
        ("TTL k", 12),
        ("PERSIST k", 1),
        ("EXPIRE k 5 LT XX", 0),
        ("EXPIRE k 5 LT", 1),
        ("EXPIRE k 5 NX GT", NX_AND_OTHERS),
        ("EXPIRE k 5 XX NX", NX_AND_OTHERS),
        ("EXPIRE k 5 LT GT", "ERR GT and LT options at the same time are not compatible"),
        ("EXPIRE k -1 NX", 0),
        ("EXISTS k", 1),
    ],
    "flushall": [
        ("MSET a 1 b 2", "OK"),
        ("EXPIRE a 10", 1),
        ("FLUSHALL FOO", SYNTAX),
        ("FLUSHALL SYNC ASYNC", SYNTAX),
        ("DBSIZE", 2),
        ("FLUSHALL async", "OK"),
        ("DBSIZE", 0),
        ("SCAN 0", [b"0", []]),
        ("SET a 1 KEEPTTL", "OK"),
        ("TTL a", -1),
        ("flushall SYNC", "OK"),
        ("KEYS *", []),
    ],
    "keys": [
        ("MSET one 1 two 2 three 3", "OK"),
        ("KEYS t*", [b"two", b"three"]),
        ("KEYS ???", [b"one", b"two"]),
        ("KEYS nothing", []),
        (f"KEYS {'?' * 5000}", "ERR pattern is longer than 4096 bytes"),
    ],
    "too few or too many words, as only a faulty peer could log them": [
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("SET k", "ERR wrong number of arguments for 'set' command"),
        ("INCR a b", "ERR wrong number of arguments for 'incr' command"),
        ("APPEND a", "ERR wrong number of arguments for 'append' command"),
        ("RAFT", "ERR wrong number of arguments for 'raft' command"),
        ("FOLLOWER", "ERR wrong number of arguments for 'follower' command"),
    ],
}


@pytest.mark.parametrize("story", STORIES)
def test_story(run: Driver, story: str) -> None:
    for lines, expected in STORIES[story]:
        reply: Reply = None
        for line in lines.split("\n"):
            reply = run(*line.split(" "))
        assert (lines, reply) == (lines, expected)
        assert type(reply) is type(expected) or isinstance(reply, str)


def test_errors_and_status_lines_are_typed(run: Driver) -> None:
    assert type(run("SET", "k", "v")).__name__ == "Simple"
    assert type(run("INCR", "k")).__name__ == "Error"
    assert type(run("TYPE", "k")).__name__ == "Simple"


def test_any_bytes_are_keys_and_values(run: Driver) -> None:
    for word in (b"", b"\x00\xff\r\n", b" ", b"x" * 100_000, "ключ".encode()):
        run("SET", word, word)
        assert run("GET", word) == word
        assert run("DEL", word) == 1


def test_append_stops_at_the_longest_value(run: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyvalue, "LONGEST_VALUE", 10)
    run("SET", "k", "12345678")
    assert run("APPEND", "k", "90") == 10
    assert run("APPEND", "k", "x") == "ERR string exceeds maximum allowed size"
    assert run("APPEND", "k", "") == 10
    assert run("GET", "k") == b"1234567890"


def test_the_longest_value_is_64_mib(run: Driver) -> None:
    run("SET", "k", b"x" * (64 * 2**20 - 1))
    assert run("APPEND", "k", "y") == 64 * 2**20
    assert run("APPEND", "k", "z") == "ERR string exceeds maximum allowed size"


def test_reads_answer_alike_inside_an_entry_and_outside(run: Driver) -> None:
    run.batch(
        *[[as_bytes(w) for w in line.split()] for line in ("SET k v PX 900", "SET n 5", "MSET a 1 b 2")]
    )
    for line in (
        "GET k",
        "MGET k n x",
        "EXISTS k x",
        "STRLEN k",
        "TYPE k",
        "TTL k",
        "PTTL k",
        "SCAN 0",
        "DBSIZE",
    ):
        words = [as_bytes(word) for word in line.split()]
        assert run.machine.read(words, run.now_ms) == run(*words)
