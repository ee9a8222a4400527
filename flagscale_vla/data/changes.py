"""What the changes of `data.augment` do to a picture u8[h, w, 3]: Pillow's and torchvision's meaning, in fewer passes.

Each gives a picture of the same sides. Saturation and crop are Pillow's own; brightness, contrast and sharpness have
Pillow's levels, but where a mean grey of the picture lies at half a level; a rotation is within one level of Pillow's,
which cuts fractions off; the hue is rounded from floats.
"""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ImageEnhance
from torch import Tensor

from flagscale_vla.data.images import Pixels

SIXTHS = 6.0
"""Of the colour circle: from red over yellow to green, and so on."""
FURTHEST = 3.0
"""Half of it."""
LEAST = (3.0, 5.0, 1.0)
"""Where on it red, green and blue are at their least."""
LUMA = (0.299, 0.587, 0.114)
"""Of ITU-R BT.601."""
SMOOTH_MIDDLE = 4
"""What Pillow's smoothing adds to a box of 3 x 3 ones, in its middle."""
SMOOTH_SUM = 13
LEVELS = np.arange(256, dtype=np.int16)
Levels = NDArray[np.int16]


def brighten(pixels: Pixels, factor: float) -> Pixels:
    """Away from black."""
    return look_up(pixels, blend(0, LEVELS, factor))


def add_contrast(pixels: Pixels, factor: float) -> Pixels:
    """Away from the mean grey of the picture, a whole level."""
    height, width = pixels.shape[:2]
    columns = pixels.reshape(height, -1).astype(np.float32).sum(axis=0)
    mean = float(columns.reshape(width, 3).sum(axis=0, dtype=np.float64) @ np.array(LUMA)) / (height * width)
    return look_up(pixels, blend(math.floor(mean + 0.5), LEVELS, factor))


def look_up(pixels: Pixels, table: Pixels) -> Pixels:
    """Every level replaced by its entry of u8[256]; Python's bytes do it some times faster than an indexed array."""
    return np.frombuffer(pixels.tobytes().translate(table.tobytes()), np.uint8).reshape(pixels.shape)


def saturate(pixels: Pixels, factor: float) -> Pixels:
    """Every colour away from its own grey."""
    return np.asarray(ImageEnhance.Color(PIL.Image.fromarray(pixels)).enhance(factor))


def sharpen(pixels: Pixels, factor: float) -> Pixels:
    """Away from the picture smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; its edges stay."""
    height, width = pixels.shape[:2]
    changed = pixels.copy()
    if min(height, width) > 2:
        levels = pixels.reshape(-1).astype(np.int16)
        middle = levels[3 * width + 3 : -3 * width - 3]
        # As one line of levels: what reaches around an edge is left out below.
        inner = np.empty((height - 2) * 3 * width, np.uint8)
        inner[:-6] = blend(smoothed(levels, middle, width), middle, factor)
        changed[1:-1, 1:-1] = inner.reshape(height - 2, width, 3)[:, :-2]
    return changed


def smoothed(levels: Levels, middle: Levels, width: int) -> Levels:
    """Of the middle of levels in one line, row by row, rounded."""
    rows = levels[: -6 * width] + levels[3 * width : -3 * width]
    rows += levels[6 * width :]
    smooth = rows[:-6] + rows[3:-3]
    smooth += rows[6:]
    smooth += SMOOTH_MIDDLE * middle
    smooth += SMOOTH_SUM // 2
    smooth //= SMOOTH_SUM
    return smooth


def blend(base: Levels | int, levels: Levels, factor: float) -> Pixels:
    """base + factor * (levels - base) within [0, 255], its fraction cut off, as Pillow's `Image.blend` does."""
    away = (levels - base).astype(np.float32)
    away *= np.float32(factor)
    away += base
    np.maximum(away, 0, out=away)
    np.minimum(away, 255, out=away)
    return away.astype(np.uint8)


def turn_hue(pixels: Pixels, turn: float) -> Pixels:
    """Every colour moved along the colour circle by this share of it; greys stay.

    HSV of Smith (1978), in floats and all times the colour's span, so that nothing is divided. A colour's place on the
    circle, in sixths from red and with a sign, is (g + b - r + max - 2 min) / span from red, towards green where g > b.
    A channel is at its least within a sixth of its `LEAST`, at its most from two sixths on, and even in between.
    """
    planes = to_planes(pixels)
    red, green, blue = planes
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    span = high - low
    place = (green + blue).sub_(red).add_(high).sub_(low, alpha=2)
    place = place.copysign_(torch.sub(green, blue, out=red))
    top = high + span
    for plane, least in zip(planes, LEAST, strict=True):
        start = (least - SIXTHS * turn + FURTHEST) % SIXTHS - FURTHEST
        torch.sub(place, span, alpha=start, out=plane)
        # Its distance around the circle is 3 - | |plane| - 3 |, in spans.
        plane.abs_().sub_(span, alpha=FURTHEST).abs_()
        torch.sub(top, plane, out=plane)
        torch.minimum(torch.maximum(plane, low, out=plane), high, out=plane)
    return to_pixels(planes)


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """Counter-clockwise about the middle, bilinear; black where there was no picture."""
    height, width = pixels.shape[:2]
    turn = math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    right = torch.arange(width, dtype=torch.float32).add_(0.5 - width / 2)
    down = torch.arange(height, dtype=torch.float32).add_(0.5 - height / 2)[:, None]
    # Whence a pixel comes, in halves of the sides from the middle.
    source = torch.empty((2, height, width))
    torch.add(right * (2 * cosine / width), down * (-2 * sine / width), out=source[0])
    torch.add(right * (2 * sine / height), down * (2 * cosine / height), out=source[1])
    grid = source.permute(1, 2, 0)[None]
    turned = F.grid_sample(to_planes(pixels)[None], grid, padding_mode="border", align_corners=False)[0]
    furthest = torch.maximum(*source.abs_()).numpy()
    inside = torch.from_numpy((furthest < 1).astype(np.float32))
    for plane in turned:
        plane.mul_(inside)
    return to_pixels(turned)


def crop(pixels: Pixels, share: float, down: float, right: float) -> Pixels:
    """A part of the picture with this share of its area, resized to all of it, bicubic."""
    image = PIL.Image.fromarray(pixels)
    side = share**0.5
    width, height = image.size
    left, top = right * width * (1 - side), down * height * (1 - side)
    box = (left, top, left + side * width, top + side * height)
    return np.asarray(image.resize(image.size, PIL.Image.Resampling.BICUBIC, box=box))


def shift(pixels: Pixels, down: int, right: int) -> Pixels:
    """The whole picture moved by whole pixels, less than its sides; edges are repeated into the gap."""
    height, width = pixels.shape[:2]
    top, bottom = max(down, 0), height + min(down, 0)
    left, end = max(right, 0), width + min(right, 0)
    moved = np.empty_like(pixels)
    moved[top:bottom, left:end] = pixels[top - down : bottom - down, left - right : end - right]
    moved[top:bottom, :left] = moved[top:bottom, left : left + 1]
    moved[top:bottom, end:] = moved[top:bottom, end - 1 : end]
    moved[:top], moved[bottom:] = moved[top], moved[bottom - 1]
    return moved


def to_planes(pixels: Pixels) -> Tensor:
    """f32[3, h, w], a copy."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C"))


def to_pixels(planes: Tensor) -> Pixels:
    """u8[h, w, 3] of f32[3, h, w] within [0, 255], which is overwritten; rounded."""
    planes.add_(0.5)
    pixels = np.empty((*planes.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(planes.numpy()):
        pixels[..., channel] = plane
    return pixels
