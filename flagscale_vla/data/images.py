"""A picture is decoded and resized to Qwen2.5-VL's grid of patches.

Equal to `transformers`' Qwen2-VL image processor; the steps are those of Qwen2-VL's report, section 2.1.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from flagscale_vla.config.model import PATCH_MERGE, PATCH_PIXELS
from flagscale_vla.data.faults import BadSampleError

LONGEST_RATIO = 200
MOST_PIXELS = 1 << 26
"""A larger picture is refused before it is decoded."""
MOST_SCANS = 100
"""A progressive JPEG of more is refused: each is decoded into all of the picture, however few its bytes."""
SCAN_MARKER = b"\xff\xda"
FORMATS = ("JPEG", "PNG")
Pixels = NDArray[np.uint8]


class Limits(Protocol):
    """Smallest and largest area of a resized picture, in pixels."""

    @property
    def min_pixels(self) -> int: ...

    @property
    def max_pixels(self) -> int: ...


def open_image(name: str, encoded: bytes) -> PIL.Image.Image:
    """A picture with its header read and its pixels not yet decoded.

    Raises:
        BadSampleError: not a JPEG or PNG, far too large, or of too many scans.
    """
    try:
        image = PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        # PIL's own words name a place in memory, which tells nothing and is never the same twice.
        raise BadSampleError(name, f"not a JPEG or PNG, in {len(encoded)} bytes") from error
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise BadSampleError(name, f"not a JPEG or PNG ({error})") from error
    if image.width * image.height > MOST_PIXELS:
        raise BadSampleError(name, f"{image.width}x{image.height} pixels; at most {MOST_PIXELS} in all are read")
    if "progressive" in image.info:
        check_scans(name, encoded)
    return image


def check_scans(name: str, encoded: bytes) -> None:
    """A progressive JPEG may not have too many scans.

    Their marker cannot be inside of a scan's codes, where 0xFF is followed by 0; one inside of a note is counted too.

    Raises:
        BadSampleError: it has.
    """
    scans = encoded.count(SCAN_MARKER)
    if scans > MOST_SCANS:
        raise BadSampleError(name, f"a progressive JPEG of {scans} scans; at most {MOST_SCANS} are read")


def decode(name: str, encoded: bytes) -> Pixels:
    """u8[h, w, 3] RGB.

    Raises:
        BadSampleError: the bytes are no whole picture.
    """
    image = open_image(name, encoded)
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        raise BadSampleError(name, f"cannot be decoded ({error})") from error


@lru_cache(maxsize=1024)
def resized_sides(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width after resizing: multiples of 28 that keep the aspect nearly and the area within limits.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > LONGEST_RATIO * min(height, width):
        raise ValueError(f"{width}x{height}: one side is more than {LONGEST_RATIO} times the other")
    unit = PATCH_PIXELS * PATCH_MERGE
    area = height * width
    sides = (round(height / unit) * unit, round(width / unit) * unit)
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(area / max_pixels)
        return (max(unit, int(height / shrink / unit) * unit), max(unit, int(width / shrink / unit) * unit))
    if sides[0] * sides[1] < min_pixels:
        grow = math.sqrt(min_pixels / area)
        return (math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit)
    return sides


def image_grid(name: str, height: int, width: int, limits: Limits) -> tuple[int, int]:
    """Patches of a picture along (height, width), both even.

    Raises:
        BadSampleError: its sides cannot be kept in proportion.
    """
    try:
        sides = resized_sides(height, width, limits.min_pixels, limits.max_pixels)
    except ValueError as error:
        raise BadSampleError(name, str(error)) from error
    return sides[0] // PATCH_PIXELS, sides[1] // PATCH_PIXELS


def resize(pixels: Pixels, grid: tuple[int, int]) -> Pixels:
    """The picture on its grid of patches, bicubic."""
    height, width = grid[0] * PATCH_PIXELS, grid[1] * PATCH_PIXELS
    if pixels.shape[:2] == (height, width):
        return pixels
    image = PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
    return np.asarray(image)
