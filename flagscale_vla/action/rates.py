"""FAST at a wanted number of codes a chunk, so that errors are compared at equal rates."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flagscale_vla.action.fast import Fast, fit_fast
from flagscale_vla.action.tokenizer import ActionTokenizer, Floats
from flagscale_vla.action.units import Units

logger = logging.getLogger(__name__)

SCALES = (0.25, 1024.0)
"""FAST's scale is looked for between these."""
FITS = 11
"""Of FAST in a search: its scale is then known to 0.4 %."""


def mean_codes(tokenizer: ActionTokenizer, chunks: Mapping[str, Floats]) -> float:
    """Mean length of the strings of all chunks f32[N, H, A0], by robot, together."""
    lengths = [len(codes) for robot, values in chunks.items() for codes in tokenizer.encode(robot, values)]
    return sum(lengths) / len(lengths)


def fast_at_rate(
    fitted: Mapping[str, Floats], measured: Mapping[str, Floats], units: Units, *, wanted: float, vocab_size: int
) -> Fast:
    """FAST at the scale whose mean number of codes on `measured` is nearest to `wanted`; fitted on `fitted`.

    More scale is more codes, so the scale is found by halving its logarithm.

    Raises:
        ValueError: see `fit_fast`.
    """
    low, high = SCALES
    tried = []
    for _ in range(FITS):
        middle = (low * high) ** 0.5
        fast = fit_fast(fitted, units, scale=middle, vocab_size=vocab_size)
        codes = mean_codes(fast, measured)
        logger.info("FAST at scale %.3g has %.2f codes a chunk", middle, codes)
        low, high = (middle, high) if codes < wanted else (low, middle)
        tried.append((abs(codes - wanted), fast))
    return min(tried, key=lambda entry: entry[0])[1]
