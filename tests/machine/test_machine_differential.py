"""The same random value commands to a machine and to redis-server: the same replies, the same keys left."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_support import Driver, RealRedis

from raft.replies import Reply

# Times lie far apart and far from now, so that no clock decides: seconds are exact, milliseconds are compared
# with a tolerance, and the driver's clock is the real one.
KEY_NAMES = ["a", "b", "c", "d:1"]
VALUE_WORDS = ["", "x", "0", "1", "-1", "10", "007", "+1", "1.0", "abc"]
VALUE_WORDS += [str(2**63 - 1), str(-(2**63)), str(2**63)]
EVERY_KEY = KEY_NAMES + VALUE_WORDS  # MSET takes any word for a key
KEYS = st.sampled_from(KEY_NAMES)
VALUES = st.sampled_from(VALUE_WORDS)
NUMBERS = st.sampled_from(
    ["0", "1", "-1", "5", "x", "01", str(2**63 - 1), str(-(2**63)), str(2**64), "-0", ""]
)
SECONDS = st.sampled_from(
    ["1000", "2000", "100000", "0", "-1", "x", str(2**63 - 1), str(2**62), str(-(2**63))]
)
MILLISECONDS = st.sampled_from(["1000000", "2000000", "100000000", "0", "-5", "", str(2**63 - 1)])
SECOND_STAMPS = st.sampled_from(["1", "1000", "4000000000", "5000000000", "0", "-7", "no", str(2**62)])
STAMPS = st.sampled_from(["1", "1000", "4000000000000", "5000000000000", "0", "-7", str(2**63 - 1)])


def option(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.sampled_from(names).map(lambda name: (name,))


TIMES = st.one_of(
    st.tuples(st.sampled_from(["EX", "ex"]), SECONDS),
    st.tuples(st.just("PX"), MILLISECONDS),
    st.tuples(st.just("EXAT"), SECOND_STAMPS),
    st.tuples(st.just("PXAT"), STAMPS),
)
SET_OPTIONS = st.lists(st.one_of(TIMES, option("NX", "XX", "GET", "KEEPTTL", "nx", "EX", "FOO")), max_size=3)
GETEX_OPTIONS = st.lists(st.one_of(TIMES, option("PERSIST", "KEEPTTL", "FOO")), max_size=2)
EXPIRE_OPTIONS = st.lists(option("NX", "XX", "GT", "LT", "gt", "FOO"), max_size=2)


def flat(*parts: object) -> list[str]:
    words: list[str] = []
    for part in parts:
        if isinstance(part, str):
            words.append(part)
        else:
            assert isinstance(part, list | tuple)
            words += flat(*part)
    return words


def command(*parts: object) -> st.SearchStrategy[list[str]]:
    return st.tuples(*[st.just(part) if isinstance(part, str) else part for part in parts]).map(flat)


MANY_KEYS = st.lists(KEYS, min_size=1, max_size=4)
PAIRS = st.lists(st.one_of(KEYS, VALUES), min_size=2, max_size=6)
COMMANDS = st.one_of(
    command("SET", KEYS, VALUES),
    command("SET", KEYS, VALUES, SET_OPTIONS),
    command("GETEX", KEYS, GETEX_OPTIONS),
    command(st.sampled_from(["GET", "GETDEL", "INCR", "DECR", "STRLEN", "TYPE", "TTL", "PERSIST"]), KEYS),
    command(st.sampled_from(["PTTL", "INCR", "DECR"]), KEYS),
    command(st.sampled_from(["DEL", "EXISTS", "MGET"]), MANY_KEYS),
    command(st.sampled_from(["MSET", "MSETNX"]), PAIRS),
    command(st.sampled_from(["INCRBY", "DECRBY"]), KEYS, NUMBERS),
    command("APPEND", KEYS, VALUES),
    command("EXPIRE", KEYS, SECONDS, EXPIRE_OPTIONS),
    command("PEXPIRE", KEYS, MILLISECONDS, EXPIRE_OPTIONS),
    command("KEYS", st.sampled_from(["*", "?", "[ab]", "[^a]*", "d:*", ""])),
    command("SCAN", "0", "COUNT", "100", "MATCH", st.sampled_from(["*", "?", "d*"])),
    command(
        "SCAN",
        st.sampled_from(["0", "x", "1x"]),
        st.lists(st.sampled_from(["COUNT", "0", "TYPE", "x"]), max_size=3),
    ),
    command("DBSIZE"),
    command("FLUSHALL", st.lists(st.sampled_from(["SYNC", "ASYNC", "FOO"]), max_size=2)),
)

# One deliberate difference: a SET whose EXAT or PXAT has passed leaves nothing at once; Redis 7.0 counts
# the dead key in DBSIZE until it meets it (7.2 does as we do).


def comparable(words: list[str], reply: Reply) -> object:
    if isinstance(reply, list):
        if words[0] == "KEYS":
            return set(reply)
        if words[0] == "SCAN":
            return (reply[0], set(reply[1]))  # type: ignore[arg-type]
    return reply


def same(words: list[str], ours: Reply, theirs: Reply) -> bool:
    if words[0] == "PTTL" and isinstance(ours, int) and isinstance(theirs, int) and theirs > 0:
        return abs(ours - theirs) < 60_000
    if words[0] == "TTL" and isinstance(ours, int) and isinstance(theirs, int) and theirs > 0:
        return abs(ours - theirs) < 60
    if isinstance(ours, str) and isinstance(theirs, bytes):
        return ours == theirs.decode()
    return comparable(words, ours) == comparable(words, theirs)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(COMMANDS, min_size=1, max_size=25))
def test_replies_are_those_of_redis(real_redis: RealRedis, sequence: list[list[str]]) -> None:
    real_redis("FLUSHALL")
    machine = Driver()
    clock = real_redis("TIME")
    assert isinstance(clock, list)
    machine.now_ms = int(clock[0]) * 1000  # type: ignore[arg-type]
    sent: list[list[str]] = []
    for words in sequence:
        sent.append(words)
        if words[0] == "DBSIZE":
            real_redis("EXISTS", *EVERY_KEY)  # makes Redis meet its dead keys; KEYS leaves them
        ours, theirs = machine(*words), real_redis(*words)
        assert same(words, ours, theirs), (sent, ours, theirs)
    for key in ("a", "b", "c", "d:1"):
        assert machine("GET", key) == real_redis("GET", key), sent
        assert same(["PTTL"], machine("PTTL", key), real_redis("PTTL", key)), sent
