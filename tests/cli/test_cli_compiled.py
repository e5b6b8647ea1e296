"""Which modules a node runs: compiled ones only if they were made of these sources for this Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import compile, compiled
from cli.compiled import CompiledError, contents, made_of, nodes_use_it, use_compiled


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """sys.path, put right again afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return sys.path


def copy(place: Path, **changed: str) -> Path:
    (place / "raft").mkdir(parents=True, exist_ok=True)
    (place / "raft" / "fast.so").write_bytes(b"machine code")
    told = {"made_of": {**made_of(), **changed}, "contents": contents(place)}
    (place / "manifest.json").write_text(json.dumps(told))
    return place


def test_what_fits_comes_first(tmp_path: Path, path: list[str]) -> None:
    use_compiled({"SUPER_NODE_COMPILED": str(copy(tmp_path))})
    assert path[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"sources": "0" * 64}, "other sources: make compile makes it anew"),
        ({"python": "3.11.0"}, "another Python: make compile makes it anew"),
        ({"suffix": ".so"}, "another Python"),
    ],
)
def test_what_does_not_fit_is_left_alone(
    tmp_path: Path, path: list[str], changed: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = list(path)
    place = copy(tmp_path / "compiled", **changed)
    monkeypatch.setattr(compiled, "PLACE", place)
    use_compiled({})
    said = capsys.readouterr().err
    assert why in said and said.endswith("; going on without it\n") and said.count("\n") == 1
    with pytest.raises(CompiledError, match=why.split(":")[0]):
        use_compiled({"SUPER_NODE_COMPILED": str(place)})
    assert path == before


@pytest.mark.parametrize("content", [None, "", "{", "[]", "7"])
def test_a_directory_without_a_manifest(tmp_path: Path, path: list[str], content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    before = list(path)
    with pytest.raises(CompiledError, match="make compile makes"):
        use_compiled({"SUPER_NODE_COMPILED": str(tmp_path)})
    assert path == before


def test_what_is_not_as_it_was_made_is_not_loaded(tmp_path: Path, path: list[str]) -> None:
    """A damaged shared object would end the process with a signal."""
    before = list(path)
    place, environ = copy(tmp_path / "compiled"), {"SUPER_NODE_COMPILED": str(tmp_path / "compiled")}
    file = place / "raft" / "fast.so"
    for change in (lambda: file.write_bytes(b"machine cod"), file.unlink, (place / "raft" / "more.py").touch):
        copy(place)
        (place / "raft" / "__pycache__").mkdir(exist_ok=True)
        (place / "raft" / "__pycache__" / "a.pyc").write_bytes(b"Python's own")
        assert nodes_use_it(environ)
        change()
        assert not nodes_use_it(environ)
        with pytest.raises(CompiledError, match="not as it was made, a file is damaged or missing: make"):
            use_compiled(environ)
    assert path == before


def test_none_is_needed(tmp_path: Path, path: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(path)
    monkeypatch.setattr(compiled, "PLACE", tmp_path / "nothing")
    use_compiled({})
    monkeypatch.setattr(compiled, "PLACE", copy(tmp_path))
    use_compiled({"SUPER_NODE_COMPILED": "0"})
    assert path == before
    use_compiled({})
    assert path[0] == str(tmp_path)


def test_the_manifest_tells_sources_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    for name in ("raft", "ledger", "cli"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("x = 1\n")
    seen = {made_of()["sources"]}
    (tmp_path / "ledger" / "a.py").write_text("x = 2\n")
    seen.add(made_of()["sources"])
    (tmp_path / "raft" / "b.py").write_text("")
    seen.add(made_of()["sources"])
    (tmp_path / "raft" / "b.py").rename(tmp_path / "raft" / "c.py")
    seen.add(made_of()["sources"])
    (tmp_path / "cli" / "compile.py").write_text("MODULES = ()")
    seen.add(made_of()["sources"])
    (tmp_path / "raft" / "notes.txt").write_text("no source")
    (tmp_path / "cli" / "run.py").write_text("not compiled")
    seen.add(made_of()["sources"])
    assert len(seen) == 5


def test_an_explicit_place_that_cannot_be_used_is_exit_2() -> None:
    result = subprocess.run(
        [sys.executable, str(compiled.ROOT / "super_node.py"), "--id", "1"],
        env={**os.environ, "SUPER_NODE_COMPILED": "/nowhere"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("super_node.py: SUPER_NODE_COMPILED=/nowhere: no compiled modules")
    assert result.stderr.count("\n") == 1


def test_a_compilation_that_fails_says_why_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copy(tmp_path / "compiled", sources="others")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))
    (tmp_path / "shadow" / "mypyc").mkdir(parents=True)
    (tmp_path / "shadow" / "mypyc" / "__init__.py").write_text("raise ImportError('no mypyc here')\n")
    assert compile.run_compile(place) == 1
    said = capsys.readouterr().err
    assert (
        "compiling failed:\nit needs mypy and setuptools, which make compile installs: no mypyc here" in said
    )
    assert sorted(each.name for each in tmp_path.iterdir()) == ["compiled", "shadow"]
    assert sorted(each.name for each in place.iterdir()) == ["manifest.json", "raft"]


def test_a_swap_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    place = copy(tmp_path / "compiled")
    with pytest.raises(OSError, match="No such file"):
        compile._swap(tmp_path / "nothing", place, tmp_path / "old")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["compiled"]
    assert nodes_use_it({"SUPER_NODE_COMPILED": str(place)})


def test_only_a_node_looks_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(compiled.ROOT / "super_node.py"), "status", "--help"]
    environ = {**os.environ, "SUPER_NODE_COMPILED": "/nowhere"}
    assert subprocess.run(command, env=environ, timeout=60).returncode == 0
    assert "compiled" not in capfd.readouterr().err


def test_what_fits_is_not_compiled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile.run_compile(copy(tmp_path)) == 0
    assert capsys.readouterr().out == f"{tmp_path} is up to date\n"


def test_every_module_is_there() -> None:
    assert len(set(compile.MODULES)) == len(compile.MODULES)
    assert all((compiled.ROOT / "raft" / f"{name}.py").exists() for name in compile.MODULES)
