"""A network of the nodes' own: a namespace for each node, joined by a bridge, that can be cut at will.

Namespaces: packets are dropped, lost and rejected by iptables inside the receiver's namespace; delayed links
are led through the proxy by DNAT inside the sender's. The programs that run there know nothing of it.

Loopback: where namespaces are not allowed, every link goes through the proxy (tests.chaos.node_program leads
it there) and what iptables would do is done by the proxy, as far as TCP can see it.

What the network is to be like stands in `state`; apply() makes it so.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.proxy import Link, Proxy
from tests.node.cluster import free_ports

RAFT, CLIENT, HTTP = 7101, 7201, 7301
_ALIAS = "super-node-chaos "


@dataclass
class State:
    """By (sender, receiver)."""

    blocked: set[Link] = field(default_factory=set)
    lossy: dict[Link, float] = field(default_factory=dict)
    rejected: set[Link] = field(default_factory=set)
    delayed_s: dict[Link, float] = field(default_factory=dict)


def run(*words: str, text: str | None = None) -> str:
    """Run a program; RuntimeError with what it said if it fails."""
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def namespaces_work() -> bool:
    """Whether this process may make network namespaces, bridges and iptables rules."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "iptables-restore", "nsenter"))):
        return False
    name = f"snprobe{os.getpid()}"
    try:
        run("ip", "netns", "add", name)
        rules = "*filter\n-A INPUT -m statistic --mode random --probability 0.5 -j DROP\nCOMMIT\n"
        nat = "*nat\n-A OUTPUT -p tcp --dport 9 -j DNAT --to-destination 127.0.0.1:9\nCOMMIT\n"
        run("nsenter", f"--net=/run/netns/{name}", "iptables-restore", text=rules + nat)
    except RuntimeError:
        return False
    else:
        return True
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Network:
    """What both kinds share. One thread."""

    gateway = "127.0.0.1"  # where the nodes reach what runs beside them, such as MongoDB

    def __init__(self, rng: random.Random) -> None:
        self.state = State()
        self.nodes: list[int] = []
        self.proxy: Proxy
        self._rng = rng

    def add(self, node: int) -> dict[str, Any]:
        """A place for one more node: its address as config.yaml has it."""
        raise NotImplementedError

    def prefix(self, node: int) -> list[str]:
        """Words before a command that is to run in the node's place."""
        return []

    def apply(self) -> None:
        """Make the network what `state` says."""
        raise NotImplementedError

    def links(self, among: Iterable[int] | None = None) -> list[Link]:
        """All directed links among these nodes (default: all)."""
        nodes = list(among) if among is not None else self.nodes
        return [(a, b) for a in nodes for b in nodes if a != b]

    def heal(self) -> None:
        """Everything whole again."""
        self.state = State()
        self.apply()

    def reset(self, links: Iterable[Link]) -> None:
        """Break the connections on these links with RST."""
        raise NotImplementedError

    def close(self) -> None:
        """Take it all away."""
        self.proxy.close()


class Namespaces(Network):
    """See above. Needs root; several may exist at once, each with a network 10.77.k.0/24."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        _sweep()
        self._number = self._take_bridge()
        self._bridge = f"snbr{self._number}"
        self.gateway = f"10.77.{self._number}.254"
        run("ip", "link", "set", self._bridge, "alias", f"{_ALIAS}{os.getpid()}")
        run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        self.proxy = Proxy(self.gateway, rng)
        self._loaded: dict[int, str] = {}

    def _take_bridge(self) -> int:
        for step in range(200):
            number = 1 + (os.getpid() + step) % 250
            if subprocess.run(
                ["ip", "link", "add", f"snbr{number}", "type", "bridge"], capture_output=True
            ).returncode == 0:  # fmt: skip
                return number
        raise RuntimeError("no bridge can be made: " + run("ip", "-br", "link"))

    def _space(self, node: int) -> str:
        return f"sn{self._number}n{node}"

    def _host(self, node: int) -> str:
        return f"10.77.{self._number}.{node}"

    def add(self, node: int) -> dict[str, Any]:
        """See Network."""
        if node not in self.nodes:
            space, outside = self._space(node), f"snv{self._number}n{node}"
            run("ip", "netns", "add", space)
            run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", outside, "master", self._bridge, "up")
            inside = ("ip", "-n", space)
            run(*inside, "link", "set", "lo", "up")
            run(*inside, "addr", "add", f"{self._host(node)}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            self.nodes.append(node)
            self.apply()
        host = self._host(node)
        return {"id": node, "host": host, "raft_port": RAFT, "client_port": CLIENT, "http_port": HTTP}

    def prefix(self, node: int) -> list[str]:
        """See Network."""
        return ["nsenter", f"--net=/run/netns/{self._space(node)}"]

    def apply(self) -> None:
        """See Network. A link that begins or ends to be delayed is reset, so that it is dialed anew."""
        delayed = set(self.state.delayed_s)
        turned = delayed ^ set(self.proxy.weather.delay_s)
        self.proxy.weather.delay_s = dict(self.state.delayed_s)
        self.proxy.weather.stalled = set(self.state.blocked)
        self._load(self.state.rejected)
        if turned:
            self.reset(turned)

    def reset(self, links: Iterable[Link]) -> None:
        """See Network: for a moment each packet of theirs is answered with RST."""
        links = set(links)
        for a, b in links:
            self.proxy.reset(a, b)
        self._load(self.state.rejected | links)
        time.sleep(0.15)  # two heartbeats: each connection has sent something meanwhile
        self._load(self.state.rejected)

    def _load(self, rejected: set[Link]) -> None:
        for node in self.nodes:
            rules = self._rules(node, rejected)
            if self._loaded.get(node) != rules:
                run(*self.prefix(node), "iptables-restore", text=rules)
                self._loaded[node] = rules

    def _rules(self, node: int, rejected: set[Link]) -> str:
        filters, nat = ["*filter"], ["*nat"]
        for a, b in self.links():
            if b != node:
                if a == node and (a, b) in self.state.delayed_s:
                    port = self.proxy.port(a, b, (self._host(b), RAFT))
                    nat.append(
                        f"-A OUTPUT -d {self._host(b)} -p tcp --dport {RAFT} "
                        f"-j DNAT --to-destination {self.gateway}:{port}"
                    )
                continue
            source = f"-A INPUT -s {self._host(a)}"
            if (a, b) in self.state.blocked:
                filters.append(f"{source} -j DROP")
            if (a, b) in rejected:
                filters.append(f"{source} -p tcp -j REJECT --reject-with tcp-reset")
            if share := self.state.lossy.get((a, b)):
                filters.append(f"{source} -m statistic --mode random --probability {share:.4f} -j DROP")
        return "\n".join([*filters, "COMMIT", *nat, "COMMIT", ""])

    def close(self) -> None:
        """See Network."""
        super().close()
        _remove(self._number)


def _remove(number: int) -> None:
    for line in run("ip", "netns", "list").splitlines():
        if line.startswith(f"sn{number}n"):
            run("ip", "netns", "del", line.split()[0])
    run("ip", "link", "del", f"snbr{number}")


def _sweep() -> None:
    """Take away what a run left that was killed itself."""
    for link in json.loads(run("ip", "-j", "link", "show", "type", "bridge") or "[]"):
        alias = link.get("ifalias", "")
        if alias.startswith(_ALIAS) and not Path(f"/proc/{alias.removeprefix(_ALIAS)}").exists():
            with contextlib.suppress(RuntimeError):
                _remove(int(link["ifname"].removeprefix("snbr")))


class Loopback(Network):
    """See above. routes: the file from which tests.chaos.node_program learns where to dial."""

    def __init__(self, rng: random.Random, directory: Path) -> None:
        super().__init__(rng)
        self.proxy = Proxy("127.0.0.1", rng)
        self._directory = directory
        self._raft_ports: dict[int, int] = {}

    def routes(self, node: int) -> Path:
        """Where to dial instead, for this node."""
        return self._directory / f"routes-{node}.json"

    def add(self, node: int) -> dict[str, Any]:
        """See Network."""
        a, b, c = free_ports(3)
        self.nodes.append(node)
        self._raft_ports[node] = a
        for each in self.nodes:
            to = {
                self._raft_ports[other]: self.proxy.port(each, other, ("127.0.0.1", self._raft_ports[other]))
                for other in self.nodes
                if other != each
            }
            fresh = self.routes(each).with_suffix(".new")
            fresh.write_text(json.dumps(to))
            fresh.rename(self.routes(each))
        return {"id": node, "host": "127.0.0.1", "raft_port": a, "client_port": b, "http_port": c}

    def apply(self) -> None:
        """See Network."""
        weather = self.proxy.weather
        weather.delay_s, weather.loss = dict(self.state.delayed_s), dict(self.state.lossy)
        weather.stalled = set(self.state.blocked)
        self.reset(self.state.rejected)

    def reset(self, links: Iterable[Link]) -> None:
        """See Network."""
        for a, b in links:
            self.proxy.reset(a, b)
