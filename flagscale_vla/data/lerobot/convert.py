"""Job `convert_lerobot`: a LeRobot dataset becomes shards, one sample a frame."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.convert_lerobot import ConvertLeRobotRun, Instruction
from flagscale_vla.data.convert.converter import Converted, Refusal, Skipped, Unit
from flagscale_vla.data.convert.job import convert
from flagscale_vla.data.convert.pictures import PictureRule
from flagscale_vla.data.convert.plan import Row, group_rows
from flagscale_vla.data.lerobot.dataset import Frame, LeRobotDataset
from flagscale_vla.data.lerobot.deltas import chunk
from flagscale_vla.data.lerobot.episodes import EpisodeInfo
from flagscale_vla.data.lerobot.select import Choice, Selection, select
from flagscale_vla.data.lerobot.words import instruction_at, subtask_at
from flagscale_vla.records import Action, Image, Segment, State, Text
from flagscale_vla.robots.embodiments import Embodiment

logger = logging.getLogger(__name__)


def run(run: ConvertLeRobotRun) -> None:
    """Convert a dataset.

    Raises:
        ValueError: its meta files are missing or damaged, a key or an episode is not in it, it has no parts that an
            instruction could be made of, or too many frames are refused.
    """
    convert(open_converter(run), run)


def open_converter(run: ConvertLeRobotRun) -> LeRobotConverter:
    """The converter of a run's dataset."""
    root = Path(run.source)
    name = run.name or root.resolve().name
    choice = Choice(
        camera_keys=tuple(run.camera_keys),
        state_keys=tuple(run.state_keys),
        action_keys=tuple(run.action_keys),
        delta_actions=run.delta_actions,
        effector_indices=tuple(run.effector_indices),
        robot=run.robot,
    )
    dataset = LeRobotDataset.open(root)
    check_subtasks(dataset, run.instruction)
    return LeRobotConverter(run=run, name=name, selection=select(dataset, name, choice))


def check_subtasks(dataset: LeRobotDataset, mode: Instruction) -> None:
    """See that episodes have the parts that instructions are to be made of.

    Raises:
        ValueError: none has.
    """
    if mode is Instruction.task:
        return
    plain = sum(not episode.subtasks for episode in dataset.episodes.values())
    if plain == len(dataset.episodes):
        raise ValueError(
            f"instruction={mode.value}: no episode of {dataset.info.root} has an action_config. This would pass: "
            "instruction=task"
        )
    if plain:
        logger.warning("%d of %d episodes have no action_config and keep their task's words", plain, len(dataset.order))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeRobotConverter:
    """Reads episodes of one dataset; a unit's payload is a tuple of their indices."""

    run: ConvertLeRobotRun
    name: str
    selection: Selection

    def embodiments(self) -> Mapping[str, Embodiment]:
        """The dataset's one robot."""
        return {self.selection.embodiment.name: self.selection.embodiment}

    def units(self) -> Sequence[Unit]:
        """Whole episodes, held out by their names.

        Raises:
            ValueError: an episode that is asked for is not there.
        """
        dataset = self.selection.dataset
        episodes = [dataset.episode(index) for index in self.run.episodes or dataset.order]
        return group_rows(
            (
                Row(name=f"{self.name} {about.index}", samples=-(-about.length // self.run.stride), payload=about.index)
                for about in episodes
            ),
            self.run,
        )

    def samples(self, unit: Unit) -> Iterator[Converted | Refusal | Skipped]:
        """The frames of a unit's episodes."""
        assert isinstance(unit.payload, tuple)
        for index in unit.payload:
            yield from self.episode(self.selection.dataset.episode(index))

    def episode(self, about: EpisodeInfo) -> Iterator[Converted | Refusal | Skipped]:
        """An episode's frames. Where a file breaks, the frames that are left are refused together."""
        wanted = range(0, about.length, self.run.stride)
        place = f"{self.name} episode {about.index}"
        if not wanted:
            yield Refusal(place=place, reason="episode has no frames")
            return
        done = 0
        try:
            for sample in self._frames(about, wanted):
                yield sample
                done += 1
        except ValueError as error:
            yield Refusal(place=f"{place} frame {wanted[done]}", reason=str(error), rows=len(wanted) - done)
        if about.length > len(wanted):
            yield Skipped(reason=f"stride={self.run.stride}", count=about.length - len(wanted))

    def _frames(self, about: EpisodeInfo, wanted: Sequence[int]) -> Iterator[Converted | Refusal]:
        dataset, selection = self.selection.dataset, self.selection
        states, actions = selection.arrays(about.index)
        tasks = dataset.frame_table(about.index, ["task_index"])["task_index"][:, 0].tolist()
        cameras = [dataset.frames(about.index, camera.key, wanted) for camera in selection.cameras]
        for frame in wanted:
            pictures = [next(camera) for camera in cameras]
            try:
                yield self._sample(about, frame, pictures, states[frame], actions, self._task(tasks[frame]))
            except ValueError as error:
                yield Refusal(place=f"{self.name} episode {about.index} frame {frame}", reason=str(error))

    def _task(self, index: int) -> str:
        if not self.selection.dataset.tasks.get(index):
            raise ValueError(f"task has no words: task_index={index}")
        return self.selection.dataset.tasks[index]

    def _sample(
        self,
        about: EpisodeInfo,
        frame: int,
        pictures: Sequence[Frame],
        state: NDArray[np.float32],
        actions: NDArray[np.float32],
        task: str,
    ) -> Converted:
        robot, rule = self.selection.embodiment, PictureRule.of(self.run)
        key = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', self.name)}-{about.index:06d}-{frame:06d}"
        words = instruction_at(about, frame, task, self.run.instruction, self.run.subtask_share, key)
        values, valid = chunk(actions, frame, self.run.horizon)
        segments: tuple[Segment, ...] = (
            *(
                Image(name=name, encoded=store_picture(picture, rule))
                for name, picture in zip(robot.cameras, pictures, strict=True)
            ),
            State(values=state, robot=robot.name),
            Text(text=words, supervised=False),
            Action(values=values, valid=valid, robot=robot.name),
        )
        subtask = subtask_at(about, frame)
        meta = {
            "source": self.name,
            "task": task,
            "episode": about.index,
            "frame": frame,
            "num_frames": about.length,
            "fps": robot.fps,
            "instruction": words,
            **({"subtask": subtask} if subtask else {}),
        }
        return Converted(key=key, segments=segments, meta=meta)


def store_picture(picture: Frame, rule: PictureRule) -> bytes:
    """A frame as a shard holds it.

    Raises:
        ValueError: it cannot be decoded.
    """
    return rule.recode(picture) if isinstance(picture, bytes) else rule.encode(picture)
