"""Followers that break the rules, so that bans, spam, LEAVE, PARDON and VERSION are judged as well."""

from __future__ import annotations

import time
from typing import Any

from tests.chaos.clients import code_of
from tests.chaos.followers import Follower, flat


class Sleeper(Follower):
    """Answers for a while, then misses until it is banned; it never answers out of turn on purpose."""

    def _turn(self) -> None:
        awake = time.monotonic() % 16 < 8
        interval = self._current()
        if awake and interval and interval not in self.book.reported:
            self._report(interval)
        if time.monotonic() - self._looked > 2:
            self.look()
            self._claim()


class Pest(Follower):
    """Answers out of turn, leaves and comes back, with a wrong version as well, and is pardoned sometimes."""

    leaves = True

    def _turn(self) -> None:
        interval = self._current()
        if interval and interval not in self.book.reported:
            self._report(interval)
        drawn = self.client.rng.random()
        if interval and drawn < 0.3:
            self._spam(interval)
        elif drawn < 0.34:
            self._absence()
        elif drawn < 0.4:
            self._expect(["FOLLOWER", "JOIN", self.name, "0.9"], "VERSION", "BANNED")
        if time.monotonic() - self._looked > 2:
            self.look()
            self._claim()

    def _expect(self, words: list[str | int], *codes: str) -> Any:
        reply = self._try(words)
        if reply is not None and code_of(reply) not in codes:
            self._wrong(f"{' '.join(map(str, words))} answered {reply}")
        return reply

    def _spam(self, interval: int) -> None:
        if self._away:
            return  # to who has left every answer is NOFOLLOWER
        for _ in range(10):
            reply = self._expect(
                ["FOLLOWER", "REPORT", self.name, interval + 1000, "early"], "NOTURN", "BANNED"
            )
            if "banned for" in str(reply):
                self.book.spam_bans += 1
                self._banned()
                return

    def _banned(self) -> None:
        """From a moment when it is surely banned until the ban's end there is no turn for it."""
        told = flat(self._try(["FOLLOWER", "INFO", self.name]))
        until, current = told.get("banned_until"), self._current()
        if told.get("state") != b"banned" or until is None or not current:
            return
        if self.client.rng.random() < 0.3:
            reply = self._expect(["FOLLOWER", "PARDON", self.name, "for the test"], "", "ERR")
            if reply is None or code_of(reply):
                return  # unknown, or the ban was over
            if flat(self._try(["FOLLOWER", "INFO", self.name])).get("state", b"active") == b"banned":
                self._wrong("still banned after PARDON")
            return
        self.book.banned_until.append((current, int(until)))

    def _absence(self) -> None:
        self._away = True
        if self._settle(["FOLLOWER", "LEAVE", self.name]) is None:
            return
        gone = self._current()
        self._stopped.wait(1.5)
        back = self._current()
        if gone and back and time.monotonic() > self._unsure_until:
            self.book.absences.append((gone, back))
        self._expect(["FOLLOWER", "REPORT", self.name, back or 1, "gone"], "NOFOLLOWER", "BANNED")
        self._come_back("NOFOLLOWER")
