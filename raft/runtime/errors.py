"""The errors a client hears about consensus: contract, "error begins with"."""

from __future__ import annotations

from raft.replies import Error

NO_LEADER = Error("CLUSTERDOWN no leader is known and none was elected in time; the command was not executed")
NO_QUORUM = Error("CLUSTERDOWN the leader could not reach a quorum; the command was not executed")
NOT_TAKEN = Error("CLUSTERDOWN the leader did not take the command in time; it was not executed")
NOT_LEADER = Error("CLUSTERDOWN this node is not the leader any more; the command was not executed")
NOT_A_MEMBER = Error("CLUSTERDOWN this node is not a member of the cluster; the command was not executed")
NO_SPACE = Error(
    "CLUSTERDOWN the disk of the leader, or of a majority of the nodes, is full; the command was not executed"
)
STOPPING = Error("CLUSTERDOWN this node is shutting down; the command was not executed")
UNKNOWN = Error(
    "INDETERMINATE the leader was lost after it took the command; it may or may not have been executed"
)
UNKNOWN_COMMAND = Error(
    "ERR the leader does not know a command that this node passed on: do all nodes run the same version? "
    "Nothing was executed"
)
BUSY = Error("BUSY too many requests are pending on this node; the command was not executed")
