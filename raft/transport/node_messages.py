"""What nodes say to each other beside Raft itself: pings, client commands forwarded to the leader, digests.

The same rules as in raft/core/messages.py: one narrow type each, the sender is the connection's, the tag is
the wire's name of the type, and a field is only ever added at the end, with a default. PeerMessage is the
union of both sides, so that one decoder serves everything that comes over a peer's connection.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from raft.core.messages import Message


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="pi", gc=False):
    """Is your worker alive? nonce tells apart the answers; sent_ms is the sender's own monotonic clock."""

    nonce: int
    sent_ms: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="po", gc=False):
    """Answer to Ping: both fields are echoed, so that the sender can take the round-trip time."""

    nonce: int
    sent_ms: int


class Forward(msgspec.Struct, frozen=True, array_like=True, tag="fw"):
    """Client commands that only the leader may answer, sent on by the node that the client talks to.

    request_id is unique in the sender's run; protocol (2 or 3) is the RESP version the replies are to be
    encoded in. A node that is not the leader answers with an error and never forwards again: a forwarded
    command takes one hop, so it cannot go round for ever (BUGS 53).

    lane, number: the session and sequence number under which the log takes all commands as one, so that the
    sender may send them again (raft/machine/sessions.py); b"" and 0 for a command to the leader itself.
    """

    request_id: int
    protocol: int
    commands: list[list[bytes]]
    lane: bytes = b""
    number: int = 0


class ForwardReply(msgspec.Struct, frozen=True, array_like=True, tag="fwr"):
    """Answer to Forward: one RESP-encoded reply per command in their order, or one error for them all.

    error is a RESP error line without its dash ("CLUSTERDOWN ..."); replies is then empty. Every error but
    INDETERMINATE says that this very message has carried out nothing; one that begins with LANE says that the
    lane is of no use any more.
    """

    request_id: int
    replies: list[bytes]
    error: str | None = None


class DigestReport(msgspec.Struct, frozen=True, array_like=True, tag="dr", gc=False):
    """The digest of the sender's replicated state right after the entry at index: raft/runtime/agreement.py.

    digest: SHA-256 in hex; "" if the sender has taken none there and will not; "?" if it comes later.
    wanted: the sender asks for the receiver's own (an answer never asks).
    """

    index: int
    digest: str
    wanted: bool = False


NodeMessage: TypeAlias = Ping | Pong | Forward | ForwardReply | DigestReport
PeerMessage: TypeAlias = Message | NodeMessage
