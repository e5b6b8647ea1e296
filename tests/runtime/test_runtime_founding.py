"""Who is a member at a start: the log says so, before it the founding list, and config.yaml only for a new
directory (bug 38)."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from raft.config import Settings, settings_from
from raft.core.effects import HardState
from raft.core.entry import Entry, EntryKind
from raft.core.membership import Configuration, Server, encode_configuration
from raft.runtime.assembly import Parts, open_parts
from raft.runtime.clock import SystemClock
from raft.runtime.founding import difference, founding_configuration, peer_addresses, servers_of
from raft.storage.errors import IdentityError
from raft.storage.identity import check_identity
from raft.storage.node_storage import NodeStorage

LOG = "raft.runtime.assembly"


def settings_for(directory: Path, *ids: int, host: str = "127.0.0.1", **storage: Any) -> Settings:
    nodes = [
        {"id": n, "host": host, "raft_port": 7100 + n, "client_port": 7200 + n, "http_port": 7300 + n}
        for n in ids
    ]
    return settings_from(
        {"cluster": {"name": "c", "nodes": nodes}, "storage": {"data_dir": str(directory), **storage}}
    )


def servers(*ids: int, host: str = "127.0.0.1") -> tuple[Server, ...]:
    return tuple(Server(n, host, 7100 + n, 7200 + n, 7300 + n) for n in ids)


def start(settings: Settings) -> Parts:
    return open_parts(MagicMock(), settings, 1, "0" * 40, SystemClock(), random.Random(1))


def append(directory: Path, *configurations: Configuration) -> None:
    """Put configurations into the log of the stopped node 1."""
    storage = NodeStorage.open(directory / "node-1", "c", 1, prepare_ahead=False)
    storage.save_hard_state(HardState(1, None))
    first = storage.log.last_index + 1
    storage.log.append(
        [
            Entry(first + n, 1, EntryKind.CONFIGURATION.value, encode_configuration(each))
            for n, each in enumerate(configurations)
        ]
    )
    storage.log.sync()
    storage.close()


def test_a_new_directory_takes_the_members_of_the_settings_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path, 3, 1, 2)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            parts = start(settings)
        state = parts.core.state
        assert state.configuration == Configuration((1, 2, 3), servers=servers(1, 2, 3))
        assert state.identity == parts.storage.identity.identity != ""
        parts.close()
    assert caplog.records == []


def test_an_edited_settings_file_does_not_change_the_members_of_an_existing_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(settings_for(tmp_path, 1, 2, 3)).close()
    with caplog.at_level(logging.WARNING, LOG):
        parts = start(settings_for(tmp_path, 1, 2, 4))
    assert parts.core.state.configuration.voters == (1, 2, 3)
    assert parts.core.state.configuration.peers(1) == (2, 3)
    parts.close()
    (record,) = caplog.records
    assert "config.yaml lists 1, 2, 4, the cluster's log has 1, 2, 3" in record.message
    assert "node 4 at 127.0.0.1 ports 7104, 7204, 7304 is only in config.yaml" in record.message
    assert "the log decides; change members with RAFT ADD / RAFT REMOVE" in record.message


def test_what_was_appended_counts_again_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug 38: the newest in the log, committed or not (thesis 4.1)."""
    settings = settings_for(tmp_path, 1, 2, 3)
    start(settings).close()
    four = Configuration((1, 2, 3), (4,), servers(1, 2, 3, 4))
    five = Configuration((1, 2, 3, 4), (5,), servers(1, 2, 3, 4, 5))
    append(tmp_path, four, five)
    with caplog.at_level(logging.WARNING, LOG):
        parts = start(settings)
    assert parts.core.state.configuration == five
    assert parts.core.state.configuration_index == 2
    parts.close()
    (record,) = caplog.records
    assert "node 4 is only in the log; node 5 is only in the log" in record.message
    caplog.clear()
    start(settings_for(tmp_path, 1, 2, 3, 4, 5)).close()
    assert caplog.records == []


def test_the_size_of_a_segment_reaches_the_log(tmp_path: Path) -> None:
    parts = start(settings_for(tmp_path, 1, segment_bytes=65536))
    parts.storage.save_hard_state(HardState(1, None))
    parts.storage.log.append([Entry(1, 1, 0, b"")])
    parts.close()
    assert (tmp_path / "node-1" / "log-0000000000000001.seg").stat().st_size == 65536


def test_a_directory_without_founding_members_is_refused(tmp_path: Path) -> None:
    NodeStorage.open(tmp_path / "node-1", "c", 1, prepare_ahead=False).close()
    with pytest.raises(IdentityError, match="no founding members"):
        start(settings_for(tmp_path, 1))
    start(settings_for(tmp_path / "other", 1)).close()


def test_the_founding_configuration_has_a_restores_cluster_id(tmp_path: Path) -> None:
    identity = check_identity(tmp_path, "c", 1, founding=servers(2, 1), cluster_id="abc")
    expected = Configuration((1, 2), servers=servers(1, 2), cluster_id="abc")
    assert founding_configuration(identity) == expected


@pytest.mark.parametrize(
    ("listed", "configuration", "said"),
    [
        (servers(1, 2), Configuration((1, 2), servers=servers(1, 2)), None),
        (servers(1, 2), Configuration((2,), (1,), servers(1, 2), promote=(1,)), None),
        (servers(1, 2), Configuration((2, 1)), None),  # addresses that nobody knows differ from none
        (servers(1), Configuration((1,), servers=(Server(1, "127.0.0.1", 7101, 7201, 7301, "x"),)), None),
        (servers(1, 2), Configuration((1,), servers=servers(1, 2)), "node 2 at 127.0.0.1 ports"),
        (servers(1), Configuration((1, 2), servers=servers(1, 2)), "node 2 is only in the log"),
        (
            servers(1, host="a"),
            Configuration((1,), servers=servers(1, host="b")),
            "node 1 is at a ports 7101, 7201, 7301 in config.yaml, at b ports 7101, 7201, 7301 in the log",
        ),
    ],
)
def test_how_the_settings_differ(
    listed: tuple[Server, ...], configuration: Configuration, said: str | None
) -> None:
    found = difference(listed, configuration)
    assert found is None if said is None else said in (found or "")
    assert found is None or "\n" not in found


def test_servers_of_the_settings(tmp_path: Path) -> None:
    assert servers_of(settings_for(tmp_path, 3, 1).cluster.nodes) == servers(1, 3)


def with_identities(*ids: int, **names: str) -> Configuration:
    known = [Server(n, "h", 7100 + n, 7200 + n, 7300 + n, names.get(f"n{n}", f"disk-{n}")) for n in ids]
    return Configuration(ids, servers=tuple(known))


def peers_of(*configurations: Configuration) -> dict[int, str]:
    """Who is talked to, and which identity he must have, with these configurations one after another."""
    state = MagicMock()
    state.configurations = list(enumerate(configurations))
    state.committed_configuration = configurations[0]
    return {peer: address.identity for peer, address in peer_addresses(state).items()}


def test_an_identity_counts_once_it_is_committed() -> None:
    unknown, known = with_identities(1, 2, n2=""), with_identities(1, 2)
    assert peers_of(unknown, known) == {1: "disk-1", 2: ""}
    assert peers_of(known) == {1: "disk-1", 2: "disk-2"}


def test_who_leaves_is_still_known_by_its_identity() -> None:
    assert peers_of(with_identities(1, 2, 3), with_identities(1, 2)) == {
        1: "disk-1",
        2: "disk-2",
        3: "disk-3",
    }


def test_a_member_replaced_since_the_snapshot_is_not_refused_after_a_restart() -> None:
    """Node 1 starts again, node 2 is down: with node 3, whose disk was replaced, it must find a quorum. The
    snapshot's configuration, the only one known to be committed, has node 3's old disk."""
    old, without, added = with_identities(1, 2, 3), with_identities(1, 2), with_identities(1, 2, 3, n3="")
    new = with_identities(1, 2, 3, n3="disk-3-new")
    assert peers_of(old, without, added, new) == {1: "disk-1", 2: "disk-2", 3: ""}
    assert peers_of(new) == {1: "disk-1", 2: "disk-2", 3: "disk-3-new"}
