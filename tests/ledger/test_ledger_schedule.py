"""What the leader proposes next."""

from __future__ import annotations

import msgspec
from ledger_driver import POLICY, START_MS, Driver

from ledger.policy import Policy

NOW = START_MS
policy = msgspec.convert(POLICY, Policy)


def propose(
    book: Driver, now_ms: int, answered: tuple[str, ...] = (), excused: bool = False
) -> list[bytes] | None:
    before = book.digest()
    command = book.ledger.next_system_command(now_ms, 2, frozenset(answered), excused, policy)
    assert book.digest() == before
    return command


def test_it_opens_the_next_interval_when_none_is_open(book: Driver) -> None:
    assert propose(book, NOW) == [b"~OPEN", b"1", b"%d" % (NOW + 2000), b"2", policy.encode()]
    book.round()
    command = propose(book, NOW)
    assert command is not None
    assert command[1] == b"2"


def test_it_waits_until_the_open_interval_is_due_then_closes_it() -> None:
    book = Driver()
    book.take_office("node-1", "node-2", "node-3")
    book.ok(*propose(book, NOW) or [])
    assert propose(book, NOW + 1999) is None
    answered = ("node-3", "stranger", "node-1")
    assert propose(book, NOW + 2000, answered) == [b"~CLOSE", b"1", b"2", b"0", b"node-1", b"node-3"]
    assert propose(book, NOW + 9000, (), excused=True) == [b"~CLOSE", b"1", b"2", b"1"]


def test_what_it_proposes_is_carried_out() -> None:
    book = Driver()
    book.take_office("node-1", "node-2")
    for _ in range(6):
        command = propose(book, book.at_ms, ("node-2",))
        if command is None:
            book.at_ms += 1000
        else:
            book.ok(*command)
    assert book.info("node-2")["balance"] == 10
    assert book.info("node-1")["balance"] == -5


def test_the_policy_survives_its_journey_through_the_log() -> None:
    assert Policy.decode(policy.encode()) == policy
