"""Nodes that start at once on one machine share the parent of their data directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.storage.disk import Disk, ensure_directory
from raft.storage.errors import StorageError


class Racing(Disk):
    """Somebody else makes each directory a moment before this process does."""

    def mkdir(self, path: Path) -> None:
        path.mkdir()
        super().mkdir(path)


def test_a_directory_that_another_node_makes_meanwhile_is_as_good(tmp_path: Path) -> None:
    ensure_directory(Racing(), tmp_path / "data" / "node-1")
    assert (tmp_path / "data" / "node-1").is_dir()


def test_a_file_in_its_place_is_still_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="data"):
        ensure_directory(Disk(), tmp_path / "data" / "node-1")
