"""The policy in force: what a turn is worth and when a follower is banned.

It travels inside log entries (~TERM, ~OPEN), never read from a node's own configuration at apply.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Amount = Annotated[int, Meta(ge=0, le=10**9)]
Count = Annotated[int, Meta(ge=1, le=10**9)]


class Policy(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The `rewards` section of config.yaml. The bounds keep every sum within MongoDB's 64-bit integers."""

    interval_ms: Count
    reward: Amount
    penalty: Amount
    ban_threshold: Count  # misses in a row
    ban_cooldown_s: Amount
    max_spam: Count  # answers out of turn
    follower_version: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+\Z")]
    followers_per_interval: Amount = 0  # 0: every active follower

    @classmethod
    def decode(cls, data: bytes) -> Policy:
        """The policy in policy_json. Raises ValueError with what is wrong."""
        return _decoder.decode(data)

    def encode(self) -> bytes:
        """policy_json: always the same bytes for the same policy."""
        return msgspec.json.encode(self)


_decoder: msgspec.json.Decoder[Policy] = msgspec.json.Decoder(Policy)
