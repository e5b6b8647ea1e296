"""super_node.py that notes how long its owner thread takes to apply the close of an interval.

BENCH_CLOSES: the file that gets one JSON object a close: wall_ms of the whole step (judging every turn,
publishing the outcomes, answering what stood in the same entry), cpu_ms of the thread, judge_ms: the judging,
gc_ms: what of it was the garbage collector's.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ledger import turns  # noqa: E402
from raft.runtime.applier import Applier  # noqa: E402


def note_closes(file: Path) -> None:
    """Wrap the two functions. One close is under way at a time: only the owner thread applies."""
    close, advance = turns.close_interval, Applier.advance
    judged: list[float] = []
    collected = [0.0, 0.0]  # ms in all; since when the one under way runs

    def note_collection(phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            collected[1] = time.perf_counter()
        else:
            collected[0] += 1000 * (time.perf_counter() - collected[1])

    def timed_close(*words: Any, **named: Any) -> Any:
        began = time.perf_counter()
        reply = close(*words, **named)
        judged.append(1000 * (time.perf_counter() - began))
        return reply

    def timed_advance(self: Applier) -> None:
        wall, cpu, before = time.perf_counter(), time.thread_time(), collected[0]
        advance(self)
        if judged:
            row = {
                "wall_ms": 1000 * (time.perf_counter() - wall),
                "cpu_ms": 1000 * (time.thread_time() - cpu),
                "judge_ms": sum(judged),
                "gc_ms": collected[0] - before,
            }
            judged.clear()
            with file.open("a") as out:
                out.write(json.dumps(row) + "\n")

    gc.callbacks.append(note_collection)
    turns.close_interval = timed_close
    Applier.advance = timed_advance  # type: ignore[method-assign]


if __name__ == "__main__":
    note_closes(Path(os.environ["BENCH_CLOSES"] + f".{os.getpid()}"))
    runpy.run_path(str(ROOT / "super_node.py"), run_name="__main__")
