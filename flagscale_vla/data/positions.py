"""Multimodal rotary positions of one sample (Qwen2-VL report, section 2.1), as transformers' `get_rope_index`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.model import PATCH_MERGE


def rotary_positions(length: int, starts: Sequence[int], grids: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Positions along (time, height, width).

    Text, states and actions count on by one in all three; an image keeps its time and spans its merged rows and
    columns, and what follows it goes on past the longer of the two.

    Args:
        length: tokens of the sample, T.
        starts: index of each image's first token, ascending.
        grids: patches of each image along (height, width).

    Returns:
        i64[3, T]
    """
    positions = np.empty((3, length), np.int64)
    token = position = 0
    for start, grid in zip(starts, grids, strict=True):
        positions[:, token:start] = np.arange(position, position + start - token)
        position += start - token
        rows, columns = grid[0] // PATCH_MERGE, grid[1] // PATCH_MERGE
        token = start + rows * columns
        positions[0, start:token] = position
        positions[1, start:token] = np.repeat(np.arange(position, position + rows), columns)
        positions[2, start:token] = np.tile(np.arange(position, position + columns), rows)
        position += max(rows, columns)
    positions[:, token:] = np.arange(position, position + length - token)
    return positions
