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
        # Plain numbers, for a prefix is looked at code by code.
        self._ranges = [range(low, low + size) for low, size in zip(lows.tolist(), sizes.tolist(), strict=True)]

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
        for number, (code, taken) in enumerate(zip(prefix, self._ranges, strict=False)):
            if not taken.start <= code < taken.stop:
                raise CodesError(_refusal(code, number, taken))
        following = range(0) if place == self.longest else self._ranges[place]
        return np.arange(following.start, following.stop)

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
        wrong = np.argwhere((rows < self.lows) | (rows >= self.lows + self.sizes))
        if len(wrong):
            row, place = wrong[0].tolist()
            raise CodesError(_refusal(rows[row, place], place, self._ranges[place]))
        return rows


def _refusal(code: int, place: int, taken: range) -> str:
    return f"code {code} at place {place} must lie in [{taken.start}, {taken.stop})"
