"""Latencies in buckets: any number of them in bounded memory, percentiles right to one part in 128."""

from __future__ import annotations

from collections import Counter

_BITS = 7  # of a value that are kept: 128 buckets for each doubling


class Histogram:
    """Counts whole microseconds. One thread."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.greatest_us = 0

    def add(self, microseconds: int) -> None:
        """One more measured value, 0 or more."""
        shift = max(0, microseconds.bit_length() - _BITS - 1)
        self._buckets[(shift << (_BITS + 1)) + (microseconds >> shift)] += 1
        self.count += 1
        if microseconds > self.greatest_us:
            self.greatest_us = microseconds

    def merge(self, other: Histogram) -> None:
        """Take over what the other has counted."""
        self._buckets.update(other._buckets)
        self.count += other.count
        self.greatest_us = max(self.greatest_us, other.greatest_us)

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds that `percent` of the values do not exceed; 0.0 when there is none."""
        wanted = self.count * percent / 100
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                shift, rest = bucket >> (_BITS + 1), bucket & ((1 << (_BITS + 1)) - 1)
                highest = ((rest + 1) << shift) - 1
                return min(highest, self.greatest_us) / 1000
        return 0.0
