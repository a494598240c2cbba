"""Orders in which every record comes once, computed place by place: no list of records is shuffled."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

__all__ = ["Order", "key_of", "permuted"]

_ROUNDS = 4
_MASK = 2**64 - 1


def key_of(*parts: object) -> int:
    """A key of 64 bits that depends on some numbers and names.

    Args:
        *parts: The numbers and names.
    """
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permuted(place: int, count: int, key: int) -> int:
    """What stands at a place of a permutation of 0 … count - 1.

    It is a Feistel cipher over the next power of 4, repeated until it comes to a number below `count`.

    Args:
        place: The place, from 0.
        count: How many there are.
        key: Which permutation.

    Returns:
        A number below `count`, another one for each place.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right, key + number) & low)
        place = left << half | right
        if place < count:
            return place


def _mixed(value: int, key: int) -> int:
    """64 bits that look random (splitmix64)."""
    z = (value * 0x9E3779B97F4A7C15 + key * 0xD1342543DE82EF95 + 0x632BE59BD9B4E019) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31


@dataclass(frozen=True)
class Order:
    """A permutation of records that are read in groups, such as the row groups of Parquet.

    Groups come in a random order, and the records of some groups at a time are shuffled together, so that
    few groups are in memory. Records of a single group are shuffled as a whole.

    Attributes:
        starts: The first record of each group, in the order of the groups here.
        ends: How many records come up to the end of each group here.
        key: Which permutation.
        together: How many groups are shuffled together.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    key: int
    together: int

    @classmethod
    def of(cls, sizes: Sequence[int], key: int, together: int) -> Order:
        """Put groups in an order.

        Args:
            sizes: The number of records of each group, at least 1.
            key: Which permutation.
            together: How many groups are shuffled together.

        Returns:
            The order.
        """
        before = [0, *accumulate(sizes)]
        groups = [permuted(place, len(sizes), key) for place in range(len(sizes))]
        ends = accumulate(sizes[group] for group in groups)
        return cls(tuple(before[group] for group in groups), tuple(ends), key, together)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, place: int) -> int:
        """The record at a place."""
        first = bisect_right(self.ends, place) // self.together * self.together
        last = min(first + self.together, len(self.ends)) - 1
        begin = self.ends[first - 1] if first else 0
        among = self.ends[last] - begin
        place = begin + permuted(place - begin, among, key_of(self.key, first))
        group = bisect_right(self.ends, place)
        return self.starts[group] + place - (self.ends[group - 1] if group else 0)
