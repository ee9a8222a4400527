"""Multimodal rotary positions of one sample (Qwen2-VL report, section 2.1), as transformers' `get_rope_index`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.model import PATCH_MERGE


def rotary_positions(
    length: int, starts: Sequence[int], grids: Sequence[tuple[int, int, int]], strides: Sequence[float]
) -> NDArray[np.int64]:
    """Positions along (time, height, width).

    Text, states and actions count on by one in all three; a picture keeps its time and spans its merged rows and
    columns; a film's time goes on by its stride with every step; what follows either goes on past the longer of height
    and width.

    Args:
        length: tokens of the sample, T.
        starts: index of the first token of each picture or film, ascending.
        grids: patches of each along (time, height, width).
        strides: positions from one of its steps of time to the next.

    Returns:
        i64[3, T]
    """
    positions = np.empty((3, length), np.int64)
    token = position = 0
    for start, grid, stride in zip(starts, grids, strides, strict=True):
        positions[:, token:start] = np.arange(position, position + start - token)
        position += start - token
        block = grid_positions(grid, stride)
        token = start + block.shape[1]
        np.add(block, position, out=positions[:, start:token])
        position += max(grid[1:]) // PATCH_MERGE
    positions[:, token:] = np.arange(position, position + length - token)
    return positions


@lru_cache(maxsize=256)
def grid_positions(grid: tuple[int, int, int], stride: float) -> NDArray[np.int64]:
    """Positions i64[3, n] of the n merged patches of a picture or film that begins at 0; a run sees few grids."""
    steps, rows, columns = grid[0], grid[1] // PATCH_MERGE, grid[2] // PATCH_MERGE
    # In float32 and cut to whole numbers, as transformers does.
    times = (np.arange(steps, dtype=np.float32) * np.float32(stride)).astype(np.int64)
    return np.stack([axis.ravel() for axis in np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")])
