"""A follower's log rots while it is stopped: it starts, gives no vote, has the rest sent again, and votes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, eventually, running
from node_support import Load

from raft.storage.record import decode_header, scan_segment
from raft.storage.segments import first_index_of

pytestmark = pytest.mark.process

SAYS = ["damaged at byte"]  # what the node says of its log, in ERROR
SMALL = {"segment_bytes": 65536}


def segments_of(cluster: Cluster, node: int) -> list[Path]:
    return sorted(path for path in cluster.data(node).glob("log-*.seg"))


def flip(path: Path, record: int) -> int:
    """Flip a bit of a record (counted from 0, or backwards) of a segment; returns its index."""
    blob = path.read_bytes()
    first, _ = decode_header(blob)
    offsets, content = scan_segment(blob, first, 0).offsets, bytearray(blob)
    content[offsets[record] + 40] ^= 8
    path.write_bytes(content)
    return first + (record if record >= 0 else len(offsets) + record)


def rot_sealed(cluster: Cluster, node: int) -> int:
    files = segments_of(cluster, node)
    return flip(files[len(files) // 2], 3)


def rot_newest(cluster: Cluster, node: int) -> int:
    """Records after it say that it had been durable."""
    return flip(segments_of(cluster, node)[-1], 1)


def remove_middle(cluster: Cluster, node: int) -> int:
    files = segments_of(cluster, node)
    path = files[len(files) // 2]
    path.unlink()
    first = first_index_of(path.name)
    assert first is not None
    return first


def fill(cluster: Cluster, node: int, files: int) -> None:
    """Write until the node has so many segments and some records in the newest."""
    number = 0
    while len(segments_of(cluster, node)) < files or number % 20:
        cluster.execute(node, "SET", f"k{number % 50}", f"{number}" * 300)
        number += 1


@pytest.mark.parametrize("damage", [rot_sealed, rot_newest, remove_middle])
def test_a_follower_with_a_damaged_log_repairs_itself(
    tmp_path: Path, damage: Callable[[Cluster, int], int]
) -> None:
    with running(tmp_path, allowed=SAYS, storage=SMALL) as cluster:
        leader = cluster.leader()
        victim, other = cluster.followers()
        fill(cluster, victim, 5)
        with Load(cluster, threads=2) as load:
            load.progress(20)
            cluster.kill(victim)
            bad = damage(cluster, victim)
            load.progress(20)
            cluster.start(victim)
            cluster.ready(victim)
            eventually(lambda: cluster.info(victim)["recovering"] == "0", 30, "a healed node")
            load.progress(20)
            load.stop()
        told = cluster.log_of(victim)
        assert re.search(rf"Entries from {bad} on are given up", told)
        assert f"has lost entries that it may have acknowledged, from {bad} on" in told
        assert "healed: the log has again all that was lost" in told
        assert list(cluster.data(victim).glob("damaged-1-log-*.seg"))
        assert not (cluster.data(victim) / "lost-entries").exists()
        assert cluster.leader() == leader, "nobody was disturbed"
        load.check(cluster)
        cluster.agree()
        # It votes again: the two of them elect one of them.
        cluster.kill(leader)
        eventually(lambda: cluster.leader() in (victim, other), 20, "a leader")
        cluster.execute(victim, "SET", "after", "it")
        cluster.kill(victim)
        cluster.start(victim, leader)
        cluster.ready(victim, leader)
        assert cluster.log_of(victim).count("Entries from") == 1, "the repaired log is whole"
        cluster.agree()


def test_it_gives_no_vote_to_who_lacks_what_it_has_acknowledged(tmp_path: Path) -> None:
    """Two of three have the write; one of them is down, the other has lost it. The third must not lead."""
    with running(tmp_path, allowed=SAYS, storage=SMALL) as cluster:
        leader = cluster.leader()
        victim, behind = cluster.followers()
        fill(cluster, leader, 3)
        cluster.agree()
        cluster.kill(behind)
        for number in range(20):
            cluster.execute(leader, "SET", "acknowledged", number)
        eventually(lambda: cluster.execute(victim, "GET", "acknowledged") == "19", 10, "the write")
        cluster.kill(leader, victim)
        bad = rot_sealed(cluster, victim)
        cluster.start(victim, behind)
        cluster.ready(victim, behind)
        eventually(lambda: "no leader is heard" in cluster.log_of(victim), 20, "a complaint")
        eventually(lambda: cluster.info(behind)["role"] == "pre-candidate", 20, "the other one asking")
        for node in (victim, behind):
            info = cluster.info(node)
            assert info["leader_id"] == "0", info
        info = cluster.info(victim)
        assert (info["recovering"], info["recovering_from"], info["role"]) == ("1", str(bad), "follower")
        cluster.start(leader)
        assert cluster.execute(behind, "GET", "acknowledged", timeout_s=30) == "19"
        eventually(lambda: cluster.info(victim)["recovering"] == "0", 30, "a healed node")
        cluster.agree()


def test_without_the_right_to_repair_it_refuses(tmp_path: Path) -> None:
    allowed = [*SAYS, "cannot start"]
    with running(tmp_path, allowed=allowed, storage={**SMALL, "repair": False}) as cluster:
        victim = cluster.followers()[0]
        fill(cluster, victim, 3)
        cluster.kill(victim)
        rot_sealed(cluster, victim)
        cluster.start(victim)
        assert cluster.exit_code(victim) == 1
        assert "empty its data directory, start it" in cluster.log_of(victim)
        assert not list(cluster.data(victim).glob("damaged-*"))
