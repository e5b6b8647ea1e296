"""Where settings come from: YAML files and environment variables, and errors that point back at them.

The companion of raft/config.py, which says what the keys are; here is how they are read and how a bad one is
reported. Pure functions except `read_yaml`, which reads one file.
"""

from __future__ import annotations

import difflib
import functools
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

PREFIX = "SUPER_NODE_"
_URI_HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?"
URI_HOSTS = f"{_URI_HOST}(,{_URI_HOST})*"  # host:port, host:port, … of a database URI
_PATH_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+)\]")
_PATH = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`")


class ConfigError(Exception):
    """A setting cannot be used. Its text is one line: source, key, what the key wants, what it got.

    Attributes: `source` (file name or environment variable), `key` (dotted, may be empty), `problem`.
    """

    def __init__(self, source: str, key: str, problem: str) -> None:
        self.source, self.key, self.problem = source, key, problem
        parts = [source, *([f"{key} {problem}"] if key else [problem])]
        super().__init__(" ".join(": ".join(parts).split()))


class Origin:
    """Remembers which keys came from the environment, so that an error names the variable, not the file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._variables: dict[str, str] = {}

    def overridden(self, key: str, variable: str) -> None:
        """Notes that `key` (dotted) and everything below it was set by the environment variable."""
        self._variables[key] = variable

    def error(self, key: str, problem: str) -> ConfigError:
        """The ConfigError for a value at `key`, naming where that value came from."""
        for name, variable in sorted(self._variables.items(), key=lambda item: -len(item[0])):
            if key == name or key.startswith((f"{name}.", f"{name}[")):
                return ConfigError(f"environment variable {variable}", key, problem)
        return ConfigError(self.source, key, problem)


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML itself would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key_node, _ in node.value:
                name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
                if name in seen and name != "<<":
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {name} is given twice", key_node.start_mark
                    )
                seen.add(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML document. Raises yaml.YAMLError, also for a key given twice."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader: builds plain values only
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        # PyYAML lets them out for values that do not fit their tag: 2024-13-45, !!bool 7, !!int '', [[[[…
        raise yaml.YAMLError(f"a value that cannot be read: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file ({} when empty). Raises ConfigError naming the file, and the line if any."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), "", "there is no such file") from None
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", f"is not UTF-8 text (byte {error.start})") from None
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        source = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ConfigError(source, "", f"not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(str(path), "", f"wants sections such as cluster: and raft:, got {show(tree)}")
    return tree


@functools.cache
def _fields(schema: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Its fields; msgspec compiles their annotations anew each time."""
    return msgspec.structs.fields(schema)


def overlay_environment(
    tree: dict[str, Any], environ: Mapping[str, str], schema: type[msgspec.Struct], origin: Origin
) -> None:
    """Puts every SUPER_NODE_A__B=value of `environ` into `tree` as a: {b: value}.

    Values are YAML, except where the key wants text: there the characters count as they are (1.0 stays
    "1.0"), unless quoted. Raises ConfigError for a name with __ that is no key, and for values that are not
    YAML.
    """
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        keys = variable.removeprefix(PREFIX).lower().split("__")
        wanted = _type_at(schema, keys)
        if wanted is None:
            if "__" not in variable:
                continue  # not a setting: SUPER_NODE_REQUIRE_TOOLS and the like
            raise ConfigError(f"environment variable {variable}", ".".join(keys), "is no key of config.yaml")
        value = _environment_value(variable, environ[variable], ".".join(keys), wanted)
        branch = tree
        for depth, key in enumerate(keys[:-1]):
            below = branch.setdefault(key, {})
            if not isinstance(below, dict):
                raise origin.error(".".join(keys[: depth + 1]), f"wants {describe(dict)}, got {show(below)}")
            branch = below
        branch[keys[-1]] = value
        origin.overridden(".".join(keys), variable)


def _environment_value(variable: str, text: str, key: str, wanted: Any) -> Any:
    if not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError(f"environment variable {variable}", key, "wants text in UTF-8")
    stripped = text.strip()
    if _takes_text(wanted) and not stripped.startswith(("'", '"')):
        optional = type(None) in typing.get_args(wanted)
        return None if optional and stripped in ("", "null", "~") else text
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"environment variable {variable}", key, "wants a value written as in YAML"
        ) from None


def explain(message: str, tree: Any, schema: type[msgspec.Struct], origin: Origin) -> ConfigError:
    """Turns msgspec's account of what is wrong with `tree` into a ConfigError in the terms of config.yaml."""
    found = _PATH.search(message)
    path = found["path"] if found else ""
    steps = [step["key"] or int(step["index"]) for step in _PATH_STEP.finditer(path)]
    key = path.lstrip(".")
    wanted, value = _walk(schema, tree, steps)
    if missing := _MISSING.match(message):
        return origin.error(
            _join(key, missing["name"]), f"is missing; it wants {_field_wants(wanted, missing['name'])}"
        )
    if message.startswith("Object contains unknown field"):
        return _unknown_key(key, wanted, value, origin)
    if " - at `key` in " in message:
        odd = next((name for name in value if not isinstance(name, str)), None)
        return origin.error(_join(key, str(odd)), "is no key of config.yaml")
    if not key:
        return ConfigError(origin.source, "", f"wants sections such as cluster: and raft:, got {show(value)}")
    return origin.error(key, f"wants {describe(wanted)}, got {show(value)}")


def _unknown_key(key: str, wanted: Any, value: Any, origin: Origin) -> ConfigError:
    known = [field.encode_name for field in _fields(wanted)]
    name = next((str(name) for name in value if name not in known), "?")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; the keys here are {', '.join(known)}"
    return origin.error(_join(key, name), f"is no key of config.yaml{hint}")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _bare(kind: Any) -> Any:
    """A type without its Annotated wrapper."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _type_at(schema: Any, keys: list[str]) -> Any:
    """The declared type of the dotted key, or None when there is no such key."""
    kind = schema
    for key in keys:
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return None
        kind = next((f.type for f in _fields(kind) if f.encode_name == key), None)
    return kind


def _walk(schema: Any, value: Any, steps: list[str | int]) -> tuple[Any, Any]:
    """The declared type and the value that msgspec's path leads to."""
    kind = schema
    for step in steps:
        kind = _bare(kind)
        if isinstance(step, int):
            members = typing.get_args(kind)
            kind = members[0] if len(members) == 2 and members[1] is Ellipsis else members[step]
        else:
            kind = _type_at(kind, [step])
        value = value[step]
    return kind, value


def _field_wants(kind: Any, name: str) -> str:
    return describe(_type_at(_bare(kind), [name]))


def _takes_text(kind: Any) -> bool:
    bare = _bare(kind)
    members = typing.get_args(bare)
    if typing.get_origin(bare) is typing.Literal:
        return all(isinstance(member, str) for member in members)
    return bare is str or (isinstance(bare, types.UnionType) and str in members)


def describe(kind: Any) -> str:
    """What a key of this type wants, in words."""
    if typing.get_origin(kind) is typing.Annotated:
        for extra in typing.get_args(kind)[1:]:
            if isinstance(extra, msgspec.Meta) and extra.description:
                return extra.description
        kind = _bare(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(str(member) for member in typing.get_args(kind))
    if isinstance(kind, types.UnionType):
        return " or ".join(describe(member) for member in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "keys and values: " + ", ".join(f.encode_name for f in _fields(kind))
    words = {
        bool: "true or false",
        int: "a whole number",
        str: "text",
        dict: "keys and values",
        type(None): "null",
    }
    return words.get(kind, str(kind))


def show(value: Any) -> str:
    """A value as it is shown in an error: short, on one line, without the secrets of a URI."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        shown = redact_uri(value)
        return repr(shown if len(shown) <= 60 else shown[:57] + "…")
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        plain = all(isinstance(item, int | float) for item in value)
        return f"[{', '.join(map(show, value))}]" if plain and len(value) <= 8 else f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of very many digits"  # Python refuses to print those of more than 4300
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def redact_uri(uri: str) -> str:
    """The URI without user, password and options; text that is no URI comes back as it is."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    _, at, after = rest.rpartition("@")
    where = re.split("[?&]", after, maxsplit=1)[0]
    if not at and not re.match(rf"{URI_HOSTS}(/|\Z)", where):
        return f"{scheme}://***"  # not host:port, so perhaps user:password
    return f"{scheme}://***@{where}" if at else f"{scheme}://{where}"
