"""Sums and sums of squares of float32 numbers without any rounding, so that no order of adding changes a bit.

A float32 is an integer of 24 bits times a power of two. Integers of one power are added up as integers; the few sums
are put together at the end. In float64, a mean over 10^8 steps would depend on how they were split over processes.
"""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 24
LEAST_POWER = -148
"""Of the smallest subnormal number, as `numpy.frexp` counts: mantissas in [0.5, 1)."""
POWERS = 277
"""From there to that of the largest finite number."""
LOW_BITS = (1 << MANTISSA_BITS) - 1

Integers = NDArray[np.int64]


class ExactSums:
    """Of vectors f32[A0]; holds up to 2^39 of them."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.parts: Integers = np.zeros((3, width, POWERS), np.int64)
        """by power: integers, and the upper and the lower 24 bits of their squares"""

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in finite rows f32[n, A0], n below 2^29."""
        width = self.parts.shape[1]
        mantissas, powers = np.frexp(rows.astype(np.float64))
        numbers = (mantissas * (1 << MANTISSA_BITS)).astype(np.int64)
        # Zero has the power 0 and adds nothing wherever it goes.
        places = (np.arange(width) * POWERS + powers - LEAST_POWER).ravel()
        squares = numbers**2
        for part, values in zip(self.parts, (numbers, squares >> MANTISSA_BITS, squares & LOW_BITS), strict=True):
            # bincount adds float64, which hold these sums exactly.
            sums = np.bincount(places, values.ravel(), width * POWERS)
            part += sums.astype(np.int64).reshape(width, POWERS)
        self.count += len(rows)

    def merge(self, other: ExactSums) -> None:
        """Take in what another has summed."""
        self.parts += other.parts
        self.count += other.count

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, standard deviation) of each dim, the mean rounded once; at least one row was taken in."""
        pairs = [self._moments(dim) for dim in range(self.parts.shape[1])]
        return tuple(mean for mean, _ in pairs), tuple(std for _, std in pairs)

    def _moments(self, dim: int) -> tuple[float, float]:
        total = square = 0
        for power in np.flatnonzero(self.parts[:, dim].any(axis=0)).tolist():
            number, upper, lower = self.parts[:, dim, power].tolist()
            total += number << power
            square += ((upper << MANTISSA_BITS) + lower) << (2 * power)
        unit = MANTISSA_BITS - LEAST_POWER
        mean = Fraction(total, self.count << unit)
        variance = Fraction(self.count * square - total**2, self.count**2 << (2 * unit))
        return float(mean), sqrt(variance)
