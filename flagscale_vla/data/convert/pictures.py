"""Pictures on their way into a shard: kept as they are where they fit, made smaller and written anew where not."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as Picture

from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.data.shards import JPEG_MAGIC, PNG_MAGIC

MOST_PIXELS = 2**26
"""Of a picture that is opened: 8192 x 8192. A file of a few bytes may claim any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRule:
    """How pictures are stored."""

    longest: int
    """longest side in pixels; 0 for any"""
    quality: int
    """of JPEG"""

    @staticmethod
    def of(run: ConvertRun) -> PictureRule:
        """As a run's settings say."""
        return PictureRule(longest=run.image_pixels, quality=run.jpeg_quality)

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """JPEG bytes of a picture u8[h, w, 3], made smaller where it is too large."""
        return encode_jpeg(resize(pixels, fit_sides(pixels.shape[0], pixels.shape[1], self.longest)), self.quality)

    def recode(self, encoded: bytes) -> bytes:
        """The same bytes where they are JPEG or PNG and fit, or else JPEG bytes of the picture they show.

        Raises:
            ValueError: they cannot be decoded.
        """
        width, height = read_size(encoded)
        sides = fit_sides(height, width, self.longest)
        kept = encoded.startswith((JPEG_MAGIC, PNG_MAGIC))
        if kept and sides == (height, width):
            return encoded
        return encode_jpeg(resize(decode_picture(encoded), sides), self.quality)


def fit_sides(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) in proportion, no side above `longest`; 0 keeps them."""
    if longest == 0 or max(height, width) <= longest:
        return height, width
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(pixels: NDArray[np.uint8], sides: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture u8[h, w, 3] at (height, width), averaged over what a pixel covers (bicubic with antialias)."""
    if pixels.shape[:2] == sides:
        return pixels
    return np.asarray(Picture.fromarray(pixels).resize((sides[1], sides[0]), Picture.Resampling.BICUBIC))


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of an RGB picture u8[h, w, 3], with colours at full resolution: objects are a few pixels wide."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="444"
    )


def read_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) from a picture's head.

    Raises:
        ValueError: the bytes are no picture, or one that is too large to open.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Picture.DecompressionBombWarning)
        try:
            with Picture.open(io.BytesIO(encoded)) as picture:
                width, height = picture.size
        except (OSError, ValueError, SyntaxError, Picture.DecompressionBombError) as error:
            raise ValueError(f"picture cannot be read: {error}") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"picture is too large: {width}x{height}, over {MOST_PIXELS} pixels")
    return width, height


def check_whole(encoded: bytes) -> None:
    """See that a picture can be decoded to its end; a JPEG at an eighth of its size, which takes a quarter of the time.

    Raises:
        ValueError: it cannot.
    """
    try:
        with Picture.open(io.BytesIO(encoded)) as picture:
            picture.draft("RGB", (picture.width // 8, picture.height // 8))
            picture.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"picture cannot be read: {error}") from error


def decode_picture(encoded: bytes) -> NDArray[np.uint8]:
    """Pixels u8[h, w, 3] of an encoded picture, RGB; a turn that EXIF data ask for is not made.

    Raises:
        ValueError: they cannot be decoded.
    """
    read_size(encoded)
    try:
        with Picture.open(io.BytesIO(encoded)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"picture cannot be read: {error}") from error
