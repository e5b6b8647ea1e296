"""A reference follower: who it is, how it behaves, and what it makes of the cluster's answers. No I/O here.

cli/crew.py carries followers: one thread and one pair of connections for one follower or for hundreds. A
follower belongs to the thread of its crew; others may read its counters (`acknowledged`, `state`).
"""

from __future__ import annotations

import logging
import random
import re
from collections import deque
from enum import Enum

import msgspec

from cli.once import OnceSession

log = logging.getLogger(__name__)

RETRY_CODES = frozenset({"CLUSTERDOWN", "INDETERMINATE", "BUSY"})  # sent again, under the same number
_REMEMBERED = 1000
_BAN_UNKNOWN_S = 5.0
_LONGEST_BAN_S = 1e9  # what a server may say more is no more than for good, too


class Behaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How honest a follower is. miss, spam: probability per turn; the same seed decides the same again."""

    miss: float = 0.0
    spam: float = 0.0
    seed: int = 0

    def misses(self, name: str, interval: int) -> bool:
        """Whether the follower keeps silent in this turn."""
        return self._draw("miss", name, interval) < self.miss

    def spams(self, name: str, interval: int) -> bool:
        """Whether it sends an answer out of turn besides."""
        return self._draw("spam", name, interval) < self.spam

    def _draw(self, what: str, name: str, interval: int) -> float:
        return random.Random(f"{self.seed} {what} {name} {interval}").random()


class State(Enum):
    """Where a follower stands with the cluster, as far as it knows."""

    OUTSIDE = "outside"  # has to JOIN
    ACTIVE = "active"
    BANNED = "banned"  # will JOIN when the ban is over
    REFUSED = "refused"  # wrong version, or the cluster finds its words wrong: asking again is no use


class Follower:
    """One follower. Times are monotonic seconds of the process."""

    def __init__(
        self, name: str, version: str = "1.0", address: str = "", behaviour: Behaviour | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.address = address
        self.behaviour = behaviour or Behaviour()
        self.state = State.OUTSIDE
        self.join_at = 0.0
        self.first_turn: int | None = (
            None  # the first interval that can hold a turn for it; None: to be asked
        )
        self.settled = 0  # the newest interval that needs nothing more from it
        self.asks_first = False  # it has been told NOTURN: not everyone has a turn in each interval
        self.acknowledged: deque[int] = deque(maxlen=_REMEMBERED)  # intervals whose answer was OKed
        self.refused_out_of_turn = 0
        self._spam_considered = 0
        self.bans = 0
        self._once = OnceSession()

    def join_command(self) -> list[str]:
        """The words of its FOLLOWER JOIN under ONCE; the same until it is answered: a retry is one."""
        return self._once.wrap(self._join())

    def report_command(self, interval: int) -> list[str]:
        """The words of its FOLLOWER REPORT for an interval under ONCE; the same until it is answered."""
        return self._once.wrap(self._report(interval))

    def _join(self) -> list[str]:
        return ["FOLLOWER", "JOIN", self.name, self.version, *([self.address] if self.address else [])]

    def _report(self, interval: int) -> list[str]:
        return ["FOLLOWER", "REPORT", self.name, str(interval), f"{self.name} at interval {interval}"]

    def wants_to_join(self, now_s: float) -> bool:
        """Whether it is time for a (new) JOIN."""
        return self.state in (State.OUTSIDE, State.BANNED) and now_s >= self.join_at

    def may_have_turn(self, interval: int) -> bool:
        """Whether, as far as it knows, the interval waits for its answer."""
        if self.state is not State.ACTIVE or interval <= self.settled:
            return False
        return self.first_turn is not None and interval >= self.first_turn

    def has_turn(self, interval: int, turn: int) -> bool:
        """Takes the field `turn` of its FOLLOWER INFO (0: none); whether the interval waits for its answer.

        If not, the interval is settled: it has no turn in it, has answered it already, or comes too late.
        """
        if turn == interval:
            return True
        self.settled = max(self.settled, interval)
        log.debug("%s: interval %d: no turn", self.name, interval)
        return False

    def means_to_answer(self, interval: int) -> bool:
        """Whether it will answer its turn, being as it is; settles the turn when it will not."""
        if not self.behaviour.misses(self.name, interval):
            return True
        self.settled = interval
        log.info("%s: interval %d: misses its turn on purpose", self.name, interval)
        return False

    def answers_out_of_turn(self, interval: int) -> bool:
        """Whether it means to send an answer out of turn now; at most once per interval."""
        if self.state is not State.ACTIVE or interval <= self._spam_considered:
            return False
        self._spam_considered = interval
        return self.behaviour.spams(self.name, interval)

    def joined(self, error: str | None, now_s: float) -> bool:
        """Takes the answer to JOIN (None: OK); False when it has to be sent again."""
        if not self._is_final(self._join(), error):
            return False
        if error is None:
            if self.state is not State.ACTIVE:
                log.info("%s: joined as version %s", self.name, self.version)
                self.first_turn = None
            self.state = State.ACTIVE
            return True
        if error.startswith("BANNED"):
            self._banned(error, now_s)
        else:
            self.state = State.REFUSED
            log.error("%s: not admitted: %s", self.name, error)
        return True

    def reported(self, interval: int, error: str | None, now_s: float) -> bool:
        """Takes the answer to REPORT (None: OK); False when it has to be sent again."""
        if not self._is_final(self._report(interval), error):
            return False
        code = error.split(" ", 1)[0] if error else ""
        if error is None:
            self.acknowledged.append(interval)
            log.debug("%s: interval %d: answered", self.name, interval)
        elif code == "BANNED":
            self._banned(error, now_s)
        elif code == "NOFOLLOWER":
            log.info("%s: the cluster does not know it: joins again", self.name)
            self.state, self.join_at = State.OUTSIDE, now_s
        else:
            if code == "NOTURN":
                self.refused_out_of_turn += 1
                self.asks_first = True
            log.warning("%s: interval %d: %s", self.name, interval, error)
        self.settled = max(self.settled, interval)
        return True

    def _is_final(self, words: list[str], error: str | None) -> bool:
        """Whether the answer stands; else the same is to be sent again, to any node."""
        if error is not None and error.split(" ", 1)[0] in RETRY_CODES:
            return False
        return self._once.settle(words, error)

    def spammed(self, interval: int, error: str | None, now_s: float) -> None:
        """Takes the answer to a REPORT that it knew to be out of turn; it is not sent again."""
        self._once.settle(self._report(interval), error)
        log.info("%s: answered out of turn: %s", self.name, error or "OK")
        if error is not None and error.startswith("NOTURN"):
            self.refused_out_of_turn += 1
        elif error is not None and error.startswith("BANNED"):
            self._banned(error, now_s)

    def _banned(self, error: str, now_s: float) -> None:
        left_s = ban_seconds(error)
        if self.state is not State.BANNED:
            self.bans += 1
            log.warning("%s: banned, joins again in %g s", self.name, left_s)
        self.state, self.join_at = State.BANNED, now_s + left_s


def ban_seconds(error: str) -> float:
    """The time left in a BANNED error, in seconds: its first number, in ms where it says so."""
    found = re.search(r"([0-9]+)\s*(ms\b)?", error)
    if found is None:
        return _BAN_UNKNOWN_S
    return min(float(found[1]) / (1000 if found[2] else 1), _LONGEST_BAN_S)
