"""INFO: this node in the sections and fields that Redis tools look for, and a section of Raft's own."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable

from raft.clients.connection import Connection
from raft.clients.shared import REDIS_VERSION, ServerState
from raft.replies import Reply
from raft.status import NodeStatus

_Fields = dict[str, object]


def _server(status: NodeStatus, server: ServerState) -> _Fields:
    uptime = status.uptime_s(time.monotonic())
    return {
        "redis_version": REDIS_VERSION,
        "redis_mode": "cluster",
        "super_node_version": status.version,
        "os": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        "python_version": sys.version.split()[0],
        "process_id": os.getpid(),
        "run_id": status.run_id,
        "tcp_port": server.port,
        "server_time_usec": time.time_ns() // 1000,
        "uptime_in_seconds": uptime,
        "uptime_in_days": uptime // 86400,
    }


def _clients(status: NodeStatus, server: ServerState) -> _Fields:
    clients = list(server.connections.values())
    return {
        "connected_clients": len(clients),
        "maxclients": server.settings.limits.max_clients,
        "blocked_clients": sum(client.busy for client in clients),
        "pubsub_clients": sum(client.subscribed for client in clients),
        "pending_requests": status.pending_requests,
    }


def _memory(_status: NodeStatus, server: ServerState) -> _Fields:
    clients = list(server.connections.values())
    return {
        "used_memory_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "mem_clients_normal": sum(client.output_bytes + client.parser.buffered for client in clients),
        "maxmemory": 0,
        "maxmemory_policy": "noeviction",
    }


def _stats(_status: NodeStatus, server: ServerState) -> _Fields:
    return {
        "total_connections_received": server.accepted,
        "total_commands_processed": server.commands,
        "rejected_connections": server.rejected,
    }


def _replication(status: NodeStatus, _server: ServerState) -> _Fields:
    """Raft in Redis' words: the leader is the master, log indexes are offsets."""
    leads = status.role == "leader"
    fields: _Fields = {
        "role": "master" if leads else "slave",
        "connected_slaves": len(status.members) - 1 - len(status.silent) if leads else 0,
        "master_repl_offset": status.last_log_index,
    }
    leader = status.member(status.leader_id)
    if not leads:
        fields["master_host"] = leader.host if leader is not None else ""
        fields["master_port"] = leader.client_port if leader is not None else 0
        fields["master_link_status"] = "up" if leader is not None else "down"
    else:
        match = dict(status.match)
        others = (member for member in status.members if member.id != status.node_id)
        for number, member in enumerate(others):
            state = "down" if member.id in status.silent else "online"
            offset = match.get(member.id, 0)
            lag = max(0, status.last_log_index - offset)
            fields[f"slave{number}"] = (
                f"ip={member.host},port={member.client_port},state={state},offset={offset},lag={lag}"
            )
    return fields


def _raft(status: NodeStatus, _server: ServerState) -> _Fields:
    return {
        "raft_node_id": status.node_id,
        "raft_role": status.role,
        "raft_term": status.term,
        "raft_leader_id": status.leader_id or 0,
        "raft_commit_index": status.commit_index,
        "raft_applied_index": status.applied_index,
        "raft_last_log_index": status.last_log_index,
        "raft_first_log_index": status.first_log_index,
        "raft_snapshot_index": status.snapshot_index,
        "raft_recovering": int(status.recovering_from > 0),
        "raft_last_digest_index": status.last_digest_index,
        "raft_voters": len(status.voters),
        "raft_learners": len(status.learners),
        "database_lag": status.database_lag,
    }


def _cluster(_status: NodeStatus, _server: ServerState) -> _Fields:
    return {"cluster_enabled": 1}


def _keyspace(status: NodeStatus, _server: ServerState) -> _Fields:
    if not status.keys:
        return {}
    return {"db0": f"keys={status.keys},expires={status.keys_with_expiry},avg_ttl=0"}


_SECTIONS: dict[str, Callable[[NodeStatus, ServerState], _Fields]] = {
    "Server": _server,
    "Clients": _clients,
    "Memory": _memory,
    "Stats": _stats,
    "Replication": _replication,
    "Raft": _raft,
    "Cluster": _cluster,
    "Keyspace": _keyspace,
}
_EVERYTHING = {"default", "all", "everything"}


def info(_connection: Connection, args: list[bytes], server: ServerState) -> Reply:
    """INFO [section ...]: unknown sections are left out, as in Redis."""
    wanted = {word.decode("utf-8", "replace").lower() for word in args[1:]}
    if not wanted or wanted & _EVERYTHING:
        wanted = {title.lower() for title in _SECTIONS}
    status = server.backend.status()
    sections = []
    for title, fields_of in _SECTIONS.items():
        if title.lower() in wanted:
            fields = fields_of(status, server)
            sections.append(f"# {title}\r\n" + "".join(f"{key}:{value}\r\n" for key, value in fields.items()))
    return "\r\n".join(sections)
