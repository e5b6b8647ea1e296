"""Bugs of storages (docs, BUGS.md, and our own), put back: each must turn the simulation red, and most a test
of the storage, too. As tests/mutants/core_mutants.py; the simulation finds each within some hundred seeds.
"""

from __future__ import annotations

from tests.mutants.core_mutants import Mutant

MUTANTS = (
    Mutant(
        1,
        "raft/storage/hard_state.py",
        "            replace_file(self._disk, self.path, encode_hard_state(state), reserved=reserved)\n",
        "            pass\n",
        "term and vote are never written",
    ),
    Mutant(
        1,
        "raft/storage/atomic_file.py",
        "            disk.fsync(fd)\n"
        "        finally:\n"
        "            disk.close(fd)\n"
        "        disk.rename(temporary, path)\n",
        "            pass\n"
        "        finally:\n"
        "            disk.close(fd)\n"
        "        disk.rename(temporary, path)\n",
        "term and vote get their name before they are fsynced",
    ),
    Mutant(
        19,
        "raft/core/replication.py",
        "        if entry.index < log.first_index or log.matches(entry.index, entry.term):\n",
        "        if entry.index < log.first_index or entry.index <= core.commit_index:\n",
        "matching entries are truncated and written again",
    ),
    Mutant(
        27,
        "raft/core/state.py",
        "        self.durable_index = min(self.durable_index, self.log.last_index)\n",
        "",
        "what was truncated counts as durable",
    ),
    Mutant(
        44,
        "raft/storage/snapshot_files.py",
        "            self._disk.fsync(fd)\n            self._close()\n",
        "            self._close()\n",
        "a snapshot gets its name before it is fsynced",
    ),
    Mutant(
        44,
        "raft/storage/snapshots.py",
        "self._directory / temporary_name(index, incoming=incoming))",
        "self._directory / snapshot_name(index))",
        "a snapshot is written under its final name",
    ),
    Mutant(
        46,
        "raft/storage/log_store.py",
        "            self._undo_append()\n"
        '            raise DiskFullError(f"{segment.path}: the disk is full") from error\n',
        "",
        "a write that found the disk full counts as done",
    ),
    Mutant(
        46,
        "raft/storage/log_store.py",
        "            self._undo_append()\n"
        '            raise DiskFullError(f"{segment.path}: the disk is full") from error\n',
        '            raise DiskFullError(f"{segment.path}: the disk is full") from error\n',
        "what a full disk took of a write stays behind the log",
    ),
    Mutant(
        47,
        "raft/runtime/space.py",
        "            self._blocked_since, self._desk.refusal = None, None\n            return\n",
        "            return\n",
        "writes are refused for ever once the disk was full",
    ),
    Mutant(
        47,
        "raft/storage/log_store.py",
        "            if not is_full(error):\n"
        '                raise self._die(path, "cannot make the segment", error) from error\n',
        "            if error:\n"
        '                raise self._die(path, "cannot make the segment", error) from error\n',
        "a full disk kills the log",
    ),
    Mutant(
        48,
        "raft/storage/recovery.py",
        "        segments.cut(self._disk, segment, fault.bad_index)\n",
        "        segment.end = segment.capacity = len(self._read(segment.path)[1])\n",
        "the log goes on behind a torn tail",
    ),
    Mutant(
        49,
        "raft/storage/recovery.py",
        "            damage = self._damage(fault)\n            if damage is None:\n",
        "            damage = None\n            if damage is None:\n",
        "a damaged record is taken for the end of the log",
    ),
    Mutant(
        50,
        "raft/storage/log_store.py",
        "                self._disk.fdatasync(segment.fd)\n",
        "                pass\n",
        "sync() does not sync",
    ),
    Mutant(
        50,
        "raft/storage/recovery.py",
        "            if fsync:\n                self._make_durable()\n",
        "",
        "what was found is taken for durable",
    ),
    Mutant(
        51,
        "raft/storage/log_store.py",
        '                raise self._die(segment.path, "fsync failed", error) from error\n',
        "                self._disk.fdatasync(segment.fd)\n",
        "a failed fsync is tried again",
    ),
    Mutant(
        51,
        "raft/storage/recovery.py",
        "                write_all(self._disk, fd, self._disk.pread(fd, segment.end - lo, lo), lo)\n",
        "",
        "after a failed fsync the pages that count as clean are only fsynced",
    ),
    Mutant(
        0,
        "raft/storage/segments.py",
        "    try:\n"
        "        disk.fsync_dir(directory)\n"
        "    except OSError as error:\n"
        '        raise StorageError(f"{path}: cannot fsync its directory: {error}") from error\n'
        "    return Segment",
        "    return Segment",
        "a new segment's name is not made durable",
    ),
    Mutant(
        0,
        "raft/storage/segments.py",
        "        disk.truncate(segment.fd, position)\n        disk.fsync(segment.fd)\n",
        "        disk.truncate(segment.fd, position)\n",
        "a truncation is not made durable",
    ),
    Mutant(
        0,
        "raft/storage/recovery.py",
        "        segments.remove(disk, directory, found[-1])\n        found.pop()\n",
        "        segments.remove(disk, directory, found[0])\n        del found[0]\n",
        "a log that a snapshot replaces is removed from its beginning",
    ),
    Mutant(
        0,
        "raft/storage/recovery.py",
        "        if found.last_index < index or (first <= index and found.outline.term(index) != term):\n",
        "        if found.last_index < index:\n",
        "after a crash in an install the log goes on with another entry than the snapshot's",
    ),
    Mutant(
        0,
        "raft/storage/snapshot_files.py",
        "        try:\n"
        "            self._disk.fsync_dir(path.parent)\n"
        "        except OSError as error:\n"
        '            raise StorageError(f"{path}: cannot fsync its directory: {error}") from error\n',
        "",
        "a snapshot's name is not made durable",
    ),
    Mutant(
        0,
        "raft/storage/log_store.py",
        "        while len(self._segments) > 1 and self._segments[0].last_index <= upto_index:\n",
        "        while len(self._segments) > 1 and self._segments[0].first_index <= upto_index:\n",
        "compaction removes a file whose end no snapshot covers",
    ),
    Mutant(
        0,
        "raft/storage/log_store.py",
        "        self._cache.cut_prefix(base_index + 1)\n",
        "        self._cache.cut_prefix(base_index)\n",
        "the cache keeps an entry that was given up",
    ),
    Mutant(
        0,
        "raft/storage/log_store.py",
        "            self._cache.cut(from_index)\n",
        "",
        "the cache keeps truncated entries",
    ),
    Mutant(
        0,
        "raft/storage/hard_state.py",
        "        reserved, self._reserved = self._reserved, False\n",
        "        reserved = self._reserved\n",
        "a file that was reserved once counts as reserved for ever",
    ),
)
