"""The hands and feet of followers: one thread that keeps them in touch with the cluster through any node.

A crew holds one connection for commands and one subscribed to `turns`, both to the same node, for all its
followers. Whatever goes wrong – node lost, no quorum, silence – it goes to the next node, joins again and
asks INTERVAL CURRENT, so that a turn announced meanwhile is still answered. Each follower sends JOIN and
REPORT under ONCE in a session of its own (cli/once.py): what has no answer is repeated with the same number
through the next node, until its outcome is known, and is carried out once. Where turns go round
(followers_per_interval) a follower finds out by its first NOTURN, and from then on asks FOLLOWER INFO whether
it has a turn before it answers.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from cli.follower import Follower, State
from cli.link import Address, Link, LinkLost, error_text, fields, whole_number
from cli.once import expired

log = logging.getLogger(__name__)

_LISTEN_S = 0.25  # how soon a crew notices that it shall stop
_BUSY_RETRIES = 5
_WATCHED = 20  # crews up to this size also hear the outcome of each turn


class NextNode(Exception):
    """This node is of no use at the moment: try another. The text says why."""


class Crew:
    """Followers and the thread that carries them. Build, start and stop it from any one thread."""

    def __init__(
        self,
        followers: Sequence[Follower],
        addresses: Sequence[Address],
        *,
        leave: bool = False,
        timeout_s: float = 3.0,
        patience_s: float = 5.0,
    ) -> None:
        """leave: LEAVE at the end; timeout_s bounds each answer; patience_s: silence before it asks again."""
        if not addresses:
            raise ValueError("a crew needs the address of at least one node")
        self.followers = list(followers)
        self._addresses = list(addresses)
        self._leave = leave
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._stopping = threading.Event()
        self._position = 0
        self._newest = 0  # the newest interval heard of
        name = self.followers[0].name if len(self.followers) == 1 else f"crew-of-{len(self.followers)}"
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    def start(self) -> None:
        """Begins in a thread of its own."""
        self._thread.start()

    def request_stop(self) -> None:
        """Asks the thread to end; does not wait."""
        self._stopping.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends it and waits up to timeout_s. Raises TimeoutError when the thread goes on."""
        self._stopping.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._thread.name} did not stop within {timeout_s} s")

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do: every follower was refused."""
        return all(follower.state is State.REFUSED for follower in self.followers)

    def run(self) -> None:
        """The body of the thread: serves through one node after the other until it is stopped."""
        failures = 0
        while not self._stopping.is_set() and not self.done:
            address = self._addresses[self._position % len(self._addresses)]
            started = time.monotonic()
            try:
                with Link(address, self._timeout_s) as link:
                    self._serve(link)
            except (LinkLost, NextNode) as reason:
                failures = 0 if time.monotonic() - started > self._patience_s else failures + 1
                level = logging.WARNING if failures <= len(self._addresses) else logging.DEBUG
                log.log(level, "node %s:%d: %s; trying the next one", *address, reason)
                self._position += 1
                self._stopping.wait(random.uniform(0.5, 1.0) * min(0.5, 0.05 * 2 ** min(failures, 6)))
        if self._leave:
            self._say_goodbye()

    def _serve(self, link: Link) -> None:
        watched = self.followers if len(self.followers) <= _WATCHED else []
        link.subscribe(["turns", *(f"rewards:{follower.name}" for follower in watched)])
        log.info("serving through node %s:%d", *link.address)
        for follower in self.followers:
            if follower.state is State.ACTIVE:
                follower.join_at = 0.0
        self._join(link, again=True)
        self._ask_current(link)
        heard_at = time.monotonic()
        while not self._stopping.is_set() and not self.done:
            message = link.next_message(_LISTEN_S)
            if message is not None:
                heard_at = time.monotonic()
                self._hear(link, *message)
            elif time.monotonic() - heard_at > self._patience_s:
                newest = self._newest
                self._ask_current(link)
                if self._newest > newest:
                    raise NextNode("announced no turns although there were some")
                heard_at = time.monotonic()
            if self._join(link):
                self._ask_current(link)

    def _hear(self, link: Link, channel: str, payload: str) -> None:
        words = payload.split()
        if channel == "turns":
            number = whole_number(words[0]) if words else None
            if number is None or number < 0:
                raise NextNode(f"announced a turn that makes no sense: {payload!r:.100}")
            self._take_turn(link, number)
        elif len(words) == 4:
            interval, outcome, delta, balance = words
            log.info(
                "%s: interval %s: %s %s, balance %s",
                channel.partition(":")[2],
                interval,
                outcome,
                delta,
                balance,
            )

    def _join(self, link: Link, again: bool = False) -> bool:
        """Sends the JOINs that are due (again: also for those who are in); whether there were any."""
        now = time.monotonic()
        joining = [f for f in self.followers if f.wants_to_join(now) or (again and f.state is State.ACTIVE)]
        if not joining:
            return False
        answers = link.ask_all([follower.join_command() for follower in joining])
        for follower, answer in zip(joining, answers, strict=True):
            error = error_text(answer)
            if not follower.joined(error, time.monotonic()):
                raise NextNode(f"JOIN: {error}")
        return True

    def _ask_current(self, link: Link) -> None:
        """Catches up with the interval that is open, and finds the first turn of those who joined lately."""
        answer = link.ask("INTERVAL", "CURRENT")
        if (error := error_text(answer)) is not None:
            raise NextNode(f"INTERVAL CURRENT: {error}")
        current = fields(answer)
        number = _number(current.get("interval"))
        self._place_new(link, number, _number(current.get("opened_at")))
        if number and not _number(current.get("closed_at")):
            self._take_turn(link, number)

    def _place_new(self, link: Link, current: int, opened_at: int) -> None:
        """Who joined before the current interval opened may have a turn in it; the others from the next on.

        Without this a follower's very first answer would be one out of turn.
        """
        new = [f for f in self.followers if f.state is State.ACTIVE and f.first_turn is None]
        if not new:
            return
        for follower, info in zip(new, self._infos(link, new), strict=True):
            joined_at = _number(info.get("joined_at"))
            follower.first_turn = current if 0 < joined_at <= opened_at else current + 1

    def _take_turn(self, link: Link, interval: int) -> None:
        self._newest = max(self._newest, interval)
        hoping = [follower for follower in self.followers if follower.may_have_turn(interval)]
        waiting = [f for f in self._with_a_turn(link, interval, hoping) if f.means_to_answer(interval)]
        for attempt in range(_BUSY_RETRIES):
            if not waiting:
                break
            answers = link.ask_all([follower.report_command(interval) for follower in waiting])
            now = time.monotonic()
            refused = [
                (follower, error_text(answer))
                for follower, answer in zip(waiting, answers, strict=True)
                if not follower.reported(interval, error_text(answer), now)
            ]
            waiting = [follower for follower, _ in refused]
            other = next((error for _, error in refused if error and not _here_again(error)), None)
            if other is not None:
                raise NextNode(f"REPORT: {other}")
            if waiting and self._stopping.wait(0.05 * (attempt + 1)):
                return
        if waiting:
            raise NextNode("BUSY for too long")
        self._spam(link, interval)

    def _with_a_turn(self, link: Link, interval: int, hoping: list[Follower]) -> list[Follower]:
        """Those of them that have a turn; asked about are only those that were told NOTURN before."""
        asking = [follower for follower in hoping if follower.asks_first]
        turns = dict.fromkeys((follower.name for follower in hoping), interval)
        if asking:
            for follower, info in zip(asking, self._infos(link, asking), strict=True):
                turns[follower.name] = _number(info.get("turn"))
        return [follower for follower in hoping if follower.has_turn(interval, turns[follower.name])]

    def _infos(self, link: Link, followers: list[Follower]) -> list[dict[str, Any]]:
        """FOLLOWER INFO of each. Raises NextNode when it is refused."""
        answers = link.ask_all([["FOLLOWER", "INFO", follower.name] for follower in followers])
        for answer in answers:
            if (error := error_text(answer)) is not None:
                raise NextNode(f"FOLLOWER INFO: {error}")
        return [fields(answer) for answer in answers]

    def _spam(self, link: Link, interval: int) -> None:
        spamming = [f for f in self.followers if f.answers_out_of_turn(interval)]
        if not spamming:
            return
        out_of_turn = interval + 1000
        answers = link.ask_all([follower.report_command(out_of_turn) for follower in spamming])
        for follower, answer in zip(spamming, answers, strict=True):
            follower.spammed(out_of_turn, error_text(answer), time.monotonic())

    def _say_goodbye(self) -> None:
        """LEAVE for everyone who is in, through the first node that takes it."""
        leaving = [follower for follower in self.followers if follower.state is State.ACTIVE]
        for _ in range(len(self._addresses)):
            if not leaving:
                return
            address = self._addresses[self._position % len(self._addresses)]
            self._position += 1
            try:
                with Link(address, self._timeout_s) as link:
                    answers = link.ask_all([["FOLLOWER", "LEAVE", follower.name] for follower in leaving])
            except LinkLost as reason:
                log.warning("node %s:%d: %s", *address, reason)
                continue
            for follower, answer in zip(list(leaving), answers, strict=True):
                if error_text(answer) is None:
                    log.info("%s: left", follower.name)
                    follower.state = State.OUTSIDE
                    leaving.remove(follower)
        for follower in leaving:
            log.warning("%s: could not leave", follower.name)


def _here_again(error: str) -> bool:
    """Whether the same node may be asked again after this."""
    return error.startswith("BUSY") or expired(error)


def _number(value: Any) -> int:
    """A field as a whole number; 0 for what is missing or empty."""
    return whole_number(str(value)) or 0
