"""What the demo decides before it starts anything."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import super_node
from cli.demo_plan import (
    MARKER,
    DemoError,
    child_environment,
    embedded_place,
    plan_fleet,
    plan_members,
    plan_settings,
    port_free,
    ports_in_use,
    prepare_directory,
)
from cli.fleet import CREWS, FleetPlan, crews
from raft.config import Settings, settings_from

ROOT = Path(__file__).resolve().parents[2]


def test_the_default_ports_are_those_of_the_shipped_config() -> None:
    assert plan_members(3, 7100) == Settings().cluster.nodes


def test_many_nodes_have_no_port_in_common() -> None:
    settings_from({"cluster": {"nodes": msgspec.to_builtins(plan_members(50, 7100))}})


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 12, 100, 1000])
def test_the_fleet_has_as_many_as_asked_for_and_all_kinds(count: int) -> None:
    recruits = plan_fleet(count, "1.0", plan_members(3, 7100)).recruits
    assert len({recruit.name for recruit in recruits}) == count
    kinds = Counter(recruit.name.split("-")[0] for recruit in recruits)
    assert kinds["outdated"] == (count >= 4)
    assert (kinds["flaky"] > 0) is (count >= 2)
    assert (kinds["spammer"] > 0) is (count >= 3)
    assert kinds["reliable"] >= min(count, 1)
    assert all((r.version == "1.0") is not r.name.startswith("outdated") for r in recruits)
    assert all((r.behaviour.miss > 0) is r.name.startswith("flaky") for r in recruits)
    assert all((r.behaviour.spam > 0) is r.name.startswith("spammer") for r in recruits)


def test_a_fleet_plan_survives_its_file() -> None:
    plan = plan_fleet(12, "1.0", plan_members(3, 7100))
    assert msgspec.json.decode(msgspec.json.encode(plan), type=FleetPlan) == plan


@pytest.mark.parametrize(("count", "threads"), [(0, 0), (3, 3), (1000, CREWS)])
def test_followers_share_a_few_threads(count: int, threads: int) -> None:
    made = crews(plan_fleet(count, "1.0", plan_members(3, 7100)))
    assert len(made) == threads
    assert sum(len(crew.followers) for crew in made) == count


def test_the_demo_settings_are_valid_and_hold_no_uri(tmp_path: Path) -> None:
    base = settings_from({"database": {"uri": "mongodb://u:hunter2@h"}, "rewards": {"reward": 7}})
    tree = plan_settings(base, plan_members(5, 9000), tmp_path, {"SUPER_NODE_REWARDS__MAX_SPAM": "10"})
    settings = settings_from(tree)
    assert "hunter2" not in str(tree)
    assert len(settings.cluster.nodes) == 5
    assert settings.storage.data_dir == str(tmp_path / "nodes")
    assert (settings.rewards.reward, settings.rewards.ban_threshold, settings.rewards.max_spam) == (7, 4, 10)


def test_children_take_their_settings_from_the_file() -> None:
    environ = {"PATH": "/bin", "SUPER_NODE_CLUSTER__NODES": "[]", "SUPER_NODE_REQUIRE_TOOLS": "1"}
    assert child_environment(environ, "mongodb://x") == {
        "PATH": "/bin",
        "SUPER_NODE_REQUIRE_TOOLS": "1",
        "SUPER_NODE_DATABASE__URI": "mongodb://x",
    }


def test_ports_in_use_are_named(free_ports: Callable[[int], list[int]]) -> None:
    base = free_ports(1)[0]
    members = plan_members(2, base)
    before = ports_in_use(members)
    with socket.create_server(("127.0.0.1", members[1].client_port)):
        assert set(ports_in_use(members)) - set(before) == {f"{members[1].client_port} (node 2, clients)"}


def test_the_embedded_database_listens_where_the_uri_points(free_ports: Callable[[int], list[int]]) -> None:
    (port,) = free_ports(1)
    assert embedded_place(f"mongodb://127.0.0.1:{port}") == ("127.0.0.1", port)
    assert embedded_place(f"mongodb://localhost:{port}/?w=1") == ("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        host, other = embedded_place(f"mongodb://127.0.0.1:{port}")
    assert host == "127.0.0.1"
    assert other != port


@pytest.mark.parametrize(
    "uri", ["mongodb://10.0.0.1:27017", "mongodb://u:p@127.0.0.1:1", "mongodb://a:1,b:2", "mongodb+srv://x"]
)
def test_the_embedded_database_stays_on_loopback(uri: str) -> None:
    host, port = embedded_place(uri)
    assert host == "127.0.0.1"
    assert port_free(host, port)


def test_a_fresh_demo_empties_only_its_own_directory(tmp_path: Path) -> None:
    mine = tmp_path / "demo"
    prepare_directory(mine, keep=False)
    (mine / "nodes").mkdir()
    prepare_directory(mine, keep=True)
    assert (mine / "nodes").exists()
    prepare_directory(mine, keep=False)
    assert not (mine / "nodes").exists()
    assert (mine / MARKER).exists()


@pytest.mark.parametrize("keep", [True, False])
def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path, keep: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DemoError, match="not a demo's"):
        prepare_directory(tmp_path, keep)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_demo_refuses_taken_ports_before_it_touches_anything(
    tmp_path: Path, free_ports: Callable[[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    base = free_ports(1)[0]
    data_dir = tmp_path / "demo"
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with socket.create_server(("127.0.0.1", base + 101)):
            arguments = ["demo", "--ports", str(base), "--data-dir", str(data_dir), "--config"]
            assert super_node.main([*arguments, str(ROOT / "config.yaml")]) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert f"{base + 101} (node 1, clients)" in capsys.readouterr().err
    assert not data_dir.exists()


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, sys.argv[1], "fleet", "--plan", sys.argv[2], "--die-with-parent", str(os.getpid())],
    start_new_session=True, stderr=subprocess.PIPE)
child.stderr.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    plan = tmp_path / "fleet.json"
    plan.write_bytes(msgspec.json.encode(FleetPlan((("127.0.0.1", 1),), ())))
    command = [sys.executable, "-c", PARENT, str(ROOT / "super_node.py"), str(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    deadline = time.monotonic() + 20
    while _alive(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Running, and not merely waiting to be reaped by whoever adopts orphans here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
