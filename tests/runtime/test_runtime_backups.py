"""RAFT BACKUP: a node's newest snapshot, byte for byte, on any node, with a leader or without one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis
import pytest
from runtime_support import Bench, Waiter

from raft.clients.batch import Batch
from raft.core.state import Role
from raft.runtime.backups import FORGET_MS, MAX_OPEN, PIECE_BYTES, Backups
from raft.runtime.load import Load
from raft.storage.errors import StorageError
from raft.storage.snapshot_files import SnapshotInfo
from raft.storage.snapshots import SnapshotStore
from raft.transport.node_messages import Forward, ForwardReply

Ask = Callable[..., Any]


def take(store: SnapshotStore, index: int, size: int = 1000) -> SnapshotInfo:
    writer = store.writer(index, 3, b"configuration")
    for start in range(0, size, 100_000):
        writer.write(os.urandom(min(100_000, size - start)))
    return writer.commit()


def decoded(answer: bytes | None) -> Any:
    assert answer is not None
    reader = hiredis.Reader()
    reader.feed(answer)
    return reader.gets()


def words_of(words: tuple[str | int, ...]) -> list[bytes]:
    return [b"RAFT", b"BACKUP", *(str(word).encode() for word in words)]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore.open(tmp_path, "bench")


@pytest.fixture
def backups(store: SnapshotStore) -> Backups:
    return Backups(store, Load(100))


@pytest.fixture
def ask(backups: Backups) -> Ask:
    """ask(words…, now=ms): the decoded answer of Backups."""

    def ask(*words: str | int, now: float = 0.0) -> Any:
        waiter = Waiter(lambda done: Batch.of_commands([words_of(words)], 1, 2, done))
        backups.take(waiter.batch, now)
        return decoded(waiter.answer)

    return ask


def read_all(ask: Ask, index: int) -> bytes:
    content = b""
    while piece := ask("READ", index, len(content)):
        content += piece
    return content


def open_files(of: Path) -> int:
    """How many descriptors this process has on files in that directory, removed ones too."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += str(fd.readlink()).startswith(f"{of}/")
        except FileNotFoundError:
            continue
    return count


def test_the_file_comes_byte_for_byte_in_pieces(store: SnapshotStore, ask: Ask, tmp_path: Path) -> None:
    info = take(store, 7, size=3 * PIECE_BYTES)
    assert ask("OPEN") == [7, 3, info.bytes]
    assert len(ask("READ", 7, 0)) == PIECE_BYTES
    assert ask("READ", 7, info.bytes) == ask("READ", 7, 10**17) == b""
    assert read_all(ask, 7) == info.path.read_bytes()
    assert ask("CLOSE", 7) == b"OK"
    assert open_files(tmp_path) == 0


def test_it_stays_readable_when_it_is_pruned(store: SnapshotStore, ask: Ask) -> None:
    content = take(store, 1).path.read_bytes()
    ask("OPEN")
    for index in (2, 3, 4):
        take(store, index)
    store.prune()
    assert not (store._directory / "snapshot-0000000000000001.snap").exists()
    assert read_all(ask, 1) == content
    assert ask("OPEN")[0] == 4


def test_what_a_follower_is_sent_and_a_backup_do_not_get_in_each_others_way(
    store: SnapshotStore, ask: Ask
) -> None:
    info = take(store, 1)
    ask("OPEN")
    store.read_at(info, 0, 10)
    for index in (2, 3):
        take(store, index)
    store.prune()
    store.release(info)
    assert isinstance(ask("READ", 1, 0), bytes)


def test_two_clients_may_read_one_snapshot(store: SnapshotStore, ask: Ask, tmp_path: Path) -> None:
    take(store, 5)
    assert ask("OPEN") == ask("OPEN")
    assert open_files(tmp_path) == 1
    ask("CLOSE", 5)
    assert isinstance(ask("READ", 5, 0), bytes)
    ask("CLOSE", 5)
    assert open_files(tmp_path) == 0
    assert "no backup of entry 5" in str(ask("READ", 5, 0))


def test_at_most_four_are_open(store: SnapshotStore, ask: Ask, tmp_path: Path) -> None:
    """Each holds the space of its file, pruned or not."""
    for index in range(1, MAX_OPEN + 1):
        take(store, index)
        assert ask("OPEN")[0] == index
    take(store, 9)
    assert str(ask("OPEN")).startswith("BUSY")
    assert open_files(tmp_path) == MAX_OPEN
    ask("CLOSE", 2)
    assert ask("OPEN")[0] == 9


def test_a_silent_client_is_forgotten_after_a_minute(
    store: SnapshotStore, backups: Backups, ask: Ask, tmp_path: Path
) -> None:
    take(store, 5)
    ask("OPEN", now=0)
    backups.expire(FORGET_MS - 1)
    assert isinstance(ask("READ", 5, 0, now=FORGET_MS - 1), bytes)
    backups.expire(2 * FORGET_MS - 2)
    assert open_files(tmp_path) == 1, "each read puts it off"
    backups.expire(2 * FORGET_MS)
    assert open_files(tmp_path) == 0
    assert "no backup of entry 5 is open" in str(ask("READ", 5, 0))


def test_the_forgotten_make_room(store: SnapshotStore, ask: Ask) -> None:
    for index in range(1, MAX_OPEN + 2):
        take(store, index)
        assert ask("OPEN", now=index * FORGET_MS)[0] == index


def test_closing_lets_go_of_all(store: SnapshotStore, backups: Backups, ask: Ask, tmp_path: Path) -> None:
    take(store, 5)
    ask("OPEN")
    backups.close()
    assert open_files(tmp_path) == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("OPEN",), "no snapshot yet"),
        (("READ", 5, 0), "no backup of entry 5"),
        (("CLOSE", 5), "no backup of entry 5"),
        (("READ", "x", 0), "not an integer"),
        (("READ", 5, -1), "not an integer"),
        (("READ", 5, "9" * 19), "not an integer"),
        (("READ", 5), "wrong arguments"),
        (("OPEN", 5), "wrong arguments"),
        (("CLOSE",), "wrong arguments"),
        (("DANCE",), "wrong arguments"),
        ((), "wrong arguments"),
    ],
)
def test_what_cannot_be_is_told(ask: Ask, words: tuple[str | int, ...], error: str) -> None:
    answer = ask(*words)
    assert isinstance(answer, hiredis.ReplyError)
    assert error in str(answer)


def test_a_disk_that_fails_stops_the_node(store: SnapshotStore, ask: Ask) -> None:
    info = take(store, 5)
    info.path.unlink()
    with pytest.raises(StorageError, match="snapshot-0000000000000005"):
        ask("OPEN")


# --- through the desk -----------------------------------------------------------------------------------


def local(bench: Bench, *words: str | int) -> Any:
    """Sent as a handler sends it: alone, counted as a write; answered within one turn."""
    waiter = Waiter(lambda done: Batch.of_commands([words_of(words)], 1, 2, done))
    assert bench.desk.submit(waiter.batch)
    bench.turn()
    assert bench.desk.load.taken == 0
    return decoded(waiter.answer)


@pytest.mark.parametrize("role", ["nobody leads", "follower", "leader"])
def test_each_node_answers_for_itself_whoever_leads(store: SnapshotStore, role: str) -> None:
    info = take(store, 5)
    bench = Bench(backups=store)
    if role == "follower":
        bench.follow(2, term=1)
    elif role == "leader":
        bench.lead()
    assert local(bench, "OPEN") == [5, 3, info.bytes]
    assert local(bench, "READ", 5, 0) == info.path.read_bytes()[:PIECE_BYTES]
    assert local(bench, "CLOSE", 5) == b"OK"
    assert "BACKUP" not in str(bench.logged())
    assert bench.network.take(Forward) == []


def test_a_peer_cannot_ask_for_it(store: SnapshotStore) -> None:
    """It never comes from this release; and must not come into the log."""
    take(store, 5)
    bench = Bench(backups=store)
    bench.lead()
    assert bench.state.role is Role.LEADER
    bench.turn((2, Forward(7, 2, [[b"RAFT", b"BACKUP", b"OPEN"]])))
    (reply,) = bench.network.take(ForwardReply, 2)
    assert reply.error is not None
    assert "does not know a command" in reply.error
    assert "BACKUP" not in str(bench.logged())


def test_the_desk_forgets_silent_clients_and_lets_go_at_the_end(store: SnapshotStore, tmp_path: Path) -> None:
    take(store, 5)
    bench = Bench(backups=store)
    local(bench, "OPEN")
    bench.turn(after_ms=FORGET_MS + 10)
    assert open_files(tmp_path) == 0
    local(bench, "OPEN")
    bench.desk.close()
    assert open_files(tmp_path) == 0
