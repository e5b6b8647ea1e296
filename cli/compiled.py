"""Whether a node runs compiled: `make compile` puts C extensions of raft/ into compiled/ (cli/compile.py).

The program is the same either way. What was made of other sources or for another Python, or is not whole any
more, is never used: a node then says so and runs interpreted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "compiled"
VARIABLE = "SUPER_NODE_COMPILED"  # 0: run interpreted; a directory: use what is there, or do not start
MANIFEST = "manifest.json"
# ledger: mypyc takes its types and constants into the C that it makes of raft; compile.py: what is compiled.
SOURCES = ("raft/**/*.py", "raft/*.c", "ledger/**/*.py", "cli/compile.py")


class CompiledError(Exception):
    """What was compiled cannot be used, or not be made; the text says why and what to do."""


def made_of() -> dict[str, str]:
    """What decides whether a compiled copy goes with this checkout and this Python. About 5 ms."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        content = path.read_bytes()
        digest.update(b"%s %d\n" % (path.relative_to(ROOT).as_posix().encode(), len(content)))
        digest.update(content)
    return {"sources": digest.hexdigest(), "python": sys.version, "suffix": EXTENSION_SUFFIXES[0]}


def contents(place: Path) -> dict[str, str]:
    """The digest of each file of a compiled copy, but for what it says of itself and what Python adds. About
    20 ms."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != MANIFEST and path.parent.name != "__pycache__"
    }


def is_current(place: Path = PLACE) -> bool:
    """Whether there is a compiled copy that fits."""
    return _problem(place) is None


def nodes_use_it(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether nodes that are started now, with this environment, run compiled."""
    place = _place(environ)
    return place is not None and is_current(place)


def use_compiled(environ: Mapping[str, str] = os.environ) -> None:
    """Have raft imported from its compiled copy, if there is one that fits; a line on standard error if there
    is one that does not. To be called before anything of raft is imported; main thread.

    Raises CompiledError if the environment names a directory that cannot be used.
    """
    place = _place(environ)
    if place is None:
        return
    problem = _problem(place)
    if problem is None:
        sys.path.insert(0, str(place))
    elif wanted := environ.get(VARIABLE):
        raise CompiledError(f"{VARIABLE}={wanted}: {problem}")
    else:
        print(f"super_node.py: {place}: {problem}; going on without it", file=sys.stderr)


def _place(environ: Mapping[str, str]) -> Path | None:
    """Where to look for a compiled copy; None: nowhere."""
    wanted = environ.get(VARIABLE)
    if wanted:
        return None if wanted == "0" else Path(wanted).absolute()
    return PLACE if os.path.lexists(PLACE) else None


def _problem(place: Path) -> str | None:
    try:
        found = json.loads((place / MANIFEST).read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"{MANIFEST} holds no object")
        wanted = made_of()
        if found.get("made_of") != wanted:
            before = found.get("made_of")
            same = isinstance(before, dict) and before.get("sources") == wanted["sources"]
            return f"compiled for {'another Python' if same else 'other sources'}: make compile makes it anew"
        if found.get("contents") != contents(place):
            return "not as it was made, a file is damaged or missing: make compile makes it anew"
    except (OSError, ValueError) as error:
        return f"no compiled modules: {error}; make compile makes some"
    return None


def compiled_from() -> Path | None:
    """Where the compiled modules of this process come from; None: it runs interpreted."""
    import raft.core.core

    module = Path(raft.core.core.__file__)
    return module.parents[2] if module.suffix != ".py" else None
