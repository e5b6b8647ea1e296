"""Who votes, who only listens, and what a quorum is (thesis chapter 4).

A configuration is an immutable value. The first comes from the founding members, every later one is a log
entry of the kind CONFIGURATION and counts from the moment it is appended (thesis 4.1). Everything else asks
this module, so that no other place counts nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec
from msgspec import structs

Number = TypeVar("Number", int, float)


class ConfigurationFormatError(ValueError):
    """Bytes that are no configuration."""


class Server(msgspec.Struct, frozen=True, array_like=True):
    """A member's addresses. identity: the random name of its data directory, "" until a leader has heard it:
    a server that comes with another one has lost its disk, and with it its promises."""

    id: int
    host: str
    raft_port: int
    client_port: int
    http_port: int
    identity: str = ""


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """voters decide elections and commitment; learners only receive the log (thesis 4.2.1).

    servers: the addresses of all of them, ascending ids. cluster_id: the random name that the first leader
    gave the cluster, "" before. promote: learners that the leader makes voters once they have caught up.
    """

    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    servers: tuple[Server, ...] = ()
    cluster_id: str = ""
    promote: tuple[int, ...] = ()

    def quorum(self) -> int:
        """The size of a majority of the voters (paper 5.2): 2 of 2, 2 of 3, 3 of 4."""
        return len(self.voters) // 2 + 1

    def peers(self, node_id: int) -> tuple[int, ...]:
        """Everyone else that receives the log, voters first."""
        return tuple(peer for peer in (*self.voters, *self.learners) if peer != node_id)

    def has_quorum(self, nodes: Iterable[int]) -> bool:
        """Whether these nodes hold a majority of the voters. Others, and repeats, do not count."""
        return len(set(nodes) & set(self.voters)) >= self.quorum()

    def quorum_value(self, values: list[Number]) -> Number:
        """The largest value that a majority has reached (paper 5.3, 5.4: the commit rule). values: the
        voters', one each, in any order; the list is sorted."""
        values.sort()
        return values[-(len(self.voters) // 2 + 1)]

    def has(self, node_id: int) -> bool:
        """Whether the node is a member, voter or learner."""
        return node_id in self.voters or node_id in self.learners

    def server(self, node_id: int) -> Server | None:
        """The member's addresses, None if it is none or they are not known."""
        return next((server for server in self.servers if server.id == node_id), None)

    def identity_of(self, node_id: int) -> str:
        """The name of the member's data directory, "" if it is not known."""
        server = self.server(node_id)
        return "" if server is None else server.identity

    # --- the changes, one at a time (thesis 4.1); each returns the configuration after it ---------

    def with_learner(self, server: Server, *, promote: bool = False) -> Configuration:
        """server joins without a vote, to catch up first (thesis 4.2.1). promote: the leader makes it a voter
        once it has."""
        return structs.replace(
            self,
            learners=tuple(sorted((*self.learners, server.id))),
            servers=_sorted((*self.servers, server)),
            promote=(*self.promote, server.id) if promote else self.promote,
        )

    def with_voter(self, node_id: int) -> Configuration:
        """The learner becomes a voter."""
        return structs.replace(
            self,
            voters=tuple(sorted((*self.voters, node_id))),
            learners=_less(self.learners, node_id),
            promote=_less(self.promote, node_id),
        )

    def without(self, node_id: int) -> Configuration:
        """The member leaves."""
        return structs.replace(
            self,
            voters=_less(self.voters, node_id),
            learners=_less(self.learners, node_id),
            servers=tuple(server for server in self.servers if server.id != node_id),
            promote=_less(self.promote, node_id),
        )

    def with_identities(self, heard: Mapping[int, str], cluster_id: str) -> Configuration:
        """What was heard of members whose identity is not recorded yet; a cluster_id once known stays."""
        return structs.replace(
            self,
            servers=tuple(
                structs.replace(server, identity=server.identity or heard.get(server.id, ""))
                for server in self.servers
            ),
            cluster_id=self.cluster_id or cluster_id,
        )


def _less(ids: tuple[int, ...], node_id: int) -> tuple[int, ...]:
    return tuple(each for each in ids if each != node_id)


def _sorted(servers: tuple[Server, ...]) -> tuple[Server, ...]:
    return tuple(sorted(servers, key=lambda server: server.id))


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Configuration)


def encode_configuration(configuration: Configuration) -> bytes:
    """The data of a CONFIGURATION entry, and what a snapshot's header carries."""
    return _encode(configuration)


def decode_configuration(data: bytes) -> Configuration:
    """Inverse of encode_configuration. Raises ConfigurationFormatError for what no leader would propose."""
    try:
        configuration = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationFormatError(f"not a configuration: {error}") from error
    everyone = (*configuration.voters, *configuration.learners)
    described = {server.id for server in configuration.servers}
    if (
        not configuration.voters
        or len(set(everyone)) != len(everyone)
        or min(everyone) < 1
        or len(described) != len(configuration.servers)
        or not described <= set(everyone)
        or not set(configuration.promote) <= set(configuration.learners)
    ):
        raise ConfigurationFormatError(
            f"not a configuration: voters {configuration.voters}, learners {configuration.learners}, "
            f"of them to promote {configuration.promote}, servers {sorted(described)}"
        )
    return configuration
