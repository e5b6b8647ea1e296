"""Processes of a measurement: started so that they end with it, however it ends."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
FIRST_PORT, LAST_PORT = 15_000, 32_000  # below the ephemeral range
_TICKS = os.sysconf("SC_CLK_TCK")
_ports = itertools.count(os.getpid() * 89)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, all different. No outgoing connection can take one of them."""
    found: list[int] = []
    for _ in range(LAST_PORT - FIRST_PORT):
        port = FIRST_PORT + next(_ports) % (LAST_PORT - FIRST_PORT)
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports on {HOST}")


def spawn(
    command: Sequence[str],
    log: Path,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own: Ctrl-C is for the driver, which ends everything in order. Not
    in a session of its own: where the kernel shares the CPU out by sessions, a cluster would have three
    shares and its peer one. The kernel ends it with the driver (setpriv of util-linux; the process id is the
    program's)."""
    before = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with log.open("ab") as out:
        return subprocess.Popen(
            [*before, *command], stdin=stdin, stdout=out, stderr=out, cwd=cwd,
            env={**os.environ, **(environ or {})}, process_group=0,
        )  # fmt: skip


def end(processes: Sequence[subprocess.Popen[bytes]], patience_s: float = 15.0) -> None:
    """SIGTERM to all, SIGKILL to whoever is still there after patience_s."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + patience_s
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C as well
            for each in processes:
                each.kill()
            process.wait()


def until(happens: Callable[[], object], what: str, seconds: float = 30.0, pause: float = 0.02) -> None:
    """Ask until it is true. Raises RuntimeError at the deadline; OSError counts as "not yet"."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if happens():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has taken. Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mb(pid: int) -> float:
    """Resident memory of a process in MiB. Raises OSError when it is gone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
