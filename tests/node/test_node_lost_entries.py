"""A follower's disk loses what it had acknowledged: the leader tells of it and sends it again."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import eventually, running

pytestmark = pytest.mark.process


def test_a_follower_whose_log_was_cut_gets_the_rest_again_from_the_same_leader(tmp_path: Path) -> None:
    """The cut looks like a torn tail. It was stuck until another leader came, answering CLUSTERDOWN."""
    with running(tmp_path, rewards={"interval_ms": 60_000}) as cluster:
        leader = cluster.leader()
        victim = cluster.followers()[0]
        for number in range(20):
            cluster.execute(leader, "SET", f"k{number}", number)
        cluster.agree()
        cluster.kill(victim)
        segment = max(cluster.data(victim).glob("log-*.seg"))
        content = bytearray(segment.read_bytes())
        used = len(content.rstrip(b"\0"))
        content[used - 300 :] = bytes(len(content) - used + 300)
        segment.write_bytes(content)
        cluster.start(victim)
        cluster.ready(victim)
        assert eventually(lambda: cluster.execute(victim, "GET", "k19") == "19", 15, "the node answering")
        assert f"node {victim} has lost entries that it had acknowledged" in cluster.log_of(leader)
        assert cluster.leader() == leader
        cluster.agree()
