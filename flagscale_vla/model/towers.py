"""The vision tower of a model, by its kind."""

from __future__ import annotations

from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.model.internvit import TileTower
from flagscale_vla.model.vision import VisionTower


def build_vision(model: ModelConfig, parallel: ParallelConfig, platform: Platform) -> VisionTower | TileTower:
    """A tower of the model's kind: pixels and grid to language tokens [P/4, H]."""
    kind = TileTower if model.vision.kind is VisionKind.internvit else VisionTower
    return kind(model, parallel, platform)
