"""Frames of the LeRobot datasets that interleaved rows speak of: `"<repo_id> <frame_index> <length>"`."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.convert.turns import RowError
from flagscale_vla.data.lerobot.dataset import Frame
from flagscale_vla.data.lerobot.deltas import chunk
from flagscale_vla.data.lerobot.select import Selection
from flagscale_vla.records import Action, State

HELD_EPISODES = 64
"""Whose states and actions a process remembers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Robot:
    """One LeRobot dataset of the mixture."""

    name: str
    """its folder's, and what its episodes are held out by"""
    selection: Selection
    order: tuple[int, ...]
    """the episodes that are loaded, in their order"""
    ends: tuple[int, ...]
    """frames up to and with each of them"""

    @staticmethod
    def of(name: str, selection: Selection, episodes: Sequence[int]) -> Robot:
        """The dataset with these episodes, or all.

        Raises:
            ValueError: an episode is not there.
        """
        order = tuple(episodes) or selection.dataset.order
        lengths = [selection.dataset.episode(index).length for index in order]
        return Robot(name=name, selection=selection, order=order, ends=tuple(accumulate(lengths)))

    def locate(self, index: int) -> tuple[int, int]:
        """(episode, frame) of an index over all frames that are loaded, which is what EO-1's rows mean.

        Raises:
            RowError: there are not so many.
        """
        if not 0 <= index < self.ends[-1]:
            raise RowError(f"frame out of range: {index} of {self.name}, which has {self.ends[-1]} frames")
        place = bisect_right(self.ends, index)
        return self.order[place], index - (self.ends[place - 1] if place else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlace:
    """One frame that a row names."""

    robot: Robot
    episode: int
    frame: int


def find_frame(robots: Mapping[str, Robot | None], text: object) -> FramePlace:
    """The frame of `"<repo_id> <frame_index> <length>"`; the length is passed over, as by EO-1.

    Raises:
        RowError: it is spelled otherwise, or names a dataset or frame that is not there.
    """
    parts = text.split(" ") if isinstance(text, str) else []
    if len(parts) != 3 or not all(part.isdecimal() for part in parts[1:]):
        raise RowError(f"bad frame: {text!r:.80} must be '<repo_id> <frame_index> <length>'")
    if parts[0] not in robots:
        raise RowError(f"unknown dataset: {parts[0]!r} is not in lerobot_datasets, which has {sorted(robots)}")
    robot = robots[parts[0]]
    if robot is None:
        raise RowError(f"unclear dataset: two of lerobot_datasets are {parts[0]!r}")
    episode, frame = robot.locate(int(parts[1]))
    return FramePlace(robot=robot, episode=episode, frame=frame)


@dataclass(slots=True)
class FrameReader:
    """Reads what is at frames, and remembers the numbers of the last episodes."""

    horizon: int
    _held: OrderedDict[tuple[str, int], tuple[NDArray[np.float32], NDArray[np.float32]]] = field(
        default_factory=OrderedDict
    )

    def picture(self, place: FramePlace, key: str) -> Frame:
        """A camera's picture.

        Raises:
            RowError: the camera is not among the dataset's chosen ones.
            ValueError: its file is missing or damaged.
        """
        keys = [camera.key for camera in place.robot.selection.cameras]
        if key not in keys:
            raise RowError(f"unknown view: {key!r} is no camera of {place.robot.name}, which has {keys}")
        return next(place.robot.selection.dataset.frames(place.episode, key, [place.frame]))

    def camera(self, place: FramePlace, key: str) -> str:
        """The short name of a camera that there is."""
        selection = place.robot.selection
        return selection.embodiment.cameras[[camera.key for camera in selection.cameras].index(key)]

    def state(self, place: FramePlace) -> State:
        """The robot's state.

        Raises:
            ValueError: its file is missing or damaged.
        """
        states, _ = self._arrays(place)
        check_finite("state", states[place.frame])
        return State(values=states[place.frame], robot=place.robot.selection.embodiment.name)

    def action(self, place: FramePlace) -> Action:
        """The actions from a frame on.

        Raises:
            ValueError: their file is missing or damaged.
        """
        _, actions = self._arrays(place)
        values, valid = chunk(actions, place.frame, self.horizon)
        check_finite("action", values)
        return Action(values=values, valid=valid, robot=place.robot.selection.embodiment.name)

    def _arrays(self, place: FramePlace) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        key = (place.robot.name, place.episode)
        if key not in self._held:
            while len(self._held) >= HELD_EPISODES:
                self._held.popitem(last=False)
            self._held[key] = place.robot.selection.arrays(place.episode)
        self._held.move_to_end(key)
        return self._held[key]


def check_finite(kind: str, values: NDArray[np.float32]) -> None:
    """Refuse numbers that no shard holds.

    Raises:
        RowError: one is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise RowError(f"{kind} holds NaN or infinity: {values.ravel()[~np.isfinite(values).ravel()][0]}")
