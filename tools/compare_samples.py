"""Samples that the comparisons with public code make up: a robot's frame, text about a picture, two requests."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from flagscale_vla.data.recipe import Recipe
from flagscale_vla.records import Action, Image, RawSample, Sample, Segment, State, Text

SIZES = ((112, 112), (84, 140), (140, 56))
"""Height and width of the pictures, in turn."""
INSTRUCTIONS = ("open the door", "now close it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A sample, what it is made of, and what the table calls it."""

    name: str
    raw: RawSample
    pictures: tuple[NDArray[np.uint8], ...]
    """u8[h, w, 3], in order"""
    sample: Sample


class Maker:
    """Makes samples of a recipe's first robot out of seeded noise.

    Args:
        recipe: how a checkpoint's samples are laid out.
        seed: of pictures, states, actions, flow noise and time.

    Raises:
        ValueError: the recipe knows no robot, as that of imported weights.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        if not recipe.statistics:
            raise ValueError("the checkpoint's recipe has no robot with statistics: there are no actions to compare")
        self.recipe, self.seed = recipe, seed
        self.robot = recipe.embodiments[next(iter(recipe.statistics))]
        self.generator = np.random.default_rng(seed)
        self.pictures: list[NDArray[np.uint8]] = []

    def frame(self, name: str, *, cut: int) -> Case:
        """A robot's frame; the last `cut` steps of its chunk are past the episode's end."""
        return self._case(name, [*self._request(INSTRUCTIONS[0]), self._action(cut)], [True])

    def text(self, name: str) -> Case:
        """A question about a picture and its answer, without actions."""
        question = Text(text="what is on the table?", supervised=False)
        return self._case(name, [self._picture("photo"), question, Text(text="a red drawer", supervised=True)], [])

    def two_chunks(self, name: str) -> Case:
        """Two requests, each with its chunk: the first clean, the second noised and trained on."""
        first, second = (self._request(instruction) for instruction in INSTRUCTIONS)
        return self._case(name, [*first, self._action(0), *second, self._action(1)], [False, True])

    def _request(self, instruction: str) -> list[Segment]:
        state = self.generator.normal(size=len(self.robot.state)).astype(np.float32)
        return [
            *(self._picture(camera) for camera in self.robot.cameras),
            State(values=state, robot=self.robot.name),
            Text(text=instruction, supervised=False),
        ]

    def _action(self, cut: int) -> Action:
        horizon = self.recipe.action.horizon
        values = self.generator.normal(size=(horizon, len(self.robot.action))).astype(np.float32)
        return Action(values=values, valid=np.arange(horizon) < horizon - cut, robot=self.robot.name)

    def _picture(self, name: str) -> Image:
        size = SIZES[len(self.pictures) % len(SIZES)]
        self.pictures.append(self.generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        Picture.fromarray(self.pictures[-1]).save(buffer, "PNG")
        return Image(name=name, encoded=buffer.getvalue())

    def _case(self, name: str, segments: list[Segment], noised: list[bool]) -> Case:
        """The sample with these chunks noised; which ones are is drawn from its key, so keys are tried in turn."""
        pictures = tuple(self.pictures[-sum(isinstance(segment, Image) for segment in segments) :])
        for attempt in range(1000):
            raw = RawSample(key=f"{name} {attempt}", segments=tuple(segments))
            sample = self.recipe.sample(raw, seed=self.seed, epoch=0, augment=False)
            if (sample.time > 0).tolist() == noised:
                return Case(name=name, raw=raw, pictures=pictures, sample=sample)
        raise AssertionError(f"{name}: no key of 1000 noises its chunks as asked for")
