"""Quantiles of a stream of float32 numbers, with a bound on their error that holds for any data.

A number belongs to the bucket that its leading bits name: sign, exponent and the first bits of the mantissa. At first
every number has its own bucket; once there are more than `BUCKETS`, one more trailing bit is dropped and buckets join
in pairs. So the buckets are a function of the set of numbers alone: parts that are merged in any order, and from any
number of processes, give equal bits (as in UDDSketch by Epicoco et al., 2020, which collapses logarithmic buckets).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 16_384
"""Buckets of one sketch at most, 12 bytes each. With 5 bits of the mantissa, all finite numbers fit into so many: a
quantile is never further from the true one than 1/64 of it, and exact where there are no more different numbers than
buckets. A normal distribution is known to 1/1024."""
WORST_ERROR = 2.0**-6
"""Half a bucket, as a share of the number, in the worst case; for numbers below 1e-38, as a share of 2e-38."""
LARGEST = 0x7F7FFFFF
"""Bits of the largest finite float32."""

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class Sketch:
    """How many numbers fell into which bucket."""

    def __init__(self, buckets: int = BUCKETS) -> None:
        self.buckets = buckets
        self.shift = 0
        """trailing bits of a float32 that are dropped"""
        self.keys: Integers = np.empty(0, np.int64)
        """ascending; the bits that are left of the magnitude, with the number's sign"""
        self.counts: Integers = np.empty(0, np.int64)

    @property
    def count(self) -> int:
        """Numbers taken in."""
        return int(self.counts.sum())

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in finite numbers f32[n]."""
        # Adding zero makes -0.0 the same number as 0.0.
        bits = (values + np.float32(0)).view(np.int32)
        magnitudes = bits & 0x7FFFFFFF
        keys, counts = np.unique(np.where(bits < 0, -magnitudes, magnitudes), return_counts=True)
        self._take(keys.astype(np.int64), counts.astype(np.int64), 0)

    def merge(self, other: Sketch) -> None:
        """Take in what another sketch has seen."""
        self._take(other.keys, other.counts, other.shift)

    def bounds(self) -> tuple[Doubles, Doubles]:
        """The least and the largest float32 of each bucket, f64[k] each."""
        near = np.abs(self.keys) << self.shift
        far = np.minimum(near + (1 << self.shift) - 1, LARGEST)
        inner, outer = (part.astype(np.int32).view(np.float32).astype(np.float64) for part in (near, far))
        negative, positive = self.keys < 0, self.keys > 0
        return np.where(positive, inner, -outer), np.where(negative, -inner, outer)

    def quantile(self, share: float) -> tuple[float, float]:
        """(the quantile that `numpy.quantile` gives, how far from it this may be); at least one number was taken in."""
        low, high = self.bounds()
        ends = np.cumsum(self.counts)
        place = share * (ends[-1] - 1)
        ranks = np.floor(place), np.ceil(place)
        lower, upper = (int(np.searchsorted(ends, rank, side="right")) for rank in ranks)
        middle, error = (low + high) / 2, (high - low) / 2
        value = middle[lower] + (middle[upper] - middle[lower]) * (place - ranks[0])
        return float(value), float(max(error[lower], error[upper]))

    def histogram(self, edges: Doubles) -> Integers:
        """Numbers between each two of the ascending `edges` f64[b+1], each bucket counted at its middle."""
        low, high = self.bounds()
        places = np.clip(np.searchsorted(edges, (low + high) / 2, side="right") - 1, 0, len(edges) - 2)
        counts = np.zeros(len(edges) - 1, np.int64)
        np.add.at(counts, places, self.counts)
        return counts

    def _take(self, keys: Integers, counts: Integers, shift: int) -> None:
        common = max(self.shift, shift)
        keys = np.concatenate([drop_bits(self.keys, common - self.shift), drop_bits(keys, common - shift)])
        self.keys, self.counts = count_equal(keys, np.concatenate([self.counts, counts]))
        self.shift = common
        while len(self.keys) > self.buckets:
            self.keys, self.counts = count_equal(drop_bits(self.keys, 1), self.counts)
            self.shift += 1


def drop_bits(keys: Integers, bits: int) -> Integers:
    """Keys of the wider buckets, rounded towards zero."""
    return np.sign(keys) * (np.abs(keys) >> bits)


def count_equal(keys: NDArray[Any], counts: Integers) -> tuple[Integers, Integers]:
    """The different keys in ascending order, and the sum of each one's counts."""
    if len(keys) == 0:
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(counts[order], starts)
