"""The demo as its user sees it: one run of it, looked at from all sides, and ended with Ctrl-C.

The tests share the run and follow one another; the last one ends it. What they type is taken from the lines
that the demo prints for copying.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cli_fakes import eventually

from cli.demo_plan import plan_members, port_free, ports_in_use
from cli.link import fields

ROOT = Path(__file__).resolve().parents[2]
MARK = "TEST_OF_THE_DEMO"  # in the environment of the demo and so of every process that it starts
pytestmark = pytest.mark.process


class RunningDemo:
    """The process, what it has printed so far, and a client of its first node that is reached."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = f"{MARK}={directory}"
        self.ports = next(base for base in range(15_000, 32_000, 317) if self._usable(base))
        self.output_file = directory / "output"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SUPER_NODE_")}
        environ |= {
            MARK: str(directory),
            "SUPER_NODE_DATABASE__URI": f"mongodb://127.0.0.1:{self.ports}",
            "SUPER_NODE_REWARDS__INTERVAL_MS": "500",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, str(ROOT / "super_node.py"), "demo", "--ports", str(self.ports)]
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(directory / "demo")],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
            )

    @staticmethod
    def _usable(base: int) -> bool:
        return not ports_in_use(plan_members(3, base)) and port_free("127.0.0.1", base)

    def output(self) -> str:
        return self.output_file.read_text(encoding="utf-8")

    def line(self, title: str) -> list[str]:
        """The words of a line to copy, which begins with title."""
        found = re.search(rf"^[│ ]*{re.escape(title)} +(.*?)[│ ]*$", self.output(), re.MULTILINE)
        assert found, f"no line {title!r} in the output:\n{self.output()}"
        return shlex.split(found[1], comments=True)

    def ask(self, *words: str) -> Any:
        """The answer of the first node that gives one."""
        problem: Exception | None = None
        for number in (1, 2, 3):
            client = redis.Redis(port=self.ports + 100 + number, socket_timeout=5, decode_responses=True)
            try:
                return client.execute_command(*words)
            except redis.ConnectionError as error:
                problem = error
            finally:
                client.close()
        raise AssertionError(f"no node answers: {problem}")

    def balances(self) -> dict[str, int]:
        top = self.ask("REWARD", "TOP", "100")
        return dict(zip(top[::2], top[1::2], strict=True))

    def info(self, follower: str) -> dict[str, Any]:
        return fields(self.ask("FOLLOWER", "INFO", follower))

    def processes(self) -> dict[int, str]:
        """Everything that the demo started or is, found by the mark: process id -> command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it has just ended
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """The demo, as soon as it has said where to look."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("finds the demo's processes in /proc, which this system does not have")
    running = RunningDemo(tmp_path_factory.mktemp("demo-end-to-end"))
    try:
        eventually(
            lambda: "Ctrl-C" in running.output() or running.process.poll() is not None,
            "the lines that say where to look",
            60,
        )
        assert running.process.poll() is None, running.output()
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        for pid in running.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_balances_grow_and_shrink(demo: RunningDemo) -> None:
    expected = {"node-1", "node-2", "node-3", "flaky-01", "reliable-01", "spammer-01"}
    eventually(lambda: expected <= demo.balances().keys(), "members and followers in REWARD TOP", 30)
    before = demo.balances()

    def moved() -> bool:
        now = demo.balances()
        changes = {name: now[name] - before[name] for name in before}
        return any(change >= 20 for change in changes.values()) and any(c < 0 for c in changes.values())

    eventually(moved, "balances that grew and balances that shrank", 30)
    assert {name for name in demo.balances() if name.startswith("reliable")} == {
        f"reliable-{number:02}" for number in range(1, 5)
    }


def test_somebody_is_banned_and_the_wrong_version_refused(demo: RunningDemo) -> None:
    eventually(lambda: re.search(r"banned flaky-01 until \S+ misses", demo.output()), "a ban for misses", 30)
    eventually(lambda: re.search(r"banned spammer-\d+ until \S+ spam", demo.output()), "a ban for spam", 30)
    fleet_log = demo.directory / "demo" / "logs" / "fleet.log"
    eventually(lambda: "outdated-01: not admitted: VERSION" in fleet_log.read_text(), "the refusal", 30)
    with pytest.raises(redis.ResponseError, match=r"^NOFOLLOWER"):
        demo.info("outdated-01")
    assert all(demo.info(f"reliable-{number:02}")["state"] == "active" for number in range(1, 5))


def test_mongosh_shows_the_same(demo: RunningDemo, require_tool: Callable[[str], str]) -> None:
    mongosh = require_tool("mongosh")
    program, uri, option, _shown = demo.line("MongoDB")
    assert (program, option) == ("mongosh", "--eval")

    def evaluate(script: str) -> Any:
        done = subprocess.run(
            [
                mongosh,
                "--quiet",
                "--norc",
                uri,
                option,
                f"print(EJSON.stringify({script}, {{relaxed: true}}))",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def rewards() -> dict[str, Any]:
        return {each["_id"]: each for each in evaluate("db.rewards.find().toArray()")}

    eventually(lambda: rewards().keys() == demo.balances().keys(), "the same followers in mongosh", 30)
    for each in rewards().values():
        assert each["amount"] == each["earned"] - each["penalties"] - each["claimed"]
    intervals = evaluate("db.intervals.find({node: 'reliable-01'}).sort({interval: 1}).toArray()")
    assert len(intervals) >= 2
    assert {"hit"} <= {each["outcome"] for each in intervals}
    for each in intervals:
        assert each["_id"] == {"interval": each["interval"], "node": "reliable-01"}


def test_status_as_the_demo_tells_to_ask_for_it(demo: RunningDemo) -> None:
    done = subprocess.run(
        [*demo.line("status"), "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["healthy"] is True
    assert [node["reachable"] for node in report["nodes"]] == [True] * 3


def test_it_goes_on_when_the_leader_is_killed(demo: RunningDemo) -> None:
    leader = int(demo.ask("RAFT", "LEADER")[0])
    [pid] = [pid for pid, command in demo.processes().items() if f"super_node.py --id {leader} " in command]
    eventually(lambda: "reliable-01" in demo.balances(), "a follower that has joined", 30)
    before = demo.info("reliable-01")["earned"]
    told = len(demo.output())
    os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: f"node-{leader} ended (killed by SIGKILL)" in demo.output(), "the demo's word of it", 20
    )

    def led_by_another() -> bool:
        try:
            found = demo.ask("RAFT", "LEADER")  # nil while the one that is asked knows of none
            return bool(found) and int(found[0]) != leader
        except redis.RedisError:  # CLUSTERDOWN during the election
            return False

    def paid_further() -> bool:
        try:
            return bool(demo.info("reliable-01")["earned"] >= before + 20)
        except redis.RedisError:  # the node that is asked may not have heard of the new leader yet
            return False

    eventually(led_by_another, "another leader", 20)
    eventually(paid_further, "further rewards", 20)
    others = [number for number in (1, 2, 3) if number != leader]
    eventually(
        lambda: any(f"node {number} is the leader, term" in demo.output()[told:] for number in others),
        "the new leader in the demo's output",
        20,
    )
    assert demo.process.poll() is None


def test_ctrl_c_leaves_no_process_behind(demo: RunningDemo) -> None:
    assert len(demo.processes()) >= 5  # the demo, nodes, the fleet, the database
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(40) == 0, demo.output()
    assert demo.processes() == {}
    assert "stopped, nothing is left running" in demo.output()
    assert "had to be killed" not in demo.output()
    logs = (demo.directory / "demo" / "logs").glob("*.log")
    assert {
        log.name: line for log in logs for line in log.read_text().splitlines() if "CRITICAL" in line
    } == {}
