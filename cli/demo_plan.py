"""What the demo is going to start: nodes, ports, rules, followers, database. Decides, starts nothing."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cli.fleet import FleetPlan, Recruit
from cli.follower import Behaviour
from cli.link import client_address
from raft.config import Member, Settings, is_loopback, settings_from

CLUSTER_NAME = "super-node-demo"
MARKER = ".super-node-demo"  # stands in a directory that the demo made, and may empty
WRONG_VERSION = "0.9"
# Small enough that somebody is banned, and comes back, while one watches.
QUICK_RULES = {"interval_ms": 2000, "ban_threshold": 4, "ban_cooldown_s": 30, "max_spam": 5}


class DemoError(Exception):
    """The demo cannot start, or not go on; the text says why and what to do."""


def plan_members(count: int, base_port: int) -> tuple[Member, ...]:
    """Nodes 1 to count on 127.0.0.1: raft, client and HTTP ports at base_port + 0, 100, 200 + id."""
    return tuple(
        Member(
            id=number,
            host="127.0.0.1",
            raft_port=base_port + number,
            client_port=base_port + 100 + number,
            http_port=base_port + 200 + number,
        )
        for number in range(1, count + 1)
    )


def plan_fleet(count: int, version: str, members: Sequence[Member], seed: int = 1) -> FleetPlan:
    """count followers: from four on one has the wrong version, 5 in 12 miss turns, 2 in 12 spam.

    With two there is one who misses, with three also one who answers out of turn; the rest are reliable.
    """
    outdated = 1 if count >= 4 else 0
    flaky = max(1, count * 5 // 12) if count >= 2 else 0
    spammers = max(1, count // 6) if count >= 3 else 0
    reliable = count - outdated - flaky - spammers
    recruits = [Recruit(_name("reliable", n, reliable), version) for n in range(reliable)]
    for n in range(flaky):
        miss = (0.9, 0.3, 0.6, 0.2, 0.4)[n % 5]  # the first is banned soon, the others now and then
        recruits.append(Recruit(_name("flaky", n, flaky), version, Behaviour(miss=miss, seed=seed)))
    spam = Behaviour(spam=0.4, seed=seed)
    recruits += [Recruit(_name("spammer", n, spammers), version, spam) for n in range(spammers)]
    wrong = WRONG_VERSION if version != WRONG_VERSION else "0.8"
    recruits += [Recruit(_name("outdated", n, outdated), wrong) for n in range(outdated)]
    return FleetPlan(tuple(client_address(member) for member in members), tuple(recruits))


def _name(kind: str, number: int, count: int) -> str:
    return f"{kind}-{number + 1:0{max(2, len(str(count)))}d}"


def plan_settings(
    base: Settings, members: Sequence[Member], data_dir: Path, environ: Mapping[str, str]
) -> dict[str, Any]:
    """The content of the demo's config.yaml: `base` with the demo's nodes, files and quick rules.

    A rule given in the environment stays. database.uri is left out: it may hold a password, so the nodes get
    it in their environment.
    """
    tree: dict[str, Any] = msgspec.to_builtins(base)
    tree["cluster"] = {"name": CLUSTER_NAME, "nodes": [msgspec.to_builtins(member) for member in members]}
    tree["storage"]["data_dir"] = str(data_dir.resolve() / "nodes")
    for key, value in QUICK_RULES.items():
        if f"SUPER_NODE_REWARDS__{key.upper()}" not in environ:
            tree["rewards"][key] = value
    del tree["database"]["uri"]
    settings_from(tree)
    return tree


def child_environment(environ: Mapping[str, str], database_uri: str) -> dict[str, str]:
    """The environment of the demo's processes: its settings are in the file already, but for the database."""
    kept = {
        name: value
        for name, value in environ.items()
        if not (name.startswith("SUPER_NODE_") and "__" in name)
    }
    return kept | {"SUPER_NODE_DATABASE__URI": database_uri}


def ports_in_use(members: Sequence[Member]) -> list[str]:
    """What is taken of the ports that the nodes will listen on, in words; empty when all are free."""
    taken = []
    for member in members:
        uses = (("nodes", member.raft_port), ("clients", member.client_port), ("HTTP", member.http_port))
        taken += [
            f"{port} (node {member.id}, {use})" for use, port in uses if not port_free(member.host, port)
        ]
    return taken


def port_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def any_free_port() -> int:
    """A port on 127.0.0.1 that the system offers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def embedded_place(uri: str) -> tuple[str, int]:
    """Where the embedded database listens: where `uri` points if that is here and free, else any port."""
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname or "", parts.port or 27017
    except ValueError:  # several hosts
        return "127.0.0.1", any_free_port()
    plain = parts.scheme == "mongodb" and parts.username is None and is_loopback(host)
    host = "127.0.0.1" if host == "localhost" else host
    if plain and port_free(host, port):
        return host, port
    return "127.0.0.1", any_free_port()


def prepare_directory(data_dir: Path, keep: bool) -> None:
    """Makes the demo's directory, empty unless `keep`. Raises DemoError for one that holds something else."""
    if data_dir.exists() and not data_dir.is_dir():
        raise DemoError(f"{data_dir} is no directory; --data-dir chooses another place")
    if data_dir.is_dir() and any(data_dir.iterdir()):
        if not (data_dir / MARKER).exists():
            raise DemoError(f"{data_dir} holds files that are not a demo's; --data-dir chooses another place")
        if not keep:
            shutil.rmtree(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / MARKER).touch()
    (data_dir / "logs").mkdir(exist_ok=True)
