"""Rotary positions, against transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from flagscale_vla.data.positions import rotary_positions

TEXT, IMAGE = 0, 1


class Rope:
    """As much of transformers' model as `get_rope_index` reads."""

    config = Qwen2_5_VLConfig()
    get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids
    get_rope_index = Qwen2_5_VLModel.get_rope_index


@pytest.mark.parametrize(
    ("texts", "grids"),
    [
        ([7], []),
        ([5, 9], [(8, 8)]),
        ([4, 2, 11], [(4, 10), (12, 2)]),
        ([1, 1, 1, 0], [(2, 2), (2, 6), (8, 4)]),
        ([3, 2, 2, 2, 30], [(8, 8), (16, 22), (2, 2), (8, 8)]),
    ],
)
def test_positions_equal_those_of_transformers(texts: list[int], grids: list[tuple[int, int]]) -> None:
    kinds: list[int] = []
    starts: list[int] = []
    for place, count in enumerate(texts):
        kinds += [TEXT] * count
        if place < len(grids):
            starts.append(len(kinds))
            kinds += [IMAGE] * (grids[place][0] * grids[place][1] // 4)
    theirs, _ = Rope().get_rope_index(
        input_ids=torch.zeros(1, len(kinds), dtype=torch.long),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor([(1, *grid) for grid in grids]) if grids else None,
    )
    assert np.array_equal(rotary_positions(len(kinds), starts, grids), theirs[:, 0].numpy())
