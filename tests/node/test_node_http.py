"""The HTTP port of real nodes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cluster import Cluster, eventually

pytestmark = pytest.mark.process


def get(cluster: Cluster, node: int, path: str) -> tuple[int, bytes]:
    url = f"http://127.0.0.1:{cluster.addresses[node]['http_port']}{path}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_health_follows_the_quorum(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        cluster.start()
        leader = cluster.leader()
        for node in cluster.ids:
            eventually(lambda node=node: get(cluster, node, "/health/ready")[0] == 200, 10, "readiness")
            assert json.loads(get(cluster, node, "/status")[1])["leader_id"] == leader
        others = [node for node in cluster.ids if node != leader]
        for node in others:
            cluster.kill(node)
        eventually(lambda: get(cluster, leader, "/health/ready")[0] == 503, 10, "the lack of a quorum")
        assert get(cluster, leader, "/health/live") == (200, b"live\n")
        cluster.start(*others)
        eventually(lambda: get(cluster, leader, "/health/ready")[0] == 200, 20, "readiness again")
    finally:
        cluster.stop()
