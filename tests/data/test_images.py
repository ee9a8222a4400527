"""Pictures to patches, against transformers' own processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from flagscale_vla.config.image import PixelLimits
from flagscale_vla.config.model import VisionKind
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.images import decode, image_grid, open_image, resize, to_patches
from flagscale_vla.model.pixels import normalize
from tests.samples import encode_picture, picture

LIMITS = PixelLimits(56 * 56, 224 * 224)


def normalized(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the vision tower makes of them."""
    return normalize(torch.from_numpy(patches), VisionKind.qwen2_5_vl).numpy()


@pytest.mark.parametrize("sides", [(112, 112), (84, 140), (100, 37), (480, 640), (30, 20), (720, 1280), (29, 800)])
def test_patches_equal_those_of_transformers(sides: tuple[int, int]) -> None:
    pixels = picture(np.random.default_rng(sides[0]), *sides)
    size = {"shortest_edge": LIMITS.min_pixels, "longest_edge": LIMITS.max_pixels}
    theirs = Qwen2VLImageProcessorPil(size=size)([pixels], return_tensors="np")
    grid = image_grid("picture", *sides, LIMITS)
    ours = to_patches([[resize(pixels, grid)]])
    assert theirs["image_grid_thw"].tolist() == [[1, *grid]]
    assert ours.dtype == np.uint8
    assert ours.shape == (grid[0] * grid[1], 1176)
    assert np.array_equal(normalized(ours), theirs["pixel_values"])


def test_several_pictures_lie_one_after_another() -> None:
    generator = np.random.default_rng(0)
    pictures = [picture(generator, 56, 84), picture(generator, 28, 28)]
    both = to_patches([[pixels] for pixels in pictures])
    assert np.array_equal(both, np.concatenate([to_patches([[pixels]]) for pixels in pictures]))
    assert to_patches([]).shape == (0, 1176)


def test_png_is_kept_exactly_and_grey_becomes_colour() -> None:
    pixels = picture(np.random.default_rng(0), 30, 50)
    assert np.array_equal(decode("a", encode_picture(pixels, "PNG")), pixels)
    assert decode("a", encode_picture(pixels[..., 0])).shape == (30, 50, 3)


def test_a_broken_picture_is_named() -> None:
    whole = encode_picture(picture(np.random.default_rng(0), 112, 112))
    with pytest.raises(BadSampleError, match=r"k\.front: cannot be decoded"):
        decode("k.front", whole[: len(whole) // 2])
    with pytest.raises(BadSampleError, match=r"k\.front: not a JPEG or PNG"):
        decode("k.front", b"\xff\xd8\xff garbage")
    with pytest.raises(BadSampleError, match="not a JPEG or PNG"):
        open_image("k.front", b"")
    with pytest.raises(BadSampleError, match="more than 200 times the other"):
        image_grid("k.front", 1, 300, LIMITS)


def test_a_far_too_large_picture_is_refused_before_decoding() -> None:
    black = np.zeros((8200, 8200, 3), np.uint8)
    with pytest.raises(BadSampleError, match="8200x8200 pixels; at most"):
        decode("k.front", encode_picture(black))


def transformers_patches(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """f32[P, 3, 2, 196] of one frame."""
    size = {"shortest_edge": 28 * 28, "longest_edge": 1 << 20}
    patches = Qwen2VLImageProcessorPil(size=size)([pixels], return_tensors="np")["pixel_values"]
    return patches.reshape(len(patches), 3, 2, 196)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_a_films_patches_pair_its_frames(count: int) -> None:
    generator = np.random.default_rng(count)
    frames = [picture(generator, 56, 84) for _ in range(count)]
    padded = [*frames, frames[-1]]
    # transformers puts a picture into both places of a patch; a film has its two frames there.
    expected = [
        np.stack([transformers_patches(padded[n])[:, :, 0], transformers_patches(padded[n + 1])[:, :, 1]], axis=2)
        for n in range(0, count, 2)
    ]
    assert np.array_equal(normalized(to_patches([frames])), np.concatenate(expected).reshape(-1, 1176))
