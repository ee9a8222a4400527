"""Rotary positions, against transformers' own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from flagscale_vla.config.image import VideoConfig
from flagscale_vla.data.positions import rotary_positions

TEXT, IMAGE, VIDEO = 0, 1, 2


class Rope:
    """As much of transformers' model as `get_rope_index` reads."""

    config = Qwen2_5_VLConfig()
    get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids
    get_rope_index = Qwen2_5_VLModel.get_rope_index


Seen = tuple[tuple[int, int, int], float]
"""Grid of a picture, or of a film and how many frames a second it has."""
STILL = 0.0


def stills(*grids: tuple[int, int]) -> list[Seen]:
    return [((1, *grid), STILL) for grid in grids]


@pytest.mark.parametrize(
    ("texts", "seen"),
    [
        ([7], []),
        ([5, 9], stills((8, 8))),
        ([4, 2, 11], stills((4, 10), (12, 2))),
        ([1, 1, 1, 0], stills((2, 2), (2, 6), (8, 4))),
        ([3, 2, 2, 2, 30], stills((8, 8), (16, 22), (2, 2), (8, 8))),
        ([5, 9], [((3, 4, 4), 1.0)]),
        ([5, 9], [((7, 4, 6), 30.0)]),
        ([5, 9], [((30, 2, 2), 0.7)]),
        ([2, 3, 4, 5, 6], [((2, 4, 4), 2.0), *stills((8, 8)), ((5, 2, 6), 29.97), *stills((2, 2))]),
    ],
)
def test_positions_equal_those_of_transformers(texts: list[int], seen: list[Seen]) -> None:
    kinds: list[int] = []
    starts: list[int] = []
    for place, count in enumerate(texts):
        kinds += [TEXT] * count
        if place < len(seen):
            starts.append(len(kinds))
            kinds += [VIDEO if seen[place][1] else IMAGE] * (math.prod(seen[place][0]) // 4)
    images, films = ([(grid, fps) for grid, fps in seen if bool(fps) is film] for film in (False, True))
    theirs, _ = Rope().get_rope_index(
        input_ids=torch.zeros(1, len(kinds), dtype=torch.long),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor([grid for grid, _ in images]) if images else None,
        video_grid_thw=torch.tensor([grid for grid, _ in films]) if films else None,
        # As transformers' processor gives it: two frames' time.
        second_per_grid_ts=[2 / fps for _, fps in films] if films else None,
    )
    rate = Rope.config.vision_config.tokens_per_second
    video = VideoConfig(min_pixels=784, max_pixels=784, total_pixels=0, tokens_per_second=rate)
    strides = [video.stride(fps) if fps else 1.0 for _, fps in seen]
    ours = rotary_positions(len(kinds), starts, [grid for grid, _ in seen], strides)
    assert np.array_equal(ours, theirs[:, 0].numpy())


def test_qwen2_vl_counts_steps_of_time() -> None:
    video = VideoConfig(min_pixels=784, max_pixels=784, total_pixels=0, tokens_per_second=0)
    assert video.stride(30.0) == video.stride(0.5) == 1.0
    positions = rotary_positions(8, [1], [(3, 2, 4)], [1.0])
    assert positions[0].tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert positions[2].tolist() == [0, 1, 2, 1, 2, 1, 2, 3]
