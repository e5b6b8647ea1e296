"""Followers at work: they join, answer their turns, claim rewards, and keep their own books of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from tests.chaos.books import Book
from tests.chaos.clients import REFUSED, Client, LostError, NotSentError, code_of

CLAIM = 3


class Follower(threading.Thread):
    """One follower, through any node. It rests while told so, with nothing under way."""

    leaves = False  # whether it ever says FOLLOWER LEAVE

    def __init__(self, client: Client, stopped: threading.Event) -> None:
        super().__init__(name=client.name, daemon=True)
        self.client, self._stopped = client, stopped
        self.book = Book(client.name, leaves=self.leaves)
        self.rest, self.resting = threading.Event(), threading.Event()
        self._looked = self._unsure_until = 0.0  # until then a JOIN of unknown outcome may still happen
        self._away = False  # it has left, and no answer has told that it is back
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
        interval = self._current()
        if interval and interval not in self.book.reported:
            self._report(interval)
        if time.monotonic() - self._looked > 2:
            self.look()
            self._claim()

    def _current(self) -> int:
        """The open interval, 0 for none that is known; who opened it goes into the book."""
        current = flat(self._try(["INTERVAL", "CURRENT"]))
        if not current or current["closed_at"] is not None:
            return 0
        number, opener = int(current["interval"]), (int(current["leader"]), int(current["term"]))
        if self.book.opened.setdefault(number, opener) != opener:
            self._wrong(f"interval {number} opened by {opener} after {self.book.opened[number]}")
        return number

    def _report(self, interval: int) -> str:
        """Answer; sometimes twice, which is OK again. The error's first word, empty for OK and unknown."""
        self.book.tried.add(interval)
        words = ["FOLLOWER", "REPORT", self.name, interval, f"data of {interval}"]
        reply = self._try(words)
        code = code_of(reply)
        if reply is not None and not code:
            self._away = False
            self.book.reported.add(interval)
            if self.client.rng.random() < 0.1:
                self.client.hang_up()
                if (again := code_of(self._try(words))) not in ("", "BANNED", "NOFOLLOWER"):
                    self._wrong(f"REPORT for {interval} again answered {again} after OK")
        elif code == "BANNED" or (code == "NOFOLLOWER" and self.leaves):
            self._come_back(code)
        elif code == "NOTURN":
            self.book.spam_bans += "banned for" in str(reply)
        elif code:
            self._wrong(f"REPORT answered {reply}")
        return code

    def _come_back(self, code: str) -> None:
        """Banned (by misses in a row, or too many late answers): join again as soon as it goes."""
        self.book.bans += code == "BANNED"
        joined = self._try(["FOLLOWER", "JOIN", self.name, "1.0"])
        if joined is None:
            self._unsure_until = time.monotonic() + 30
        elif not code_of(joined):
            self._away = False
        if code_of(joined) not in ("", "BANNED"):
            self._wrong(f"JOIN answered {joined}")

    def _wrong(self, text: str) -> None:
        self.client.findings.wrong.append(f"{self.name}: {text}")

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
                self._wrong(f"interval {interval}: {told} after {self.book.outcomes[int(interval)]}")
        return True

    def _claim(self) -> None:
        """Claim a little, under one id for however long it takes to hear the answer."""
        self.book.claims += 1
        reply = self._settle(
            ["REWARD", "CLAIM", self.name, CLAIM, f"{self.client.session}-{self.book.claims}"]
        )
        if code_of(reply) == "OVERCLAIM":
            self.book.refused_claims += 1
        elif reply is not None and not code_of(reply):
            self.book.claimed += CLAIM
        elif reply is not None:
            self._wrong(f"CLAIM answered {reply}")

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
