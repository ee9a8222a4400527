"""Pictures to patches, against transformers' own processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from flagscale_vla.config.image import PixelLimits
from flagscale_vla.config.model import VisionKind
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.images import decode, image_grid, open_image, resize
from flagscale_vla.data.pictures import first_frames
from flagscale_vla.model.pixels import cut_patches, normalize
from tests.samples import carried, encode_picture, patches_of, picture

LIMITS = PixelLimits(56 * 56, 224 * 224)


def normalized(patches: Tensor) -> NDArray[np.float32]:
    """What the vision tower makes of them."""
    return normalize(patches, VisionKind.qwen2_5_vl).numpy()


@pytest.mark.parametrize("sides", [(112, 112), (84, 140), (100, 37), (480, 640), (30, 20), (720, 1280), (29, 800)])
def test_patches_equal_those_of_transformers(sides: tuple[int, int]) -> None:
    pixels = picture(np.random.default_rng(sides[0]), *sides)
    size = {"shortest_edge": LIMITS.min_pixels, "longest_edge": LIMITS.max_pixels}
    theirs = Qwen2VLImageProcessorPil(size=size)([pixels], return_tensors="np")
    grid = image_grid("picture", *sides, LIMITS)
    ours = patches_of([[resize(pixels, grid)]])
    assert theirs["image_grid_thw"].tolist() == [[1, *grid]]
    assert ours.dtype == torch.uint8
    assert ours.shape == (grid[0] * grid[1], 1176)
    assert np.array_equal(normalized(ours), theirs["pixel_values"])


def test_several_pictures_lie_one_after_another() -> None:
    generator = np.random.default_rng(0)
    pictures = [picture(generator, 56, 84), picture(generator, 28, 28)]
    both = patches_of([[pixels] for pixels in pictures])
    assert torch.equal(both, torch.cat([patches_of([[pixels]]) for pixels in pictures]))
    assert patches_of([]).shape == (0, 1176)


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
    assert np.array_equal(normalized(patches_of([frames])), np.concatenate(expected).reshape(-1, 1176))


def test_alike_and_unlike_clips_are_cut_in_their_order() -> None:
    generator = np.random.default_rng(0)
    sides = [(56, 84), (56, 84), (84, 56), (56, 84)]
    clips = [[picture(generator, *side) for _ in range(count)] for side, count in zip(sides, (1, 1, 3, 3), strict=True)]
    assert torch.equal(patches_of(clips), torch.cat([patches_of([frames]) for frames in clips]))


def test_a_patch_of_one_frame_is_half_of_a_picture_s_patch() -> None:
    pixels, frames, grid = carried([[picture(np.random.default_rng(0), 56, 84)]])
    alone = cut_patches(pixels, frames, grid, patch_frames=1).unflatten(1, (3, 1, 196))
    assert torch.equal(alone.expand(-1, -1, 2, -1).flatten(1), cut_patches(pixels, frames, grid))


def test_first_frames_are_read_back_from_what_a_row_carries() -> None:
    generator = np.random.default_rng(0)
    clips = [[picture(generator, 56, 84)], [picture(generator, 28, 56) for _ in range(5)]]
    pixels, frames, grid = carried(clips)
    seen = list(first_frames(pixels.numpy(), frames.tolist(), grid.tolist()))
    for found, expected in zip(seen, [clips[0][0], *clips[1][::2]], strict=True):
        np.testing.assert_array_equal(found, expected)
