"""Bins of equal width."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.tokenizer import Codes


def to_bins(values: NDArray[np.float64], bins: int) -> Codes:
    """Bins in [0, bins) of values [...]; 0 to 1 is covered, and what lies outside falls in the bin at that end."""
    return np.clip(np.floor(values * bins), 0, bins - 1).astype(np.int64)


def from_bins(codes: Codes, bins: int) -> NDArray[np.float64]:
    """The middle of each bin, f64[...] in (0, 1)."""
    return (codes + 0.5) / bins
