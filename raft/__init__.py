"""super node: a Raft daemon with an honest ledger. RaftNode is a node, raft_node_worker its owning thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raft.node import RaftNode, raft_node_worker

__all__ = ["RaftNode", "raft_node_worker"]


def __getattr__(name: str) -> Any:
    """Import the node only when it is asked for: raft.core and raft.config must not need all of it."""
    if name in __all__:
        from raft import node

        return getattr(node, name)
    raise AttributeError(f"module 'raft' has no attribute {name!r}")
