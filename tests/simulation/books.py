"""The ledger, kept a second time from what it tells: one outcome a turn, nothing paid or fined twice.

Everything here looks at an index once, when the first machine has applied it: that all machines agree is
checked elsewhere (tests/simulation/machines.py).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from ledger.ledger import Policy
from raft.machine.machine import Machine
from tests.simulation.checker import violated
from tests.simulation.service import Events

Turn = tuple[int, str]  # interval, follower


@dataclass(slots=True)
class Sums:
    """What a follower must have earned, been fined and claimed."""

    earned: int = 0
    penalties: int = 0
    claimed: int = 0


@dataclass(slots=True)
class Books:
    """outcomes: by turn, for ever. opened: interval -> (index, term). closed: how many were. claims: by id,
    where. acknowledged: turns whose report a client was told is in."""

    policy: Policy
    outcomes: dict[Turn, str] = field(default_factory=dict)
    judged_at: list[tuple[Turn, int]] = field(default_factory=list)
    opened: dict[int, tuple[int, int]] = field(default_factory=dict)
    closed: int = 0
    claims: dict[str, int] = field(default_factory=dict)
    sums: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    acknowledged: set[Turn] = field(default_factory=set)
    bans: int = 0

    def write(self, index: int, machine: Machine, commands: list[list[bytes]], events: Events) -> None:
        """The entry at index was applied."""
        for channel, payload in events:
            if channel.startswith("rewards:"):
                number, outcome, delta, _balance = payload.split()
                self._outcome(index, machine, commands, (int(number), channel[8:]), outcome, int(delta))
            elif channel == "turns":
                self._open(index, machine, int(payload.split()[0]))
            elif payload.startswith("banned"):
                self.bans += 1
        state = machine.ledger._state
        for claim in reversed(state.claims.by_id.values()):
            if claim.index != index:
                break
            if claim.id in self.claims:
                violated(f"claim {claim.id} is answered at {self.claims[claim.id]} and at {index}")
            self.claims[claim.id] = index
            sums = self.sums[claim.node]
            sums.claimed += claim.amount if claim.accepted else 0
            sums.penalties += 0 if claim.accepted else self.policy.penalty
        for follower_id, at in reversed(state.outbox.touched.items()):
            if at != index:
                break
            each, sums = state.followers.by_id[follower_id], self.sums[follower_id]
            if (each.earned, each.penalties, each.claimed) != (sums.earned, sums.penalties, sums.claimed):
                violated(f"after {index} the sums of {follower_id} are {each}, but its outcomes give {sums}")

    def _open(self, index: int, machine: Machine, number: int) -> None:
        if number in self.opened:
            violated(f"interval {number} is opened at {self.opened[number][0]} and at {index}")
        self.opened[number] = (index, machine.applied_term)

    def _outcome(
        self, index: int, machine: Machine, commands: list[list[bytes]], turn: Turn, outcome: str, delta: int
    ) -> None:
        number, follower = turn
        if turn in self.outcomes:
            violated(f"the turn {turn} has the outcome {self.outcomes[turn]}, and at {index} {outcome}")
        if not self.outcomes or next(reversed(self.outcomes))[0] != number:
            self.closed += 1
        self.outcomes[turn] = outcome
        self.judged_at.append((turn, index))
        sums = self.sums[follower]
        wanted = {"hit": self.policy.reward, "missed": -self.policy.penalty}.get(outcome, 0)
        sums.earned += self.policy.reward if outcome == "hit" else 0
        sums.penalties += self.policy.penalty if outcome == "missed" else 0
        if delta != wanted:
            violated(f"the turn {turn} at {index} is {outcome}, and gives {delta}")
        if outcome == "missed" and self._is_excused(number, machine, commands):
            violated(f"the turn {turn} at {index} counts as missed, though it is excused")
        if turn in self.acknowledged and outcome != "hit":
            violated(f"the report of {turn} was acknowledged, but at {index} its turn is {outcome}")

    def _is_excused(self, number: int, machine: Machine, commands: list[list[bytes]]) -> bool:
        """The leader has changed, or says that its quorum was away."""
        closing = (words for words in commands if words[:2] == [b"~CLOSE", b"%d" % number])
        changed = self.opened.get(number, (0, machine.applied_term))[1] != machine.applied_term
        return changed or any(words[3] == b"1" for words in closing)

    def judged_between(self, after: int, upto: int) -> list[tuple[Turn, int]]:
        """The turns whose outcomes stand in the entries from after + 1 to upto, with their entries."""
        return [each for each in self.judged_at if after < each[1] <= upto]

    def acknowledge(self, turn: Turn) -> None:
        """A follower was told that its report is in."""
        self.acknowledged.add(turn)
        if self.outcomes.get(turn, "hit") != "hit":
            violated(f"the report of {turn} is acknowledged, but its turn was {self.outcomes[turn]}")
