"""Who may connect: this node's credentials and the checks of the other side's. Pure; both sides use them.

Every refusal is logged by the node that refuses and, because its text travels in the Refused frame, by the
one that is refused. So the texts call both nodes by their numbers and end with what the operator does next.
"""

from __future__ import annotations

from typing import NamedTuple

from raft.transport.handshake import PROTOCOL_VERSION, HandshakeError, Hello, Welcome

_ANY_HOST = frozenset({"", "0.0.0.0", "::"})  # to listen everywhere: nobody else can dial that


class Credentials(NamedTuple):
    """What this node says of itself in the handshake (see Hello). Immutable: replaced when a part changes."""

    node_id: int
    cluster: str
    run_id: str
    identity: str
    cluster_id: str
    host: str
    raft_port: int

    def hello(self, to_id: int, to_identity: str) -> Hello:
        """The introduction to the node to_id."""
        return Hello(
            self.cluster,
            PROTOCOL_VERSION,
            self.node_id,
            to_id,
            self.run_id,
            self.identity,
            self.cluster_id,
            self.host,
            self.raft_port,
            to_identity,
        )

    def welcome(self) -> Welcome:
        """The answer to who is let in."""
        return Welcome(self.node_id, self.run_id, self.identity, self.cluster_id)


def check_hello(hello: Hello, own: Credentials) -> None:
    """Whether the dialer means this node. Raises HandshakeError: cluster, target, identity (of this node) or
    sender."""
    if hello.cluster != own.cluster:
        raise HandshakeError(
            "cluster",
            f"node {hello.from_id} belongs to cluster {hello.cluster[:100]!r}, node {own.node_id} to "
            f"{own.cluster[:100]!r}: correct cluster.name or the addresses in config.yaml",
            hello.from_id,
        )
    check_cluster_id(hello.from_id, hello.cluster_id, own)
    if hello.to_id != own.node_id:
        text = f"the dialer looks for node {hello.to_id}, this is node {own.node_id}"
        raise HandshakeError("target", f"{text}: correct the addresses", hello.from_id)
    if hello.from_id == own.node_id:
        text = f"two nodes say that they are node {own.node_id}: each needs an id of its own"
        raise HandshakeError("sender", text, hello.from_id)
    if hello.to_identity and hello.to_identity != own.identity:
        raise HandshakeError("identity", _lost_directory(own.node_id), hello.from_id)


def check_cluster_id(peer_id: int, cluster_id: str, own: Credentials) -> None:
    """Raises HandshakeError (cluster) if both nodes know their cluster, and it is not the same."""
    if cluster_id and own.cluster_id and cluster_id != own.cluster_id:
        raise HandshakeError(
            "cluster",
            f"node {peer_id} and node {own.node_id} are of different clusters: another cluster of the same "
            "name, perhaps one restored from a backup. Correct the addresses; a node changes clusters with "
            "an empty data directory and RAFT ADD",
            peer_id,
        )


def check_identity(peer_id: int, recorded: str, said: str) -> None:
    """Raises HandshakeError (identity) if another data directory than the peer's is recorded for it."""
    if recorded and recorded != said:
        raise HandshakeError("identity", _lost_directory(peer_id), peer_id)


def refuse_stranger(peer_id: int, own: Credentials, guests: int | None = None) -> HandshakeError:
    """The refusal of a node that is no member here. guests: how many there are, if that is the reason."""
    full = "" if guests is None else f" (which has {guests} guests already)"
    return HandshakeError(
        "sender" if guests is None else "guests",
        f"node {peer_id} is not a member in the configuration of node {own.node_id}{full}: it tries again by "
        f"itself; if it was never added or has been removed, RAFT ADD {peer_id} ... is the way in",
        peer_id,
    )


def answer_address(hello: Hello, source: str) -> tuple[str, int]:
    """Where to dial a guest back: its own listening address, at source (where it dialed from) if it listens
    everywhere. Raises HandshakeError (sender) if it is none."""
    if hello.from_id < 1 or not 0 < hello.raft_port < 65536:
        text = f"node {hello.from_id} is no member and gives no address to answer to"
        raise HandshakeError("sender", text, hello.from_id)
    return source if hello.host in _ANY_HOST else hello.host, hello.raft_port


def _lost_directory(node_id: int) -> str:
    return (
        f"node {node_id} has lost its data directory (or has another one, perhaps from before a restore); "
        f"its promises are gone: RAFT REMOVE {node_id}, then RAFT ADD {node_id} ..."
    )
