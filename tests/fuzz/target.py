"""What can be fuzzed: a function of bytes, what it may raise, where it begins, what it may take.

A target's function feeds one decoder, and checks what it gives: an exception that is not in `allowed` is a
bug, and so are a failed `check` in the function, more memory than `peak_bytes` and more time than SLOWEST_S.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SLOWEST_S = 2.0  # of processor time for one input; it takes a few ms at most
FEW_BYTES = 4 << 20  # what any input may take besides a multiple of its length


class FuzzFailure(Exception):
    """The decoder took the input, but what came of it is wrong; never among a target's allowed errors."""


def check(condition: object, what: str) -> None:
    """FuzzFailure unless it holds."""
    if not condition:
        raise FuzzFailure(what)


@dataclass(frozen=True)
class Target:
    """run: one input. allowed: the typed errors of the decoder. seeds: valid inputs, made by our encoders.

    packed: inputs are msgpack from byte `packed_from` on, so that they are mutated as values, too. max_bytes:
    longest input. bytes_per_byte: what memory an input may take for each of its bytes, besides few_bytes.
    suite_inputs: how many mutations are a short run.
    """

    name: str
    run: Callable[[bytes], object]
    allowed: tuple[type[BaseException], ...]
    seeds: Callable[[], Iterable[bytes]]
    packed: bool = False
    packed_from: int = 0
    max_bytes: int = 4096
    bytes_per_byte: int = 200
    few_bytes: int = FEW_BYTES
    suite_inputs: int = 300

    def execute(self, data: bytes) -> bool:
        """One input; whether the decoder took it. Raises what is a bug."""
        data = data[: self.max_bytes]
        began = time.thread_time()
        try:
            self.run(data)
            taken = True
        except self.allowed:
            taken = False
        took_s = time.thread_time() - began
        check(took_s < SLOWEST_S, f"{self.name}: {took_s:.1f} s for {len(data)} bytes")
        return taken

    def execute_measured(self, data: bytes) -> bool:
        """The same, with the memory that it takes meanwhile measured as well (several times slower)."""
        tracemalloc.start()
        try:
            taken = self.execute(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        limit = self.few_bytes + self.bytes_per_byte * len(data)
        check(peak <= limit, f"{self.name}: {peak} bytes of memory for {len(data)} bytes, at most {limit}")
        return taken


class Feed:
    """Reads choices out of bytes, so that a byte string stands for a row of events. At its end all is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether something is left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        taken = self.bytes(1)
        return taken[0] if taken else 0

    def bytes(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def piece(self) -> bytes:
        """Bytes with their length in two bytes before them."""
        return self.bytes(self.byte() << 8 | self.byte())

    def rest(self) -> bytes:
        """All that is left."""
        return self.bytes(len(self._data))


def piece(data: bytes) -> bytes:
    """What Feed.piece reads."""
    return len(data).to_bytes(2, "big") + data
