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
HALVINGS = 10
"""Fits of FAST in a search: its scale is then known to 0.8 %."""
MOST_FITTED = 20_000
"""Chunks of each robot that a search fits on; the last fit takes all."""


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
    some = _some(fitted)
    low, high = SCALES
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        codes = mean_codes(fit_fast(some, units, scale=middle, vocab_size=vocab_size), measured)
        low, high = (middle, high) if codes < wanted else (low, middle)
    found = [fit_fast(fitted, units, scale=scale, vocab_size=vocab_size) for scale in (low, high)]
    nearest = min(found, key=lambda fast: abs(mean_codes(fast, measured) - wanted))
    logger.info("FAST at scale %.3g has %.2f codes a chunk", nearest.settings.scale, mean_codes(nearest, measured))
    return nearest


def _some(chunks: Mapping[str, Floats]) -> dict[str, Floats]:
    """At most `MOST_FITTED` chunks of each robot."""
    return {robot: values[:: 1 + (len(values) - 1) // MOST_FITTED] for robot, values in chunks.items() if len(values)}
