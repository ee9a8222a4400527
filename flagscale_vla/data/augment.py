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

from flagscale_vla.config.image import AugmentConfig
from flagscale_vla.data import changes as does
from flagscale_vla.data.images import Pixels
from flagscale_vla.records import Action, Segment, State, Text


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
    for change in changes:
        pixels = apply_one(pixels, change)
    return pixels


def apply_one(pixels: Pixels, change: Change) -> Pixels:
    """One change."""
    match change.kind:
        case Kind.brightness:
            return does.brighten(pixels, change.strength)
        case Kind.contrast:
            return does.add_contrast(pixels, change.strength)
        case Kind.saturation:
            return does.saturate(pixels, change.strength)
        case Kind.sharpness:
            return does.sharpen(pixels, change.strength)
        case Kind.hue:
            return does.turn_hue(pixels, change.strength)
        case Kind.crop:
            return does.crop(pixels, change.strength, *change.place)
        case Kind.rotate:
            return does.rotate(pixels, change.strength)
        case Kind.shift:
            down, right = change.place
            return does.shift(pixels, int(down), int(right))
