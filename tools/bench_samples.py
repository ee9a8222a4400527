"""Samples to measure a training step on: robot frames, recorded or made up, and text about pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from flagscale_vla.config.runs import TrainRun
from flagscale_vla.data.codes import Tokenizers
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.index import Index, build_index
from flagscale_vla.data.prepare import open_train_data
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.sources import Source
from flagscale_vla.data.store import LocalStore
from flagscale_vla.data.tokenizer import fit_tokenizer
from flagscale_vla.records import Action, Image, RawSample, State, Text
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import RobotStatistics, Statistics

AXES = ("x", "y", "z", "gripper")
ROBOT = Embodiment(name="sawyer", state=AXES, action=AXES, cameras=("front", "wrist"), fps=20)
ZEROS, ONES, MINUS = (0.0,) * len(AXES), (1.0,) * len(AXES), (-1.0,) * len(AXES)
UNIT = Statistics(count=100, mean=ZEROS, std=ONES, min=MINUS, max=ONES, q01=MINUS, q99=ONES)
INSTRUCTIONS = ("open the door", "close the red drawer all the way", "push the button down from the top", "open it")
CAMERA_PIXELS = 112
SHORTEST, LONGEST = 40, 600
"""Tokens of the text-image samples of the mixture."""
EQUAL_TO_A_ROW = 16
"""Samples that fill a row where all are equal: nobody pads."""


class Samples:
    """Draws samples of a mix and turns them into what the model reads.

    Args:
        run: whose settings of data, action and model hold; its shards are used where `data.shards` is a folder.
        equal: all samples of a sixteenth of a row, or robot frames as they are and text-image samples of any length.
    """

    def __init__(self, run: TrainRun, *, equal: bool) -> None:
        self.length = run.data.pack_length // EQUAL_TO_A_ROW if equal else None
        self.recipe, self.index = recorded(run) if Path(run.data.shards).is_dir() else (made_up(run), None)
        self.generator = np.random.default_rng(run.seed)

    def draw(self, number: int) -> RawSample:
        """The next sample: a robot frame or a picture with text, equally likely."""
        if self.generator.random() < 0.5:
            frame = self._frame(f"robot-{number:05d}")
            return self._filled(frame, self.length) if self.length else frame
        length = self.length or int(self.generator.integers(SHORTEST, LONGEST + 1))
        picture = self._picture("picture", *self.generator.integers(56, CAMERA_PIXELS + 1, 2).tolist())
        texts = (Text(text="", supervised=supervised) for supervised in (False, True))
        return self._filled(RawSample(key=f"text-{number:05d}", segments=(picture, *texts)), length)

    def _frame(self, key: str) -> RawSample:
        if self.index is not None:
            place = self.index.place(int(self.generator.integers(len(self.index))))
            return replace(read_sample(self.index.store, place), key=key)
        values = self.generator.normal(size=(self.recipe.action.horizon, len(AXES))).astype(np.float32)
        segments = (
            *(self._picture(name, CAMERA_PIXELS, CAMERA_PIXELS) for name in ROBOT.cameras),
            State(values=values[0], robot=ROBOT.name),
            Text(text=str(self.generator.choice(INSTRUCTIONS)), supervised=False),
            Action(values=values, valid=np.ones(len(values), np.bool_), robot=ROBOT.name),
        )
        return RawSample(key=key, segments=segments)

    def _picture(self, name: str, height: int, width: int) -> Image:
        """A smooth random picture."""
        coarse = Picture.fromarray(self.generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((width, height), Picture.Resampling.BICUBIC).save(buffer, "PNG")
        return Image(name=name, encoded=buffer.getvalue())

    def _filled(self, raw: RawSample, length: int) -> RawSample:
        """The sample with digits for text, `length` tokens in all: Qwen's tokenizers make each digit one token."""
        texts = sum(isinstance(part, Text) for part in raw.segments)
        missing = length - self.recipe.length(_with_texts(raw, [""] * texts))
        digits = self.generator.integers(10, size=missing)
        return _with_texts(raw, ["".join(map(str, part)) for part in np.array_split(digits, texts)])


def _with_texts(raw: RawSample, texts: list[str]) -> RawSample:
    left = iter(texts)
    parts = (replace(part, text=next(left)) if isinstance(part, Text) else part for part in raw.segments)
    return replace(raw, segments=tuple(parts))


def recorded(run: TrainRun) -> tuple[Recipe, Index]:
    """Recipe and index of the run's shards."""
    recipe, (source,) = open_train_data(
        run.data, run.action, width=run.model.flow.width, vocab=run.model.language.vocab
    )
    return recipe, source.index


def made_up(run: TrainRun) -> Recipe:
    """A recipe for frames of a robot that does not exist."""
    template = ["system\n", "user\n", "assistant\n", run.data.system_prompt, *INSTRUCTIONS]
    return Recipe(
        tokenizers=Tokenizers(text=fit_tokenizer(2 * template, run.model.language.vocab), actions=None),
        embodiments={ROBOT.name: ROBOT},
        statistics={ROBOT.name: RobotStatistics(state=UNIT, action=UNIT)},
        image=run.data.image,
        action=run.action,
        width=run.model.flow.width,
        system_prompt=run.data.system_prompt,
    )


def open_feed(run: TrainRun, folder: Path) -> Feed:
    """What a training run reads of shards of the made-up robot, its pictures unchanged."""
    recipe = made_up(run)
    index = build_index(LocalStore(folder), "train", recipe)
    return Feed(
        sources=(Source(name="", index=index),),
        recipe=recipe.with_statistics(index.statistics),
        order=run.data,
        pack_length=run.data.pack_length,
        seed=0,
        augment=False,
    )
