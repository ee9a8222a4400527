"""Bytes of pictures to what a vision tower is fed, on the device.

A batch carries frames as they are: an eighth of the size of the floats that Qwen's towers read, for in their patches a
picture stands twice.
"""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from flagscale_vla.config.model import PATCH_FRAMES, PATCH_MERGE, PATCH_PIXELS, VisionKind

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and deviation per channel RGB of values in [0, 1] (CLIP's preprocessing, which Qwen2-VL kept)."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""InternVL's."""


def cut_patches(pixels: Tensor, frames: Tensor, grid: Tensor, patch_frames: int = PATCH_FRAMES) -> Tensor:
    """Patches u8[P, width] of all pictures and films, in reading order.

    Patches of one 2x2 group, which the vision tower merges, lie next to each other; inside a patch the order is
    (channel, frame, row, column). A film's frames are taken `patch_frames` at a time; a last one that is alone, as a
    picture is, stands in all places of its patches (Qwen2.5-VL report, section 2.1.1).

    Args:
        pixels: u8[B], frames of all, each RGB [h, w, 3].
        frames: i64[I] on the CPU, frames of each picture or film.
        grid: i64[I, 3] on the CPU, patches of each along (time, height, width).
        patch_frames: that stand in one patch.
    """
    alike = groupby(zip(frames.tolist(), grid[:, 1:].tolist(), strict=True))
    shapes = [(len(list(run)), count, *(side * PATCH_PIXELS for side in sides), 3) for (count, sides), run in alike]
    runs = zip(pixels.split([math.prod(shape) for shape in shapes]), shapes, strict=True)
    none = pixels.new_empty(0, 3 * patch_frames * PATCH_PIXELS**2)
    return torch.cat([none, *(_cut_alike(clips.reshape(shape), patch_frames) for clips, shape in runs)])


def _cut_alike(clips: Tensor, patch_frames: int) -> Tensor:
    """Patches u8[P, width] of clips u8[N, frames, h, w, 3]."""
    if alone := clips.shape[1] % patch_frames:
        clips = torch.cat([clips, *[clips[:, -1:]] * (patch_frames - alone)], dim=1)
    group = (-1, PATCH_MERGE, PATCH_PIXELS)
    # u8[N, time, frame, rows / 2, 2, 14, columns / 2, 2, 14, channel]
    parts = clips.unflatten(3, group).unflatten(2, group).unflatten(1, (-1, patch_frames))
    return parts.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(-1, 3 * patch_frames * PATCH_PIXELS**2)


def normalize(pixels: Tensor, kind: VisionKind) -> Tensor:
    """f32[P, width] from patches u8[P, width], channel by channel: transformers' values to the last bit.

    Divisors are tensors, for CUDA multiplies by the inverse of a number instead.
    """
    mean, std = (
        torch.tensor(values, device=pixels.device)[:, None]
        for values in (IMAGENET if kind is VisionKind.internvit else CLIP)
    )
    channels = pixels.reshape(len(pixels), 3, pixels.shape[1] // 3).float()
    return (channels.div_(torch.full_like(std, 255.0)).sub_(mean).div_(std)).reshape(pixels.shape)
