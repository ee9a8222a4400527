"""Uniform bins, and the strings of codes that bins make: a fixed number of codes, each free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.tokenizer import Codes, CodesError


def to_bins(values: NDArray[np.float64], bins: int) -> Codes:
    """Bins in [0, bins) of values [...]; 0 to 1 is covered, and what lies outside falls in the bin at that end."""
    return np.clip(np.floor(values * bins), 0, bins - 1).astype(np.int64)


def from_bins(codes: Codes, bins: int) -> NDArray[np.float64]:
    """The middle of each bin, f64[...] in (0, 1)."""
    return (codes + 0.5) / bins


class FixedGrammar:
    """A `Grammar`: strings of exactly `length` codes below `num_codes`, in any order."""

    def __init__(self, length: int, num_codes: int) -> None:
        self.length, self.num_codes = length, num_codes
        self._all, self._none = np.arange(num_codes), np.empty(0, np.int64)

    @property
    def longest(self) -> int:
        """The one length."""
        return self.length

    def legal(self, prefix: Sequence[int]) -> Codes:
        """Every code until the string is complete: see `Grammar`."""
        if len(prefix) > self.length:
            raise CodesError(f"{len(prefix)} codes: a chunk has {self.length}")
        for place, code in enumerate(prefix):
            if not 0 <= code < self.num_codes:
                raise CodesError(f"code {code} at place {place} must lie in [0, {self.num_codes})")
        return self._all if len(prefix) < self.length else self._none

    def stack(self, codes: Sequence[Codes]) -> Codes:
        """Complete strings as one array, i64[N, length].

        Raises:
            CodesError: a string has another length, or a code that is not of the alphabet.
        """
        for string in codes:
            if string.shape != (self.length,):
                raise CodesError(f"{string.size} codes: a chunk has {self.length}")
        rows = np.asarray(codes, np.int64).reshape(-1, self.length)
        wrong = np.argwhere((rows < 0) | (rows >= self.num_codes))
        if len(wrong):
            row, place = wrong[0].tolist()
            raise CodesError(f"code {rows[row, place]} at place {place} must lie in [0, {self.num_codes})")
        return rows
