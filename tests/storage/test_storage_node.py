"""The whole data directory: identity, lock, and the order in which things are opened."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_disk import FaultyDisk, PowerLoss
from hypothesis import given
from hypothesis import strategies as st
from storage_helpers import DIRECTORY, make_disk, make_entries

from raft.core.effects import HardState
from raft.core.membership import Server
from raft.storage.errors import (
    CorruptLogError,
    DirectoryLockedError,
    FormatVersionError,
    IdentityError,
    StorageError,
)
from raft.storage.identity import DirectoryLock, check_identity, decode_identity
from raft.storage.node_storage import NodeStorage

IDENTITY = DIRECTORY / "identity.json"


def open_node(disk: FaultyDisk, cluster: str = "c", node_id: int = 1) -> NodeStorage:
    return NodeStorage.open(
        DIRECTORY, cluster, node_id, disk=disk, segment_bytes=512, cache_bytes=1000, prepare_ahead=False
    )


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "node-2"
    storage = NodeStorage.open(directory, "super", 2)
    assert (storage.hard_state, storage.log.last_index) == (HardState(0, None), 0)
    storage.save_hard_state(HardState(4, 2))
    storage.log.append(make_entries(1, 5, term=4))
    storage.log.sync()
    created = storage.identity
    storage.close()
    storage = NodeStorage.open(directory, "super", 2)
    assert (storage.hard_state, storage.log.last_index) == (HardState(4, 2), 5)
    assert storage.identity == created
    storage.close()
    assert sorted(path.name for path in directory.iterdir()) == [
        "hard-state",
        "hard-state.tmp",  # reserved for the next vote
        "identity.json",
        "lock",
        "log-0000000000000001.seg",
    ]


@pytest.mark.parametrize(("cluster", "node_id"), [("c", 2), ("other", 1), ("other", 2)])
def test_the_directory_of_another_node_or_cluster_is_refused(cluster: str, node_id: int) -> None:
    disk = make_disk()
    open_node(disk).close()
    calls = len(disk.calls)
    with pytest.raises(IdentityError) as caught:
        open_node(disk, cluster, node_id)
    assert "node 1 of cluster 'c'" in str(caught.value)
    assert f"wanted node {node_id} of cluster {cluster!r}" in str(caught.value)
    assert all(call.startswith("fsync") for call in disk.calls[calls:]), "and nothing is changed"
    open_node(disk).close()


@pytest.mark.parametrize("name", ["log-0000000000000001.seg", "hard-state"])
def test_data_without_an_identity_is_refused(name: str) -> None:
    disk = make_disk()
    disk.put(DIRECTORY / name, b"")
    with pytest.raises(IdentityError, match=name):
        open_node(disk)
    assert not disk.exists(IDENTITY)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 2}', b"\xff\xfe", b"null"])
def test_a_damaged_identity_is_refused(content: bytes) -> None:
    disk = make_disk()
    disk.put(IDENTITY, content)
    with pytest.raises(IdentityError, match="not a valid identity file"):
        open_node(disk)
    assert disk.file(IDENTITY) == content


@given(st.binary(max_size=60))
def test_random_bytes_as_identity_give_typed_errors_only(content: bytes) -> None:
    with pytest.raises(StorageError, match=str(IDENTITY)):
        decode_identity(content, IDENTITY)


def test_another_version_of_the_identity_is_refused_naming_both() -> None:
    disk = make_disk()
    old = {"format_version": 1, "cluster": "c", "node_id": 1, "created_at": "then"}
    for content in (old, {"format_version": 3, "something": "else"}):
        disk.put(IDENTITY, json.dumps(content).encode())
        named = f"format version {content['format_version']}, this program reads version 2"
        with pytest.raises(FormatVersionError, match=named):
            open_node(disk)
        assert json.loads(disk.file(IDENTITY)) == content


def founders(*ids: int, host: str = "127.0.0.1") -> tuple[Server, ...]:
    return tuple(Server(n, host, 7100 + n, 7200 + n, 7300 + n) for n in ids)


def test_a_new_directory_notes_its_founding_members_for_ever() -> None:
    disk = make_disk()
    identity = check_identity(DIRECTORY, "c", 1, founding=founders(2, 1, 3), disk=disk, now="then")
    assert identity.founding_servers() == founders(1, 2, 3)
    content = disk.file(IDENTITY)
    for listed in (founders(1), founders(1, 2, 3, 4), founders(1, 2, 3, host="other"), ()):
        again = check_identity(DIRECTORY, "c", 1, founding=listed, disk=disk)
        assert again == identity
        assert disk.file(IDENTITY) == content


def test_the_identity_file_is_readable() -> None:
    disk = make_disk()
    known = Server(1, "::1", 7101, 7201, 7301, identity="known already")
    identity = check_identity(DIRECTORY, "c", 1, founding=[known], disk=disk, now="then")
    assert json.loads(disk.file(IDENTITY)) == {
        "format_version": 2,
        "cluster": "c",
        "node_id": 1,
        "created_at": "then",
        "identity": identity.identity,
        "founding": [{"id": 1, "host": "::1", "raft_port": 7101, "client_port": 7201, "http_port": 7301}],
        "cluster_id": "",
    }
    assert identity.founding_servers() == founders(1, host="::1"), "founders have no identity yet"


def test_each_directory_has_an_identity_of_its_own() -> None:
    """Otherwise a disk that was emptied could not be told from the one that made promises."""
    seen = {check_identity(DIRECTORY, "c", 1, disk=make_disk(), now="then").identity for _ in range(50)}
    assert len(seen) == 50
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in seen)


def test_the_storage_passes_the_founding_members_on() -> None:
    disk = make_disk()
    options: dict[str, Any] = {"disk": disk, "prepare_ahead": False}
    storage = NodeStorage.open(DIRECTORY, "c", 1, founding=founders(1, 2), **options)
    first = storage.identity
    storage.close()
    storage = NodeStorage.open(DIRECTORY, "c", 1, founding=founders(1, 2, 3), **options)
    assert storage.identity == first
    assert storage.identity.founding_servers() == founders(1, 2)
    storage.close()


def test_a_restored_directory_has_the_new_cluster_id() -> None:
    disk = make_disk()
    assert check_identity(DIRECTORY, "c", 1, cluster_id="abc", disk=disk).cluster_id == "abc"
    assert check_identity(DIRECTORY, "c", 1, disk=disk).cluster_id == "abc"


@pytest.mark.parametrize("field", ["identity", "founding", "cluster_id", "node_id"])
def test_an_identity_without_a_field_is_refused(field: str) -> None:
    """No members at all must not be what a damaged file means."""
    disk = make_disk()
    check_identity(DIRECTORY, "c", 1, founding=founders(1), disk=disk)
    content = json.loads(disk.file(IDENTITY))
    del content[field]
    disk.put(IDENTITY, json.dumps(content).encode())
    with pytest.raises(IdentityError, match=field):
        open_node(disk)


@pytest.mark.parametrize("name", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 32 + "\n"])
def test_an_identity_of_another_shape_is_refused(name: str) -> None:
    disk = make_disk()
    check_identity(DIRECTORY, "c", 1, disk=disk)
    content = json.loads(disk.file(IDENTITY)) | {"identity": name}
    disk.put(IDENTITY, json.dumps(content).encode())
    with pytest.raises(IdentityError, match="identity"):
        open_node(disk)


def test_a_very_long_founding_list_can_be_read_again() -> None:
    disk = make_disk()
    many = founders(*range(1, 1001), host="h" * 253)
    check_identity(DIRECTORY, "c", 1, founding=many, disk=disk)
    assert check_identity(DIRECTORY, "c", 1, disk=disk).founding_servers() == many


def test_power_loss_while_a_directory_is_set_up() -> None:
    for point in range(40):
        disk = make_disk()
        disk.power_fails_at = point
        done = False
        try:
            check_identity(DIRECTORY, "c", 1, disk=disk, now="then")
            done = True
        except PowerLoss:
            pass
        for after in disk.power_loss_choices(seed=point):
            if done:
                with pytest.raises(IdentityError):
                    open_node(after, "c", 2)
            open_node(after).close()
        if done:
            return
    pytest.fail("never came to its end")


def test_a_second_opening_of_the_directory_is_refused() -> None:
    disk = make_disk()
    first = open_node(disk)
    with pytest.raises(DirectoryLockedError, match=str(DIRECTORY)):
        open_node(disk)
    first.close()
    open_node(disk).close()


def test_another_process_is_kept_out_until_this_one_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raft.storage.identity import DirectoryLock\n"
        "DirectoryLock(Path(sys.argv[1]))"
    )

    def attempt() -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)

    lock = DirectoryLock(tmp_path)
    refused = attempt()
    assert refused.returncode != 0
    assert "another process is using this data directory" in refused.stderr
    lock.release()
    lock.release()
    assert attempt().returncode == 0


def test_a_lost_hard_state_is_noticed_by_the_log() -> None:
    disk = make_disk()
    storage = open_node(disk)
    storage.save_hard_state(HardState(4, 2))
    storage.log.append(make_entries(1, 5, term=4))
    storage.log.sync()
    storage.close()
    disk.drop(DIRECTORY / "hard-state")
    with pytest.raises(StorageError, match="hard-state"):
        open_node(disk)
    assert disk.open_files == []


def test_after_a_refusal_nothing_stays_open() -> None:
    disk = make_disk()
    storage = open_node(disk)
    storage.save_hard_state(HardState(4, 2))
    storage.log.append(make_entries(1, 5, term=4))
    storage.close()
    segment = DIRECTORY / "log-0000000000000001.seg"
    disk.put(segment, b"\xff" + disk.file(segment)[1:])
    for _ in range(2):
        with pytest.raises(CorruptLogError):
            open_node(disk)
        assert disk.open_files == []


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        NodeStorage.open(tmp_path / "file" / "node-1", "c", 1)


def test_missing_parents_are_made_durably() -> None:
    disk = FaultyDisk()
    deep = Path("/a/b")
    NodeStorage.open(deep, "c", 1, disk=disk, prepare_ahead=False).close()
    assert disk.calls[:4] == ["mkdir a", "fsync_dir ", "mkdir b", "fsync_dir a"]


def test_a_lock_that_cannot_be_taken_names_the_file() -> None:
    disk = make_disk()
    disk.fail("create", errno.EACCES, name="lock")
    with pytest.raises(StorageError, match="lock"):
        open_node(disk)
