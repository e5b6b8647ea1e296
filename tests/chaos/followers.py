"""Followers at work: they join, answer their turns, claim rewards, and keep their own books of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.clients import REFUSED, Client, LostError, NotSentError, code_of

REWARD, PENALTY = 10, 5


@dataclass
class Book:
    """What a follower knows for sure. reported: acknowledged; tried: sent, with or without an answer."""

    name: str
    reported: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)
    outcomes: dict[int, tuple[str, int]] = field(default_factory=dict)  # interval -> (outcome, delta)
    claimed: int = 0
    refused_claims: int = 0
    claims: int = 0


class Follower(threading.Thread):
    """One follower, through any node. It rests while told so, with nothing under way."""

    def __init__(self, client: Client, stopped: threading.Event) -> None:
        super().__init__(name=client.name, daemon=True)
        self.client, self.book, self._stopped = client, Book(client.name), stopped
        self.rest, self.resting = threading.Event(), threading.Event()
        self._looked = 0.0
        self._looking = threading.Lock()  # the judge looks, too, while the follower rests

    def run(self) -> None:
        """The thread's body."""
        try:
            self._settle(["FOLLOWER", "JOIN", self.name, "1.0"])
            while not self._stopped.is_set():
                if self.rest.is_set():
                    self.resting.set()
                    self._stopped.wait(0.05)
                    if time.monotonic() - self._looked > 2:  # the history holds 32 outcomes only
                        self.look()
                    continue
                self.resting.clear()
                self._turn()
                self._stopped.wait(0.1)
        except Exception as error:  # noqa: BLE001 - a dead follower must not pass for a quiet one
            self.client.findings.wrong.append(f"follower {self.name} failed: {error!r}")
        finally:
            self.resting.set()
            self.client.hang_up()

    def _turn(self) -> None:
        current = flat(self._try(["INTERVAL", "CURRENT"]))
        interval = current.get("interval")
        if interval and interval not in self.book.reported:
            self.book.tried.add(interval)
            reply = self._try(["FOLLOWER", "REPORT", self.name, interval, f"data of {interval}"])
            if reply is not None and not code_of(reply):
                self.book.reported.add(interval)
            elif code_of(reply) not in ("", "NOTURN"):
                self.client.findings.wrong.append(f"REPORT of {self.name} answered {reply}")
        if time.monotonic() - self._looked > 2:
            self.look()
            self._claim()

    def look(self) -> bool:
        """Read the latest outcomes into the book: no interval may ever change what it said."""
        with self._looking:
            return self._read_history()

    def _read_history(self) -> bool:
        self._looked = time.monotonic()
        reply = self._try(["REWARD", "HISTORY", self.name, "COUNT", 32])
        if not isinstance(reply, list):
            return False
        for interval, outcome, delta, _balance, _closed in reply:
            told = (outcome.decode(), int(delta))
            if self.book.outcomes.setdefault(int(interval), told) != told:
                self.client.findings.wrong.append(
                    f"{self.name}, interval {interval}: {told} after {self.book.outcomes[int(interval)]}"
                )
        return True

    def _claim(self) -> None:
        """Claim a little, under one id for however long it takes to hear the answer."""
        self.book.claims += 1
        reply = self._settle(["REWARD", "CLAIM", self.name, 3, f"{self.client.session}-{self.book.claims}"])
        if code_of(reply) == "OVERCLAIM":
            self.book.refused_claims += 1
        elif reply is not None and not code_of(reply):
            self.book.claimed += 3
        elif reply is not None:
            self.client.findings.wrong.append(f"CLAIM of {self.name} answered {reply}")

    def _settle(self, words: Sequence[str | int]) -> Any:
        """The final answer to a command that may be repeated; None if stopped before."""
        while not self._stopped.is_set():
            if (reply := self._try(words)) is not None:
                return reply
            time.sleep(0.05)
        return None

    def _try(self, words: Sequence[str | int]) -> Any:
        """The answer, or None where it is not known or refused for now."""
        try:
            (reply,) = self.client.ask(words)
        except (NotSentError, LostError):
            return None
        if code_of(reply) in (*REFUSED, "INDETERMINATE"):
            self.client.hang_up()
            return None
        return reply


def flat(reply: Any) -> dict[str, Any]:
    """A flat field, value reply as a dict; empty for none."""
    if not isinstance(reply, list):
        return {}
    return {field.decode(): value for field, value in zip(reply[::2], reply[1::2], strict=True)}


def check_book(book: Book, info: dict[str, Any], current: int) -> list[str]:
    """What is wrong between a follower's book and FOLLOWER INFO. current: the interval now open."""
    wrong = []
    hits = {n for n, (outcome, _) in book.outcomes.items() if outcome == "hit"}
    closed = {n for n in book.reported if n < current}
    closed &= book.outcomes.keys()  # what the history no longer showed when it was read, nobody can tell
    if lost := closed - hits:
        wrong.append(f"acknowledged reports that do not count: {sorted(lost)[:5]}")
    if ghosts := hits - book.tried:
        wrong.append(f"hits that were never reported: {sorted(ghosts)[:5]}")
    expected = {"hit": REWARD, "missed": -PENALTY, "excused": 0}
    wrong += [f"interval {n}: {told}" for n, told in book.outcomes.items() if expected[told[0]] != told[1]]
    if info["balance"] != info["earned"] - info["penalties"] - info["claimed"]:
        wrong.append(f"the balance does not add up: {info}")
    if info["claimed"] != book.claimed:
        wrong.append(f"claimed {info['claimed']}, answered {book.claimed}")
    numbers = sorted(book.outcomes)
    if numbers and numbers[-1] - numbers[0] + 1 == len(numbers):  # none was missed in looking
        misses = sum(outcome == "missed" for outcome, _ in book.outcomes.values())
        if info["earned"] != REWARD * len(hits):
            wrong.append(f"earned {info['earned']} with {len(hits)} hits")
        if info["penalties"] != PENALTY * (misses + book.refused_claims):
            wrong.append(f"penalties {info['penalties']} for {misses} misses, {book.refused_claims} claims")
    return [f"follower {book.name}: {text}" for text in wrong]
