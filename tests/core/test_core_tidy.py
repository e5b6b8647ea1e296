"""Rules about the source itself: the core is pure, nothing imports in circles, nothing grows too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("raft", "ledger", "database", "web")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
CORE = sorted((ROOT / "raft" / "core").glob("*.py"))
LEDGER = sorted((ROOT / "ledger").glob("*.py"))
MAX_FILE, MAX_FUNCTION = 420, 60

CORE_MAY_IMPORT = frozenset(
    {
        *(
            "__future__",
            "bisect",
            "collections",
            "collections.abc",
            "dataclasses",
            "enum",
            "msgspec",
            "random",
        ),
        "typing",
    }
)
IMPURE = frozenset(
    {
        *(
            "asyncio",
            "concurrent",
            "datetime",
            "io",
            "logging",
            "multiprocessing",
            "os",
            "pathlib",
            "pymongo",
        ),
        *("queue", "secrets", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading"),
        *("time", "uuid"),
    }
)


def name_of(path: Path) -> str:
    """The module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST, *, at_runtime: bool = False) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names) of each import; at_runtime: not those under `if TYPE_CHECKING:` or in functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", tuple(alias.name for alias in node.names)
        elif at_runtime and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            continue
        else:
            yield from imports(node, at_runtime=at_runtime)


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_nothing_that_is_not_pure(path: Path) -> None:
    for module, _ in imports(parse(path)):
        allowed = module in CORE_MAY_IMPORT or module == "raft.core" or module.startswith("raft.core.")
        assert allowed, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_has_no_randomness_but_what_it_is_given(path: Path) -> None:
    """`random` may be imported for the type random.Random alone; it is never called."""
    tree = parse(path)
    for module, names in imports(tree):
        assert not (module == "random" and names), (
            "import random as a module, so that this test can see its uses"
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr == "Random", f"random.{node.attr} in {name_of(path)}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "random.Random", f"{name_of(path)} makes its own generator"
            assert called not in {"open", "print", "input", "id", "hash"}, f"{name_of(path)} calls {called}()"


@pytest.mark.parametrize("path", [*CORE, *LEDGER], ids=name_of)
def test_core_and_ledger_touch_no_clock_thread_socket_or_file(path: Path) -> None:
    for module, _ in imports(parse(path)):
        assert module.split(".")[0] not in IMPURE, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", LEDGER, ids=name_of)
def test_the_ledger_has_no_randomness_and_knows_no_other_package_but_replies(path: Path) -> None:
    for module, _ in imports(parse(path)):
        assert module != "random", f"{name_of(path)} imports random"
        ours = module.split(".")[0] in PACKAGES
        assert not ours or module == "raft.replies" or module.split(".")[0] == "ledger", (
            f"{name_of(path)} imports {module}"
        )


def import_graph() -> dict[str, set[str]]:
    """Which of our modules imports which, when it is loaded."""
    modules = {name_of(path): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted = graph.setdefault(name, set())
        for module, names in imports(parse(path), at_runtime=True):
            submodules = {f"{module}.{n}" for n in names} & modules.keys()
            wanted |= submodules
            # `from raft.core import reads` needs the package too, but a package without code cannot circle.
            if module in modules and (not submodules or modules[module].stat().st_size):
                wanted.add(module)
        wanted.discard(name)
    return graph


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph()
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "import circle: " + " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert "raft.core.core" in done


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE, f"{name_of(path)} has {lines} lines, at most {MAX_FILE}"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{name_of(path)}.{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_and_public_class_says_what_it_is_for(path: Path) -> None:
    tree = parse(path)
    if not tree.body:
        return
    assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name_of(path)}.{node.name} has no docstring"
