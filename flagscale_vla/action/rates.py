"""FAST and BEAST at a wanted number of codes a chunk, so that errors are compared at equal rates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from flagscale_vla.action.beast import Beast, BeastSettings, fit_beast
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
    some = {robot: values[:: 1 + len(values) // MOST_FITTED] for robot, values in fitted.items()}
    low, high = SCALES
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        codes = mean_codes(fit_fast(some, units, scale=middle, vocab_size=vocab_size), measured)
        low, high = (middle, high) if codes < wanted else (low, middle)
    found = [fit_fast(fitted, units, scale=scale, vocab_size=vocab_size) for scale in (low, high)]
    nearest = min(found, key=lambda fast: abs(mean_codes(fast, measured) - wanted))
    logger.info("FAST at scale %.3g has %.2f codes a chunk", nearest.settings.scale, mean_codes(nearest, measured))
    return nearest


def beast_at_rate(
    fitted: Mapping[str, Floats],
    measured: Mapping[str, Floats],
    units: Units,
    *,
    wanted: float,
    settings: BeastSettings,
) -> Beast:
    """BEAST with the fewest control points whose mean number of codes on `measured` is at least `wanted`.

    It is rounded up, so that BEAST never has fewer codes than what it is compared with. All its codes are of one size,
    so bins change the error alone. Where the points are too few for a degree, the highest that they allow is taken.

    Raises:
        ValueError: see `fit_beast`.
    """
    dims = sum(values.shape[0] * values.shape[2] for values in measured.values())
    chunks = sum(len(values) for values in measured.values())
    points = max(1, -int(-wanted * chunks // dims))
    degree, gripper = min(settings.degree, points - 1), min(settings.gripper_degree, points - 1)
    return fit_beast(fitted, units, replace(settings, points=points, degree=degree, gripper_degree=gripper))
