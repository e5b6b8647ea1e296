"""InstallSnapshot: for a follower whose next entry is compacted away (paper section 7, figure 13).

The core decides who needs a snapshot and what one means for term, log, commit index and configuration. The
bytes are streamed by the node (raft/runtime/install.py), which tells the core once a snapshot is durable and
loaded.
"""

from __future__ import annotations

from raft.core.invariants import ProtocolViolation, require
from raft.core.membership import Configuration
from raft.core.messages import AppendEntriesResponse, InstallSnapshot, InstallSnapshotResponse
from raft.core.replication import hear_leader
from raft.core.state import CoreState, Role

_LARGEST_INDEX = 2**62  # what is appended behind it still has an index of 64 bits


def handle_install_snapshot(core: CoreState, sender: int, request: InstallSnapshot) -> None:
    """InstallSnapshot RPC, receiver (paper figure 13, step 1). A snapshot of what is committed here already
    is answered with how far that goes: a late or repeated one changes nothing (camunda 14367)."""
    if request.term < core.term:
        refusal = InstallSnapshotResponse(core.term, request.last_index, 0)
        core.effects.messages.append((sender, refusal))
        return
    sane = 0 < request.last_term <= request.term and 0 < request.last_index <= _LARGEST_INDEX
    if request.leader_id != sender or not sane:
        raise ProtocolViolation(f"a snapshot of entry {request.last_index}, term {request.last_term}")
    hear_leader(core, sender, request.term)
    if request.last_index <= core.commit_index:
        _tell_match(core, sender)
    else:
        core.effects.snapshot_chunks.append((sender, request))


def handle_install_snapshot_response(core: CoreState, sender: int, response: InstallSnapshotResponse) -> None:
    """A sign of life, or of a newer term. How far the snapshot has come is the node's affair."""
    if response.term > core.term:
        core.become_follower(response.term, None, f"term {response.term} seen at {sender}")
        return
    progress = core.progress.get(sender)
    if core.role is Role.LEADER and response.term == core.term and progress is not None:
        progress.last_contact_ms = core.now


def snapshot_installed(core: CoreState, index: int, term: int, configuration: Configuration) -> bool:
    """A received snapshot is durable and loaded (paper figure 13, steps 5 to 8). Returns whether it counts:
    not if the log has been committed past it meanwhile."""
    if index <= core.commit_index:
        counts = False
    else:
        require(term <= core.term, f"a snapshot of term {term} in term {core.term}")
        core.install(index, term, configuration)
        core.effects.news.append(f"installed the snapshot of entry {index}, term {term}")
        counts = True
    if core.role is Role.FOLLOWER and core.leader_id is not None:
        _tell_match(core, core.leader_id)
    return counts


def _tell_match(core: CoreState, leader: int) -> None:
    """What is committed here is in every later leader's log, too (paper 5.4.3), and on this disk."""
    core.effects.messages.append((leader, AppendEntriesResponse(core.term, True, core.commit_index)))
