"""One function in front of everything that decodes pictures: bytes in, u8 pixels on their grid of patches out.

The header alone is read first, alike for every back end: what is too large or too long is refused before a byte of
pixels is made. The back ends differ in pixels and in speed: a recipe names its own, and a policy resizes with the same.

| back end | decoding | resizing to the grid |
|---|---|---|
| pillow | full size | Pillow's bicubic: transformers' pictures, bit for bit |
| turbo | JPEG at 1, 1/2, 1/4 or 1/8; others as pillow | torch's antialiased bicubic: within 2 of 255 of Pillow's |
| dali, dali_gpu | full size | DALI's antialiased cubic |

turbo decodes at the smallest of those scales at which both sides are still at least `SPARE` times the target's. At full
size its pixels before resizing are Pillow's own; at a smaller one, resized photographs differ by less than 1.5 of 255
on average and by some 12 at most. What libjpeg-turbo or DALI does not take, as a JPEG in CMYK, goes to Pillow: all back
ends refuse the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F

from flagscale_vla.config.checks import check
from flagscale_vla.config.image import Decoder
from flagscale_vla.config.model import PATCH_PIXELS
from flagscale_vla.data import images
from flagscale_vla.data.headers import picture_sides
from flagscale_vla.data.images import Limits, Pixels
from flagscale_vla.data.shards import JPEG_MAGIC

SPARE = 2
"""turbo: pixels along a side that scaled decoding leaves for each one of the target."""
EIGHTHS = (1, 2, 4)
"""Scales of libjpeg-turbo that cost less than the full size; the others between are slower."""


class Backend(Protocol):
    """Decodes, and resizes what it or a camera gave."""

    def decode(self, name: str, encoded: bytes, height: int, width: int) -> Pixels:
        """u8[h, w, 3] RGB, of at least `height` x `width`, which is of the full size or of a scale of it.

        Raises:
            BadSampleError: the bytes are no whole picture.
        """
        ...

    def resize(self, pixels: Pixels, height: int, width: int) -> Pixels:
        """u8[height, width, 3]."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture, of which the header was read."""

    name: str
    """of the tar member, for errors"""
    encoded: bytes
    """JPEG or PNG"""
    sides: tuple[int, int]
    """height and width that it has"""
    target: tuple[int, int]
    """height and width on its grid of patches"""


def inspect(name: str, encoded: bytes, limits: Limits) -> Picture:
    """Read a picture's header.

    Args:
        name: of the tar member, for errors.
        encoded: JPEG or PNG.
        limits: area of the resized picture.

    Raises:
        BadSampleError: not a JPEG or PNG, or far too large or too long.
    """
    sides = picture_sides(name, encoded)
    return Picture(name, encoded, sides, target(name, *sides, limits))


def read(picture: Picture, decoder: Decoder) -> Pixels:
    """A picture on its grid of patches, u8[14 rows, 14 columns, 3] RGB, decoded by this back end.

    Raises:
        BadSampleError: the bytes are no whole picture.
    """
    backend = open_backend(decoder)
    least = scaled_sides(*picture.sides, *picture.target)
    return fitted(backend.decode(picture.name, picture.encoded, *least), *picture.target, backend)


def load(name: str, encoded: bytes, limits: Limits, decoder: Decoder) -> Pixels:
    """`read` what `inspect` gives."""
    return read(inspect(name, encoded, limits), decoder)


def fit(name: str, pixels: Pixels, limits: Limits, decoder: Decoder) -> Pixels:
    """A picture that is decoded already, as a camera's, on its grid of patches.

    Raises:
        BadSampleError: its sides cannot be kept in proportion.
    """
    height, width = target(name, pixels.shape[0], pixels.shape[1], limits)
    return fitted(pixels, height, width, open_backend(decoder))


def target(name: str, height: int, width: int, limits: Limits) -> tuple[int, int]:
    """Height and width of a picture on its grid, in pixels."""
    rows, columns = images.image_grid(name, height, width, limits)
    return rows * PATCH_PIXELS, columns * PATCH_PIXELS


def fitted(pixels: Pixels, height: int, width: int, backend: Backend) -> Pixels:
    """The picture in this size; itself where it has it."""
    return pixels if pixels.shape[:2] == (height, width) else backend.resize(pixels, height, width)


@cache
def open_backend(decoder: Decoder) -> Backend:
    """The back end of that name.

    Raises:
        ConfigError: DALI is asked for and is not installed.
    """
    match decoder:
        case Decoder.pillow:
            return PillowBackend()
        case Decoder.turbo:
            return TurboBackend()
        case Decoder.dali:
            return DaliBackend(decoder, "cpu")
        case Decoder.dali_gpu:
            return DaliBackend(decoder, "gpu")


class PillowBackend:
    """The one that the others are measured against."""

    def decode(self, name: str, encoded: bytes, height: int, width: int) -> Pixels:
        """At full size."""
        return images.decode(name, encoded)

    def resize(self, pixels: Pixels, height: int, width: int) -> Pixels:
        """Bicubic."""
        return images.resize(pixels, (height // PATCH_PIXELS, width // PATCH_PIXELS))


class TurboBackend:
    """libjpeg-turbo through simplejpeg."""

    def decode(self, name: str, encoded: bytes, height: int, width: int) -> Pixels:
        """At this scale."""
        if not encoded.startswith(JPEG_MAGIC):
            return images.decode(name, encoded)
        try:
            return simplejpeg.decode_jpeg(encoded, "RGB", min_height=height, min_width=width)
        except ValueError:
            return images.decode(name, encoded)

    def resize(self, pixels: Pixels, height: int, width: int) -> Pixels:
        """Bicubic, with Pillow's kernels in fixed-point numbers of fewer bits."""
        rows = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        # In this order of steps torch sees channels that lie together, and resizes them together.
        channels = rows.unsqueeze(0).permute(0, 3, 1, 2)
        resized = F.interpolate(channels, (height, width), mode="bicubic", antialias=True)
        return resized.squeeze(0).permute(1, 2, 0).numpy()


def scaled_sides(full_height: int, full_width: int, height: int, width: int) -> tuple[int, int]:
    """Sides at which a JPEG of full_height x full_width is decoded for a target of height x width."""
    for eighths in EIGHTHS:
        sides = (-(-full_height * eighths // 8), -(-full_width * eighths // 8))
        if sides[0] >= SPARE * height and sides[1] >= SPARE * width:
            return sides
    return full_height, full_width


class DaliBackend:
    """NVIDIA DALI, one picture at a time through its dynamic mode.

    On the CPU it is tested with 2.4.0; no GPU was there to run nvJPEG on.
    """

    def __init__(self, decoder: Decoder, device: str) -> None:
        found = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
        rule = "needs NVIDIA DALI, the package nvidia-dali-cuda120"
        check(found, "data.image.decoder", decoder.value, rule, Decoder.turbo.value)
        self.device = device
        self._dali: Any = import_module("nvidia.dali.experimental.dynamic")
        self._cubic: Any = import_module("nvidia.dali.types").INTERP_CUBIC

    def decode(self, name: str, encoded: bytes, height: int, width: int) -> Pixels:
        """At full size."""
        content = self._dali.tensor(np.frombuffer(encoded, np.uint8))
        try:
            return self._pixels(self._dali.decoders.image(content, device=self.device))
        except RuntimeError:
            return images.decode(name, encoded)

    def resize(self, pixels: Pixels, height: int, width: int) -> Pixels:
        """Cubic, antialiased."""
        source = self._dali.tensor(pixels, layout="HWC", device=self.device)
        return self._pixels(self._dali.resize(source, size=(height, width), interp_type=self._cubic, antialias=True))

    def _pixels(self, tensor: Any) -> Pixels:
        return np.asarray(tensor.cpu())
