"""`super_node.py demo`: database, nodes and followers on this machine, and one line for each notable thing.

Every process it starts is its child, asks the kernel to be ended with it, and is stopped in order at the end:
followers, nodes, database. Runs in the main thread.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import yaml
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from cli.demo_database import DemoDatabase
from cli.demo_plan import (
    DemoError,
    child_environment,
    plan_fleet,
    plan_members,
    plan_settings,
    ports_in_use,
    prepare_directory,
)
from cli.link import Link, LinkLost, client_address
from cli.processes import StopSignal
from cli.status import ask_cluster
from raft.config import Settings, load_settings, redact_uri, settings_from

PROGRAM = Path(__file__).resolve().parent.parent / "super_node.py"
_STOP_S = 25.0
_FIRST_LEADER_S = 30.0


def run_demo(options: argparse.Namespace) -> int:
    """Runs the demo until Ctrl-C, SIGTERM, SIGHUP or the end of its last node; 0, or 1 when it cannot.

    Raises ConfigError.
    """
    signals = StopSignal(also=[signal.SIGHUP])
    demo = Demo(options, load_settings(options.config), signals)
    try:
        demo.start()
        return demo.watch()
    except (DemoError, OSError) as error:
        print(f"super_node.py demo: {error}", file=sys.stderr)
        return 1
    finally:
        demo.stop()


class Child:
    """A process of the demo, its output in a file.

    It has a session of its own, so that Ctrl-C reaches the demo only, which then stops all in its order.
    """

    def __init__(self, name: str, arguments: list[str], log_file: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.reported = False
        command = [sys.executable, str(PROGRAM), *arguments, "--die-with-parent", str(os.getpid())]
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self.process.poll() is None

    def ending(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def stop_children(children: list[Child], within_s: float) -> list[str]:
    """SIGTERM to all, SIGKILL to those that are left after within_s; the names of the latter."""
    for child in children:
        if child.running:
            child.process.terminate()
    deadline = time.monotonic() + within_s
    killed = []
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
            killed.append(child.name)
    return killed


class Demo:
    """One run of the demo: start, watch, stop, once each in this order; stop also after a failed start."""

    def __init__(self, options: argparse.Namespace, base: Settings, signals: StopSignal) -> None:
        self._data_dir: Path = options.data_dir
        self._keep: bool = options.keep
        self._base = base
        self._signals = signals
        self._members = plan_members(options.nodes, options.ports)
        self._fleet = plan_fleet(options.followers, base.rewards.follower_version, self._members)
        self._database = DemoDatabase(base.database, self._data_dir, self._keep)
        self._nodes: list[Child] = []
        self._followers: list[Child] = []
        self._leader: int | None = None
        self._news: Link | None = None
        self._asked_at = 0.0
        self._console = Console(highlight=False, soft_wrap=True)

    def start(self) -> None:
        """Starts everything. Raises DemoError; ports are looked at before anything else is touched."""
        if busy := ports_in_use(self._members):
            raise DemoError(
                f"ports in use: {', '.join(busy)}; is a demo running? --ports BASE chooses others"
            )
        prepare_directory(self._data_dir, self._keep)
        self.say("data of the last demo kept" if self._keep else f"begins afresh in {self._data_dir}/")
        self.say(self._database.start())
        tree = plan_settings(self._base, self._members, self._data_dir, os.environ)
        tree["database"]["name"] = self._database.name
        config = self._data_dir / "config.yaml"
        header = "# Written by `super_node.py demo`; database.uri comes from its environment.\n"
        config.write_text(header + yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        environ = child_environment(os.environ, self._database.uri)
        for member in self._members:
            arguments = ["--id", str(member.id), "--config", str(config)]
            name = f"node-{member.id}"
            self._nodes.append(Child(name, arguments, self._log_file(name), environ))
        self._wait_for_leader()
        if self._fleet.recruits and not self._signals.requested:
            plan_file = self._data_dir / "fleet.json"
            plan_file.write_bytes(msgspec.json.encode(self._fleet))
            arguments = ["fleet", "--plan", str(plan_file)]
            self._followers.append(Child("followers", arguments, self._log_file("fleet"), environ))
        if not self._signals.requested:
            self._show_where_to_look(config, settings_from(tree))

    def watch(self) -> int:
        """Tells what happens until a signal comes (0) or no node is left (1)."""
        while not self._signals.requested:
            self._report_the_dead()
            if not any(node.running for node in self._nodes):
                raise DemoError(f"no node is left; the logs are in {self._data_dir}/logs/")
            self._report_leader()
            self._report_news(until=time.monotonic() + 1.0)
        return 0

    def stop(self) -> None:
        """Stops followers, nodes, database; returns when nothing of the demo runs any more."""
        if self._nodes or self._followers:
            self.say("stopping")
        if self._news is not None:
            self._news.close()
        killed = stop_children(self._followers, _STOP_S) + stop_children(self._nodes, _STOP_S)
        if killed:
            self.say(f"had to be killed: {', '.join(killed)}")
        self._database.stop()
        if self._nodes or self._followers:
            self.say("stopped, nothing is left running")

    def say(self, text: str) -> None:
        """One line for people, with the time of day."""
        self._console.print(Text(f"{time.strftime('%H:%M:%S')}  {text}"))

    def _log_file(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    def _wait_for_leader(self) -> None:
        deadline = time.monotonic() + _FIRST_LEADER_S
        while not self._signals.requested and self._leader is None:
            self._report_the_dead()
            if not any(node.running for node in self._nodes):
                raise DemoError(f"no node runs; the logs are in {self._data_dir}/logs/")
            if time.monotonic() > deadline:
                self.say(
                    f"no leader after {_FIRST_LEADER_S:g} s; the logs in {self._data_dir}/logs/ tell why"
                )
                return
            self._report_leader(quiet=True)
            self._signals.wait(0.2)

    def _report_the_dead(self) -> None:
        for child in self._nodes + self._followers:
            if not child.running and not child.reported:
                child.reported = True
                log = self._log_file("fleet" if child in self._followers else child.name)
                self.say(f"{child.name} ended ({child.ending()}); its log: {log}")

    def _report_leader(self, quiet: bool = False) -> None:
        cluster = ask_cluster(self._members, timeout_s=1.0)
        if cluster.leader == self._leader:
            return
        if cluster.leader is not None:
            self.say(f"node {cluster.leader} is the leader, term {cluster.term}")
        elif not quiet:
            self.say(f"no leader: {cluster.problem}")
        self._leader = cluster.leader

    def _report_news(self, until: float) -> None:
        """Passes on what the channel `cluster` tells until the given time."""
        if self._news is None:
            self._news = self._news_link()
        while not self._signals.requested and (left := until - time.monotonic()) > 0:
            if self._news is None:
                self._signals.wait(left)
                return
            try:
                message = self._news.next_message(min(left, 0.25))
            except LinkLost:
                self._news.close()
                self._news = None
                return
            if message is not None:
                self.say(readable_news(message[1]))

    def _news_link(self) -> Link | None:
        for child, member in zip(self._nodes, self._members, strict=True):
            if child.running:
                link = Link(client_address(member), 1.0)
                try:
                    link.subscribe(["cluster"])
                except LinkLost:
                    link.close()
                    continue
                return link
        return None

    def _show_where_to_look(self, config: Path, settings: Settings) -> None:
        """The lines to copy; in a frame only where the frame would not cut them."""
        port, other = self._members[0].client_port, self._members[-1].client_port
        rules = settings.rewards
        program = f"{_shown(Path(sys.executable))} {_shown(PROGRAM)}"
        eldest = self._nodes[0].process.pid
        rows = (
            ("balances", f"redis-cli -p {port} REWARD TOP 20"),
            ("one follower", f"redis-cli -3 -p {port} FOLLOWER INFO flaky-01"),
            ("events", f"redis-cli -p {other} PSUBSCRIBE cluster turns 'rewards:*'"),
            ("MongoDB", f"mongosh '{redact_uri(self._database.shell_uri)}' --eval 'db.rewards.find()'"),
            ("", f"mongosh '{redact_uri(self._database.shell_uri)}' --eval 'db.intervals.find()'"),
            ("status", f"{program} status --config {_shown(config)}"),
            ("a lost node", f"kill -9 {eldest}    (node 1: the others go on)"),
            ("logs", f"{self._data_dir}/logs/"),
            ("the end", "Ctrl-C"),
        )
        text = "\n".join(f"{name:<13} {what}" for name, what in rows)
        title = (
            f"super node demo: {len(self._members)} nodes, {len(self._fleet.recruits)} followers, "
            f"a turn every {rules.interval_ms / 1000:g} s"
        )
        if self._console.width > 4 + max(map(len, text.splitlines())):
            self._console.print(Panel(Text(text), title=title, title_align="left", expand=False))
        else:
            self._console.print(Text(f"\n{title}\n{text}\n"))


def readable_news(line: str) -> str:
    """A line of the channel `cluster`, with times (ms since the epoch) as times of day."""

    def time_of_day(found: re.Match[str]) -> str:
        return time.strftime("%H:%M:%S", time.localtime(int(found[0]) / 1000))

    return re.sub(r"\b\d{13}\b", time_of_day, line)


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
