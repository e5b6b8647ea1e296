"""Feeds a ledger as the log would: one command an entry, time moved by hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ledger.context import Context
from ledger.ledger import Ledger
from ledger.outbox import DEFAULT_BYTES
from raft.replies import Reply

START_MS = 1_700_000_000_000
POLICY: dict[str, Any] = {
    "interval_ms": 2000,
    "reward": 10,
    "penalty": 5,
    "ban_threshold": 3,
    "ban_cooldown_s": 600,
    "max_spam": 4,
    "follower_version": "1.0",
    "followers_per_interval": 0,
}


def policy_json(**changes: Any) -> bytes:
    return json.dumps(POLICY | changes).encode()


def members_json(*ids: str) -> bytes:
    return json.dumps([{"id": each, "address": f"{each}.example:7201"} for each in ids]).encode()


class Driver:
    """index, term, at_ms: of the next entry. Each do() is one entry."""

    def __init__(self, outbox_bytes: int = DEFAULT_BYTES) -> None:
        self.ledger = Ledger(outbox_bytes)
        self.index = 0
        self.term = 1
        self.at_ms = START_MS
        self.policy = policy_json()
        self.interval = 0

    @property
    def context(self) -> Context:
        return Context(self.index, self.term, self.at_ms)

    def do(self, *words: object) -> Reply:
        """One command, words as in redis-cli: do('FOLLOWER JOIN', 'a', '1.0')."""
        self.index += 1
        return self.raw(self.words(*words))

    def raw(self, args: list[bytes]) -> Reply:
        reply = self.ledger.execute(args, self.context)
        self.ledger.check()
        return reply

    @staticmethod
    def words(first: object, *rest: object) -> list[bytes]:
        head = [word.encode() for word in str(first).split()] if isinstance(first, str) else [first]
        return [each if isinstance(each, bytes) else str(each).encode() for each in [*head, *rest]]

    def ok(self, *words: object) -> None:
        reply = self.do(*words)
        assert reply == "OK", reply

    def take_office(self, *members: str, leader: int = 1, **policy: Any) -> None:
        self.policy = policy_json(**policy)
        self.ok("~TERM", leader, self.policy, members_json(*members))

    def join(self, *ids: str) -> None:
        for each in ids:
            self.ok("FOLLOWER JOIN", each, "1.0")

    def open(self, **policy: Any) -> int:
        self.interval += 1
        if policy:
            self.policy = policy_json(**policy)
        self.ok("~OPEN", self.interval, self.at_ms + 2000, 1, self.policy)
        return self.interval

    def close(self, *answered_members: str, excused: int = 0) -> None:
        self.at_ms += 2000
        self.ok("~CLOSE", self.interval, 1, excused, *answered_members)

    def report(self, *ids: str, data: bytes = b"data") -> None:
        for each in ids:
            self.ok("FOLLOWER REPORT", each, self.interval, data)

    def round(self, *answering: str, excused: int = 0) -> None:
        """One whole interval that only these answer (members among them by ping)."""
        self.open()
        self.report(*[each for each in answering if not each.startswith("node-")])
        self.close(*[each for each in answering if each.startswith("node-")], excused=excused)

    def info(self, follower_id: str) -> dict[str, Any]:
        reply = self.ledger.execute(self.words("FOLLOWER INFO", follower_id), self.context)
        assert isinstance(reply, dict), reply
        return reply

    def read(self, *words: object) -> Any:
        before = self.digest()
        reply = self.ledger.execute(self.words(*words), self.context)
        assert self.digest() == before, "a reading command changed the ledger"
        return reply

    def digest(self) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        self.ledger.digest_into(hasher)
        return hasher.hexdigest()

    def events(self, channel: str | None = None) -> list[Any]:
        taken = self.ledger.take_events()
        return taken if channel is None else [payload for name, payload in taken if name == channel]
