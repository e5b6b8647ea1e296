"""Targets: config.yaml and the environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml

from raft.config import Settings, settings_from
from raft.config_source import ConfigError, Origin, overlay_environment, parse_yaml
from tests.fuzz.target import Target, check

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "config.yaml").read_bytes()
_PACKED_TREE = msgspec.msgpack.encode(parse_yaml(SHIPPED.decode()))


def config(data: bytes) -> None:
    """A config.yaml: an error in one line, or settings that say the same again."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # read_yaml says so
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError:
        return
    if isinstance(tree, dict):
        _same_again(_settings(tree, Origin("config.yaml")))


def _settings(tree: dict[str, object], origin: Origin) -> Settings:
    try:
        return settings_from(tree, origin)
    except ConfigError as error:
        check("\n" not in str(error) and len(str(error)) < 4000, f"an error of several lines: {error}")
        raise


def _same_again(settings: Settings) -> None:
    check(settings_from(msgspec.to_builtins(settings)) == settings, "settings that are not accepted again")
    repr(settings)


def environment(data: bytes) -> None:
    """Variables, one a line, over the shipped file."""
    environ = {}
    for line in data.decode("utf-8", "surrogateescape").replace("\0", "").split("\n"):
        name, _, value = line.partition("=")
        environ[f"SUPER_NODE_{name}"] = value
    tree, origin = msgspec.msgpack.decode(_PACKED_TREE), Origin("config.yaml")
    overlay_environment(tree, environ, Settings, origin)
    _same_again(_settings(tree, origin))


def _config_seeds() -> Iterator[bytes]:
    lines = [line for line in SHIPPED.split(b"\n") if line.strip() and not line.lstrip().startswith(b"#")]
    yield b"\n".join(line.split(b"  #")[0] for line in lines)
    yield b"cluster: {name: x, nodes: [{id: 1, host: h, raft_port: 1, client_port: 2, http_port: 3}]}\n"
    yield b"raft:\n  election_timeout_ms: [300, 600]\n  lease_reads: yes\nlimits: &a {max_clients: 5}\n"
    yield b"database: {uri: 'mongodb://u:p@h:1,h2:2/db?x=y', name: !!str a, intervals_ttl_days: 0x10}\n"
    yield b"storage: {data_dir: ~, fsync: !!bool true}\nrewards: {reward: 1_0, penalty: .1, max_spam: 1:3}\n"
    yield b"a: &a [1]\nb: {<<: {x: 1}, ? [q] : 2}\nc: 2024-01-01\nd: !!binary aGk=\ne: *a\n"


def _environment_seeds() -> Iterator[bytes]:
    yield b"DATABASE__URI=mongodb://h:1\nRAFT__ELECTION_TIMEOUT_MS=[9, 6]\nSTORAGE__FSYNC=false"
    yield b"CLUSTER__NODES=[{id: 1, host: h, raft_port: 1, client_port: 2, http_port: 3}]"
    yield b"SECURITY__INSECURE=y"
    yield b"REWARDS__FOLLOWER_VERSION=1.0\nLOGGING__LEVEL=DEBUG\nSECURITY__TLS__CERT=null\nREQUIRE_TOOLS=1"
    yield b"LIMITS=5\nLIMITS__MAX_CLIENTS=7\nREWARDS__REWARD=0xff\nRAFT__LEASE_READS=!!bool on"


TARGETS = (
    Target("config", config, (ConfigError,), _config_seeds, max_bytes=1600, bytes_per_byte=3000),
    Target(
        "environment", environment, (ConfigError,), _environment_seeds, max_bytes=1024, bytes_per_byte=20000
    ),
)
