"""The judge's questions that need no more than a few addresses or records."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from tests.chaos.books import Book
from tests.chaos.clients import Address, Link, LostError, NotSentError, code_of
from tests.chaos.followers import flat
from tests.chaos.history import FAILED, OK, UNKNOWN, History, Operation
from tests.chaos.nodes import ChaosCluster

LONG = 12  # rounds
MOST_GROWTH = {"node_mb": 30.0, "descriptors": 15.0, "threads": 5.0}


def final_reads(history: History, addresses: dict[int, Address], keys: Iterable[str]) -> None:
    """Every key through every node, as operations like any other."""
    for n, address in addresses.items():
        link = Link(address)
        for key in keys:
            name = f"{key}:a" if key.startswith("m:") else key
            operation = Operation(key, "get", None, time.monotonic_ns(), client="last", node=n)
            (reply,) = link.ask(["GET", name])
            if code_of(reply):
                operation.outcome, operation.error = FAILED, code_of(reply)
            else:
                operation.outcome = OK
                counter = key[0] in "co"
                operation.result = None if reply is None else int(reply) if counter else reply.decode()
            operation.ended = time.monotonic_ns()
            history.add(operation)
        link.close()


def check_counters(operations: Iterable[Operation]) -> list[str]:
    """Said once more without the search: what the counters must come to."""
    acked: dict[str, int] = {}
    unknown: dict[str, int] = {}
    last: dict[str, int] = {}
    for o in operations:
        if o.what == "incr":
            tally = {OK: acked, UNKNOWN: unknown}.get(o.outcome, {})
            tally[o.key] = tally.get(o.key, 0) + 1
        elif o.client == "last" and o.key[0] in "co" and o.outcome == OK:
            last[o.key] = o.result or 0
    wrong = []
    for key, value in last.items():
        least = acked.get(key, 0)
        most = least + unknown.get(key, 0)
        if not least <= value <= most:
            wrong.append(f"{key} is {value}, acknowledged {least}, unknown {most - least}")
    return wrong


def check_heard(books: Sequence[Book], heard: dict[tuple[str, int], tuple[str, int, int]]) -> list[str]:
    """What was published against what the followers have read (rule 7)."""
    return [
        f"published for {book.name}, interval {n}: {heard[book.name, n]}, REWARD HISTORY said {told}"
        for book in books
        for n, told in book.outcomes.items()
        if (book.name, n) in heard and heard[book.name, n][:2] != told
    ][:5]


def check_growth(growth: Sequence[dict[str, float]]) -> list[str]:
    """What nodes took in the last quarter of a long run, against the first; medians, so that one large moment
    is no growth. The state itself grows a little (keys of each round, claims)."""
    if len(growth) < LONG:
        return []
    quarter = len(growth) // 4
    first, last = growth[:quarter], growth[-quarter:]
    wrong = []
    for what, most in MOST_GROWTH.items():
        before, after = (median(each[what] for each in part) for part in (first, last))
        if after - before > most:
            wrong.append(f"{what} of the largest node grew from {before:g} to {after:g}")
    return wrong


def ask_once(cluster: ChaosCluster, node: int, *words: Any) -> Any:
    """A reply as it is on the wire, or None where it is refused."""
    address = cluster.addresses[node]
    with contextlib.suppress(NotSentError, LostError):
        link = Link((address["host"], address["client_port"]))
        try:
            (reply,) = link.ask(words)
        finally:
            link.close()
        return None if code_of(reply) else reply
    return None


def open_interval(cluster: ChaosCluster, node: int) -> int:
    """The number of the interval that is open, 0 where none is (INTERVAL CURRENT then shows the last one)."""
    current = flat(ask_once(cluster, node, "INTERVAL", "CURRENT"))
    return int(current["interval"]) if current and current["closed_at"] is None else 0
