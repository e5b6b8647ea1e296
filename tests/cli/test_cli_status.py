"""status: what nodes say, judged and shown."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fakes import FakeCluster, fake_cluster
from rich.console import Console

from cli.status import (
    ClusterReport,
    NodeReport,
    ask_cluster,
    duration,
    judge,
    parse_info,
    run_status,
    to_table,
)
from raft.config import Member


def info(
    node_id: int, role: str = "follower", term: int = 3, leader: int | str = 1, voters: str = "1,2,3"
) -> str:
    return "\r\n".join(
        [
            "# Raft",
            f"node_id:{node_id}",
            f"role:{role}",
            f"term:{term}",
            f"leader_id:{leader}",
            "commit_index:41",
            f"applied_index:{41 - node_id}",
            "first_log_index:1",
            "last_log_index:42",
            f"voters:{voters}",
            "database_lag:7",
            "uptime_s:3725",
        ]
    )


def reports(*texts: str | None) -> tuple[NodeReport, ...]:
    made = []
    for number, text in enumerate(texts, 1):
        member = Member(id=number, host="h", raft_port=1, client_port=2, http_port=3)
        made.append(NodeReport(member, parse_info(text or ""), None if text else "no answer in time"))
    return tuple(made)


@pytest.mark.parametrize(
    ("texts", "leader"),
    [
        ((info(1, "leader"), info(2), info(3)), 1),
        ((info(1, "leader"), info(2), None), 1),
        ((info(1, "leader"), None, None), None),
        ((info(1, "candidate", leader=""), info(2, leader=""), info(3, leader="")), None),
        ((None, info(2), info(3)), None),
        # the deposed leader has not noticed yet
        ((info(1, "leader"), info(2, "leader", 4, 2), info(3, term=4, leader=2)), 2),
        ((info(1, "leader"), info(2, term=4, leader=""), info(3, term=4, leader="")), None),
        # a learner does not count
        ((info(1, "leader", voters="1,2"), None, info(3, voters="1,2")), None),
        ((info(1, "leader", voters="1"), None, None), 1),
    ],
)
def test_judges_leader_and_quorum(texts: tuple[str | None, ...], leader: int | None) -> None:
    cluster = judge(reports(*texts))
    assert cluster.leader == leader
    assert cluster.healthy is (leader is not None)
    assert (cluster.problem is None) is cluster.healthy


def shown(cluster: ClusterReport, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_table(cluster))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_the_table() -> None:
    text = shown(judge(reports(info(1, "leader"), info(2), None)))
    rows = [line for line in text.splitlines() if "h:2" in line]
    assert " ".join(rows[0].split()) == "1 h:2 leader 3 1 41 1 1–42 7 1 h 2 min"
    assert rows[2].split() == ["3", "h:2", "no", "answer"]
    assert "node 3: no answer in time" in text
    assert "leader: node 1, term 3" in text


def test_a_node_that_recovers_is_told() -> None:
    recovering = info(3) + "\r\nrecovering:1\r\nrecovering_from:7"
    console = Console(file=io.StringIO(), width=120)
    console.print(to_table(judge(reports(info(1, "leader"), info(2), recovering))))
    assert isinstance(console.file, io.StringIO)
    assert "node 3 gives no vote: its log lacks entries from 7 on" in console.file.getvalue()


def test_the_table_fits_into_80_columns() -> None:
    """With long addresses and numbers, and a node that is away: nothing is cut off, numbers least of all."""
    member = Member(id=1, host="192.168.100.200", raft_port=1, client_port=27201, http_port=3)
    text = info(1, "leader").replace("commit_index:41", "commit_index:1234567")
    assert "commit_index:1234567" in text
    cluster = judge((NodeReport(member, parse_info(text)), NodeReport(member, {}, "no answer in time")))
    table = shown(cluster, width=80)
    assert "192.168.100.200:27201 leader" in table
    assert "…" not in table


def test_the_table_shows_markup_in_an_error_as_it_is() -> None:
    member = Member(id=1, host="h", raft_port=1, client_port=2, http_port=3)
    assert "[/red] odd" in shown(judge((NodeReport(member, {}, "[/red] odd"),)))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [("5", "5 s"), ("65.9", "1 min 5 s"), ("3725", "1 h 2 min"), ("90000", "1 d 1 h"), ("", "?"), ("x", "?")],
)
def test_duration(seconds: str, words: str) -> None:
    assert duration(seconds) == words


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster(nodes=3) as made:
        yield made


def members(cluster: FakeCluster) -> tuple[Member, ...]:
    return tuple(
        Member(id=n.node_id, host="127.0.0.1", raft_port=1, client_port=n.address[1], http_port=3)
        for n in cluster.nodes
    )


def config(cluster: FakeCluster, tmp_path: Path) -> Path:
    nodes = [
        {
            "id": n.node_id,
            "host": "127.0.0.1",
            "raft_port": n.node_id,
            "client_port": n.address[1],
            "http_port": 9 + n.node_id,
        }
        for n in cluster.nodes
    ]
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"cluster": {"nodes": nodes}}))
    return path


def test_a_healthy_cluster_is_exit_0(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for node in cluster.nodes:
        node.info = info(node.node_id, "leader" if node.node_id == 1 else "follower")
    assert run_status(config(cluster, tmp_path), as_json=True, watch_s=None) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["healthy"], shown["leader"], shown["term"]) == (True, 1, 3)
    assert [node["info"]["applied_index"] for node in shown["nodes"]] == [40, 39, 38]
    assert run_status(config(cluster, tmp_path), as_json=False, watch_s=None) == 0
    assert "leader: node 1, term 3" in capsys.readouterr().out


def test_dead_silent_and_mistaken_nodes_are_told_with_the_reason(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.nodes[0].kill()
    cluster.nodes[1].silent = True
    cluster.nodes[2].info = info(7)
    report = ask_cluster(members(cluster), timeout_s=0.3)
    assert [node.problem for node in report.nodes] == [
        "connection refused",
        "no answer in time",
        "node 7 answers at this address",
    ]
    cluster.nodes[1].kill()
    assert run_status(config(cluster, tmp_path), as_json=True, watch_s=None) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False


def test_a_node_that_answers_an_error(cluster: FakeCluster) -> None:
    assert ask_cluster(members(cluster)[:1]).nodes[0].problem == "unknown command RAFT"
