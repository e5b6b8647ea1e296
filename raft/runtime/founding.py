"""The founding members: config.yaml names them once, for a new directory; from then on the log decides who is
a member (thesis 4.1). If every node took its configuration from its config.yaml at each start, an edit on one
of them would be a change of membership that the others do not know of: two majorities that do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable

from raft.config import Member
from raft.core.membership import Configuration, Server
from raft.core.state import CoreState
from raft.storage.errors import IdentityError
from raft.storage.identity import Identity
from raft.transport.handshake import PeerAddress


def servers_of(members: Iterable[Member]) -> tuple[Server, ...]:
    """config.yaml's members as the core knows them, ascending ids."""
    servers = (
        Server(each.id, each.host, each.raft_port, each.client_port, each.http_port) for each in members
    )
    return tuple(sorted(servers, key=lambda server: server.id))


def founding_configuration(identity: Identity) -> Configuration:
    """The configuration before the log's first entry: all founding members vote.

    Raises IdentityError if the directory was made without founding members.
    """
    servers = identity.founding_servers()
    if not servers:
        raise IdentityError("identity.json names no founding members: nobody could ever be elected")
    return Configuration(
        voters=tuple(server.id for server in servers), servers=servers, cluster_id=identity.cluster_id
    )


def peer_addresses(state: CoreState) -> dict[int, PeerAddress]:
    """Everyone this node talks to: the members of the configuration in force, and those of the committed one
    before it, who still get the log until the change is committed.

    An identity counts only where all of these agree on it. A record that may be taken back must not keep
    anyone out; nor must one that is out of date: after a restart the committed one is the snapshot's, and a
    server that was removed and added since comes with another directory. Without it there might be no quorum
    to commit what says so."""
    servers = [server for _, configuration in state.configurations for server in configuration.servers]
    recorded: dict[int, set[str]] = {}
    for server in servers:
        recorded.setdefault(server.id, set()).add(server.identity)
    return {
        server.id: PeerAddress(
            server.host, server.raft_port, server.identity if len(recorded[server.id]) == 1 else ""
        )
        for server in servers
    }


def difference(listed: Iterable[Server], configuration: Configuration) -> str | None:
    """How config.yaml's members (listed) differ from the configuration in force, in one line that says what
    counts; None if they do not. Identities and who votes are the log's alone and are not compared."""
    ours = {server.id: _address(server) for server in listed}
    theirs: dict[int, str | None] = dict.fromkeys((*configuration.voters, *configuration.learners))
    theirs |= {server.id: _address(server) for server in configuration.servers if server.id in theirs}
    details = [f"node {n} at {ours[n]} is only in config.yaml" for n in sorted(ours.keys() - theirs.keys())]
    details += [f"node {n} is only in the log" for n in sorted(theirs.keys() - ours.keys())]
    for n in sorted(ours.keys() & theirs.keys()):
        if theirs[n] is not None and ours[n] != theirs[n]:
            details.append(f"node {n} is at {ours[n]} in config.yaml, at {theirs[n]} in the log")
    if not details:
        return None
    return (
        f"config.yaml lists {_ids(ours)}, the cluster's log has {_ids(theirs)} ({'; '.join(details)}): "
        "the log decides; change members with RAFT ADD / RAFT REMOVE"
    )


def _address(server: Server) -> str:
    return f"{server.host} ports {server.raft_port}, {server.client_port}, {server.http_port}"


def _ids(nodes: Iterable[int]) -> str:
    return ", ".join(str(node) for node in sorted(nodes))
