"""`super_node.py compile`: C extensions of the modules that every command goes through, made by mypyc, and
one of raft/_syscalls.c.

mypyc compiles typed Python, unchanged, to C that calls CPython. What it changes beside speed: arguments and
attributes are checked against their types at run time (what mypy has proved anyway), compiled classes take no
new attributes, no patches and no interpreted subclasses; `raise … from` only keeps the context; a compiled
thread gives the interpreter's lock away only where it waits, or calls what is interpreted (raft/breathe.py).
The result is one directory, complete or not there at all: cli/compiled.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cli.compiled import MANIFEST, PLACE, ROOT, CompiledError, contents, is_current, made_of
from cli.processes import die_with_parent
from cli.progress import Advance, Stage, ended_by_sigterm, progress_bar

# On the way of a command, or of a turn of the worker. Not those with msgspec.Struct (mypyc drops its class
# keywords; msgspec is C already), none with a class that the simulation makes its own kind of (Feed, Disk,
# Installs: so all that is compiled runs in the simulation, too), and nothing that is seldom called.
MODULES = (
    "clients/batch", "clients/connection", "clients/handler", "clients/requests", "clients/resp",
    "clients/single", "core/core", "core/election", "core/invariants", "core/log", "core/reads",
    "core/reconfiguration", "core/recovery", "core/replication", "core/state", "machine/expiry",
    "machine/keyvalue", "machine/machine", "machine/scan", "machine/versions", "runtime/agreement",
    "runtime/applier", "runtime/clock", "runtime/desk", "runtime/disk_watch", "runtime/forwarding",
    "runtime/lanes", "runtime/load", "runtime/passed", "runtime/pings", "runtime/proposals",
    "runtime/reads", "runtime/snapshots", "runtime/space", "runtime/status_board", "runtime/turns",
    "runtime/worker", "storage/entry_cache", "storage/log_store", "storage/outline", "storage/record",
    "storage/room", "storage/segments", "transport/codec", "transport/frames", "transport/links",
    "transport/network", "node",
)  # fmt: skip
_GROUP = "super_node_compiled"
_LAST_LINES = 60
_NEWS = "@@ "  # begins a line that the compiling process means for the progress bar


def run_compile(place: Path = PLACE) -> int:
    """Makes `place` anew unless it fits; the exit code. A minute on two cores. Main thread."""
    if is_current(place):
        print(f"{place} is up to date")
        return 0
    try:
        with ended_by_sigterm(), progress_bar() as (stage, advance):
            compile_into(place, stage, advance)
    except (CompiledError, OSError) as error:
        print(f"super_node.py: {error}", file=sys.stderr)
        return 1
    print(f"{len(MODULES)} modules compiled into {place}: nodes that are started from now on use them")
    return 0


def compile_into(place: Path, stage: Stage, advance: Advance, optimise: int = 2) -> None:
    """Replaces the directory place by a compiled copy of raft. optimise: the C compiler's level; 0 takes half
    as long. Raises CompiledError, OSError; what was there before is still there then."""
    made = made_of()
    for left_over in place.parent.glob(f".{place.name}-*"):  # of one that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as temporary:
        work = Path(temporary)
        out = work / "out"
        _build_apart(work, stage, advance, optimise)
        for source in (ROOT / "raft").rglob("*.py"):
            target = out / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        _try_out(out)
        if made_of() != made:
            raise CompiledError("the sources changed while they were compiled: try again")
        (out / MANIFEST).write_text(json.dumps({"made_of": made, "contents": contents(out)}, indent=1) + "\n")
        os.sync()  # or a power loss could leave a manifest with files that are not there
        _swap(out, place, work / "old")


def _try_out(out: Path) -> None:
    """A copy that cannot even be imported replaces nothing."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import raft._syscalls, raft.node; print(raft.node.__file__)"
    )
    tried = subprocess.run(
        [sys.executable, "-B", "-c", code, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if tried.returncode or not tried.stdout.startswith(str(out)):
        raise CompiledError(f"what was compiled cannot be used: {tried.stderr or tried.returncode}")


def _swap(new: Path, place: Path, old: Path) -> None:
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        if old.exists():
            old.rename(place)
        raise


def _build_apart(work: Path, stage: Stage, advance: Advance, optimise: int) -> None:
    """In a process of its own: the tools print, change directories and exit as they like."""
    stage("reading types", None)
    last: deque[str] = deque(maxlen=_LAST_LINES)
    command = [sys.executable, "-m", "cli.compile", str(work), str(optimise), str(os.getpid())]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if not line.startswith(_NEWS):
                    last.append(line)
                elif line.startswith(_NEWS + "of "):
                    stage("compiling", int(line.split()[-1]))
                else:
                    advance(1)
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        raise CompiledError(f"compiling failed:\n{''.join(last).rstrip()}")


def _build(work: Path, optimise: str) -> None:
    """The compiling process: work/out gets the extensions."""
    try:
        from mypyc.build import mypycify
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext
    except ImportError as error:
        sys.exit(f"it needs mypy and setuptools, which make compile installs: {error}")
    from raft.syscalls import SHORT_BYTES

    extensions = mypycify(
        ["--strict", "--ignore-missing-imports", f"--cache-dir={work / 'types'}"]
        + [f"raft/{name}.py" for name in MODULES],
        opt_level=optimise,
        debug_level="0",
        multi_file=True,
        group_name=_GROUP,
        target_dir=str(work / "c"),
    )
    extensions.append(
        Extension(
            "raft._syscalls",
            ["raft/_syscalls.c"],
            define_macros=[("SHORT_BYTES", str(SHORT_BYTES))],
            extra_compile_args=[f"-O{optimise}", "-Wall", "-Wextra", "-Werror"],
        )
    )
    print(f"{_NEWS}of {sum(len(extension.sources) for extension in extensions)}", flush=True)
    command: Any = build_ext(Distribution({"name": _GROUP, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(work / "out"), str(work / "objects")
    command.ensure_finalized()
    build_one = command.build_extension

    def build_extension(extension: Any) -> None:
        _use_all_cores(command.compiler)
        build_one(extension)

    command.build_extension = build_extension
    command.run()


def _use_all_cores(compiler: Any) -> None:
    """distutils compiles the sources of an extension one after the other."""
    compile_all = type(compiler).compile

    def compile_each(sources: list[str], **options: Any) -> list[str]:
        def one(source: str) -> list[str]:
            objects: list[str] = compile_all(compiler, [source], **options)
            print(f"{_NEWS}one", flush=True)
            return objects

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [made for objects in pool.map(one, sources) for made in objects]

    compiler.compile = compile_each


if __name__ == "__main__":
    die_with_parent(int(sys.argv[3]))
    _build(Path(sys.argv[1]), sys.argv[2])
