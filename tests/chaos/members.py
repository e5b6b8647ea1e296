"""Faults that need the rest of the cluster to be well: members come and go, and files of a node rot."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import redis

from tests.chaos.faults import Fault, Scene
from tests.node.cluster import eventually

PATIENCE_S = 45.0


class Grow(Fault):
    """A member more, added while other faults go on; it is sure to be one when this ends."""

    lasts = (2.0, 6.0)

    def begin(self) -> str | None:
        if len(self.cluster.ids) > self.scene.size or self.scene.pending:
            return None
        self.node, self.scene.next_id = self.scene.next_id, self.scene.next_id + 1
        self.cluster.prepare(self.node)
        self.cluster.start(self.node)
        self.scene.pending[self.node] = "add"
        return f"RAFT ADD {self.node} AUTO"

    def tick(self) -> None:
        _change(self, self.cluster.words_to_add(self.node))


class Shrink(Fault):
    """A member less: any, the leader as well, never below three."""

    lasts = (2.0, 6.0)

    def begin(self) -> str | None:
        if len(self.cluster.ids) <= self.scene.size or self.scene.pending or len(self.cluster.ids) <= 3:
            return None
        self.node = self.scene.victim() or 0
        if not self.node:
            return None
        self.scene.pending[self.node] = "remove"
        return f"RAFT REMOVE {self.node}"

    def tick(self) -> None:
        _change(self, ["RAFT", "REMOVE", self.node])


def _change(fault: Fault, words: list[str | int]) -> None:
    """Ask any node, without much patience; settle() asks until it is done."""
    free = fault.scene.free()
    if fault.node in fault.scene.pending and free:
        address = fault.cluster.addresses[fault.rng.choice(free)]
        with contextlib.suppress(redis.RedisError, OSError), redis.Redis(
            host=address["host"], port=address["client_port"], socket_timeout=0.5, protocol=2,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        ) as client:  # fmt: skip
            client.execute_command(*words)


def settle(scene: Scene) -> None:
    """After healing: what was begun is brought to its end."""
    cluster = scene.cluster
    for node, what in list(scene.pending.items()):
        words = cluster.words_to_add(node) if what == "add" else ["RAFT", "REMOVE", node]
        others = [n for n in cluster.ids if n != node]

        def asked(words: list[str | int] = words, others: list[int] = others) -> bool:
            try:
                cluster.client(scene.rng.choice(others)).execute_command(*words)
            except redis.ResponseError as error:
                if words[1] != "REMOVE" or "not a member" not in str(error):
                    raise AssertionError(str(error)) from error
            return True

        eventually(asked, PATIENCE_S, " ".join(map(str, words)))
        if what == "remove":
            cluster.forget(node)
        else:
            eventually(
                lambda node=node: str(node) in cluster.info(cluster.leader())["voters"].split(","),  # type: ignore[misc]
                PATIENCE_S, f"node {node} votes",
            )  # fmt: skip
        del scene.pending[node]


class Rot(Fault):
    """Bytes of a stopped node's files are flipped or cut, while all others have all the data.

    The node must then either repair itself or refuse to start, naming the file; what an operator does then
    is done: it is removed, gets an empty directory and is added again.
    """

    lasts = (0.5, 1.0)

    def begin(self) -> str | None:
        if self.scene.held or self.scene.pending or len(self.cluster.ids) < 3:
            return None
        if not self._all_have_all() or not self._hold():
            return None
        self.cluster.crash(self.node)
        told = self._damage()
        return f"node {self.node}: {told}"

    def _all_have_all(self) -> bool:
        """Whether every node has applied what was committed a moment ago."""
        deadline = time.monotonic() + 5
        with contextlib.suppress(redis.RedisError, OSError, KeyError, ValueError):
            goal = max(int(self.scene.info(n)["last_log_index"]) for n in self.cluster.ids)
            while time.monotonic() < deadline:
                if all(int(self.scene.info(n)["applied_index"]) >= goal for n in self.cluster.ids):
                    return True
        return False

    def _damage(self) -> str:
        data = self.cluster.data(self.node)
        files = sorted(
            file for file in data.rglob("*") if file.is_file() and file.suffix in (".seg", ".log", ".snap")
        )
        files = [file for file in files if file.stat().st_size > 200]
        file: Path = self.rng.choice(files)
        content = bytearray(file.read_bytes())
        used = len(content.rstrip(b"\0")) or len(content)
        how = self.rng.choice(("flip", "flip", "cut", "garbage"))
        if how == "flip":
            place = self.rng.randrange(used)
            content[place] ^= 1 << self.rng.randrange(8)
            told = f"bit flipped at {place} of {used}"
        elif how == "cut":
            place = self.rng.randrange(max(1, used - 300), used)
            del content[place:]
            told = f"cut at {place} of {used}"
        else:
            place = used
            content[place : place + 40] = self.rng.randbytes(40)
            told = f"garbage at {place}"
        file.write_bytes(content)
        return f"{file.name}: {told}"

    def end(self) -> None:
        """Up again, one way or the other."""
        node, cluster = self.node, self.cluster
        cluster.watch.may_die.add(node)
        put_aside = self._put_aside()
        cluster.start(node)
        process = cluster.processes[node]
        refused = False
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                refused = True
                break
            with contextlib.suppress(redis.RedisError, OSError):
                if cluster.client(node).ping() and self._caught_up():
                    break
            time.sleep(0.05)
        else:
            raise AssertionError(f"node {node} with a damaged file neither ended nor caught up")
        if refused:
            self._replace(process)
        repaired = self._put_aside() > put_aside
        self.scene.tally[f"rot: {'refused' if refused else 'repaired' if repaired else 'harmless'}"] += 1
        cluster.watch.may_die.discard(node)
        self._release()

    def _put_aside(self) -> int:
        """How many damaged files the node has kept."""
        return len(list(self.cluster.data(self.node).glob("damaged-*")))

    def _caught_up(self) -> bool:
        """Whether it has all, and (after a repair) knows it and votes again."""
        info = self.scene.info(self.node)
        whole = int(info["applied_index"]) >= int(info["commit_index"]) and info.get("recovering", "0") == "0"
        return info["leader_id"] not in ("", "0") and whole

    def _replace(self, process: subprocess.Popen[bytes]) -> None:
        node, cluster = self.node, self.cluster
        last = cluster.log_of(node)[-3000:]
        assert process.returncode == 1, f"node {node} refused with exit code {process.returncode}"
        assert "cannot start: " in last or "fatal in thread" in last, f"node {node} ended without a word"
        cluster.watch.down.add(node)
        others = [n for n in cluster.ids if n != node]

        def asked(words: list[str | int]) -> None:
            eventually(
                lambda: cluster.execute(self.rng.choice(others), *words, timeout_s=0) is not None,
                PATIENCE_S, " ".join(map(str, words)),
            )  # fmt: skip

        asked(["RAFT", "REMOVE", node])
        cluster.empty(node)
        cluster.start(node)
        asked(cluster.words_to_add(node))
        eventually(
            lambda: str(node) in cluster.info(cluster.leader())["voters"].split(","),
            PATIENCE_S, f"node {node} votes again",
        )  # fmt: skip
