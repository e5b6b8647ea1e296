"""The settings of a node: config.yaml and SUPER_NODE_ environment variables, checked and frozen.

`load_settings(path)` is the way in; `settings_from(mapping)` does the same for a plain dict (tests, demo).
Either gives a complete, immutable `Settings` or raises `ConfigError`, whose text is one line that names where
the value came from, the key (`raft.ping_interval_ms`), what the key wants and what it got. Passwords in a
database URI are never shown. Any thread may call anything here; nothing is changed after it is built.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from raft.config_source import (
    URI_HOSTS,
    ConfigError,
    Origin,
    explain,
    overlay_environment,
    read_yaml,
    redact_uri,
)

__all__ = [
    "ClusterSettings",
    "ConfigError",
    "DatabaseSettings",
    "LimitSettings",
    "LoggingSettings",
    "Member",
    "RaftSettings",
    "RewardSettings",
    "SecuritySettings",
    "Settings",
    "StorageSettings",
    "TlsSettings",
    "is_loopback",
    "load_settings",
    "redact_uri",
    "settings_from",
]

_DAY_MS = 86_400_000

NodeId = Annotated[int, Meta(ge=1, le=2**31 - 1, description="a whole number from 1 to 2147483647")]
Port = Annotated[int, Meta(ge=1, le=65535, description="a port number from 1 to 65535")]
Host = Annotated[
    str,
    Meta(pattern=r"\A[A-Za-z0-9._:-]{1,253}\Z", description="a host name or an IP address without a port"),
]
Milliseconds = Annotated[
    int, Meta(ge=1, le=_DAY_MS, description=f"a whole number of milliseconds from 1 to {_DAY_MS}")
]
IntervalMs = Annotated[
    int, Meta(ge=10, le=_DAY_MS, description=f"a whole number of milliseconds from 10 to {_DAY_MS}")
]
Seconds = Annotated[int, Meta(ge=1, le=10**9, description="a whole number of seconds from 1 to 1000000000")]
SecondsOrZero = Annotated[
    int, Meta(ge=0, le=10**9, description="a whole number of seconds from 0 to 1000000000")
]
Amount = Annotated[int, Meta(ge=0, le=10**9, description="a whole number from 0 to 1000000000")]
Count = Annotated[int, Meta(ge=1, le=10**9, description="a whole number from 1 to 1000000000")]
CountOrZero = Annotated[int, Meta(ge=0, le=10**9, description="a whole number from 0 to 1000000000")]
Days = Annotated[int, Meta(ge=1, le=24855, description="a whole number of days from 1 to 24855")]
RequestBytes = Annotated[
    # At most half of what one frame between nodes carries: a command must fit into one with room to spare.
    int, Meta(ge=1024, le=2**23, description="a whole number of bytes from 1024 to 8388608")
]
SegmentBytes = Annotated[
    int, Meta(ge=2**16, le=2**30, description="a whole number of bytes from 65536 to 1073741824")
]
ClusterName = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9._-]{1,64}\Z", description="1 to 64 letters, digits, dots, dashes, underscores"
    ),
]
Version = Annotated[
    str,
    Meta(pattern=r"\A[!-~]{1,64}\Z", description='1 to 64 characters of text without spaces, quoted: "1.0"'),
]
DirectoryName = Annotated[
    str, Meta(pattern=r"\A[^\x00]*[^\x00\s][^\x00]*\Z", description="the path of a directory")
]
MongoUri = Annotated[
    str,
    Meta(
        # user:password may hold no raw @ or / – they must be percent-encoded, as pymongo demands.
        pattern=rf"\Amongodb(\+srv)?://([^@/:?\s]+(:[^@/:?\s]*)?@)?{URI_HOSTS}(/[^?\s]*)?(\?\S*)?\Z",
        description="a mongodb:// or mongodb+srv:// URI (characters like @ and / in a password %-encoded)",
    ),
]
DatabaseName = Annotated[
    str,
    Meta(
        pattern=r"\A[^/\\. \"$*<>:|?\x00-\x20]{1,63}\Z",
        description='a MongoDB database name: 1 to 63 characters, none of / \\ . " $ * < > : | ? or space',
    ),
]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every part of the settings is: immutable, and without room for a misspelt key."""


class Member(Section, frozen=True):
    """One node of the cluster: `host` is where the others and clients reach its three ports."""

    id: NodeId
    host: Host
    raft_port: Port
    client_port: Port
    http_port: Port


class ClusterSettings(Section, frozen=True):
    """`cluster`: the cluster's name and founding members."""

    name: ClusterName = "super-node"
    nodes: Annotated[
        tuple[Member, ...],
        Meta(min_length=1, description="a list of one or more {id, host, raft_port, client_port, http_port}"),
    ] = tuple(
        Member(id=n, host="127.0.0.1", raft_port=7100 + n, client_port=7200 + n, http_port=7300 + n)
        for n in (1, 2, 3)
    )


class RaftSettings(Section, frozen=True):
    """`raft`: timing of the consensus; times in milliseconds where the name does not say otherwise."""

    election_timeout_ms: Annotated[
        tuple[Milliseconds, Milliseconds],
        Meta(description="a list of two whole numbers of milliseconds [shortest, longest]"),
    ] = (300, 600)
    heartbeat_interval_ms: Milliseconds = 60
    ping_interval_ms: Milliseconds = 1000
    lease_reads: bool = False
    digest_interval_s: SecondsOrZero = 60


class StorageSettings(Section, frozen=True):
    """`storage`: where and how a node keeps its log."""

    data_dir: DirectoryName = "data"
    fsync: bool = True
    segment_bytes: SegmentBytes = 16 << 20
    snapshot_every_entries: Count = 200_000
    repair: bool = True

    def node_dir(self, node_id: int) -> Path:
        """The directory that belongs to node `node_id` alone."""
        return Path(self.data_dir) / f"node-{node_id}"


class DatabaseSettings(Section, frozen=True):
    """`database`: the MongoDB that the ledger is projected to."""

    uri: MongoUri = "mongodb://127.0.0.1:27017"
    name: DatabaseName = "super_node"
    intervals_ttl_days: Days = 30

    def __repr__(self) -> str:
        shown = redact_uri(self.uri)
        return f"DatabaseSettings(uri={shown!r}, name={self.name!r}, ttl_days={self.intervals_ttl_days})"


class RewardSettings(Section, frozen=True):
    """`rewards`: the policy that the leader stamps into each interval."""

    interval_ms: IntervalMs = 2000
    reward: Amount = 10
    penalty: Amount = 5
    ban_threshold: Count = 10
    ban_cooldown_s: Seconds = 600
    max_spam: Count = 10
    follower_version: Version = "1.0"
    followers_per_interval: CountOrZero = 0


class TlsSettings(Section, frozen=True):
    """`security.tls`: file names; a later release uses them."""

    cert: str | None = None
    key: str | None = None
    ca: str | None = None


class SecuritySettings(Section, frozen=True):
    """`security`: off by default on loopback; any other address needs it, or `insecure: true`."""

    insecure: bool = False
    tls: TlsSettings = TlsSettings()
    client_tls: bool = False
    users_file: str | None = None


class LimitSettings(Section, frozen=True):
    """`limits`: the bounds of what clients may take up on one node."""

    max_clients: Count = 10_000
    max_request_bytes: RequestBytes = 1_048_576
    max_pending_requests: Count = 20_000


class LoggingSettings(Section, frozen=True):
    """`logging`: how much is logged, and as text or JSON lines."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"


class Settings(Section, frozen=True):
    """Everything in config.yaml; `Settings()` is the shipped file."""

    cluster: ClusterSettings = ClusterSettings()
    raft: RaftSettings = RaftSettings()
    storage: StorageSettings = StorageSettings()
    database: DatabaseSettings = DatabaseSettings()
    rewards: RewardSettings = RewardSettings()
    security: SecuritySettings = SecuritySettings()
    limits: LimitSettings = LimitSettings()
    logging: LoggingSettings = LoggingSettings()

    def member(self, node_id: int, source: str = "settings") -> Member:
        """The founding member `node_id`. Raises ConfigError, naming `source` and the ids, for any other."""
        for member in self.cluster.nodes:
            if member.id == node_id:
                return member
        ids = ", ".join(str(member.id) for member in self.cluster.nodes)
        raise ConfigError(source, "cluster.nodes", f"has no node with id {node_id}; its ids are {ids}")


def load_settings(path: str | Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Reads and checks the file, with SUPER_NODE_A__B variables of `environ` (default: os.environ) on top.

    Raises ConfigError: file missing or unreadable, bad YAML, unknown or ill-typed key, impossible value.
    """
    origin = Origin(str(path))
    tree = read_yaml(Path(path))
    overlay_environment(tree, os.environ if environ is None else environ, Settings, origin)
    return settings_from(tree, origin)


def settings_from(tree: Mapping[str, Any], origin: Origin | None = None) -> Settings:
    """Checks a mapping shaped as config.yaml; what it leaves out has its default. Raises ConfigError."""
    origin = origin or Origin("settings")
    try:
        settings = msgspec.convert(tree, Settings, strict=True)
    except msgspec.ValidationError as error:
        raise explain(str(error), tree, Settings, origin) from None
    except UnicodeEncodeError as error:  # "\ud800" in YAML
        raise ConfigError(
            origin.source, "", f"has half a character in a text: {error.object!r:.80}"
        ) from None
    _check_members(settings, origin)
    _check_timing(settings, origin)
    _check_security(settings, origin)
    _check_database(settings, origin)
    return settings


def is_loopback(host: str) -> bool:
    """Whether `host` can only mean this machine; a name is never resolved to find out."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")


def _check_members(settings: Settings, origin: Origin) -> None:
    """Ids once each, no two ports of one host alike, and addresses that others can dial."""
    ids: dict[int, int] = {}
    ports: dict[tuple[str, int], str] = {}
    for position, member in enumerate(settings.cluster.nodes):
        key = f"cluster.nodes[{position}]"
        if member.id in ids:
            raise origin.error(
                f"{key}.id", f"wants an id of its own, got {member.id}, as nodes[{ids[member.id]}]"
            )
        ids[member.id] = position
        _check_host(member.host, f"{key}.host", origin)
        host = "127.0.0.1" if member.host.lower() == "localhost" else member.host.lower()
        for name in ("raft_port", "client_port", "http_port"):
            port: int = getattr(member, name)
            taken = ports.setdefault((host, port), f"cluster.nodes[{position}].{name}")
            if taken != f"{key}.{name}":
                raise origin.error(f"{key}.{name}", f"wants a port of its own, got {port}, as {taken}")


def _check_host(host: str, key: str, origin: Origin) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if ":" in host:
            raise origin.error(
                key, f"wants a host name or an IP address without a port, got {host!r}"
            ) from None
        return
    if address.is_unspecified or address.is_multicast:
        raise origin.error(key, f"wants an address at which the others reach this node, got {host}")


def _check_timing(settings: Settings, origin: Origin) -> None:
    """Raft's timing requirement (5.6): heartbeats well below the shortest election timeout."""
    low, high = settings.raft.election_timeout_ms
    if low >= high:
        raise origin.error(
            "raft.election_timeout_ms",
            f"wants [shortest, longest] with shortest < longest, got [{low}, {high}]",
        )
    heartbeat = settings.raft.heartbeat_interval_ms
    if heartbeat * 2 >= low:
        raise origin.error(
            "raft.heartbeat_interval_ms",
            f"wants less than half of the shortest election timeout ({low} ms), got {heartbeat}",
        )


def _check_security(settings: Settings, origin: Origin) -> None:
    """Nothing outside loopback without protection, and no protection promised that is not there yet."""
    security = settings.security
    asked = {
        "security.tls.cert": security.tls.cert is not None,
        "security.tls.key": security.tls.key is not None,
        "security.tls.ca": security.tls.ca is not None,
        "security.client_tls": security.client_tls,
        "security.users_file": security.users_file is not None,
    }
    for key, is_set in asked.items():
        if is_set:
            raise origin.error(key, "is not supported yet: a later release brings it; leave it out for now")
    if security.insecure:
        return
    for position, member in enumerate(settings.cluster.nodes):
        if not is_loopback(member.host):
            raise origin.error(
                "security.insecure",
                f"wants true, because cluster.nodes[{position}].host {member.host} is not loopback and "
                "without TLS anyone who reaches its ports can read and change everything; got false",
            )


def _check_database(settings: Settings, origin: Origin) -> None:
    """Ports that exist, and the one host without a port that a DNS seed list (mongodb+srv) has."""
    scheme, _, rest = settings.database.uri.partition("://")
    hosts = rest.partition("?")[0].rpartition("@")[2].split("/")[0].split(",")
    ports = [
        int(port) for _, colon, port in (host.rpartition(":") for host in hosts) if colon and port.isdigit()
    ]
    if any(not 1 <= port <= 65535 for port in ports):
        raise origin.error(
            "database.uri", f"wants ports from 1 to 65535, got {redact_uri(settings.database.uri)}"
        )
    if scheme == "mongodb+srv" and (ports or len(hosts) > 1):
        raise origin.error(
            "database.uri", f"wants one host without a port, got {redact_uri(settings.database.uri)}"
        )
