"""Commands answered from the published NodeStatus: RAFT INFO/LEADER/MEMBERS and what cluster clients ask.

To a cluster-aware Redis client the whole cluster is one shard: the leader holds all 16384 slots, everybody
else is its replica. Without a known leader nobody holds a slot, and the client asks again.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time

from raft.clients.connection import Connection
from raft.clients.info import info
from raft.clients.shared import Command, ServerState
from raft.config import Member
from raft.replies import Reply
from raft.status import NodeStatus

_LAST_SLOT = 16383


def lines(fields: dict[str, object]) -> str:
    """`key:value` lines as Redis writes them."""
    return "".join(f"{key}:{value}\r\n" for key, value in fields.items())


def cluster_id(cluster_name: str, node_id: int) -> str:
    """The 40 hex digits by which cluster clients know a node; the same on every node and after a restart."""
    return hashlib.sha1(f"{cluster_name}/{node_id}".encode(), usedforsecurity=False).hexdigest()


def _ids(numbers: tuple[int, ...]) -> str:
    return ",".join(str(number) for number in numbers)


def _raft_info(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    """RAFT INFO. leader_id and voted_for are 0 for none; lists are separated by commas. threads: the names of
    all that live in this process, so that a missing one shows."""
    status = server.backend.status()
    fields: dict[str, object] = {
        "node_id": status.node_id,
        "cluster_name": status.cluster_name,
        "role": status.role,
        "term": status.term,
        "leader_id": status.leader_id or 0,
        "voted_for": status.voted_for or 0,
        "has_quorum": int(status.has_quorum),
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "last_log_index": status.last_log_index,
        "first_log_index": status.first_log_index,
        "snapshot_index": status.snapshot_index,
        "recovering": int(status.recovering_from > 0),
        "recovering_from": status.recovering_from,
        "last_digest_index": status.last_digest_index,
        "voters": _ids(status.voters),
        "learners": _ids(status.learners),
        "silent": _ids(status.silent),
        "pending_requests": status.pending_requests,
        "database_lag": status.database_lag,
        "uptime_s": status.uptime_s(time.monotonic()),
        "version": status.version,
        "run_id": status.run_id,
        "threads": ",".join(sorted(thread.name for thread in threading.enumerate())),
    }
    fields.update({f"match_{peer}": index for peer, index in status.match})
    return lines(fields)


def _raft_leader(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    """RAFT LEADER: [id, host, client_port], null when this node knows of none."""
    status = server.backend.status()
    leader = status.member(status.leader_id)
    return [leader.id, leader.host, leader.client_port] if leader is not None else None


def _raft_members(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    """RAFT MEMBERS: a map for each member."""
    status = server.backend.status()
    return [
        {
            "id": member.id,
            "host": member.host,
            "raft_port": member.raft_port,
            "client_port": member.client_port,
            "http_port": member.http_port,
            "role": _role(status, member),
            "voter": int(member.id in status.voters),
        }
        for member in status.members
    ]


def _role(status: NodeStatus, member: Member) -> str:
    """What this node can tell of a member: leader, follower or unknown."""
    if status.leader_id is None or member.id in status.silent:
        return "unknown"
    return "leader" if member.id == status.leader_id else "follower"


def _shard(status: NodeStatus) -> list[Member]:
    """The leader, then the others; empty when no leader is known."""
    leader = status.member(status.leader_id)
    if leader is None:
        return []
    return [leader, *(member for member in status.members if member.id != leader.id)]


def _cluster_slots(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    status = server.backend.status()
    nodes: list[Reply] = [
        [member.host, member.client_port, cluster_id(status.cluster_name, member.id), []]
        for member in _shard(status)
    ]
    return [[0, _LAST_SLOT, *nodes]] if nodes else []


def _cluster_shards(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    status = server.backend.status()
    leader_known = status.leader_id is not None
    nodes: list[Reply] = [
        {
            "id": cluster_id(status.cluster_name, member.id),
            "port": member.client_port,
            "ip": member.host,
            "endpoint": member.host,
            "role": "master" if member.id == status.leader_id else "replica",
            "replication-offset": _offset(status, member),
            "health": "fail" if member.id in status.silent else "online",
        }
        for member in (_shard(status) if leader_known else status.members)
    ]
    return [{"slots": [0, _LAST_SLOT] if leader_known else [], "nodes": nodes}]


def _offset(status: NodeStatus, member: Member) -> int:
    """How far a member's log is known to agree with the leader's."""
    if member.id == status.node_id:
        return status.last_log_index
    return dict(status.match).get(member.id, 0)


def _cluster_nodes(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    """CLUSTER NODES: id address flags master ping-sent pong-received epoch link slots, one node a line."""
    status = server.backend.status()
    leader = status.member(status.leader_id)
    text = []
    for member in status.members:
        leads = leader is not None and member.id == leader.id
        flags = ["myself"] if member.id == status.node_id else []
        flags.append("master" if leads or leader is None else "slave")
        silent = member.id in status.silent
        if silent:
            flags.append("fail?")
        master = "-" if leads or leader is None else cluster_id(status.cluster_name, leader.id)
        words = [cluster_id(status.cluster_name, member.id), _node_address(member), ",".join(flags), master]
        words += ["0", "0", str(status.term), "disconnected" if silent else "connected"]
        if leads:
            words.append(f"0-{_LAST_SLOT}")
        text.append(" ".join(words) + "\n")
    return "".join(text)


def _node_address(member: Member) -> str:
    """ip:port@bus-port, with the name behind a comma where the host is a name."""
    address = f"{member.host}:{member.client_port}@{member.raft_port}"
    try:
        ipaddress.ip_address(member.host)
    except ValueError:
        return f"{address},{member.host}"
    return address


def _cluster_info(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    status = server.backend.status()
    usable = status.leader_id is not None and status.has_quorum
    slots = _LAST_SLOT + 1
    return lines(
        {
            "cluster_enabled": 1,
            "cluster_state": "ok" if usable else "fail",
            "cluster_slots_assigned": slots if status.leader_id is not None else 0,
            "cluster_slots_ok": slots if usable else 0,
            "cluster_slots_pfail": 0,
            "cluster_slots_fail": 0,
            "cluster_known_nodes": len(status.members),
            "cluster_size": 1,
            "cluster_current_epoch": status.term,
            "cluster_my_epoch": status.term,
            "cluster_stats_messages_sent": 0,
            "cluster_stats_messages_received": 0,
        }
    )


def _cluster_my_id(_connection: Connection, _args: list[bytes], server: ServerState) -> Reply:
    status = server.backend.status()
    return cluster_id(status.cluster_name, status.node_id)


STATUS_COMMANDS: dict[bytes, Command] = {
    b"INFO": info,
    b"RAFT INFO": _raft_info,
    b"RAFT LEADER": _raft_leader,
    b"RAFT MEMBERS": _raft_members,
    b"CLUSTER SLOTS": _cluster_slots,
    b"CLUSTER SHARDS": _cluster_shards,
    b"CLUSTER NODES": _cluster_nodes,
    b"CLUSTER INFO": _cluster_info,
    b"CLUSTER MYID": _cluster_my_id,
}
