"""super_node.py from outside: exit codes, one line on standard error, logs, signals."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_fakes import FakeCluster, eventually

import super_node
from cli.logs import configure_logging
from cli.run import supervise

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "super_node.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **environ},
    )


def test_a_config_error_is_one_line_and_exit_2(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("raft: {ping_interval_ms: soon}\n")
    result = run("--id", "1", "--config", str(config))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert f"{config}: raft.ping_interval_ms wants a whole number of milliseconds" in result.stderr


def test_the_environment_reaches_the_program() -> None:
    result = run("--id", "1", SUPER_NODE_RAFT__PING_INTERVAL_MS="soon")
    assert result.returncode == 2
    assert "SUPER_NODE_RAFT__PING_INTERVAL_MS" in result.stderr


def main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        code = super_node.main(arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    captured = capsys.readouterr()
    return code, captured.out + captured.err


SHIPPED = ("--config", str(ROOT / "config.yaml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--id", "9", *SHIPPED), "cluster.nodes has no node with id 9; its ids are 1, 2, 3"),
        (("--id", "1", "--config", "/nope.yaml"), "/nope.yaml: there is no such file"),
        (("status", "--config", "/nope.yaml"), "/nope.yaml: there is no such file"),
        (("--config", "/nope.yaml", "status"), "/nope.yaml: there is no such file"),
        (("demo", "--config", "/nope.yaml"), "/nope.yaml: there is no such file"),
        ((), "--id N"),
        (("--id", "x"), "--id"),
        (("--id", "1", "status"), "does not go with status"),
        (("dance",), "dance"),
        (("status", "--dance"), "--dance"),
        (("follower", "--id", "a"), "--connect"),
        (("follower", "--connect", "h:1"), "--id"),
        (("follower", "--id", "a", "--connect", "h"), "HOST:PORT"),
        (("follower", "--id", "a", "--connect", "h:99999"), "HOST:PORT"),
        (("demo", "--nodes", "0"), "from 1 to 50"),
        (("demo", "--followers", "-1"), "from 0 to 5000"),
        (("backup",), "FILE"),
        (("backup", "file", "--connect", "h"), "HOST:PORT"),
        (("backup", "file", "--config", "/nope.yaml"), "/nope.yaml: there is no such file"),
        (("restore",), "FILE"),
        (("restore", "file", "--config", "/nope.yaml"), "/nope.yaml: there is no such file"),
        (("bench", "--clients", "0"), "from 1 to 5000"),
        (("bench", "--reads", "101"), "from 0 to 100"),
        (("bench", "--connect", "h"), "HOST:PORT"),
        (("bench", "--config", "/nope.yaml"), "/nope.yaml: there is no such file"),
        (("bench", "--yes", "--keys", "1000000", "--size", "2000"), "more than 1,073,741,824 bytes"),
    ],
)
def test_wrong_arguments_are_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, output = main(capsys, *arguments)
    assert code == 2
    assert words in output


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = main(capsys, "--help")
    assert code == 0
    assert all(word in output for word in ("--id", "--config", "demo", "follower", "status"))
    assert "\n    fleet" not in output


def test_addresses_with_ipv6() -> None:
    options = super_node.build_parser().parse_args(["follower", "--id", "a", "--connect", "h:1,[::1]:2"])
    assert options.connect == [("h", 1), ("::1", 2)]


class FakeNode:
    """Stands for RaftNode: ends when told to, or when it is stopped."""

    def __init__(self, fail_start: Exception | None = None, exit_code: int = 0) -> None:
        self.ended = threading.Event()
        self.exit_code = exit_code
        self.stops = 0
        self._fail_start = fail_start

    def start(self) -> None:
        if self._fail_start is not None:
            raise self._fail_start

    def stop(self) -> None:
        self.stops += 1
        self.ended.set()

    def wait(self, timeout: float) -> bool:
        return self.ended.wait(timeout)


class FakeSignals:
    requested = False


@pytest.fixture(autouse=True)
def _restore_hook_and_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = threading.excepthook, root.handlers[:], root.level
    yield
    threading.excepthook, root.handlers[:] = before[0], before[1]
    root.setLevel(before[2])
    logging.captureWarnings(False)


def test_a_signal_stops_the_node_and_is_exit_0() -> None:
    node, signals = FakeNode(), FakeSignals()
    threading.Timer(0.05, lambda: setattr(signals, "requested", True)).start()
    assert supervise(node, signals) == 0
    assert node.stops == 1


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_node_that_ends_by_itself_is_exit_1(exit_code: int) -> None:
    node = FakeNode(exit_code=exit_code)
    node.ended.set()
    assert supervise(node, FakeSignals()) == 1


def test_a_node_that_cannot_start_is_exit_1(caplog: pytest.LogCaptureFixture) -> None:
    node = FakeNode(fail_start=OSError(98, "Address already in use"))
    assert supervise(node, FakeSignals()) == 1
    assert "cannot start: [Errno 98] Address already in use" in caplog.text
    assert "Traceback" not in caplog.text
    assert node.stops == 1


def test_an_unexpected_failure_at_the_start_has_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert supervise(FakeNode(fail_start=ZeroDivisionError("oh")), FakeSignals()) == 1
    assert "ZeroDivisionError: oh" in caplog.text


def test_text_lines_cannot_be_forged() -> None:
    stream = io.StringIO()
    configure_logging("INFO", "text", "node-1", stream)
    logging.getLogger("x").info("from a client: %s", "a\n2026-01-01 CRITICAL node-1: all is lost\x1b[2J")
    logging.getLogger("x").debug("not shown")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert " INFO    node-1 MainThread: from a client: a\\n2026" in lines[0]
    assert "\x1b" not in lines[0]


def test_json_lines() -> None:
    stream = io.StringIO()
    configure_logging("DEBUG", "json", "node-2", stream)
    logging.getLogger("x").warning("two\nlines")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["node"], first["thread"]) == ("WARNING", "node-2", "MainThread")
    assert first["message"] == "two\nlines"
    assert "ValueError: boom" in second["exception"]


def test_logging_configured_twice_has_one_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("INFO", "text", "a", first)
    configure_logging("INFO", "text", "a", second)
    logging.getLogger("x").info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


@pytest.fixture
def follower_process() -> Iterator[Callable[..., tuple[FakeCluster, subprocess.Popen[str]]]]:
    cluster = FakeCluster()
    cluster.add_node()
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[FakeCluster, subprocess.Popen[str]]:
        host, port = cluster.nodes[0].address
        command = [sys.executable, str(ROOT / "super_node.py"), "follower", "--connect", f"{host}:{port}"]
        process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        started.append(process)
        return cluster, process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    cluster.close()


def test_the_follower_program(
    follower_process: Callable[..., tuple[FakeCluster, subprocess.Popen[str]]],
) -> None:
    cluster, process = follower_process("--id", "worker", "--address", "here:1", "--leave")
    eventually(lambda: ("INTERVAL", "CURRENT") in cluster.received, "the follower has joined", 30)
    cluster.open()
    eventually(lambda: cluster.reports == [("worker", 1)], "its answer", 30)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert cluster.left == ["worker"]
    assert ("FOLLOWER", "JOIN", "worker", "1.0", "here:1") in cluster.received
    assert "worker: joined as version 1.0" in errors


def test_a_follower_of_the_wrong_version_is_exit_1(
    follower_process: Callable[..., tuple[FakeCluster, subprocess.Popen[str]]],
) -> None:
    _, process = follower_process("--id", "worker", "--version", "0.1")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "not admitted: VERSION 1.0 is wanted" in errors
