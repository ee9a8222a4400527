"""Where patches and class tokens of packed images go in InternVL's vision tower; made on the CPU, and kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flagscale_vla.config.model import PATCH_MERGE
from flagscale_vla.model.patches import patch_positions

DUMMY = (1, PATCH_MERGE, PATCH_MERGE)
"""Grid of the image that a row without any has, so that every part of the tower is touched; see `PackedBatch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """How P packed patches of I images run through the tower, each image after its own copy of the class token."""

    places: Tensor
    """i64[P] row of the position embedding of each patch; row 0 is the class token's"""
    rows: Tensor
    """i64[P + I] what each row of the tower is: 0 the class token, 1 + n patch n"""
    patches: Tensor
    """i64[P] where each patch is among the tower's rows"""
    bounds: Tensor
    """i32[1, I+1] borders of images among the tower's rows"""


@lru_cache(maxsize=256)
def plan_tiles(grids: tuple[tuple[int, int, int], ...], side: int) -> TilePlan:
    """Plan packed images.

    Args:
        grids: patches of each image along (time, height, width).
        side: patches along each side of an image that there are positions for.

    Raises:
        ValueError: where an image has another size.
    """
    for grid in grids:
        if grid not in ((1, side, side), DUMMY):
            raise ValueError(f"grid={grid}: this tower has positions for images of {side} x {side} patches alone")
    positions = [patch_positions(*grid) for grid in grids]
    ends = np.cumsum([0, *(len(image) + 1 for image in positions)])
    is_patch = np.ones(ends[-1], bool)
    is_patch[ends[:-1]] = False
    return TilePlan(
        places=torch.from_numpy(1 + np.concatenate(positions) @ np.array([side, 1])),
        rows=torch.from_numpy(np.cumsum(is_patch) * is_patch),
        patches=torch.from_numpy(np.flatnonzero(is_patch)),
        bounds=torch.from_numpy(ends.astype(np.int32)[None]),
    )
