"""Plays every tests/scripts/*.txt and compares; the language stands at the top of tests/core/transcript.py.

REWRITE=1 pytest tests/core/test_core_scripts.py    writes what happens into the files; then read the diff
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

from tests.core.transcript import play

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    expected = path.read_text(encoding="utf-8")
    played = play(expected)
    if os.environ.get("REWRITE") and played != expected:
        path.write_text(played, encoding="utf-8")
        return
    diff = difflib.unified_diff(expected.splitlines(), played.splitlines(), "written", "played", lineterm="")
    assert played == expected, "\n" + "\n".join(diff)


def test_there_are_scripts_and_a_wrong_one_fails() -> None:
    assert len(SCRIPTS) >= 6
    assert play("nodes 3\nelect 1\n    2 commits 77\n") != "nodes 3\nelect 1\n    2 commits 77\n"
    with pytest.raises(ValueError, match="no such command"):
        play("dance 3\n")
