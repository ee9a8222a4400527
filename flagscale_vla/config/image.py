"""Settings of pictures and films: how many tokens they take, what decodes them, how training changes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from flagscale_vla.config.checks import check
from flagscale_vla.config.model import PATCH_FRAMES, PATCH_MERGE, PATCH_PIXELS

TOKEN_PIXELS = (PATCH_PIXELS * PATCH_MERGE) ** 2
"""Pixels of the resized picture behind one language token."""
LEAST_SPREAD = 1.05
"""A film's largest frame is never below so many times its smallest (transformers' Qwen2-VL video processor)."""


class Decoder(Enum):
    """What decodes and resizes a picture; `data.decoders` says how they differ."""

    pillow = "pillow"
    """Pillow: transformers' own pictures, bit for bit"""
    turbo = "turbo"
    """libjpeg-turbo, decoding large JPEGs at a half, a quarter or an eighth, and torch's resizing"""
    dali = "dali"
    """NVIDIA DALI on the CPU"""
    dali_gpu = "dali_gpu"
    """NVIDIA DALI with nvJPEG"""


class PixelLimits(NamedTuple):
    """Smallest and largest area of a resized picture."""

    min_pixels: int
    max_pixels: int


@dataclass(slots=True, kw_only=True)
class VideoConfig:
    """How the frames of a film become patches. A shard's film is already sampled; see docs/shards.md."""

    min_pixels: int
    max_pixels: int
    """of each frame"""
    total_pixels: int
    """of each of the two frames in a step of time, over all steps: long films get smaller frames; 0 for no limit"""
    tokens_per_second: int
    """rotary time positions in a second, 2 for Qwen2.5-VL; 0 counts pairs of frames, as Qwen2-VL does"""

    def __post_init__(self) -> None:
        check_pixels("data.image.video", self.min_pixels, self.max_pixels)
        ok = self.total_pixels == 0 or self.total_pixels >= self.min_pixels
        rule = f"must be 0, or at least min_pixels={self.min_pixels}"
        check(ok, "data.image.video.total_pixels", self.total_pixels, rule, 0)
        rule = "must not be negative"
        check(self.tokens_per_second >= 0, "data.image.video.tokens_per_second", self.tokens_per_second, rule, 2)

    def limits(self, frames: int) -> PixelLimits:
        """Of each frame of a film of so many: an even share of `total_pixels`, as qwen-vl-utils does."""
        if not self.total_pixels:
            return PixelLimits(self.min_pixels, self.max_pixels)
        share = self.total_pixels * PATCH_FRAMES // frames
        return PixelLimits(self.min_pixels, max(min(self.max_pixels, share), int(self.min_pixels * LEAST_SPREAD)))

    def stride(self, fps: float) -> float:
        """Rotary time positions from one pair of frames to the next."""
        return self.tokens_per_second * PATCH_FRAMES / fps if self.tokens_per_second else 1.0


@dataclass(slots=True, kw_only=True)
class AugmentConfig:
    """How training changes the pictures of robots' samples. A range is [lowest, highest], or [] for never."""

    most: int
    """changes that a picture gets, drawn among those that are not off, in random order; 0 for none"""
    shift: int
    """largest random shift of the whole picture along each side, in pixels of the resized one; 0 for never"""
    brightness: list[float]
    contrast: list[float]
    saturation: list[float]
    sharpness: list[float]
    """factors; 1 leaves a picture as it is"""
    hue: list[float]
    """turns of the colour circle, in [-0.5, 0.5]"""
    crop: list[float]
    """share of the area that is kept, in the picture's own proportions, in (0, 1]"""
    rotate: list[float]
    """degrees, counter-clockwise"""

    def __post_init__(self) -> None:
        for name in ("most", "shift"):
            value = self.__getattribute__(name)
            check(value >= 0, f"data.image.augment.{name}", value, "must not be negative", 0)
        for name in ("brightness", "contrast", "saturation", "sharpness"):
            self._check_range(name, 0.0, float("inf"), [0.8, 1.2])
        self._check_range("hue", -0.5, 0.5, [-0.05, 0.05])
        self._check_range("crop", 0.01, 1.0, [0.95, 1.0])
        self._check_range("rotate", -180.0, 180.0, [-3.0, 3.0])

    def _check_range(self, name: str, least: float, most: float, passes: list[float]) -> None:
        ends: list[float] = self.__getattribute__(name)
        ok = not ends or (len(ends) == 2 and least <= ends[0] <= ends[1] <= most)
        rule = f"must be [] or two numbers in [{least}, {most}], the smaller first"
        check(ok, f"data.image.augment.{name}", ends, rule, passes)


@dataclass(slots=True, kw_only=True)
class ImageConfig:
    """How a picture becomes patches."""

    min_pixels: int
    max_pixels: int
    decoder: Decoder
    augment: AugmentConfig
    video: VideoConfig

    def __post_init__(self) -> None:
        check_pixels("data.image", self.min_pixels, self.max_pixels)


def check_pixels(key: str, min_pixels: int, max_pixels: int) -> None:
    """Refuse limits that no picture of whole tokens is within."""
    rule = f"must be at least {TOKEN_PIXELS}, one token"
    check(min_pixels >= TOKEN_PIXELS, f"{key}.min_pixels", min_pixels, rule, TOKEN_PIXELS)
    check(
        max_pixels >= min_pixels,
        f"{key}.max_pixels",
        max_pixels,
        f"must be at least min_pixels={min_pixels}",
        min_pixels,
    )
