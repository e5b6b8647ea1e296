"""Settings: the shipped file is the defaults, and whatever is wrong is named in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from raft.config import ConfigError, Settings, is_loopback, load_settings, redact_uri, settings_from

SHIPPED = Path(__file__).resolve().parents[2] / "config.yaml"


def load(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, environ)


def refused(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_file_is_the_defaults() -> None:
    assert load_settings(SHIPPED, {}) == Settings()


def test_the_shipped_file_has_every_key() -> None:
    assert yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) == json.loads(msgspec.json.encode(Settings()))


def test_every_key_of_the_shipped_file_has_a_comment() -> None:
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"\s*[a-z_]+:", line)]
    assert len(keys) > 30
    assert [lines[n] for n in keys if not lines[n - 1].lstrip().startswith("#")] == []


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().raft.ping_interval_ms = 1  # type: ignore[misc]


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing\n") == Settings()


def test_member_finds_itself_and_the_wrong_id_names_the_ids() -> None:
    assert Settings().member(2).client_port == 7202
    with pytest.raises(
        ConfigError, match=r"config.yaml: cluster.nodes has no node with id 9; its ids are 1, 2, 3"
    ):
        Settings().member(9, "config.yaml")


@pytest.mark.parametrize("size", [65_536, 16_777_216, 1_073_741_824])
def test_segment_bytes(tmp_path: Path, size: int) -> None:
    assert load(tmp_path, f"storage: {{segment_bytes: {size}}}").storage.segment_bytes == size
    assert Settings().storage.segment_bytes == 16_777_216


def test_node_dir() -> None:
    assert Settings().storage.node_dir(3) == Path("data/node-3")


NODE = "{id: 1, host: 127.0.0.1, raft_port: 7101, client_port: 7201, http_port: 7301}"
BAD = [
    # text, key, what it wants
    ("raft: {ping_interval_ms: fast}", "raft.ping_interval_ms", "whole number of milliseconds"),
    ("raft: {ping_interval_ms: 0}", "raft.ping_interval_ms", "from 1 to"),
    ("raft: {ping_interval_ms: -5}", "raft.ping_interval_ms", "from 1 to"),
    ("raft: {ping_interval_ms: 1.5}", "raft.ping_interval_ms", "whole number"),
    ("raft: {ping_interval_ms: true}", "raft.ping_interval_ms", "got true"),
    ("raft: {ping_interval_ms: null}", "raft.ping_interval_ms", "got nothing"),
    ("raft: {ping_interval_ms: 99999999999999999999999}", "raft.ping_interval_ms", "from 1 to"),
    ("raft: {png_interval_ms: 5}", "raft.png_interval_ms", "did you mean ping_interval_ms?"),
    ("rafft: {ping_interval_ms: 5}", "rafft", "did you mean raft?"),
    ("raft: {1: 2}", "raft.1", "is no key"),
    ("raft:", "raft", "got nothing"),
    ("raft: 5", "raft", "keys and values"),
    ("raft: {lease_reads: 1}", "raft.lease_reads", "true or false"),
    ("raft: {election_timeout_ms: [600, 300]}", "raft.election_timeout_ms", "shortest < longest"),
    ("raft: {election_timeout_ms: [300, 300]}", "raft.election_timeout_ms", "shortest < longest"),
    ("raft: {election_timeout_ms: [300]}", "raft.election_timeout_ms", "list of two"),
    ("raft: {election_timeout_ms: 300}", "raft.election_timeout_ms", "list of two"),
    ("raft: {election_timeout_ms: [300, x]}", "raft.election_timeout_ms[1]", "whole number"),
    ("raft: {heartbeat_interval_ms: 150}", "raft.heartbeat_interval_ms", "less than half"),
    ("cluster: {nodes: []}", "cluster.nodes", "one or more"),
    ("cluster: {nodes: 3}", "cluster.nodes", "a list"),
    ("cluster: {nodes: [{id: 1}]}", "cluster.nodes[0].host", "is missing"),
    (f"cluster: {{nodes: [{NODE.replace('id: 1', 'id: 0')}]}}", "cluster.nodes[0].id", "from 1"),
    (f"cluster: {{nodes: [{NODE}, {NODE}]}}", "cluster.nodes[1].id", "nodes[0]"),
    (
        f"cluster: {{nodes: [{NODE}, {NODE.replace('id: 1', 'id: 2')}]}}",
        "cluster.nodes[1].raft_port",
        "of its own",
    ),
    (f"cluster: {{nodes: [{NODE.replace('7201', '7101')}]}}", "cluster.nodes[0].client_port", "of its own"),
    (f"cluster: {{nodes: [{NODE.replace('7201', '70000')}]}}", "cluster.nodes[0].client_port", "65535"),
    (f"cluster: {{nodes: [{NODE.replace('7201', '0')}]}}", "cluster.nodes[0].client_port", "from 1"),
    (f"cluster: {{nodes: [{NODE.replace('127.0.0.1', 'a b')}]}}", "cluster.nodes[0].host", "host name"),
    (
        f"cluster: {{nodes: [{NODE.replace('127.0.0.1', 'localhost:7')}]}}",
        "cluster.nodes[0].host",
        "without a port",
    ),
    (
        f"cluster: {{nodes: [{NODE.replace('127.0.0.1', '0.0.0.0')}]}}",
        "cluster.nodes[0].host",
        "others reach",
    ),
    (
        f"cluster: {{nodes: [{NODE.replace('id: 1', 'id: 1, colour: red')}]}}",
        "cluster.nodes[0].colour",
        "is no key",
    ),
    ("cluster: {name: 'a b'}", "cluster.name", "letters"),
    ("cluster: {name: ''}", "cluster.name", "letters"),
    ("storage: {data_dir: ''}", "storage.data_dir", "directory"),
    ("storage: {fsync: 'yes'}", "storage.fsync", "true or false"),
    ("storage: {segment_bytes: 65535}", "storage.segment_bytes", "from 65536"),
    ("storage: {segment_bytes: 1073741825}", "storage.segment_bytes", "to 1073741824"),
    ("storage: {segment_bytes: 16M}", "storage.segment_bytes", "whole number of bytes"),
    ("storage: {snapshot_every_entries: 0}", "storage.snapshot_every_entries", "from 1"),
    ("database: {uri: localhost}", "database.uri", "mongodb://"),
    ("database: {uri: 'mongodb://'}", "database.uri", "mongodb://"),
    ("database: {uri: 'http://localhost'}", "database.uri", "mongodb://"),
    ("database: {uri: 'mongodb://h:99999'}", "database.uri", "65535"),
    ("database: {uri: 'mongodb+srv://h:1'}", "database.uri", "without a port"),
    ("database: {name: 'a.b'}", "database.name", "database name"),
    ("database: {intervals_ttl_days: 0}", "database.intervals_ttl_days", "days"),
    ("rewards: {follower_version: 1.0}", "rewards.follower_version", 'quoted: "1.0"'),
    ("rewards: {reward: -1}", "rewards.reward", "from 0"),
    ("rewards: {ban_threshold: 0}", "rewards.ban_threshold", "from 1"),
    ("rewards: {interval_ms: 1}", "rewards.interval_ms", "from 10"),
    ("security: {users_file: users.yaml}", "security.users_file", "not supported yet"),
    ("security: {client_tls: true}", "security.client_tls", "not supported yet"),
    ("security: {tls: {cert: c.pem}}", "security.tls.cert", "not supported yet"),
    ("security: {tls: {crt: c.pem}}", "security.tls.crt", "did you mean cert?"),
    ("security: {tls: null}", "security.tls", "cert, key, ca"),
    ("limits: {max_request_bytes: 1}", "limits.max_request_bytes", "bytes"),
    ("limits: {max_clients: many}", "limits.max_clients", "whole number"),
    ("logging: {level: LOUD}", "logging.level", "DEBUG, INFO, WARNING, ERROR"),
    ("logging: {format: xml}", "logging.format", "text, json"),
]


@pytest.mark.parametrize(("text", "key", "wants"), BAD, ids=[text for text, _, _ in BAD])
def test_a_bad_value_is_named(tmp_path: Path, text: str, key: str, wants: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path}/config.yaml: {key} ")
    assert wants in message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("raft:\n  lease_reads: true\n  lease_reads: false\n", 3, "lease_reads is given twice"),
        ("raft: {}\ncluster: {}\nraft: {}\n", 3, "raft is given twice"),
        ("raft:\n  - [\n", 3, "not valid YAML"),
        ("raft:\n\tlease_reads: true\n", 2, "not valid YAML"),
        ("raft: !!python/object/apply:os.system [echo]\n", 1, "not valid YAML"),
    ],
)
def test_bad_yaml_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path}/config.yaml:{line}: ")
    assert words in message


@pytest.mark.parametrize("text", ["- 1\n", "hello\n", "5\n", "[" * 1500])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith(f"{tmp_path}/config.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: there is no such file"):
        load_settings(tmp_path / "nope.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes(b"cluster: {name: caf\xe9}")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(tmp_path / "latin.yaml", {})


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        (
            "SUPER_NODE_DATABASE__URI",
            "mongodb://u:p%40@db:1/?w=1",
            "database.uri",
            "mongodb://u:p%40@db:1/?w=1",
        ),
        ("SUPER_NODE_DATABASE__NAME", '"quoted"', "database.name", "quoted"),
        ("SUPER_NODE_RAFT__PING_INTERVAL_MS", "250", "raft.ping_interval_ms", 250),
        ("SUPER_NODE_RAFT__ELECTION_TIMEOUT_MS", "[500, 900]", "raft.election_timeout_ms", (500, 900)),
        ("SUPER_NODE_RAFT__LEASE_READS", "true", "raft.lease_reads", True),
        ("SUPER_NODE_REWARDS__FOLLOWER_VERSION", "1.0", "rewards.follower_version", "1.0"),
        ("SUPER_NODE_LOGGING__LEVEL", "DEBUG", "logging.level", "DEBUG"),
        ("SUPER_NODE_SECURITY__USERS_FILE", "null", "security.users_file", None),
        ("SUPER_NODE_SECURITY__TLS", "{cert: null}", "security.tls.cert", None),
        ("SUPER_NODE_STORAGE", "{fsync: false}", "storage.fsync", False),
    ],
)
def test_the_environment_overrides_the_file(
    tmp_path: Path, variable: str, value: str, path: str, expected: Any
) -> None:
    found: Any = load(tmp_path, "raft: {ping_interval_ms: 777}", **{variable: value})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected


def test_the_environment_overrides_nodes(tmp_path: Path) -> None:
    settings = load(tmp_path, "", SUPER_NODE_CLUSTER__NODES=f"[{NODE}]")
    assert [member.id for member in settings.cluster.nodes] == [1]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SUPER_NODE_RAFT__PNG_MS", "5", "raft.png_ms is no key"),
        ("SUPER_NODE_RAFT__PING_INTERVAL_MS__X", "5", "is no key"),
        ("SUPER_NODE__RAFT", "5", "is no key"),
        ("SUPER_NODE_RAFT__PING_INTERVAL_MS", "soon", "raft.ping_interval_ms wants a whole number"),
        ("SUPER_NODE_RAFT__PING_INTERVAL_MS", "[", "raft.ping_interval_ms wants a value written as in YAML"),
        ("SUPER_NODE_RAFT__PING_INTERVAL_MS", "", "raft.ping_interval_ms wants"),
        ("SUPER_NODE_CLUSTER__NODES", "[{id: 1}]", "cluster.nodes[0].host is missing"),
        ("SUPER_NODE_RAFT__HEARTBEAT_INTERVAL_MS", "1000", "raft.heartbeat_interval_ms wants less than half"),
    ],
)
def test_a_bad_variable_is_named(tmp_path: Path, variable: str, value: str, words: str) -> None:
    message = refused(tmp_path, "", **{variable: value})
    assert message.startswith(f"environment variable {variable}: ")
    assert words in message


def test_other_variables_are_not_ours(tmp_path: Path) -> None:
    assert load(tmp_path, "", SUPER_NODE_REQUIRE_TOOLS="1", HOME="/", SUPER__NODE="x") == Settings()


@pytest.mark.parametrize(
    "uri",
    [
        "mysql://user:hunter2@host/db",
        "mongodb://user:hun@ter2:hunter2@host",
        "mongodb://user:hunter2",
        "mongodb://user:hunter2@",
        "mongodb://user:hunter2/@host",
        "mongodb://host:99999/?tlsCertificateKeyFilePassword=hunter2",
        "mongodb://user:p@host:99999/?a=x@y&tlsCertificateKeyFilePassword=hunter2",
    ],
)
def test_a_password_is_never_shown(tmp_path: Path, uri: str) -> None:
    assert "hunter2" not in refused(tmp_path, f"database: {{uri: '{uri}'}}")
    assert "hunter2" not in refused(tmp_path, "", SUPER_NODE_DATABASE__URI=uri)
    assert "hunter2" not in refused(tmp_path, f"database: '{uri}'")
    assert "hunter2" not in redact_uri(uri)


def test_a_good_password_is_not_shown_either(tmp_path: Path) -> None:
    settings = load(tmp_path, "", SUPER_NODE_DATABASE__URI="mongodb://user:hunter2@host:1/x")
    assert "hunter2" in settings.database.uri
    assert "hunter2" not in repr(settings)
    assert redact_uri(settings.database.uri) == "mongodb://***@host:1/x"


def test_other_hosts_than_loopback_need_consent(tmp_path: Path) -> None:
    text = f"cluster: {{nodes: [{NODE.replace('127.0.0.1', '10.0.0.7')}]}}\n"
    message = refused(tmp_path, text)
    assert "security.insecure wants true" in message
    assert "10.0.0.7" in message
    assert load(tmp_path, text + "security: {insecure: true}").member(1).host == "10.0.0.7"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("Node-1.LOCALHOST.", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("db", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_settings_from_a_mapping() -> None:
    assert settings_from({"rewards": {"reward": 3}}).rewards.reward == 3
    with pytest.raises(ConfigError, match=r"^settings: rewards\.reward wants"):
        settings_from({"rewards": {"reward": "3"}})
