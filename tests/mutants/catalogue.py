"""The 58 bugs of the catalogue by number, the mutants that put them back, and why some cannot exist here."""

from __future__ import annotations

import importlib
import pkgutil

import tests.mutants
from tests.mutants.core_mutants import Mutant

BUGS = {
    1: "term or vote not persisted",
    2: "a step-down erases the vote within its term",
    3: "term written off the owner",
    4: "loading a snapshot lowers the term",
    5: "two leaders in one term",
    6: "last index and last term read as a torn pair",
    7: "the same random seed on every node",
    8: "an isolated node inflates its term and disturbs on return",
    9: "partial partition: never a stable leader",
    10: "PreVote rejects a legitimate leader",
    11: "campaigning with a pending snapshot",
    12: "writes during a leadership transfer defeat it",
    13: "a removed live server destabilises the leader",
    14: "old-term entries committed by counting",
    15: "commit stalls at an old-term entry",
    16: "commit index regresses",
    17: "commit not capped at the last entry sent",
    18: "even-cluster quorum off by one",
    19: "matching entries truncated, then rewritten",
    20: "reordered AppendEntries erases matched entries",
    21: "matchIndex regresses",
    22: "matchIndex not reset per term",
    23: "prevIndex 0 skips the check after compaction",
    24: "a compacted term is read as 0",
    25: "wrong index in a conflict reply",
    26: "non-contiguous entries in one RPC",
    27: "success reported for an entry truncated meanwhile",
    28: "pagination forgets entries",
    29: "a single node acknowledges before its disk",
    30: "a deposed leader serves reads",
    31: "ReadIndex retried across a pause: stale",
    32: "a lease survives a leadership transfer",
    33: "a wall-clock lease jumps",
    34: "a lease checked only by a timer",
    35: "reads before the term's first commit",
    36: "a member change before the term's no-op commits",
    37: "a snapshot keeps a stale configuration",
    38: "a restart forgets the appended configuration",
    39: "an uncommitted configuration in a snapshot, no rollback",
    40: "prefix truncation loses the configuration",
    41: "reconfiguration under partition loses updates",
    42: "a learner becomes leader",
    43: "a duplicate snapshot disables the follower",
    44: "a crash in mid-snapshot leaves an unloadable file",
    45: "the disk hangs, heartbeats go on",
    46: "an append error is ignored on a full disk",
    47: "still wedged after space is freed",
    48: "records appended behind a torn tail are lost",
    49: "a CRC error is taken for the end of the log",
    50: "a lazy fsync or a flipped bit loses acknowledged data",
    51: "fsync fails and is tried again",
    52: "deduplication only in RAM: a retry applies twice",
    53: "a proxied command is proposed for ever",
    54: "an exception in a connect callback kills the raft thread",
    55: "buffers without a byte bound",
    56: "a leaking counter drops all proposals",
    57: "file descriptors run out",
    58: "a rejected InstallSnapshot leaves its bytes in the stream",
}

ABSENT = {
    6: "the end's index and term belong to one object, which one thread reads and writes",
    33: "the core is given monotonic time alone; only entries' stamps come from the wall clock",
    58: "a frame is read whole, by its length, before anybody judges what is in it",
}


def all_mutants() -> list[Mutant]:
    """Those of every module `…_mutants` in this folder, by bug; our own (0) last."""
    names = sorted(each.name for each in pkgutil.iter_modules(tests.mutants.__path__))
    found: dict[tuple[str, str, str], Mutant] = {}
    for name in names:
        if name.endswith("_mutants"):
            for mutant in importlib.import_module(f"tests.mutants.{name}").MUTANTS:
                found.setdefault((mutant.file, mutant.old, mutant.new), mutant)
    return sorted(found.values(), key=lambda mutant: mutant.bug or 1000)
