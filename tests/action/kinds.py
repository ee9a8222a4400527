"""One small fitted tokenizer of each kind, for what must hold of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flagscale_vla.action.beast import BeastSettings, fit_beast
from flagscale_vla.action.binning import Binning
from flagscale_vla.action.fast import fit_fast
from flagscale_vla.action.tokenizer import ActionTokenizer, Floats
from flagscale_vla.action.units import Units
from tests.action.codec import fit_omnisat

Fit = Callable[[Mapping[str, Floats], Units], ActionTokenizer]
BEAST = BeastSettings(points=6, degree=4, gripper_degree=0, ridge=1e-6, bins=64)

KINDS: dict[str, Fit] = {
    "fast": lambda chunks, units: fit_fast(chunks, units, scale=10.0, vocab_size=512),
    "beast": lambda chunks, units: fit_beast(chunks, units, BEAST),
    "binning": lambda _, units: Binning(bins=64, units=units),
    "omnisat": fit_omnisat,
}
"""How each kind is fitted on chunks f32[N, H, A0], by robot."""
