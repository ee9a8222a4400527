"""Which codes of each codebook are used, and how evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.train.tokenizer_errors import entropy_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class BookUse:
    """One codebook, over training chunks of all robots."""

    kind: str
    layer: int
    """from 0, coarse, on"""
    codes: int
    used: int
    entropy: float
    """bits"""

    @property
    def share_used(self) -> float:
        """Share of the codes that any chunk has."""
        return self.used / self.codes

    @property
    def perplexity(self) -> float:
        """How many codes would be as uncertain if all were as frequent."""
        return float(2.0**self.entropy)


def book_use(kind: str, layer: int, counts: NDArray[np.int64]) -> BookUse:
    """Of the counts i64[codes] of one codebook."""
    used = int(np.count_nonzero(counts))
    return BookUse(kind=kind, layer=layer, codes=len(counts), used=used, entropy=entropy_bits(counts))


def least_used(books: Sequence[BookUse]) -> float | None:
    """The smallest share of codes used of any codebook; None of none."""
    return min((book.share_used for book in books), default=None)
