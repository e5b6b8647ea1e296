"""Faults of disks: full, failing and hanging ones."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import redis

from tests.chaos.faults import Fault, Scene
from tests.chaos.nodes import ELECTION_S


class FullDisk(Fault):
    """Ballast takes what room there is on a node's disk."""

    lasts = (1.0, 5.0)

    def begin(self) -> str | None:
        if not self.cluster.disks or not self._hold():
            return None
        if not (self.cluster.data(self.node) / "identity.json").exists():
            self._release()  # a node that has never run says that it cannot, and ends
            return None
        with contextlib.suppress(OSError), self._ballast().open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 64):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        return f"node {self.node}"

    def _ballast(self) -> Path:
        return self.cluster.data(self.node) / "ballast"

    def tick(self) -> None:
        with contextlib.suppress(OSError), self._ballast().open("ab", buffering=0) as file:
            while file.write(bytes(4096)):  # what the node has given back meanwhile
                pass

    def end(self) -> None:
        self._ballast().unlink(missing_ok=True)
        self._revive()
        self._release()


class FailingSync(Fault):
    """fdatasync says EIO: the node must end by itself as soon as it has anything to write."""

    inject = "fdatasync:error=EIO"
    lasts = (2.0, 4.0)
    fatal = True  # whether a node that writes must end
    patience_s = 5.0  # until it has: two election timeouts and what a busy machine and strace add

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._tracer: subprocess.Popen[bytes] | None = None
        self._log_at = -1  # where the log ended once strace was there
        self._logged = 0  # characters in the node's log before

    def begin(self) -> str | None:
        if not self._hold():
            return None
        self.cluster.watch.may_die.add(self.node)
        self._logged = len(self.cluster.log_of(self.node))
        # Every system call of the node waits for strace, which must not wait for the CPU in its turn.
        command = ["nice", "-n", "-20", "strace", "-f", "-qq", "-e", "trace=fdatasync"]
        command += ["-e", f"inject={self._inject()}", "-e", "signal=none"]
        with (self.cluster.directory / "strace.log").open("ab") as out:
            self._tracer = subprocess.Popen(
                [*command, "-o", "/dev/null", "-p", str(self.cluster.processes[self.node].pid)],
                stdout=out, stderr=out,
            )  # fmt: skip
        self._log_at = self._traced_log_index()
        return f"node {self.node}: {self._inject()}"

    def _inject(self) -> str:
        return self.inject

    def _traced_log_index(self) -> int:
        """last_log_index once every thread is traced; -1 if the node ended, or nobody can tell."""
        process, deadline = self.cluster.processes[self.node], time.monotonic() + 3
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
                if all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks):
                    return self._log_index()
            time.sleep(0.02)
        return -1

    def _log_index(self) -> int:
        with contextlib.suppress(redis.RedisError, OSError, KeyError):
            return int(self.scene.info(self.node)["last_log_index"])
        return -1

    def _must_have_ended(self) -> None:
        """No node goes on writing as if all were well. Asked with the fault still there; where nothing was to
        be written so far (no quorum, say) that is waited for a little."""
        process, deadline = self.cluster.processes[self.node], time.monotonic() + 2.5
        if not self.fatal:
            return
        if self._log_at < 0:
            self._log_at = self._traced_log_index()
        while process.poll() is None and self._log_index() <= self._log_at and time.monotonic() < deadline:
            time.sleep(0.05)
        if 0 <= self._log_at < self._log_index():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.patience_s)
                return
            self.scene.wrong.append(
                f"node {self.node} lives and writes (log from {self._log_at} to {self._log_index()}) with "
                f"{self._inject()}"
            )

    def end(self) -> None:
        assert self._tracer is not None
        self._must_have_ended()
        ended = self.cluster.processes[self.node].poll() is not None
        self.scene.tally[f"{self._inject().partition(':')[2]}: {'ended' if ended else 'went on'}"] += 1
        self._tracer.terminate()
        try:
            self._tracer.wait(5)
        except subprocess.TimeoutExpired:  # it may lose track of a thread that ends ("delayed wait data set")
            self._tracer.kill()
            self._tracer.wait()
        self._revive_soon()
        self._release()

    def _revive_soon(self) -> None:
        """A node that is on its way down is waited for; one that goes on need not end any more."""
        try:
            self.cluster.processes[self.node].wait(1.0)  # the worker looks twice a second
        except subprocess.TimeoutExpired:
            if "fatal in thread" in self.cluster.log_of(self.node)[self._logged :]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.cluster.processes[self.node].wait(25)
        self._revive()


class HangingSync(FailingSync):
    """fdatasync takes long. The node may end, or hold out; it may not go on as if all were well."""

    lasts = (2.0, 6.0)

    def begin(self) -> str | None:
        self._seconds = self.rng.choice((0.05, 0.5, 2.0, 2.0))
        self.fatal = self._seconds > 2 * ELECTION_S
        return super().begin()

    def _inject(self) -> str:
        return f"fdatasync:delay_enter={int(self._seconds * 1e6)}"
