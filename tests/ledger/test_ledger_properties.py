"""Whatever is sent, in whatever order: rule 8, one outcome each, determinism, MongoDB can be rebuilt."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_driver import POLICY, START_MS, Driver, members_json, policy_json

from ledger.rows import ClaimRow, IntervalRow
from raft.replies import Error

WORKERS = ["a", "b", "c", "d"]
MEMBERS = ["node-1", "node-2", "node-3"]
EVERYONE = WORKERS + MEMBERS + ["nobody"]
PENALTY = POLICY["penalty"]

names = st.sampled_from(EVERYONE)
near = st.integers(-2, 1)  # relative to the newest interval
steps = st.one_of(
    st.tuples(st.just("join"), names, st.sampled_from(["1.0", "1.0", "1.0", "0.9"])),
    st.tuples(st.just("leave"), names),
    st.tuples(st.just("report"), names, near),
    st.tuples(st.just("report"), st.sampled_from(WORKERS), st.just(0)),
    st.tuples(st.just("claim"), names, st.integers(-1, 40), st.integers(0, 30)),
    st.tuples(st.just("pardon"), names),
    st.tuples(st.just("open"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("close"), st.booleans(), st.lists(names, max_size=4)),
    st.tuples(st.just("term"), st.lists(st.sampled_from(MEMBERS), unique=True)),
    st.tuples(st.just("members"), st.lists(st.sampled_from(MEMBERS), unique=True)),
    st.tuples(st.just("wait"), st.integers(0, 700_000)),
    st.tuples(st.just("projected"), st.integers(0, 8)),
)
few = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Run:
    """A driver that knows the newest interval, so that steps can be near it."""

    def __init__(self, outbox_bytes: int = 2**20) -> None:
        self.book = Driver(outbox_bytes)
        self.book.take_office("node-1", "node-2")
        self.newest = 0

    def step(self, step: tuple[Any, ...]) -> None:
        book = self.book
        match step:
            case "join", name, version:
                book.do("FOLLOWER JOIN", name, version)
            case "leave", name:
                book.do("FOLLOWER LEAVE", name)
            case "report", name, offset:
                book.do("FOLLOWER REPORT", name, self.newest + offset, "x")
            case "claim", name, amount, number:
                book.do("REWARD CLAIM", name, amount, f"claim {number}")
            case "pardon", name:
                book.do("FOLLOWER PARDON", name, "because")
            case "open", per_interval, right:
                number = self.newest + (1 if right else 2)
                policy = policy_json(followers_per_interval=per_interval)
                if not isinstance(book.do("~OPEN", number, book.at_ms + 2000, 1, policy), Error):
                    self.newest = number
            case "close", excused, answered:
                book.do("~CLOSE", self.newest, 1, int(excused), *answered)
            case "term", members:
                book.term += 1
                book.do("~TERM", 2, policy_json(), members_json(*members))
            case "members", members:
                book.do("~MEMBERS", members_json(*members))
            case "wait", milliseconds:
                book.at_ms += milliseconds
            case "projected", back:
                book.do("~PROJECTED", max(0, book.index - back))
            case _:
                raise AssertionError(step)


@few
@given(st.lists(steps, max_size=80))
def test_rule_8_and_determinism_for_any_sequence(sequence: list[tuple[Any, ...]]) -> None:
    left, right = Run(), Run()
    for step in sequence:
        left.step(step)  # every entry checks rule 8
        right.step(step)
        assert left.book.events() == right.book.events()
    assert left.book.digest() == right.book.digest()
    assert left.book.ledger.pull(10**6) == right.book.ledger.pull(10**6)


@few
@given(st.lists(steps, max_size=80), st.integers(0, 12), st.integers(1, 7))
def test_the_outbox_rebuilds_every_balance_with_each_outcome_once(
    sequence: list[tuple[Any, ...]], max_rows: int, every: int
) -> None:
    run = Run()
    book = run.book
    outcomes: dict[tuple[int, str], IntervalRow] = {}
    claims: dict[str, ClaimRow] = {}
    amounts: dict[str, int] = {}

    def project() -> bool:
        batch = book.ledger.pull(max_rows)
        if batch is None:
            return False
        for row in batch.intervals:
            assert (row.interval, row.node) not in outcomes
            outcomes[row.interval, row.node] = row
        for claim in batch.claims:
            assert claim.claim_id not in claims
            claims[claim.claim_id] = claim
        for reward in batch.rewards:
            amounts[reward.node] = reward.amount
        book.ok("~PROJECTED", batch.upto_index)
        return True

    for number, step in enumerate(sequence):
        if step[0] != "projected":
            run.step(step)
        if number % every == 0:
            project()
    while project():
        pass
    rebuilt: dict[str, int] = {}
    for row in outcomes.values():
        rebuilt[row.node] = rebuilt.get(row.node, 0) + row.delta
    for claim in claims.values():
        rebuilt[claim.node] = rebuilt.get(claim.node, 0) - (claim.amount if claim.accepted else PENALTY)
    current = {name: book.info(name)["balance"] for name in amounts}
    assert amounts == current
    assert {name: rebuilt.get(name, 0) for name in amounts} == current
    assert len(amounts) == sum(book.ledger.counts().values())


@few
@given(st.lists(steps, max_size=60), st.integers(0, 200))
def test_a_small_outbox_stays_within_its_bound_and_loses_no_claim(
    sequence: list[tuple[Any, ...]], room: int
) -> None:
    run = Run(outbox_bytes=room)
    made = 0
    for step in sequence:
        if step[0] == "projected":
            continue
        before = len(run.book.ledger._state.claims.by_id)
        run.step(step)  # every entry checks the bound
        made += len(run.book.ledger._state.claims.by_id) - before
    batch = run.book.ledger.pull(10**6, full=True)
    assert batch is not None
    assert len(batch.claims) == made


words = st.one_of(
    st.binary(max_size=20),
    st.integers(-(2**70), 2**70).map(lambda number: b"%d" % number),
    st.sampled_from([b"a", b"node-1", b"1", b"0", b"1.0", b"COUNT", b"STATE", b"left", b"[]", b"x" * 2000]),
    st.just(policy_json()),
    st.just(members_json("node-1")),
)
heads = st.sampled_from(
    [
        b"FOLLOWER JOIN",
        b"FOLLOWER REPORT",
        b"FOLLOWER LEAVE",
        b"FOLLOWER INFO",
        b"FOLLOWER LIST",
        b"FOLLOWER PARDON",
        b"REWARD BALANCE",
        b"REWARD CLAIM",
        b"REWARD TOP",
        b"REWARD HISTORY",
        b"INTERVAL CURRENT",
        b"INTERVAL SHOW",
        b"~TERM",
        b"~MEMBERS",
        b"~OPEN",
        b"~CLOSE",
        b"~PROJECTED",
    ]
).map(lambda name: name.split(b" "))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(heads | st.lists(words, max_size=2), st.lists(words, max_size=5)), max_size=12))
def test_any_words_give_a_reply_and_an_error_is_one_line(
    commands: list[tuple[list[bytes], list[bytes]]],
) -> None:
    book = Driver()
    book.take_office("node-1")
    book.join("a")
    for head, rest in commands:
        book.index += 1
        reply = book.raw(head + rest)
        if isinstance(reply, Error):
            assert reply.split(" ")[0].isupper()
            assert all(" " <= character <= "~" for character in reply)
        book.digest()
        book.ledger.pull(3)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, min_size=5, max_size=40), heads, st.lists(words, max_size=5))
def test_an_error_changes_nothing_but_spam_and_overclaims(
    sequence: list[tuple[Any, ...]], head: list[bytes], rest: list[bytes]
) -> None:
    run = Run()
    for step in sequence:
        run.step(step)
    before = run.book.digest()
    run.book.index += 1
    reply = run.book.raw(head + rest)
    if isinstance(reply, Error) and not reply.startswith(("NOTURN", "OVERCLAIM")):
        assert run.book.digest() == before


def test_the_digest_tells_apart_what_differs_only_in_time() -> None:
    left, right = Driver(), Driver()
    right.at_ms += 1
    for book in (left, right):
        book.take_office()
        book.join("a")
    assert left.at_ms == START_MS
    assert left.digest() != right.digest()
