"""Films against transformers' own video processor, which needs torchvision."""

from __future__ import annotations

import numpy as np
import pytest

from flagscale_vla.config.image import TOKEN_PIXELS, Decoder, VideoConfig
from flagscale_vla.config.model import VisionKind
from flagscale_vla.data.decoders import fit
from flagscale_vla.model.pixels import normalize
from tests.samples import patches_of, picture

MIN_PIXELS, MAX_PIXELS = 16 * TOKEN_PIXELS, 128 * TOKEN_PIXELS
MAX_TOKENS = 100
"""transformers takes nine tenths of them for a film."""


@pytest.mark.parametrize(
    ("count", "sides", "capped"),
    [
        (4, (240, 320), False),
        (5, (480, 640), False),
        (7, (100, 37), False),
        (8, (480, 640), True),
        (3, (112, 140), True),
    ],
)
def test_a_film_equals_transformers(count: int, sides: tuple[int, int], capped: bool) -> None:
    pytest.importorskip("torchvision", reason="transformers' video processors need it")
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    generator = np.random.default_rng(count)
    frames = [picture(generator, *sides) for _ in range(count)]
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    theirs = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=capped, max_video_tokens=MAX_TOKENS)(
        [np.stack(frames)], return_tensors="np"
    )
    total = int(MAX_TOKENS * TOKEN_PIXELS * 0.9) if capped else 0
    config = VideoConfig(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, total_pixels=total, tokens_per_second=2)
    fitted = [fit("k.clip", frame, config.limits(count), Decoder.turbo) for frame in frames]
    rows, columns = (side // 14 for side in fitted[0].shape[:2])
    assert theirs["video_grid_thw"].tolist() == [[-(-count // 2), rows, columns]]
    # Both resize with torch; transformers scales and shifts values in one step, which rounds otherwise.
    ours = normalize(patches_of([fitted]), VisionKind.qwen2_5_vl)
    np.testing.assert_allclose(ours, theirs["pixel_values_videos"], atol=1e-6)
