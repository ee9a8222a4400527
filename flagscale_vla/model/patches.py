"""Where patches of packed images go in Qwen's vision towers: windows, images and 2-D positions.

All on the CPU, from the images' grids alone, and kept, since few shapes of image occur.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flagscale_vla.config.model import PATCH_MERGE, PATCH_PIXELS

GROUP = PATCH_MERGE * PATCH_MERGE
"""patches merged into one language token"""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPlan:
    """How P packed patches run through the tower, P/4 groups of four at a time."""

    window_order: Tensor
    """i64[P/4] groups in window order"""
    restore: Tensor
    """i64[P/4] groups back in image order"""
    bounds: Tensor
    """i32[2, N+1] borders of windows (row 0) and of images (row 1); the shorter row repeats its end"""
    positions: Tensor
    """i64[P, 2] row and column of each patch, in window order"""


def _image_windows(height: int, width: int, window: int) -> list[Rows]:
    """Groups of one frame of height x width groups, window by window, row by row."""
    groups = np.arange(height * width, dtype=np.int64).reshape(height, width)
    rows, columns = range(0, height, window), range(0, width, window)
    return [groups[r : r + window, c : c + window].reshape(-1) for r in rows for c in columns]


def patch_positions(frames: int, height: int, width: int) -> Rows:
    """Row and column of each patch of one image, in merge order, i64[frames x height x width, 2]."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    grid = np.stack([rows, columns], axis=-1)
    merged = grid.reshape(height // PATCH_MERGE, PATCH_MERGE, width // PATCH_MERGE, PATCH_MERGE, 2)
    return np.tile(merged.transpose(0, 2, 1, 3, 4).reshape(-1, 2), (frames, 1))


@lru_cache(maxsize=256)
def plan_patches(grids: tuple[tuple[int, int, int], ...], window_pixels: int) -> PatchPlan:
    """Plan packed images.

    Args:
        grids: patches of each image along (time, height, width).
        window_pixels: side of a window in pixels; 0 where there are none, and a window is a whole frame.
    """
    window = window_pixels // (PATCH_PIXELS * PATCH_MERGE) or max(max(grid) for grid in grids)
    windows: list[Rows] = []
    frames: list[int] = []
    done = 0
    for count, height, width in grids:
        rows, columns = height // PATCH_MERGE, width // PATCH_MERGE
        for _ in range(count):
            windows += [groups + done for groups in _image_windows(rows, columns, window)]
            done += rows * columns
            frames.append(rows * columns)
    order = np.concatenate(windows)
    positions = np.concatenate([patch_positions(*grid) for grid in grids])
    in_windows = positions.reshape(-1, GROUP, 2)[order].reshape(-1, 2)
    return PatchPlan(
        window_order=torch.from_numpy(order),
        restore=torch.from_numpy(np.argsort(order)),
        bounds=_bounds([len(groups) for groups in windows], frames),
        positions=torch.from_numpy(in_windows),
    )


def _bounds(windows: list[int], frames: list[int]) -> Tensor:
    ends = [np.cumsum([0, *sizes]) * GROUP for sizes in (windows, frames)]
    longest = max(len(row) for row in ends)
    padded = [np.pad(row, (0, longest - len(row)), mode="edge") for row in ends]
    return torch.from_numpy(np.stack(padded).astype(np.int32))
