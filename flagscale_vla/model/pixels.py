"""Bytes of pictures to what a vision tower is fed, on the device: a batch carries a quarter of the floats' size."""

from __future__ import annotations

import torch
from torch import Tensor

from flagscale_vla.config.model import VisionKind

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and deviation per channel RGB of values in [0, 1] (CLIP's preprocessing, which Qwen2-VL kept)."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""InternVL's."""


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
