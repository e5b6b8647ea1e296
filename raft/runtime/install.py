"""InstallSnapshot (paper section 7, figure 13; thesis chapter 5): a snapshot's file goes to a peer whose next
entry the leader's log no longer has.

    leader                                        follower
    SnapshotSender, install_send.py               SnapshotReceiver, install_receive.py
    InstallSnapshot(offset, data)       ->        appended to a temporary file, checked as it comes
                                        <-        InstallSnapshotResponse(wanted: the next byte)
    ... at most WINDOW chunks on the way ...
                                                  whole: a thread loads a Machine from it
                                                  loaded: fsync, rename; Installed goes to the worker
                                        <-        AppendEntriesResponse(match_index >= the snapshot's)

The follower's `wanted` is the only truth about what has arrived: the sender believes it whichever way it
moves, so a lost chunk, a broken connection, a follower that restarts (0) and one that still has half of the
file all need no message of their own.
"""

from __future__ import annotations

from raft.runtime.install_receive import Installed, SnapshotReceiver
from raft.runtime.install_send import SnapshotSender

__all__ = ["Installed", "SnapshotReceiver", "SnapshotSender"]
