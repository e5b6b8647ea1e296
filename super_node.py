"""The command line of super node: `python super_node.py --help` tells what there is.

Exit codes: 0 done, 1 failed while running, 2 wrong arguments or settings (with one line that says what).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.compiled import CompiledError, use_compiled


def main(arguments: Sequence[str] | None = None, *, compiled: bool = False) -> int:
    """Does what the arguments (default: the process's) ask for; the exit code. compiled: a node may run
    compiled, for nothing of raft is imported yet."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None and options.id is None:
        parser.error("say which node to run (--id N) or give a command; --help lists them")
    if options.command is not None and options.id is not None:
        parser.error(f"--id N runs a node; it does not go with {options.command}")
    try:
        if compiled and options.id is not None:
            use_compiled()
        return _main(options)
    except CompiledError as error:
        print(f"super_node.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _main(options: argparse.Namespace) -> int:
    from raft.config import ConfigError  # not before use_compiled()

    try:
        return _run(options)
    except ConfigError as error:
        print(f"super_node.py: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    # Imported when needed: a node does not load rich, `follower` does not load a node.
    if options.command is None:
        from cli.run import run_node

        return run_node(options.id, options.config, options.die_with_parent)
    if options.command == "status":
        from cli.status import run_status

        return run_status(options.config, as_json=options.json, watch_s=options.watch)
    if options.command == "verify":
        from cli.verify import run_verify

        return run_verify(options.directory, as_json=options.json)
    if options.command == "backup":
        from cli.backup import run_backup

        return run_backup(
            options.file, options.config, options.connect, force=options.force, as_json=options.json
        )
    if options.command == "restore":
        from cli.restore import run_restore

        return run_restore(options.file, options.config, as_json=options.json)
    if options.command == "follower":
        from cli.follower_command import run_follower

        return run_follower(options)
    if options.command == "compile":
        from cli.compile import run_compile

        return run_compile()
    if options.command == "bench":
        from cli.bench import run_bench

        return run_bench(options)
    if options.command == "fleet":
        from cli.fleet import run_fleet

        return run_fleet(options.plan, options.die_with_parent)
    from cli.demo import run_demo

    return run_demo(options)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="super_node.py",
        description="A Raft cluster that keeps an honest ledger of who did their work.",
    )
    parser.add_argument(
        "--id", type=int, metavar="N", help="run node N of the config until SIGTERM or Ctrl-C"
    )
    parser.add_argument(
        "--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="default: config.yaml"
    )
    parser.add_argument("--die-with-parent", type=int, metavar="PID", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_follower(commands)
    _add_status(commands)
    _add_verify(commands)
    _add_backup(commands)
    _add_restore(commands)
    _add_bench(commands)
    text = "compile what nodes do most to C, into compiled/, where they look when they start (make compile)"
    commands.add_parser("compile", help=text, description=text)
    fleet = commands.add_parser("fleet")  # the demo's own child: not for people
    fleet.add_argument("--plan", type=Path, required=True)
    fleet.add_argument("--die-with-parent", type=int, default=argparse.SUPPRESS)
    return parser


_Commands = argparse._SubParsersAction  # argparse gives the type no public name


def _add_config(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: without the option here, the one given before the command counts.
    parser.add_argument(
        "--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="default: config.yaml"
    )


def _add_demo(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "everything on this machine: database, nodes and a fleet of followers; Ctrl-C ends all of it"
    demo = commands.add_parser("demo", help=text, description=text)
    _add_config(demo)
    demo.add_argument("--nodes", type=Between(1, 50), default=3, metavar="N", help="default: 3")
    demo.add_argument("--followers", type=Between(0, 5000), default=12, metavar="N", help="default: 12")
    demo.add_argument(
        "--data-dir", type=Path, default=Path("demo-data"), metavar="DIR", help="default: demo-data"
    )
    demo.add_argument(
        "--ports",
        type=Between(1024, 65000),
        default=7100,
        metavar="BASE",
        help="node N listens on BASE+N, BASE+100+N (clients) and BASE+200+N; default: 7100",
    )
    demo.add_argument(
        "--keep", action="store_true", help="go on with the data of the last demo; default: begin afresh"
    )


def _add_follower(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "a reference follower: joins, answers its turns, survives the loss of nodes"
    follower = commands.add_parser("follower", help=text, description=text)
    follower.add_argument("--id", dest="follower_id", required=True, metavar="NAME")
    follower.add_argument(
        "--connect",
        required=True,
        type=_addresses,
        metavar="HOST:PORT[,HOST:PORT…]",
        help="client ports of nodes",
    )
    follower.add_argument("--version", default="1.0", help="the version it claims to have; default: 1.0")
    follower.add_argument("--address", default="", help="where it can be found, for the record")
    follower.add_argument("--leave", action="store_true", help="leave the cluster when it is stopped")
    follower.add_argument("--log-format", choices=("text", "json"), default="text")


def _add_status(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "what every node says of itself; exit 0 when there is a leader with a quorum, else 1"
    status = commands.add_parser("status", help=text, description=text)
    _add_config(status)
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument(
        "--watch",
        type=Between(1, 3600),
        nargs="?",
        const=2,
        metavar="SECONDS",
        help="again and again; default: 2",
    )


def _add_verify(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = (
        "check every checksum of a stopped node's data or a backup, changing nothing; exit 0 when it is sound"
    )
    verify = commands.add_parser("verify", help=text, description=text)
    verify.add_argument(
        "directory", type=Path, metavar="DATA_DIR", help="of one node: data/node-1; or a backup"
    )
    verify.add_argument("--json", action="store_true", help="for programs")


def _add_backup(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "keep a consistent, checksummed copy of a running cluster's data in one file"
    backup = commands.add_parser("backup", help=text, description=text)
    _add_config(backup)
    backup.add_argument("file", type=Path, metavar="FILE", help="the file to write")
    backup.add_argument(
        "--connect",
        type=_addresses,
        metavar="HOST:PORT[,HOST:PORT…]",
        help="client ports of nodes; the first that answers is asked. Default: the nodes of config.yaml",
    )
    backup.add_argument("--force", action="store_true", help="overwrite FILE if it is there")
    backup.add_argument("--json", action="store_true", help="for programs")


def _add_restore(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "make the data directories of a new cluster, the nodes of config.yaml, from a backup"
    restore = commands.add_parser("restore", help=text, description=text)
    _add_config(restore)
    restore.add_argument("file", type=Path, metavar="FILE", help="a backup, or a snapshot-….snap of a node")
    restore.add_argument("--json", action="store_true", help="for programs")


def _add_bench(commands: _Commands[argparse.ArgumentParser]) -> None:
    text = "load test of a running cluster: writes keys of its own, deletes them afterwards"
    bench = commands.add_parser("bench", help=text, description=text)
    _add_config(bench)
    bench.add_argument(
        "--connect",
        type=_addresses,
        metavar="HOST:PORT[,HOST:PORT…]",
        help="client ports of nodes, among which the clients are spread. Default: the nodes of config.yaml",
    )
    numbers = (
        ("clients", 50, 5000, "connections"),
        ("pipeline", 1, 1000, "requests that each sends at once"),
        ("size", 64, 1_000_000, "bytes of a value"),
        ("keys", 10_000, 1_000_000, "different keys"),
        ("seconds", 10, 3600, "how long, at most"),
        ("requests", 10_000_000, 1_000_000_000, "how many, at most"),
    )
    for name, default, most, what in numbers:
        help_text = f"{what}; default: {default}"
        bench.add_argument(f"--{name}", type=Between(1, most), default=default, metavar="N", help=help_text)
    bench.add_argument(
        "--reads", type=Between(0, 100), default=50, metavar="N", help="GETs in a hundred; default: 50"
    )
    bench.add_argument("--yes", action="store_true", help="yes, it may write; default: ask at the terminal")
    bench.add_argument("--json", action="store_true", help="for programs")


class Between:
    """An argparse type: a whole number within bounds."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self._low - 1
        if not self._low <= value <= self._high:
            raise argparse.ArgumentTypeError(
                f"wants a whole number from {self._low} to {self._high}, got {text!r}"
            )
        return value


def _addresses(text: str) -> list[tuple[str, int]]:
    """An argparse type: HOST:PORT[,HOST:PORT…]; an IPv6 host stands in brackets."""
    found = []
    for part in text.split(","):
        host, _, port = part.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise argparse.ArgumentTypeError(f"wants HOST:PORT[,HOST:PORT…], got {part!r}")
        found.append((host, int(port)))
    return found


if __name__ == "__main__":
    sys.exit(main(compiled=True))
