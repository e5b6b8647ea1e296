"""An index of the keys for SCAN: pages with a cursor that any node can continue.

The keys are spread over buckets by the CRC-32 of their bytes, and SCAN walks the buckets in the order of
the bit-reversed hash. A bucket's keys are a contiguous range of reversed hashes, so the cursor is simply
the first reversed hash not yet visited: it says nothing about the number of buckets and means the same on
every node, after a restart and after a restored snapshot. A key that is there from the first page to the
last is returned (a key has one hash, and every page covers its whole range); a key may be returned twice
when buckets merge in between.

The table grows and shrinks by one bucket at a time (linear hashing, Litwin 1980), so no call pauses for
long. Setting an existing key does not come here. Cost: about 14 bytes and a microsecond for each
new key. CRC-32 collisions are easy to make on purpose: a crowded bucket becomes a dict, so that they cost
only long pages. Owner: the thread that applies entries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from zlib import crc32

_LOAD = 16  # keys per bucket above which the table grows; below a quarter of it, it shrinks
_CROWDED = 256  # keys in one bucket from which removal by search would be slow
_HASH_BITS = 32


class _CrowdedBucket(dict[bytes, None]):
    """A bucket of very many keys, used like a list."""

    __slots__ = ()

    def append(self, key: bytes) -> None:
        self[key] = None

    def remove(self, key: bytes) -> None:
        del self[key]


_Bucket = list[bytes] | _CrowdedBucket


class KeyIndex:
    """The keys in buckets. Bucket i holds the keys whose hash ends in i's bits.

    With half = 2**b <= number of buckets < 2 * half: buckets that are split, and those they were split
    into, are told apart by b + 1 bits, the others by b bits.
    """

    __slots__ = ("_buckets", "_count", "_half")

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._buckets: list[_Bucket] = [[]]
        self._half = 1
        self._count = 0
        for key in keys:
            self.add(key)

    @classmethod
    def of(cls, keys: Collection[bytes], buckets: int) -> KeyIndex:
        """An index of these keys (all different) with so many buckets (at least 1), built at once."""
        index = cls()
        index._half = half = 1 << (buckets.bit_length() - 1)
        table: list[list[bytes]] = [[] for _ in range(buckets)]
        mask = half + half - 1
        for key, hashed in zip(keys, map(crc32, keys), strict=True):
            at = hashed & mask
            table[at if at < buckets else at - half].append(key)
        index._buckets = [_bucket(bucket) for bucket in table]
        index._count = len(keys)
        return index

    @property
    def buckets(self) -> int:
        """How many there are: with the keys, all that decides what page() gives."""
        return len(self._buckets)

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes) -> None:
        """Takes a key that is not in the index."""
        buckets = self._buckets
        half = self._half
        at = crc32(key) & (half + half - 1)
        if at >= len(buckets):  # not split yet
            at -= half
        bucket = buckets[at]
        bucket.append(key)
        if len(bucket) >= _CROWDED:
            buckets[at] = _bucket(bucket)
        self._count += 1
        if self._count > len(buckets) * _LOAD:
            self._split()

    def remove(self, key: bytes) -> None:
        """Gives up a key that is in the index; ValueError or KeyError if it is not."""
        at, _ = self._locate(crc32(key))
        self._buckets[at].remove(key)
        self._count -= 1
        if self._count < len(self._buckets) * (_LOAD // 4) and len(self._buckets) > 1:
            self._merge()

    def clear(self) -> None:
        self._buckets = [[]]
        self._half = 1
        self._count = 0

    def page(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """The next keys: at least `count` of them (whole buckets), fewer at the end or where much is empty.

        Returns the cursor of the next page, 0 after the last, and the keys, in an order that is the same on
        every node: a page may be the answer of a logged command.
        """
        keys: list[bytes] = []
        for _ in range(count * 10):  # as Redis: empty buckets must not make one call long
            if cursor >> _HASH_BITS:
                return 0, keys
            at, bits = self._locate(_reversed_bits(cursor))
            keys.extend(sorted(self._buckets[at]))
            cursor = _reversed_bits(at) + (1 << (_HASH_BITS - bits))
            if len(keys) >= count:
                break
        return (0 if cursor >> _HASH_BITS else cursor), keys

    def _locate(self, hashed: int) -> tuple[int, int]:
        """The bucket of a hash and by how many bits it is told apart."""
        half = self._half
        low = hashed & (half - 1)
        if low + half < len(self._buckets):  # this one is split already
            return hashed & (2 * half - 1), half.bit_length()
        return low, half.bit_length() - 1

    def _split(self) -> None:
        """One more bucket: the next unsplit one hands over the keys whose deciding bit is set."""
        half = self._half
        at = len(self._buckets) - half
        keys = self._buckets[at]
        hashes = list(map(crc32, keys))
        self._buckets[at] = _bucket(
            [key for key, hashed in zip(keys, hashes, strict=True) if not hashed & half]
        )
        self._buckets.append(
            _bucket([key for key, hashed in zip(keys, hashes, strict=True) if hashed & half])
        )
        if len(self._buckets) == 2 * half:
            self._half = 2 * half

    def _merge(self) -> None:
        """One bucket less: the last goes back into the one it was split from."""
        if len(self._buckets) == self._half:
            self._half //= 2
        last = self._buckets.pop()
        at = len(self._buckets) - self._half
        self._buckets[at] = _bucket([*self._buckets[at], *last])


def _bucket(keys: _Bucket) -> _Bucket:
    """A bucket of these keys, of the type that their number calls for."""
    if isinstance(keys, list) and len(keys) >= _CROWDED:
        return _CrowdedBucket((key, None) for key in keys)
    return keys


def _reversed_bits(number: int) -> int:
    """The 32 bits of a number in reverse order."""
    return int(f"{number:032b}"[::-1], 2)
