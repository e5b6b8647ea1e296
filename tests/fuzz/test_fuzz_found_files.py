"""What fuzzing has found in configuration files, the data directory and snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raft.config import Settings, settings_from
from raft.config_source import ConfigError, Origin, overlay_environment, parse_yaml
from raft.machine.machine import Machine
from raft.machine.snapshot import SnapshotFormatError
from raft.replies import Error
from raft.storage.errors import IdentityError
from raft.storage.identity import decode_identity
from tests.fuzz import samples


@pytest.mark.parametrize("value", ["!!bool maybe", "!!int ''", "!!float ''", "!!timestamp x", "2024-13-45"])
def test_a_value_that_does_not_fit_its_tag_is_a_yaml_error(value: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(f"raft: {{lease_reads: {value}}}")


def test_a_number_that_python_does_not_print_is_a_config_error() -> None:
    tree = parse_yaml(f"raft: {{ping_interval_ms: 0x{'f' * 5000}}}")
    with pytest.raises(ConfigError, match=r"raft\.ping_interval_ms wants a whole number of milliseconds"):
        settings_from(tree)


def test_half_a_character_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="half a character"):
        settings_from(parse_yaml('logging: {level: "\\ud800"}'))
    origin = Origin("config.yaml")
    with pytest.raises(ConfigError, match=r"SUPER_NODE_CLUSTER__NAME: cluster\.name wants text in UTF-8"):
        overlay_environment({}, {"SUPER_NODE_CLUSTER__NAME": "\udcff"}, Settings, origin)


def test_an_identity_file_of_brackets_is_no_identity() -> None:
    with pytest.raises(IdentityError):
        decode_identity(b'{"x": ' + b"[" * 100_000, Path("identity.json"))


def test_a_policy_of_brackets_is_refused() -> None:
    words = [b"~TERM", b"1", samples.POLICY[:-1] + b',"x":' + b"[" * 100_000, samples.MEMBERS]
    (reply,) = Machine("test").apply_commands(1, 1, 1, [words])
    assert isinstance(reply, Error)


def test_expire_knows_no_condition_always() -> None:
    replies = Machine("test").apply_commands(
        1, 1, 1, [[b"SET", b"a", b"1"], [b"EXPIRE", b"a", b"5", b"ALWAYS"]]
    )
    assert replies[1] == Error("ERR Unsupported option ALWAYS")


def test_a_machine_behind_its_own_ledger_is_not_loaded() -> None:
    machine = samples.machine()
    machine.applied_index = 2
    with pytest.raises(SnapshotFormatError, match="ahead of the machine"):
        Machine.load("test", machine.dump())
