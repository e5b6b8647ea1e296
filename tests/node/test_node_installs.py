"""A follower that the log no longer reaches gets a snapshot, whoever dies meanwhile (paper section 7)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from cluster import eventually, running
from install_process import (
    ON_REQUEST,
    PATIENT,
    fill,
    incoming_bytes,
    installs,
    kill_leave,
    memory_kb,
    node_with,
    outrun,
    reset_high_water,
    start_of_log,
    voters,
    wrapped,
)
from node_support import Load

pytestmark = pytest.mark.process
CALM = {"interval_ms": 60_000}
STEADY: dict[str, Any] = {"storage": ON_REQUEST, "raft": PATIENT, "rewards": CALM}
SLOWLY = wrapped("raft.storage.snapshot_files", "SnapshotReceiver.write", before="time.sleep(0.03)")


def test_a_follower_that_was_away_is_sent_a_snapshot_while_clients_go_on(tmp_path: Path) -> None:
    small = {"snapshot_every_entries": 100, "segment_bytes": 65536}
    with running(tmp_path, storage=small, raft=PATIENT) as cluster:
        leader, away = cluster.leader(), cluster.followers()[0]
        term = cluster.info(leader)["term"]
        with Load(cluster, threads=3) as load:
            load.progress(20)
            last = kill_leave(cluster, away)

            def outran() -> bool:
                for number in range(5):
                    cluster.execute(leader, "SET", f"large:{number}", "x" * 10_000)
                return all(start_of_log(cluster, node) > last + 1 for node in cluster.alive())

            eventually(outran, 60, "a log that does not reach back")
            cluster.start(away)
            cluster.ready(away)
            eventually(lambda: installs(cluster, away), 30, "an install")
            load.progress(20)
        load.check(cluster)
        cluster.agree()
        assert cluster.info(away)["term"] == cluster.info(leader)["term"] == term, "nobody was disturbed"
        assert start_of_log(cluster, away) > last + 1


FILE, LOG = "raft.storage.snapshot_files", "raft.storage.log_store"
KILLS = {
    "with the third chunk": wrapped(FILE, "SnapshotReceiver.write", after="calls == 3 and die()"),
    "while it loads": wrapped("raft.runtime.install_receive", "_Load._load", before="die()"),
    "before its file has a name": wrapped(FILE, "NewSnapshotFile.put_in_place", before="die()"),
    "before the log is emptied": wrapped(LOG, "LogStore.reset", before="die()"),
    "with the log half emptied": wrapped("raft.storage.segments", "remove", after="die()"),
    "after the log was emptied": wrapped(LOG, "LogStore.reset", after="die()"),
    "with the first entries behind": wrapped(LOG, "LogStore.append", after="args[0]._base_index and die()"),
}


def test_kill_9_of_the_receiver_at_each_step_of_an_install(tmp_path: Path) -> None:
    """BUGS 44: whatever a crash leaves, the next start makes a whole node of it."""
    with running(tmp_path, **STEADY) as cluster:
        leader, victim = cluster.leader(), cluster.followers()[0]
        term = cluster.info(leader)["term"]
        fill(cluster, 1)
        for when, patch in KILLS.items():
            for number in range(4):  # so that the victim's log has several files
                cluster.execute(leader, "SET", f"large:{number}", "x" * 40_000)
            cluster.agree()
            outrun(cluster, kill_leave(cluster, victim))
            cluster.start(victim, program=node_with(patch))
            cluster.execute(leader, "SET", when, "meanwhile")
            assert cluster.exit_code(victim) == -9, when
            cluster.start(victim)
            cluster.ready(victim)
            cluster.agree()
            assert cluster.client(victim).get(when) == "meanwhile"
            assert not list(cluster.data(victim).glob("*.incoming.tmp")), when
            assert start_of_log(cluster, victim) > 1
        assert cluster.info(leader)["term"] == term, "nobody was disturbed"


def test_kill_9_of_the_receiver_at_random_moments_under_load(tmp_path: Path) -> None:
    rng = random.Random(str(tmp_path))
    with running(tmp_path, **STEADY) as cluster:
        cluster.leader()
        victim = cluster.followers()[0]
        fill(cluster, 4)
        outrun(cluster, kill_leave(cluster, victim))
        with Load(cluster, threads=2) as load:
            for _ in range(4):
                goal = rng.randrange(1, 4_000_000)
                cluster.start(victim, program=node_with(SLOWLY))
                eventually(
                    lambda goal=goal: incoming_bytes(cluster, victim) >= goal or installs(cluster, victim),  # type: ignore[misc]
                    30,
                    "a part of a snapshot",
                )
                cluster.kill(victim)
                load.progress(10)
            cluster.start(victim)
            cluster.ready(victim)
            load.progress(10)
        eventually(lambda: installs(cluster, victim) or "loaded the snapshot" in cluster.log_of(victim), 30)
        load.check(cluster)
        cluster.agree()


def test_kill_9_of_the_leader_in_the_middle_of_an_install(tmp_path: Path) -> None:
    """The next leader begins anew with its own file; until that has come it has no quorum to commit with."""
    with running(tmp_path, storage=ON_REQUEST, rewards=CALM) as cluster:
        leader = cluster.leader()
        away, other = cluster.followers()
        fill(cluster, 4)
        outrun(cluster, kill_leave(cluster, away))
        cluster.start(away, program=node_with(SLOWLY))
        eventually(lambda: incoming_bytes(cluster, away) > 1_000_000, 30, "a part of a snapshot")
        cluster.kill(leader)
        assert cluster.leader() == other, "the other lacks entries"
        cluster.execute(other, "SET", "after", "it", idempotent=True, timeout_s=40)
        assert f"from node {other}, " in cluster.log_of(away)
        assert installs(cluster, away) == 1
        cluster.start(leader)
        cluster.ready(leader)
        cluster.agree()
        assert cluster.client(away).get("after") == "it"


def test_a_new_member_gets_configuration_and_sessions_with_the_snapshot(tmp_path: Path) -> None:
    with running(tmp_path, allowed=["not a member"], **STEADY) as cluster:
        leader = cluster.leader()
        assert cluster.execute(leader, "ONCE", "session", 7, "INCRBY", "counted", 5) == 5
        cluster.execute(leader, "INCRBY", "counted", 10)
        cluster.execute(leader, "SET", "fleeting", "yes", "PX", 3_600_000)
        words = cluster.prepare(4)
        outrun(cluster, 1)
        with Load(cluster, threads=2) as load:
            cluster.start(4)
            cluster.ready(4)
            assert cluster.execute(leader, *words, "AUTO") == "OK"
            eventually(lambda: "4" in voters(cluster, leader), 30, "node 4 votes")
            load.progress(10)
        assert installs(cluster, 4) == 1
        assert cluster.execute(4, "ONCE", "session", 7, "INCRBY", "counted", 5) == 5, "the first answer"
        assert cluster.execute(4, "GET", "counted") == "15"
        assert 0 < cluster.execute(4, "PTTL", "fleeting") <= 3_600_000
        load.check(cluster)
        cluster.agree()
        # Its vote and its copy of the session table count: it and one other go on without the rest.
        cluster.kill(next(n for n in cluster.followers() if n != 4))
        assert cluster.execute(4, "ONCE", "session", 7, "INCRBY", "counted", 5, timeout_s=30) == 5


def test_a_follower_that_was_away_learns_the_members_from_the_snapshot(tmp_path: Path) -> None:
    """BUGS 37, 40: the changes are compacted away, and so are the nodes that it knew."""
    with running(tmp_path, allowed=["not a member"], **STEADY) as cluster:
        leader = cluster.leader()
        away, gone = cluster.followers()
        for new in (4, 5):
            words = cluster.prepare(new)
            cluster.start(new)
            cluster.ready(new)
            assert cluster.execute(leader, *words, "AUTO") == "OK"
            eventually(lambda new=new: str(new) in voters(cluster, leader), 30, "it votes")  # type: ignore[misc]
        last = kill_leave(cluster, away)
        assert cluster.execute(leader, "RAFT", "REMOVE", gone) == "OK"
        cluster.kill(gone)
        cluster.ids.remove(gone)
        del cluster.processes[gone]
        outrun(cluster, last)
        cluster.start(away)
        cluster.ready(away)
        cluster.agree()
        expected = [str(n) for n in sorted([leader, away, 4, 5])]
        assert installs(cluster, away) == 1
        # INFO shows what the last turn published: a moment after the first answer of the new state.
        eventually(lambda: voters(cluster, away) == expected, 5, "the members of the snapshot")
        cluster.execute(leader, "SET", "one", "more")
        cluster.agree()
        assert cluster.client(away).execute_command("RAFT", "SNAPSHOT") == "OK"
        cluster.kill(away)
        cluster.start(away)
        cluster.ready(away)
        assert voters(cluster, away) == expected, "kept in its own snapshot"
        assert "the log decides" in cluster.log_of(away)
        cluster.agree()


def test_a_large_snapshot_costs_the_leader_no_memory_and_no_heartbeat(tmp_path: Path) -> None:
    """A file of 30 MB, four chunks of which are on the way at a time."""
    with running(tmp_path, storage=ON_REQUEST, rewards=CALM) as cluster:
        leader, away = cluster.leader(), cluster.followers()[0]
        fill(cluster, 30)
        outrun(cluster, kill_leave(cluster, away))
        size = max(path.stat().st_size for path in cluster.data(leader).glob("*.snap"))
        assert size > 28_000_000
        with Load(cluster, threads=2) as load:
            load.progress(20)
            term = cluster.info(leader)["term"]
            reset_high_water(cluster, leader)
            before = memory_kb(cluster, leader, "VmRSS")
            began = load.acked
            cluster.start(away)
            eventually(lambda: installs(cluster, away), 60, "the install")
            assert load.acked > began, "clients stood still"
            load.progress(20)
            grown = memory_kb(cluster, leader, "VmHWM") - before
            assert cluster.info(leader)["term"] == term, "an election"
        assert grown < 12_000, f"{grown} KB more for a snapshot of {size / 1024:.0f} KB"
        load.check(cluster)
        cluster.agree()
