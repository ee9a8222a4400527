"""Strings of codes of a fixed length, each code from a range of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flagscale_vla.action.tokenizer import Codes, CodesError, check_row


class RangeGrammar:
    """A `Grammar`: at each place any code of one range.

    Args:
        lows: i64[K], the first code at each place.
        sizes: i64[K], how many codes follow from there.
    """

    def __init__(self, lows: Codes, sizes: Codes) -> None:
        self.lows, self.sizes = lows, sizes

    @staticmethod
    def equal(length: int, num_codes: int) -> RangeGrammar:
        """At each of `length` places any code below `num_codes`."""
        return RangeGrammar(np.zeros(length, np.int64), np.full(length, num_codes))

    @property
    def longest(self) -> int:
        """The one length."""
        return len(self.lows)

    def legal(self, prefix: Sequence[int]) -> Codes:
        """The codes of the next place: see `Grammar`."""
        place = len(prefix)
        if place > self.longest:
            raise CodesError(f"{place} codes: a chunk has {self.longest}")
        self._check(np.asarray(prefix, np.int64)[None])
        if place == self.longest:
            return np.empty(0, np.int64)
        return np.arange(self.lows[place], self.lows[place] + self.sizes[place])

    def stack(self, codes: Sequence[Codes]) -> Codes:
        """Complete strings as one array, i64[N, K].

        Raises:
            CodesError: a string has another length, or a code that is not of its place's range.
        """
        for string in codes:
            check_row(string)
            if len(string) != self.longest:
                raise CodesError(f"{len(string)} codes: a chunk has {self.longest}")
        rows = np.asarray(codes, np.int64).reshape(-1, self.longest)
        self._check(rows)
        return rows

    def _check(self, rows: Codes) -> None:
        """Refuse prefixes i64[N, places] with a code outside its place's range."""
        places = rows.shape[1]
        lows, highs = self.lows[:places], self.lows[:places] + self.sizes[:places]
        wrong = np.argwhere((rows < lows) | (rows >= highs))
        if len(wrong):
            row, place = wrong[0].tolist()
            raise CodesError(f"code {rows[row, place]} at place {place} must lie in [{lows[place]}, {highs[place]})")
