"""Safety checks that stay on under `python -O`: they raise, they never assert."""

from __future__ import annotations


class InvariantViolation(Exception):
    """Raft's state contradicts itself: going on could lose or fork data, so the process must stop."""


class ProtocolViolation(Exception):
    """A peer sent what no correct peer sends. The message is dropped; this node's state is untouched."""


def require(condition: bool, what: str) -> None:
    """Raise InvariantViolation naming `what` unless the condition holds."""
    if not condition:
        raise InvariantViolation(what)
