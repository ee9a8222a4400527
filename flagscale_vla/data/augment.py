"""Training changes a robot's pictures: EO-1's list (its eo/data/transforms.py), and a shift by whole pixels.

Each picture gets `most` of the kinds that are not off, in random order, each with a random strength. Which, in what
order and how strongly is drawn from (seed, epoch, key, camera): another camera of the same sample is changed
independently, another process or order of reading changes nothing. The frames of a film share one draw.

EO-1 changes robots' pictures alone, and so does this. A crop, a rotation or a shift moves what is in a picture, so a
sample whose answer is in words, which may be places, keeps its pictures where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import PIL.Image
import torch
from PIL import ImageEnhance

from flagscale_vla.config.image import AugmentConfig
from flagscale_vla.data.images import Pixels
from flagscale_vla.records import Action, Segment, State, Text

SIXTHS = 6.0
"""Of the colour circle: from red over yellow to green, and so on."""
PLACES = (5.0, 3.0, 1.0)
"""Where on it red, green and blue are at their least, less two sixths."""


class Kind(Enum):
    """What is changed; the names of `AugmentConfig`."""

    brightness = "brightness"
    contrast = "contrast"
    saturation = "saturation"
    sharpness = "sharpness"
    hue = "hue"
    crop = "crop"
    rotate = "rotate"
    shift = "shift"


MOVES = frozenset({Kind.crop, Kind.rotate, Kind.shift})
"""Changes after which things are elsewhere in the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of one picture."""

    kind: Kind
    strength: float
    """factor, turn of the colour circle, share of the area, or degrees; 0 for a shift"""
    place: tuple[float, float] = (0.0, 0.0)
    """(down, right): of a crop, where it lies between the edges, in [0, 1]; of a shift, whole pixels"""


def allowed(segments: Sequence[Segment]) -> frozenset[Kind]:
    """What may be changed in the pictures of a sample."""
    if not any(isinstance(segment, State | Action) for segment in segments):
        return frozenset()
    answers = any(isinstance(segment, Text) and segment.supervised for segment in segments)
    return frozenset(Kind) - MOVES if answers else frozenset(Kind)


def draw(config: AugmentConfig, kinds: frozenset[Kind], generator: np.random.Generator) -> list[Change]:
    """The changes of one picture, in the order in which they are made.

    Args:
        config: ranges, and how many.
        kinds: that the sample allows.
        generator: of the sample and camera.
    """
    usable = [kind for kind in Kind if kind in kinds and is_on(config, kind)]
    order = generator.permutation(len(usable))[: config.most].tolist()
    return [_draw_one(config, usable[place], generator) for place in order]


def is_on(config: AugmentConfig, kind: Kind) -> bool:
    """Whether a kind is ever drawn."""
    return config.shift > 0 if kind is Kind.shift else bool(strengths(config, kind))


def strengths(config: AugmentConfig, kind: Kind) -> list[float]:
    """The range of a kind other than the shift: its ends, or none where it is off."""
    ends: list[float] = config.__getattribute__(kind.value)
    return ends


def _draw_one(config: AugmentConfig, kind: Kind, generator: np.random.Generator) -> Change:
    if kind is Kind.shift:
        down, right = generator.integers(-config.shift, config.shift + 1, 2).tolist()
        return Change(kind=kind, strength=0.0, place=(down, right))
    least, most = strengths(config, kind)
    strength = float(generator.uniform(least, most))
    down, right = generator.random(2).tolist() if kind is Kind.crop else (0.0, 0.0)
    return Change(kind=kind, strength=strength, place=(down, right))


def apply(pixels: Pixels, changes: Sequence[Change]) -> Pixels:
    """The picture u8[h, w, 3] changed, of the same sides."""
    if not changes:
        return pixels
    image = PIL.Image.fromarray(pixels)
    for change in changes:
        image = apply_one(image, change)
    return np.asarray(image)


def apply_one(image: PIL.Image.Image, change: Change) -> PIL.Image.Image:
    """One change. All but the hue's are Pillow's own, which torchvision's changes of Pillow images are too."""
    match change.kind:
        case Kind.brightness:
            return ImageEnhance.Brightness(image).enhance(change.strength)
        case Kind.contrast:
            return ImageEnhance.Contrast(image).enhance(change.strength)
        case Kind.saturation:
            return ImageEnhance.Color(image).enhance(change.strength)
        case Kind.sharpness:
            return ImageEnhance.Sharpness(image).enhance(change.strength)
        case Kind.hue:
            return PIL.Image.fromarray(turn_hue(np.asarray(image), change.strength))
        case Kind.crop:
            return crop(image, change.strength, *change.place)
        case Kind.rotate:
            return image.rotate(change.strength, PIL.Image.Resampling.BILINEAR)
        case Kind.shift:
            return PIL.Image.fromarray(shift(np.asarray(image), *(int(part) for part in change.place)))


def turn_hue(pixels: Pixels, turn: float) -> Pixels:
    """Every colour moved along the colour circle by this share of it; greys stay. In HSV (Smith 1978), as floats."""
    red, green, blue = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C"))
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    span = high - low
    scale = span.clamp(min=1.0).reciprocal_()
    hue = torch.where(high == green, (blue - red).mul_(scale).add_(2.0), (red - green).mul_(scale).add_(4.0))
    hue = torch.where(high == red, (green - blue).mul_(scale), hue).add_(SIXTHS * turn)
    turned = torch.empty((3, *hue.shape))
    for plane, place in zip(turned, PLACES, strict=True):
        along = hue + place
        along -= (along / SIXTHS).floor_().mul_(SIXTHS)
        share = torch.minimum(along, 4.0 - along).clamp_(0.0, 1.0)
        torch.sub(high, share.mul_(span), out=plane)
    return turned.round_().to(torch.uint8).permute(1, 2, 0).numpy()


def crop(image: PIL.Image.Image, share: float, down: float, right: float) -> PIL.Image.Image:
    """A part of the picture with this share of its area, resized to all of it."""
    side = share**0.5
    width, height = image.size
    left, top = right * width * (1 - side), down * height * (1 - side)
    box = (left, top, left + side * width, top + side * height)
    return image.resize(image.size, PIL.Image.Resampling.BICUBIC, box=box)


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
